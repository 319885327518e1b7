"""What stages 1 and 2 do beside Keras's fit: validation per clip, the best epoch, exact resume, and ending a run that
fails or collapses.
"""

import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from basics.artifacts import read_arrays, refuse_other, write_arrays, write_atomically, write_csv, write_json
from basics.running import InputError
from common import OUTPUTS, WindowBatches, build_saga, keras
from tokens.dataset import Windows
from training.devices import (
    check_alike,
    described,
    divisible_batch_size,
    is_main_process,
    one_device,
    predict_on_batch,
    processes,
    replicas,
)
from training.evaluation import validation
from training.service import served

# ---------------------------------------------------------------- exact resume


def checkpoint_file(run, level) -> Path:
    return Path(run) / f"{level}_checkpoint.npz"


def saved_variables(model):
    """All that training changes: weights, optimizer, and the dropout generators that a .keras file leaves out."""
    seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]


def save_checkpoint(path, model, state: dict, best):
    arrays = {
        f"variable_{i}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(saved_variables(model))
    }
    arrays |= {f"best_{i}": weight for i, weight in enumerate(best or ())}
    write_arrays(path, arrays | {"state": state})


def load_checkpoint(path, model, recipe):
    """Restore a checkpoint into a compiled model; (state, best weights) or ({}, None) when there is none."""
    if not path.exists():
        return {}, None
    variables, remedy = saved_variables(model), "start anew with --overwrite"
    arrays = read_arrays(path, remedy=remedy)
    wanted = {"state", *(f"variable_{i}" for i in range(len(variables)))}
    if "best_0" in arrays:
        wanted |= {f"best_{i}" for i in range(len(model.weights))}
    if wanted - arrays.keys() or not {"recipe", "epoch"} <= arrays["state"].keys():
        raise InputError(f"{path}: damaged, or of another model; {remedy}")
    state = arrays["state"]
    refuse_other(path, state["recipe"], recipe)
    values = [arrays[f"variable_{i}"] for i in range(len(variables))]
    best = [arrays[f"best_{i}"] for i in range(len(model.weights))] if "best_0" in arrays else None
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    print(f"going on after epoch {state['epoch']} from {path}")
    return state, best


# ---------------------------------------------------------------- after each epoch


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: stop a failed run, validate, keep the best weights, write history and checkpoint."""

    def __init__(self, level, run, recipe, val, val_rows, sample, state, best):
        super().__init__()
        self.level, self.run, self.recipe, self.sample = level, run, recipe, sample
        self.val, self.val_rows = val, val_rows
        self.history = state.get("history", [])
        self.best_score, self.best, self.batch_size = state.get("best_score"), best, state["batch_size"]

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "learning_rate": number(self.model.optimizer.learning_rate)} | logs
        row["variance_fraction"] = variance_fraction(predict_on_batch(self.model, self.sample)["embedding"])
        check_training([*self.history, row])
        if self.val_rows:
            row |= validation(self.model, self.val, self.val_rows, len(self.sample))
            score = [row["val_macro_accuracy"], -row["val_cross_entropy"]]
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best = score, self.model.get_weights()
            print(f"epoch {epoch + 1}: val macro accuracy {row['val_macro_accuracy']:.3f}")
        self.history.append({key: value if key == "epoch" else float(value) for key, value in row.items()})
        if not is_main_process():
            return
        state = {"epoch": epoch + 1, "step": int(number(self.model.optimizer.iterations))}
        state |= {"batch_size": self.batch_size, "best_score": self.best_score}
        state |= {"history": self.history, "recipe": self.recipe}
        save_checkpoint(checkpoint_file(self.run, self.level), self.model, state, self.best)
        write_csv(Path(self.run) / f"{self.level}_history.csv", list(self.history[0]), self.history)


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


def variance_fraction(embedding) -> float:
    """The share of the mean squared length of embeddings (B, D) that is variance: 0 when all are one point."""
    return float(embedding.var(axis=0).sum() / max(np.square(embedding).sum(axis=1).mean(), 1e-12))


class CollapseError(InputError):
    """Mining holds all embeddings together at a point."""


def check_training(history):
    """Raise InputError when the loss is not finite, CollapseError when mining holds the embeddings together at a point.

    Coming from stage 1, where all fakes are one class, the first epoch may pass through such a point; two may not.
    """
    row = history[-1]
    if not np.isfinite(row["loss"]):
        rate = row["learning_rate"]
        raise InputError(f"epoch {row['epoch']}: the loss is not finite; lower --learning-rate (now {rate:.2g})")
    if "embedding_loss" in row and len(history) > 1 and max(last["variance_fraction"] for last in history[-2:]) < 1e-4:
        raise CollapseError(
            f"epoch {row['epoch']}: the embeddings have collapsed to a point (mined loss {row['embedding_loss']:.4f},"
            f" variance fraction {row['variance_fraction']:.1g}); try --normalize, a smaller --margin or"
            " --learning-rate, a larger --ce-weight or --loss ce"
        )


# ---------------------------------------------------------------- training


def fit(
    model, videos, level, run, recipe, *, epochs, batch_size, batching, labels_per_class="all", seed=0, service=None
):
    """Train a compiled model on `videos` (choose_videos), going on from a checkpoint of the same recipe; ends with the
    chosen weights set. `service` is the address of a tf.data service that reads.

    Writes <level>_history.csv, TensorBoard logs and, when done, <level>_last.keras.
    """
    if service and (processes()[1] > 1 or replicas() > 1):
        raise InputError(f"--data-service feeds one device, and there are {described()}; leave it out")
    train, val = Windows(videos.train), Windows(videos.val)
    labels = np.array([row.label for row in videos.train])[train.video]
    model.optimizer.build(model.trainable_variables)
    path = checkpoint_file(run, level)
    state, best = load_checkpoint(path, model, recipe)
    start = state.get("epoch", 0)
    size = divisible_batch_size(min(batch_size, len(train)))
    batches = WindowBatches(train, labels, size, seed, batching, start, train.workers, processes())
    if state.get("batch_size", size) != size:
        raise InputError(
            f"{path}: begun with {state['batch_size']} windows a batch, {described()} would take {size}; go on with as"
            " many devices as before, or start anew with --overwrite"
        )
    check_alike(start, size, len(train), len(batches), recipe.get("index_sha256"))
    report_training(videos, train, batches, labels, labels_per_class)
    sample = train[np.resize(np.random.default_rng(seed).permutation(len(train)), batch_size)]
    keeper = EpochEnd(level, run, recipe, val, videos.val, sample, state | {"batch_size": size}, best)
    callbacks = [Interruption(), keras.callbacks.TerminateOnNaN(), keeper]
    if keras.backend.backend() == "tensorflow":
        build_metrics(model, sample[:2])  # JAX traces once either way, and its callback would need TensorFlow
        callbacks += tensorboard(Path(run) / "logs" / level)
    verbose = (1 if sys.stdout.isatty() else 2) if is_main_process() else 0
    options = dict(epochs=epochs, initial_epoch=start, shuffle=False, callbacks=callbacks, verbose=verbose)
    try:
        if service and start < epochs:
            data = served(batches, service, epochs).map(lambda tokens, own: (tokens, dict.fromkeys(OUTPUTS, own)))
            model.fit(data, steps_per_epoch=len(batches), **options)
        else:
            model.fit(batches, **options)
    except Exception:
        if batches.failed:
            raise batches.failed from None  # TensorFlow makes an error of its own of what a batch raises
        raise
    finally:
        batches.close()
    if is_main_process():
        save_model(model, Path(run) / f"{level}_last.keras", recipe)
    if keeper.best:
        model.set_weights(keeper.best)


def tensorboard(folder):
    """Keras's callback, where the package is installed."""
    if find_spec("tensorboard"):
        return [keras.callbacks.TensorBoard(folder, write_graph=False)]
    print("no logs for TensorBoard, which is not installed: pip install tensorboard")
    return []


