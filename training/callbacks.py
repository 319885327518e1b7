"""What stages 1 and 2 do alike: their flags, the recipe of a run, training with exact resume, writing the artifacts.
02 and 03 differ in level, loss and starting point; everything here is the same for both.
"""

import csv
import functools
import hashlib
import json
import platform
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

from common import (
    HERE,
    OUTPUTS,
    SAGA,
    WindowBatches,
    build_saga,
    git_commit,
    keras,
    not_negative,
    positive,
    share,
)
from tokens.dataset import (
    Windows,
    read_index,
    read_json,
    replace_whole,
    write_json,
)
from tokens.split import Videos, features_recipe
from training.devices import (
    check_alike,
    described,
    even,
    fuse_attention,
    one_device,
    predict_on_batch,
    processes,
    replicas,
    writes,
)
from training.evaluation import validation
from training.remat import FrugalSAGA
from training.service import ServiceBatches, service_address

# ---------------------------------------------------------------- the flags that 02 and 03 share


def add_training_arguments(parser, labels_per_class):
    """Flags that mean the same in 02 and 03; defaults are the paper's (Sec. S-2)."""
    add = parser.add_argument
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder for models, metrics and figures")
    add("--generators", default=str(HERE / "generators.csv"), help="the generator table")
    add("--train-generators", type=names, help="A,B,...: train on these and Real only, not on all of the table")
    add("--test-generators", type=names, help="A,B,...: test on these and Real, not on those trained on")
    add("--test-features", help="test on every video of this features folder, not on the test split")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others; no val")
    add("--labels-per-class", type=count_or_all, default=labels_per_class, help="videos per class to train on, or all")
    add("--limit", type=positive, help="at most this many videos per generator and split: a small run")
    add("--epochs", type=positive, default=10, help="passes over the training windows")
    add("--batch-size", type=positive, default=64, help="windows per step")
    add("--batching", choices=("natural", "pk"), default="natural", help="shuffled, or dealt equally to the classes")
    add("--learning-rate", type=not_negative, default=1e-5, help="AdamW's initial rate")
    add("--decay-steps", type=not_negative, default=1000, help="steps in which the rate halves, smoothly; 0: constant")
    add("--weight-decay", type=not_negative, default=0.004, help="AdamW's weight decay")
    add("--dropout", type=share, default=0.1, help="dropout in every block")
    add("--temporal-blocks", type=positive, default=5, help="temporal encoder blocks, 2 or more")
    add("--dtype", choices=("float32", "mixed_bfloat16"), default="float32", help="what the transformer computes in")
    add("--tpu", action="store_true", help="train on a TPU; several GPUs need no flag")
    add("--accumulate", type=positive, default=1, metavar="N", help="take each batch in N chunks, in less memory")
    add("--remat", action="store_true", help="compute the spatial block again going back, in less memory")
    add("--best", choices=("val", "last"), default="val", help="keep the epoch best on val, or train on val as well")
    add("--seed", type=int, default=0, help="seed of weights, dropout, batches and the choice of labels")
    add("--data-service", type=service_address, help="grpc://HOST:PORT: a tf.data service reads (data_service.py)")
    add("--overwrite", action="store_true", help="train anew although the run folder holds other results")


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def fold(text):
    k, n = (int(part) for part in text.split("/"))
    if not 1 <= k <= n or n < 2:
        raise ValueError(text)
    return k, n


def count_or_all(text):
    return "all" if text == "all" else positive(text)


# ---------------------------------------------------------------- recipe and resume

ADDED = {"temporal_blocks": 5, "accumulate": 1, "remat": False}  # flags that older runs do not name, and their values
PATHS = ("features", "test_features", "generators", "init", "run", "videos", "encoder_weights")  # compared by content
MACHINES = ("tpu", "data_service", "threads")  # who computes and who reads, which a run may change on the way


def make_recipe(level, args, rows, **more) -> dict:
    """What a run is made from: arguments, features (index rows and their recipe), versions, git commit."""
    given = {key: value for key, value in vars(args).items() if key != "overwrite"}
    return {
        "level": level,
        "arguments": json.loads(json.dumps(given)),
        "features": features_recipe(args.features),
        "index_sha256": index_digest(rows),
        "test_index_sha256": index_digest(read_index(args.test_features)) if args.test_features else None,
        "table_sha256": file_digest(args.generators),
        **more,
        "versions": versions(),
        "git": git_commit(),
    }


