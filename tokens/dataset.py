"""Features on disk, written by 01 and read by every later stage: an index and a file of tokens per video.

rows = read_index("features/zoo")                               a Row per video, sorted by path
tokens = map_tokens(features_file("features/zoo", "SVD/a.mp4"))   (S, L, T, D), memory-mapped

"""

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import differing, open_zip, read_arrays, read_csv, read_header, read_json, write_arrays, write_csv
from basics.checks import Between
from basics.running import InputError
from tokens.generators import is_name


class Row(NamedTuple):
    """A video of a features folder: a row of its index, whose columns are the first 13, and what a run adds to it."""

    path: str  # of the features, <Generator>/...
    generator: str  # as the generator table spells it
    group: str  # never on two sides of a split
    stratum: str = ""  # of content
    split: str = ""  # train, val or test
    windows: int = 0
    fps: str = ""
    size: str = ""  # WxH
    length: str = ""  # seconds
    container: str = ""
    codec: str = ""
    error: str = ""  # why there are no features
    source: str = ""  # the video, below the folder of videos
    file: str = ""  # the video, where it lies now
    features: str = ""  # the folder of the features
    label: int | None = None  # a number among a run's classes; None of a video of none
    class_name: str = ""  # the name of that class, or what stands for one


INDEX_FIELDS = Row._fields[:13]
MOST_WINDOWS = 1 << 27  # of all videos of an index
SIZE = range(1, 1 << 20)
# What a recipe of features holds, whoever wrote it
FEATURES = {"frames": SIZE, "tokens": SIZE, "dim": SIZE, "fps?": Between(1e-6, 1000), "pool?": SIZE, "code?": dict}
FEATURES |= {"encoder?": str, "simulated?": bool, "equalize?": (SIZE, None), "versions?": {str: str}}
FEATURES |= dict.fromkeys(("preset?", "layer?", "weights_sha256?", "encoder_dtype?"), (str, None))
LARGE = 1 << 28  # bytes of a clip's tokens that are held in memory
MOST_TOKENS = 1 << 30  # bytes of a clip's tokens, which are written twice where they are LARGE
LONGEST_NAME = 255  # bytes, of a file or folder
EXTRACT_AGAIN = "delete it and run 01 again"

# ---------------------------------------------------------------- the index


def write_index(path, rows: list[Row]):
    """Write index rows (INDEX_FIELDS) sorted by path."""
    write_csv(path, INDEX_FIELDS, [row._asdict() for row in sorted(rows, key=lambda row: row.path)])


def read_index(features) -> list[Row]:
    """All parts' index rows of a features folder, one per video (of two, the newer), sorted by path.

    Raises InputError naming the folder when there is no index or one of other parts than 1 to n of n, the file when a
    column is missing or a row cannot be.
    """
    files = sorted(Path(features).glob("index-*-of-*.csv"), key=lambda file: file.lstat().st_mtime)
    if not files:
        raise InputError(f"{features}: no index-*.csv; run 01_extract_features.py --features {features} first")
    names = {file.name for file in files}
    if names != {f"index-{part}-of-{len(files)}.csv" for part in range(1, len(files) + 1)}:
        raise InputError(
            f"{features}: {', '.join(sorted(names))}: not all parts of an index; run 01 for each --shard I/N"
        )
    rows = {}
    for file in files:
        for row in read_csv(file, INDEX_CELLS, "run 01 again"):
            rows[row["path"]] = Row(**{key: row[key] for key in INDEX_FIELDS} | {"windows": int(row["windows"])})
    if (windows := sum(row.windows for row in rows.values())) > MOST_WINDOWS:
        raise InputError(f"{features}: {windows} windows in its index, at most {MOST_WINDOWS} are read; run 01 again")
    return [rows[path] for path in sorted(rows)]


def stays_inside(path: str) -> bool:
    """Whether a path out of a file stays in the folder that it is joined to."""
    return not (path in ("", ".") or "\0" in path or os.path.isabs(path) or ".." in re.split(r"[/\\]", path))


INDEX_CELLS = dict.fromkeys(INDEX_FIELDS) | {"path": stays_inside, "generator": is_name, "group": bool}
INDEX_CELLS |= {"split": ("train", "val", "test").__contains__, "windows": re.compile("[0-9]{1,9}").fullmatch}
INDEX_CELLS |= dict.fromkeys(("fps", "length"), re.compile(r"([0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,2})?)?").fullmatch)
INDEX_CELLS |= {"size": re.compile("([0-9]{1,6}x[0-9]{1,6})?").fullmatch}


