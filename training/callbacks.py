"""Around Keras's fit in stages 1 and 2: validation per clip, the best epoch, exact resume, and stopping a run that
fails or collapses.
"""

import signal
import threading
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from basics.artifacts import read_arrays, refuse_other, write_arrays, write_atomically, write_csv
from basics.checks import RECIPE
from basics.running import InputError
from common import OUTPUTS, build_saga, keras
from tokens.dataset import SIZE, Windows
from training.devices import check_alike, devices_text, is_main_process, one_device, predict_on_batch
from training.evaluation import validation

# ---------------------------------------------------------------- exact resume


def checkpoint_file(run, level) -> Path:
    return Path(run) / f"{level}_checkpoint.npz"


def saved_variables(model):
    """All that training changes: weights, optimizer, and the seeds of dropout, which a .keras file leaves out."""
    seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]


def save_checkpoint(path, model, state: dict, best):
    arrays = {
        f"variable_{i}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(saved_variables(model))
    }
    arrays |= {f"best_{i}": weight for i, weight in enumerate(best or ())}
    write_arrays(path, arrays | {"state": state})


STATE = {"recipe": RECIPE, "epoch": range(1, 1 << 31), "batch_size?": SIZE, "best_score": ([float, float], None)}
STATE |= {"history": [{"variance_fraction": float}]}


def shape_of(variable) -> str:
    """What the array of a variable holds, in the words of check_array."""
    return " ".join(map(str, ("f" if "float" in variable.dtype else "i", *variable.shape)))


def load_checkpoint(path, model, recipe):
    """Restore a checkpoint into a compiled model; its state, and the best weights or None."""
    variables, remedy = saved_variables(model), "start again with --overwrite"
    state = read_arrays(path, ("state",), remedy, holds={"state": STATE})["state"]
    refuse_other(path, state["recipe"], recipe)
    holds = {f"variable_{i}": shape_of(variable) for i, variable in enumerate(variables)}
    values = list(read_arrays(path, tuple(holds), remedy, holds=holds).values())
    holds = {f"best_{i}": shape_of(variable) for i, variable in enumerate(model.weights)}
    best = list(read_arrays(path, tuple(holds), remedy, holds=holds).values()) if state["best_score"] else None
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    print(f"resuming after epoch {state['epoch']} from {path}")
    return state, best