def versions():
    packages = {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__}
    return packages | {"backend": keras.backend.backend()}


def load_saga(path, script):
    """A model of 02 or 03. Raises ValueError when the file is not one, naming the script that writes it."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a model ({why}); run {script} again") from error
    if not isinstance(model, SAGA):
        raise ValueError(f"{path} is not a model of {script}")
    return model


def index_digest(rows):
    lines = [",".join(str(row[key]) for key in ("path", "generator", "group", "split", "windows")) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished_metrics(level, args, recipe):
    """The metrics of a finished run of this very recipe, or None when there is work to do.

    Raises ValueError naming what differs when the folder holds a run made otherwise; --overwrite clears it instead.
    """
    Path(args.run).mkdir(parents=True, exist_ok=True)
    metrics, checkpoint = Path(args.run) / f"{level}.json", Path(args.run) / f"{level}_checkpoint.npz"
    if args.overwrite:
        metrics.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    if not metrics.exists():
        return None
    found = read_json(metrics, ("recipe",))
    refuse_other_recipe(metrics, found["recipe"], recipe)
    print(f"{metrics} is up to date (--overwrite trains anew)")
    return found


def refuse_other_recipe(path, found, wanted):
    """Raise ValueError when two recipes differ in more than versions, commit and the names of folders."""

    def settings(recipe):
        given = ADDED | recipe.get("arguments", {})
        flat = {key: value for key, value in given.items() if key not in PATHS + MACHINES}
        features = {key: value for key, value in recipe.get("features", {}).items() if key not in ("versions", "git")}
        digests = {key: recipe.get(key) for key in recipe if key.endswith("_sha256")}
        return flat | digests | {"features": features}

    old, new = settings(found), settings(wanted)
    differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differ:
        raise ValueError(
            f"{path} was made with other settings ({', '.join(differ)}); choose another --run, or --overwrite it"
        )


def saved_variables(model):
    """All that training changes: weights, optimizer, and the dropout generators that a .keras file leaves out."""
    seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]


def save_checkpoint(path, model, state: dict, best):
    arrays = {
        f"variable_{i}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(saved_variables(model))
    }
    arrays |= {f"best_{i}": weight for i, weight in enumerate(best or ())}
    replace_whole(path, lambda file: np.savez(file, state=json.dumps(state), **arrays), suffix=".npz")


def load_checkpoint(path, model, recipe):
    """Restore a checkpoint into a compiled model; (state, best weights) or ({}, None) when there is none."""
    if not path.exists():
        return {}, None
    variables = saved_variables(model)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = json.loads(str(arrays["state"]))
            values = [arrays[f"variable_{i}"] for i in range(len(variables))]
            best = [arrays[f"best_{i}"] for i in range(len(model.weights))] if "best_0" in arrays else None
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error}); start anew with --overwrite") from error
    refuse_other_recipe(path, state["recipe"], recipe)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    print(f"going on after epoch {state['epoch']} from {path}")
    return state, best


# ---------------------------------------------------------------- training


def new_model(args, classes):
    """SAGA for these features and classes, with weights drawn by the seed."""
    recipe = features_recipe(args.features)
    keras.utils.set_random_seed(args.seed)
    sizes = {key: recipe[key] for key in ("frames", "tokens", "dim")} | {"temporal_blocks": args.temporal_blocks}
    description = dict(class_names=classes, features=recipe)
    if args.accumulate > 1 or args.remat:
        description["kind"] = functools.partial(FrugalSAGA, accumulate=args.accumulate, remat=args.remat)
    model = build_saga(len(classes), **sizes, dropout=args.dropout, dtype=args.dtype, **description)
    fuse_attention(model)
    return model


def at_once(args) -> int:
    """How many windows are computed at a time."""
    return args.batch_size // args.accumulate


def make_optimizer(args):
    """AdamW whose rate halves every `decay_steps` steps (Sec. S-2; smooth, the paper does not say)."""
    rate = args.learning_rate
    if args.decay_steps:
        rate = keras.optimizers.schedules.ExponentialDecay(rate, args.decay_steps, 0.5)
    return keras.optimizers.AdamW(rate, weight_decay=args.weight_decay)


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: stop a failed run, validate, keep the best weights, write history and checkpoint."""

    def __init__(self, level, args, recipe, val, val_rows, sample, state, best):
        super().__init__()
        self.level, self.args, self.recipe, self.sample = level, args, recipe, sample
        self.val, self.val_rows = val, val_rows
        self.history = state.get("history", [])
        self.best_score, self.best, self.batch_size = state.get("best_score"), best, state["batch_size"]

    def path(self, ending):
        return Path(self.args.run) / f"{self.level}_{ending}"

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "learning_rate": number(self.model.optimizer.learning_rate)} | logs
        parts = np.array_split(self.sample, self.args.accumulate)
        row["spread"] = spread(np.concatenate([predict_on_batch(self.model, part)["embedding"] for part in parts]))
        check_training([*self.history, row])
        if self.val_rows:
            row |= validation(self.model, self.val, self.val_rows, at_once(self.args))
            score = [row["val_macro_accuracy"], -row["val_cross_entropy"]]
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best = score, self.model.get_weights()
            print(f"epoch {epoch + 1}: val macro accuracy {row['val_macro_accuracy']:.3f}")
        self.history.append({key: value if key == "epoch" else float(value) for key, value in row.items()})
        if not writes():
            return
        state = {"epoch": epoch + 1, "step": int(number(self.model.optimizer.iterations))}
        state |= {"batch_size": self.batch_size, "best_score": self.best_score}
        state |= {"history": self.history, "recipe": self.recipe}
        save_checkpoint(self.path("checkpoint.npz"), self.model, state, self.best)
        replace_whole(self.path("history.csv"), self.write_history)

    def write_history(self, path):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)