def build_metrics(model, tokens):
    """Let Keras make its loss and metric variables now: made in the first step, they double TensorFlow's tracing."""
    labels = dict.fromkeys(OUTPUTS, np.zeros(len(tokens), "int32"))
    outputs = model(tokens)
    model.compute_loss(tokens, labels, outputs)
    model.compute_metrics(tokens, labels, outputs)
    model.reset_metrics()


def report_training(videos, train, batches, labels, wanted):
    """Print how many videos of each class train, and where there are fewer than asked for or than a batch wants."""
    steps = f"{len(batches)} steps of {batches.batch_size} an epoch on {described()}"
    print(f"training on {len(videos.train)} videos, {len(train)} windows, {steps}:")
    per_class = np.bincount([row.label for row in videos.train], minlength=len(videos.classes))
    counts = dict(zip(videos.classes, per_class.tolist(), strict=True))
    print("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    if wanted != "all" and (short := [name for name in counts if counts[name] < wanted]):
        print(f"  fewer than the {wanted} labels per class asked for, so all there are: {', '.join(short)}")
    slots = -(-batches.batch_size // len(videos.classes))
    short = [name for i, name in enumerate(videos.classes) if np.count_nonzero(labels == i) < slots]
    if batches.batching == "pk" and short:
        print(f"  fewer windows than their {slots} slots a batch, so repeated in it: {', '.join(short)}")
    if not videos.val:
        print("  no val video, so the last epoch is kept")


# ---------------------------------------------------------------- a trained run


def save_model(model, path, recipe):
    """Save weights and config alone: a compiled model's file would also hold the optimizer, twice the weights."""
    with one_device():
        bare = build_saga(**model.config | {"recipe": recipe}, dtype=model.dtype_policy)
        bare.set_weights(model.get_weights())
    write_atomically(path, bare.save, suffix=".keras")


def save_run(model, metrics, arrays, run, recipe, seconds):
    """Write <level>.keras, <level>_embeddings.npz and, last, <level>.json, which marks the run as finished."""
    level, run = metrics["level"], Path(run)
    save_model(model, run / f"{level}.keras", recipe)
    write_arrays(run / f"{level}_embeddings.npz", arrays | {"recipe": recipe})
    metrics |= {"recipe": recipe | {"seconds": round(seconds, 1)}}
    write_json(run / f"{level}.json", metrics)
    checkpoint_file(run, level).unlink(missing_ok=True)
    print(f"model, metrics and figures are in {run}")