def index_digest(rows) -> str:
    """One name for the same videos, generators, groups, splits and windows."""
    lines = [",".join(map(str, (row.path, row.generator, row.group, row.split, row.windows))) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def features_recipe(folder) -> dict:
    """How the features of a folder were made."""
    return read_json(Path(folder) / "recipe.json", FEATURES, f"run 01_extract_features.py --features {folder} first")


SAME_TOKENS = ("simulated", "preset")  # all else in a recipe of features decides about the tokens


def other_tokens(one: dict, other: dict) -> list[str]:
    """In what two recipes of features make tokens that cannot be compared: encoder, layer, sizes, equalizing, ..."""
    return differing(one, other, besides=SAME_TOKENS)


def tokens_digest(recipe: dict) -> str:
    """One name for all in a recipe of features that decides about the tokens; each features file keeps it."""
    kept = {key: recipe[key] for key in recipe.keys() - {"versions", "git", *SAME_TOKENS}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def usable(rows, features):
    """The rows that have features, with `features` set to their folder."""
    return [row._replace(features=str(features)) for row in rows if row.windows and not row.error]


def subsample(rows, keys, count, seed):
    """At most `count` rows per value of `keys`, in an order drawn by seed: fewer rows are a part of more."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.path}".encode()).digest())
    taken, kept = {}, []
    for row in order:
        value = tuple(getattr(row, key) for key in keys)
        taken[value] = taken.get(value, 0) + 1
        if taken[value] <= count:
            kept.append(row)
    return sorted(kept, key=lambda row: row.path)


# ---------------------------------------------------------------- a file of tokens


# names in an index that other files of the folder have, or that look like one that was cut
NOT_KEPT = re.compile(r"recipe\.json|index-.*\.csv|.*\.npz|.*~[0-9a-f]{16}", re.DOTALL | re.IGNORECASE)


def features_file(features, path: str) -> Path:
    """The features of the video that the index calls `path`: <path>.npz below the folder `features`.

    A name in it that is longer than file systems take, or that cannot be kept, is cut and ends with ~ and a digest.
    Raises InputError where the path leads out of the folder.
    """
    if not stays_inside(path):
        raise InputError(f"{features}: {path!r} is not in that folder; run 01 again")
    *folders, name = path.split("/")
    return Path(features, *map(stored_name, folders), stored_name(name, ".npz"))


def stored_name(name: str, suffix="") -> str:
    """A name in an index path as a file system takes it: no two names become one."""
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) + len(suffix) > LONGEST_NAME or NOT_KEPT.fullmatch(name):
        start = encoded[:200].decode("utf-8", "ignore")
        name = f"{start}~{hashlib.sha256(encoded).hexdigest()[:16]}"
    return name + suffix


def write_features(path, tokens, times, valid, row: Row | None = None, recipe="", frame_keys=()):
    """Save tokens (S, L, T, D) float16, times (S, L) in seconds, valid (S, L) bool, uncompressed, atomically.

    01 adds the clip's index row, the tokens_digest of the recipe that made it, and the frame_keys of its pictures.
    """
    arrays = {"tokens": np.asarray(tokens, np.float16), "times": np.asarray(times), "valid": np.asarray(valid, bool)}
    if row:
        made = {"recipe": recipe, "frame_keys": list(frame_keys)}
        arrays["row"] = {key: getattr(row, key) for key in INDEX_FIELDS} | made
    write_arrays(path, arrays)


def write_row(path, **columns):
    """Write a features file anew with these columns of its row."""
    arrays = read_arrays(path, remedy=EXTRACT_AGAIN)
    arrays["row"] |= columns
    write_arrays(path, arrays)


ROW = dict.fromkeys((*INDEX_FIELDS, "recipe"), str) | {"windows": range(MOST_WINDOWS), "frame_keys": [str]}


def read_row(path) -> tuple[Row, str, list[str]]:
    """The index row in a features file, the digest of the recipe that made it, and the frame_keys of its pictures."""
    row = read_arrays(path, ("row",), EXTRACT_AGAIN, holds={"row": ROW})["row"]
    own = stays_inside(row["path"]) and features_file("/", row["path"]).as_posix()
    if row.keys() != ROW.keys() or not own or not Path(path).as_posix().endswith(own):
        raise InputError(f"{path}: its row has other columns or is of another file; {EXTRACT_AGAIN}")
    recipe, keys = row.pop("recipe"), row.pop("frame_keys")
    return Row(**row), recipe, keys


def room_for_tokens(shape, folder) -> np.ndarray:
    """Room for tokens of a shape, float16: in memory, or above LARGE bytes in a file in `folder` that ends with it.

    Raises InputError for more than MOST_TOKENS bytes.
    """
    needed = 2 * math.prod(shape)
    if needed > MOST_TOKENS:
        raise InputError(
            f"the tokens of {shape[0]} frames are {needed / 2**30:.3g} GiB, more than {MOST_TOKENS / 2**30:g} GiB;"
            " cut the video, or take a larger --pool or a lower --fps"
        )
    if needed <= LARGE:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float16, "w+", shape=shape)


def map_tokens(path) -> np.ndarray:
    """The tokens (S, L, T, D) of a features file as a read-only memory map: a window is read alone.

    NumPy ignores mmap_mode inside .npz, so the stored array's offset is read from the zip's own headers.
    Raises InputError naming the file when the array is missing, compressed or damaged.
    """
    with open_zip(path, EXTRACT_AGAIN) as archive, open(path, "rb") as file:
        member = archive.getinfo("tokens.npy")
        if member.compress_type or member.flag_bits & 1:
            raise ValueError("tokens are compressed or encrypted")
        file.seek(member.header_offset + 26)  # of a zip's local header: the lengths of name and extra fields
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        shape, fortran, dtype = read_header(file)
        if fortran or len(shape) != 4 or not 0 < math.prod(shape) < member.file_size:
            raise ValueError(f"tokens have shape {shape}, expected (S, L, T, D) and as many as there are")
        if dtype != np.float16:
            raise ValueError(f"tokens are {dtype}, not float16")
        return np.memmap(file, dtype, "r", file.tell(), shape)


def window_shape(recipe) -> tuple[int, int, int]:
    """(L, T, D) of the windows that a recipe of features describes."""
    return recipe["frames"], recipe["tokens"], recipe["dim"]


def tokens_of(row, shape) -> np.ndarray:
    """The tokens (S, L, T, D) of a video of an index, memory-mapped. Raises InputError unless S is what the index says
    and (L, T, D) is `shape`.
    """
    tokens, wanted = map_tokens(file := features_file(row.features, row.path)), (row.windows, *shape)
    if tokens.shape != wanted:
        raise InputError(f"{file}: tokens {tokens.shape}, but index and recipe say {wanted}; {EXTRACT_AGAIN}")
    return tokens


def read_per_frame(row, name) -> np.ndarray:
    """Of the frames (S, L) of a video of an index its `times` in seconds, or `valid`: which are not padding. Raises
    InputError where the index counts other windows.
    """
    path = features_file(row.features, row.path)
    values = read_arrays(path, (name,), EXTRACT_AGAIN)[name]
    if len(values) != row.windows:
        raise InputError(f"{path}: {name} {values.shape} does not match the index; {EXTRACT_AGAIN}")
    return values


def mean_tokens(rows) -> np.ndarray:
    """The mean over windows, frames and tokens of each video, (V, D)."""
    shape = window_shape(features_recipe(rows[0].features))
    return np.stack([np.mean(tokens_of(row, shape), axis=(0, 1, 2), dtype="float64") for row in rows])


# ---------------------------------------------------------------- windows of many videos


class Windows:
    """The windows of some videos: `windows[i]` are tokens (L, T, D) for an index, (B, L, T, D) for an array of them.

    Rows are those of `usable`. `video` (N,) is the place in `rows` of the video that each window comes from. Windows
    are held in memory when they fit in `memory` bytes and otherwise read one by one from the files.
    """

    def __init__(self, rows: list[Row], memory: int = 2 << 30):
        self.rows = rows
        self.video = np.repeat(np.arange(len(rows)), [row.windows for row in rows])
        self.offset = np.arange(len(self.video)) - np.searchsorted(self.video, self.video)  # which of its video's, (N,)
        self.held = None
        if rows:
            self.shape = window_shape(features_recipe(rows[0].features))  # (L, T, D)
            if 2 * len(self.video) * math.prod(self.shape) <= memory:
                self.held = np.empty((len(self.video), *self.shape), np.float16)
                ends = np.cumsum([row.windows for row in rows])
                for row, end in zip(rows, ends, strict=True):
                    self.read(end - row.windows, self.held[end - row.windows : end])
        self.workers = 1 if self.held is not None else 4  # batches read at once

    def __len__(self):
        return len(self.video)

    def __getitem__(self, i):
        if self.held is not None:
            return self.held[i]
        windows = np.empty((*np.shape(i), *self.shape), np.float16)
        for place in np.ndindex(np.shape(i)):
            self.read(np.asarray(i)[place], windows[place][None])
        return windows

    def mapped(self, i):
        """The tokens (S, L, T, D) of window i's video, memory-mapped."""
        return tokens_of(self.rows[self.video[i]], self.shape)

    def read(self, i, windows):
        """Read window i and those after it into an array (n, L, T, D) of float16; all are of one video."""
        windows[...] = self.mapped(i)[self.offset[i] :][: len(windows)]
        if not np.isfinite(windows).all():
            row = self.rows[self.video[i]]
            raise InputError(f"{features_file(row.features, row.path)}: tokens are not finite; {EXTRACT_AGAIN}")


def read_batches(windows, batches):
    """Yield windows[batch], tokens (B, L, T, D), of each batch in order; the next ones are read meanwhile.

    `windows` are Windows, or their tokens in an array.
    """
    workers = getattr(windows, "workers", 1)
    batches, waiting, pool = iter(batches), deque(), ThreadPoolExecutor(workers)
    try:
        for batch in batches:
            waiting.append(pool.submit(windows.__getitem__, batch))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