def number(variable) -> float:
    return float(keras.ops.convert_to_numpy(variable))


class Interruption(keras.callbacks.Callback):
    """Ctrl-C ends training after the batch at hand.

    Keras 3.15 passes over any exception while it reads a batch's loss (pythonify_logs), and on JAX, which computes in
    the background, nearly all of a fit is spent waiting there.
    """

    def on_train_begin(self, logs=None):
        self.seen = False
        main = threading.current_thread() is threading.main_thread()
        # neither ignored, as behind nohup, nor answered by a caller
        self.ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.ours:
            signal.signal(signal.SIGINT, self.answer)

    def answer(self, number, frame):
        self.seen = True
        raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        if self.seen:
            self.on_train_end()
            raise KeyboardInterrupt

    def on_train_end(self, logs=None):
        if self.ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def spread(embedding) -> float:
    """The share of the mean squared length of embeddings (B, D) that is variance: 0 when all are one point."""
    return float(embedding.var(axis=0).sum() / max(np.square(embedding).sum(axis=1).mean(), 1e-12))


class CollapseError(ValueError):
    """Mining holds all embeddings together at a point."""


def check_training(history):
    """Raise ValueError when the loss is not finite, CollapseError when mining holds the embeddings together at a point.

    Coming from stage 1, where all fakes are one class, the first epoch may pass through such a point; two may not.
    """
    row = history[-1]
    if not np.isfinite(row["loss"]):
        rate = row["learning_rate"]
        raise ValueError(f"epoch {row['epoch']}: the loss is not finite; lower --learning-rate (now {rate:.2g})")
    if "embedding_loss" in row and len(history) > 1 and max(last["spread"] for last in history[-2:]) < 1e-4:
        raise CollapseError(
            f"epoch {row['epoch']}: the embeddings have collapsed to a point (mined loss {row['embedding_loss']:.4f},"
            f" spread {row['spread']:.1g}); try --normalize, a smaller --margin or --learning-rate, a larger"
            " --ce-weight or --loss ce"
        )