# ---------------------------------------------------------------- after each epoch


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: stop a failed run, validate, keep the best weights, write history and checkpoint.

    `batches` are the WindowBatches of training, `val` the rows (V) of validation with their labels. `batch_size`
    windows are predicted at a time. With `patience`, training stops once val's cross-entropy has not fallen for so many
    epochs. `measure(labels (B,), embedding (B, D))` returns {name: number} of a fixed training batch, for the history.
    """

    def __init__(self, level, run, recipe, batches, val, batch_size, patience=None, measure=None):
        super().__init__()
        self.patience = patience if val else None
        self.level, self.run, self.recipe, self.batches = level, Path(run), recipe, batches
        self.val, self.val_rows, self.measure = Windows(val), val, measure
        order = np.random.default_rng(batches.seed).permutation(len(batches.windows))
        self.sample = np.resize(order, batch_size)
        self.history, self.best_score, self.best = [], None, None

    def restore(self, model, epochs) -> int:
        """Restore an interrupted run of the same recipe into the model and this callback. Returns how many epochs are
        done: all, where patience had run out.

        Raises InputError where the run had another batch size.
        """
        model.optimizer.build(model.trainable_variables)
        path, size = checkpoint_file(self.run, self.level), self.batches.batch_size
        state, self.best = load_checkpoint(path, model, self.recipe) if path.exists() else ({}, None)
        if state.get("batch_size", size) != size:
            raise InputError(
                f"{path}: begun with {state['batch_size']} windows a batch, {devices_text()} would take {size};"
                " continue with as many devices as before, or start again with --overwrite"
            )
        self.history, self.best_score = state.get("history", []), state.get("best_score")
        self.batches.epoch = state.get("epoch", 0)
        check_alike(self.batches.epoch, size, len(self.batches), self.recipe.get("index_sha256"))
        return epochs if self.out_of_patience() else self.batches.epoch

    def on_train_begin(self, logs=None):
        """Make Keras's variables of losses and metrics: made in the first step, they double TensorFlow's tracing."""
        if keras.backend.backend() == "tensorflow":
            labels = dict.fromkeys(OUTPUTS, np.zeros(2, "int32"))
            outputs = self.model(tokens := self.batches.windows[self.sample[:2]])
            self.model.compute_loss(tokens, labels, outputs)
            self.model.compute_metrics(tokens, labels, outputs)
            self.model.reset_metrics()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "learning_rate": number(self.model.optimizer.learning_rate)} | logs
        embedding = predict_on_batch(self.model, self.batches.windows[self.sample])["embedding"]
        row["variance_fraction"] = variance_fraction(embedding)
        row |= self.measure(self.batches.labels[self.sample], embedding) if self.measure else {}
        check_training([*self.history, row])
        if self.val_rows:
            row |= validation(self.model, self.val, self.val_rows, len(self.sample))
            score = [row["val_macro_accuracy"], -row["val_cross_entropy"]]
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best = score, self.model.get_weights()
            print(f"epoch {epoch + 1}: val macro accuracy {row['val_macro_accuracy']:.3f}")
        self.history.append({key: value if key == "epoch" else float(value) for key, value in row.items()})
        self.model.stop_training |= self.out_of_patience()
        if is_main_process():
            state = {"epoch": epoch + 1, "step": int(number(self.model.optimizer.iterations))}
            state |= {"batch_size": self.batches.batch_size, "best_score": self.best_score}
            state |= {"history": self.history, "recipe": self.recipe}
            save_checkpoint(checkpoint_file(self.run, self.level), self.model, state, self.best)
            write_csv(self.run / f"{self.level}_history.csv", list(self.history[0]), self.history)

    def out_of_patience(self) -> bool:
        losses = [row["val_cross_entropy"] for row in self.history] if self.patience else []
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.patience


def number(variable) -> float:
    return float(keras.ops.convert_to_numpy(variable))


class Interruption(keras.callbacks.Callback):
    """Ctrl-C or SIGTERM, where it raises KeyboardInterrupt, ends training after the current batch.

    Keras 3.15 passes over any exception while it reads a batch's loss (pythonify_logs), and on JAX, which computes in
    the background, nearly all of a fit is spent waiting there.
    """

    def on_train_begin(self, logs=None):
        self.seen, self.before = False, {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.before = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in self.before:
            signal.signal(number, self.answer)

    def answer(self, number, frame):
        try:
            self.before[number](number, frame)
        except KeyboardInterrupt:
            self.seen = True
            raise

    def on_train_batch_end(self, batch, logs=None):
        if self.seen:
            self.on_train_end()
            raise KeyboardInterrupt

    def on_train_end(self, logs=None):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def variance_fraction(embedding) -> float:
    """Total variance of embeddings (B, D) over their mean squared norm, in [0, 1]; 0: all embeddings are equal."""
    return float(embedding.var(axis=0).sum() / max(np.square(embedding).sum(axis=1).mean(), 1e-12))


class CollapseError(InputError):
    """All embeddings have collapsed to one point."""


def check_training(history):
    """Raise InputError when the loss is not finite, CollapseError when mining has collapsed all embeddings to a point.

    After stage 1, where all fakes are one class, a single epoch may end at such a point; two in a row may not.
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


def tensorboard(folder) -> list:
    """Keras's callback where the package is installed and TensorFlow, which it writes with, is the backend."""
    if keras.backend.backend() != "tensorflow":
        return []
    if find_spec("tensorboard"):
        return [keras.callbacks.TensorBoard(folder, write_graph=False)]
    print("no logs for TensorBoard, which is not installed: pip install tensorboard")
    return []


def parts(steps, epochs, one_pass) -> tuple[int, int]:
    """How many epochs a training has and how many steps each: `steps` in all are cut into at most `epochs` equal parts;
    without them an epoch is `one_pass` over the windows.
    """
    if steps is None:
        return epochs, one_pass
    count = max(count for count in range(1, epochs + 1) if steps % count == 0)
    return count, steps // count


def print_training(split, batches, labels_per_class="all"):
    """Print the number of training videos by class, and which classes have fewer than requested or than batch slots."""
    steps = f"{len(batches)} steps of {batches.batch_size} an epoch on {devices_text()}"
    print(f"training on {len(split.train)} videos, {len(batches.windows)} windows, {steps}:")
    per_class = np.bincount([row.label for row in split.train], minlength=len(split.classes))
    print("  " + ", ".join(f"{name} {count}" for name, count in zip(split.classes, per_class.tolist(), strict=True)))
    used = Counter(split.classes[row.label] for row in split.train + split.val)
    if labels_per_class != "all" and (few := [name for name in split.classes if used[name] < labels_per_class]):
        print(f"  fewer than the {labels_per_class} labels per class requested, so all are used: {', '.join(few)}")
    slots = -(-batches.batch_size // len(split.classes))
    few = [name for i, name in enumerate(split.classes) if np.count_nonzero(batches.labels == i) < slots]
    if batches.batching == "balanced" and few:
        print(f"  fewer windows than their {slots} slots a batch, so repeated in it: {', '.join(few)}")
    if not split.val:
        print("  no val video, so the last epoch is kept")


def save_model(model, path, recipe):
    """Save weights and config alone: a compiled model's file would also hold the optimizer, twice the weights."""
    with one_device():
        bare = build_saga(**model.config | {"recipe": recipe}, dtype=model.dtype_policy)
        bare.set_weights(model.get_weights())
    write_atomically(path, bare.save, suffix=".keras")
