"""Features from disk to device, cold and warm: ours in training's random order, np.load in a loop, a Python generator.

Files as stage 01 writes them, tokens (4, 8, 729, 1152) float16, 54 MB each, all windows once, in batches of 4. Cold:
the system has been told to drop the files' pages (posix_fadvise), which a disk's own cache need not follow. Ours are
the batches of training, shuffled, read window by window on 4 threads.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from measuring import alternated, compared, once, run_side, side

FULL = dict(files=24, windows=4, frames=8, tokens=729, dim=1152)
TINY = dict(files=4, windows=4, frames=8, tokens=4, dim=16)
BATCH, ROUNDS = 4, 3
SIDES = {"np_load": "np.load in a loop", "generator": "tf.data of a Python generator of np.load"}


def cases(args):
    return [("", partial(measure, TINY if args.tiny else FULL, 1 if args.tiny else ROUNDS))]


def measure(sizes, rounds):
    # in the repository, since a system's temporary folder may be in memory
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs") as folder:
        folder, rows = os.path.abspath(folder), []
        side(__file__, "write_files", folder=folder, sizes=sizes)
        for cache in ("cold", "warm"):
            run = {
                name: partial(side, __file__, name, folder=folder, sizes=sizes, cold=cache == "cold")
                for name in ("ours", *SIDES)
            }
            found = alternated(rounds, **run)
            for name, text in SIDES.items():
                what = f"{sizes['files'] * sizes['windows']} windows from a {cache} cache"
                options = dict(unit="MB/s", key="rate", higher=True)
                rows.append(compared(what, text, found["ours"], found[name], **options))
        return rows


def write_files(folder, sizes):
    from basics.artifacts import write_json
    from tokens.dataset import write_features

    random = np.random.default_rng(0)
    shape = tuple(sizes[key] for key in ("windows", "frames", "tokens", "dim"))
    tokens = random.standard_normal(shape, np.float32).astype(np.float16)
    write_json(Path(folder) / "recipe.json", {key: sizes[key] for key in ("frames", "tokens", "dim")})
    for number in range(sizes["files"]):
        tokens[..., 0] = number
        write_features(Path(folder) / f"{number}.npz", tokens, np.zeros(shape[:2]), np.ones(shape[:2], bool))
    return {}


# ---------------------------------------------------------------- the sides


def drop_pages(files):
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not on disk yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(read_all, folder, sizes, cold):
    """MB of tokens per second of `read_all`, after one reading of everything, which imports and compiles."""
    files = sorted(Path(folder).glob("*.npz"))
    read_all(files)
    if cold:
        drop_pages(files)
        time.sleep(0.5)  # for what the system still does about the dropped pages
    size = 2 * np.prod([sizes[key] for key in ("files", "windows", "frames", "tokens", "dim")])
    return {"rate": float(size / once(lambda: read_all(files)) / 1e6)}


def ours(folder, sizes, cold):
    from common import WindowBatches, keras
    from tokens.dataset import Row, Windows

    names = [str(i) for i in range(sizes["files"])]
    windows = Windows([Row(name, "", name, windows=sizes["windows"], features=folder) for name in names], memory=0)
    batches = WindowBatches(windows, np.zeros(len(windows)), BATCH)
    inputs = keras.Input(windows.shape, dtype="float16")
    # takes a number of each batch: what is left is bringing it there
    sink = keras.Model(inputs, keras.layers.Lambda(lambda tokens: tokens[:, 0, 0, 0], output_shape=())(inputs))
    return measured(lambda files: sink.predict(batches, verbose=0), folder, sizes, cold)


def np_load(folder, sizes, cold):
    import tensorflow as tf

    def read_all(files):
        for file in files:
            with np.load(file) as arrays:
                tokens = tf.constant(arrays["tokens"])
            for start in range(0, len(tokens), BATCH):
                tf.identity(tokens[start : start + BATCH])

    return measured(read_all, folder, sizes, cold)


def generator(folder, sizes, cold):
    import tensorflow as tf

    def read_all(files):
        def windows():
            for file in files:
                with np.load(file) as arrays:
                    yield from arrays["tokens"]

        shape = tuple(sizes[key] for key in ("frames", "tokens", "dim"))
        data = tf.data.Dataset.from_generator(windows, output_signature=tf.TensorSpec(shape, tf.float16))
        for batch in data.batch(BATCH).prefetch(2):
            tf.identity(batch)

    return measured(read_all, folder, sizes, cold)


if __name__ == "__main__":
    run_side(globals())