def fit(model, videos: Videos, level, args, recipe, windows=Windows):
    """Train a compiled model, going on from a checkpoint of the same recipe; ends with the chosen weights set.

    Writes <level>_history.csv, TensorBoard logs and, when done, <level>_last.keras.
    """
    if args.data_service and (processes()[1] > 1 or replicas() > 1):
        raise ValueError(f"--data-service feeds one device, and there are {described()}; leave it out")
    train, val = windows(videos.train), windows(videos.val)
    labels = np.array([row["label"] for row in videos.train])[train.video]
    model.optimizer.build(model.trainable_variables)
    path = Path(args.run) / f"{level}_checkpoint.npz"
    state, best = load_checkpoint(path, model, recipe)
    start = state.get("epoch", 0)
    size = even(min(args.batch_size, len(train)), args.accumulate)
    batches = WindowBatches(train, labels, size, args.seed, args.batching, start, train.workers, processes())
    if state.get("batch_size", size) != size:
        raise ValueError(
            f"{path}: begun with {state['batch_size']} windows a batch, {described()} would take {size}; go on with as"
            " many devices as before, or start anew with --overwrite"
        )
    check_alike(start, size, len(train), len(batches), recipe.get("index_sha256"))
    report_training(videos, train, batches, labels, args)
    sample = train[np.resize(np.random.default_rng(args.seed).permutation(len(train)), args.batch_size)]
    keeper = EpochEnd(level, args, recipe, val, videos.val, sample, state | {"batch_size": size}, best)
    callbacks = [Interruption(), keras.callbacks.TerminateOnNaN(), keeper]
    if keras.backend.backend() == "tensorflow":
        build_metrics(model, sample[:2])  # JAX traces once either way, and its callback would need TensorFlow
        callbacks.append(keras.callbacks.TensorBoard(Path(args.run) / "logs" / level, write_graph=False))
    verbose = (1 if sys.stdout.isatty() else 2) if writes() else 0
    options = dict(epochs=args.epochs, initial_epoch=start, shuffle=False, callbacks=callbacks, verbose=verbose)
    try:
        if args.data_service and start < args.epochs:  # Keras takes no generator without a batch
            folder = Path(args.run) / f"{level}_service"
            with ServiceBatches(batches, args.data_service, folder, args.epochs) as service:
                model.fit(service.stream(), steps_per_epoch=len(batches), **options)
        else:
            model.fit(batches, **options)
    except Exception:
        if batches.failed:
            raise batches.failed from None  # TensorFlow makes an error of its own of what a batch raises
        raise
    finally:
        batches.close()
    if writes():
        save_model(model, Path(args.run) / f"{level}_last.keras", recipe)
    if keeper.best:
        model.set_weights(keeper.best)


def build_metrics(model, tokens):
    """Let Keras make its loss and metric variables now: made in the first step, they double TensorFlow's tracing."""
    labels = dict.fromkeys(OUTPUTS, np.zeros(len(tokens), "int32"))
    outputs = model(tokens)
    model.compute_loss(tokens, labels, outputs)
    model.compute_metrics(tokens, labels, outputs)
    model.reset_metrics()


def report_training(videos, train, batches, labels, args):
    """Print how many videos of each class train, and where there are fewer than asked for or than a batch wants."""
    steps = f"{len(batches)} steps of {batches.batch_size} an epoch on {described()}"
    print(f"training on {len(videos.train)} videos, {len(train)} windows, {steps}:")
    per_class = np.bincount([row["label"] for row in videos.train], minlength=len(videos.classes))
    counts = dict(zip(videos.classes, per_class.tolist(), strict=True))
    print("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    wanted = args.labels_per_class
    if wanted != "all" and (short := [name for name in counts if counts[name] < wanted]):
        print(f"  fewer than the {wanted} labels per class asked for, so all there are: {', '.join(short)}")
    slots = -(-batches.batch_size // len(videos.classes))
    short = [name for i, name in enumerate(videos.classes) if np.count_nonzero(labels == i) < slots]
    if batches.batching == "pk" and short:
        print(f"  fewer windows than their {slots} slots a batch, so repeated in it: {', '.join(short)}")
    if not videos.val and args.best == "val":
        print("  no val video, so the last epoch is kept")


def save_model(model, path, recipe):
    """Save weights and config alone: a compiled model's file would also hold the optimizer, twice the weights."""
    with one_device():
        bare = build_saga(**model.config | {"recipe": recipe}, dtype=model.dtype_policy)
        bare.set_weights(model.get_weights())
    replace_whole(path, bare.save, suffix=".keras")


def save_run(model, metrics, arrays, args, recipe, started):
    """Write <level>.keras, <level>_embeddings.npz and, last, <level>.json, which marks the run as finished."""
    level, run = metrics["level"], Path(args.run)
    metrics |= {"recipe": recipe | {"seconds": round(time.time() - started, 1)}}
    save_model(model, run / f"{level}.keras", recipe)
    arrays = arrays | {"recipe": json.dumps(recipe)}
    replace_whole(run / f"{level}_embeddings.npz", lambda file: np.savez(file, **arrays), suffix=".npz")
    write_json(run / f"{level}.json", metrics)
    (run / f"{level}_checkpoint.npz").unlink(missing_ok=True)
    print(f"model, metrics and figures are in {run}")
    return metrics
