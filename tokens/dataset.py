"""Features on disk, written by 01 and read by every later stage: an index and a file of tokens per video.

rows = read_index("features/zoo")                               a Row per video, sorted by path
tokens = map_tokens(features_file("features/zoo", "SVD/a.mp4"))   (S, L, T, D), memory-mapped

"""

import hashlib
import json
import math
import struct
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import differing, open_zip, read_arrays, read_csv, read_json, write_arrays, write_csv
from basics.running import InputError


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
LARGE = 1 << 28  # bytes of a clip's tokens that are held in memory
EXTRACT_AGAIN = "delete it and run 01 again"

# ---------------------------------------------------------------- the index


def write_index(path, rows: list[Row]):
    """Write index rows (INDEX_FIELDS) sorted by path."""
    write_csv(path, INDEX_FIELDS, [row._asdict() for row in sorted(rows, key=lambda row: row.path)])


def read_index(features) -> list[Row]:
    """All parts' index rows of a features folder, one per video (of two, the newer), sorted by path.

    Raises InputError naming the folder when there is no index or one of other parts than 1 to n of n, the file when a
    column is missing.
    """
    files = sorted(Path(features).glob("index-*-of-*.csv"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise InputError(f"{features}: no index-*.csv; run 01_extract_features.py --features {features} first")
    names = {file.name for file in files}
    if names != {f"index-{part}-of-{len(files)}.csv" for part in range(1, len(files) + 1)}:
        raise InputError(
            f"{features}: {', '.join(sorted(names))}: not all parts of an index; run 01 for each --shard I/N"
        )
    rows = {}
    for file in files:
        for number, row in enumerate(read_csv(file, INDEX_FIELDS, "run 01 again"), 2):
            if not row["windows"].isdecimal():
                raise InputError(f"{file}, row {number}: windows is {row['windows']!r}; run 01 again")
            values = {key: row[key] for key in INDEX_FIELDS} | {"windows": int(row["windows"])}
            rows[row["path"]] = Row(**values)
    return [rows[path] for path in sorted(rows)]


def index_digest(rows) -> str:
    """One name for the same videos, generators, groups, splits and windows."""
    lines = [",".join(map(str, (row.path, row.generator, row.group, row.split, row.windows))) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def features_recipe(folder) -> dict:
    """How the features of a folder were made."""
    if not (Path(folder) / "recipe.json").exists():
        raise InputError(f"{folder}: no recipe.json; run 01_extract_features.py --features {folder} first")
    return read_json(Path(folder) / "recipe.json", ("frames", "tokens", "dim"))


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


def features_file(features, path: str) -> Path:
    """The features of the video that the index calls `path`."""
    return Path(features) / f"{path}.npz"


def write_features(path, tokens, times, valid, row: Row | None = None, recipe=""):
    """Save tokens (S, L, T, D) float16, times (S, L) in seconds, valid (S, L) bool, uncompressed, atomically.

    01 adds the clip's index row and the tokens_digest of the recipe that made it.
    """
    arrays = {"tokens": np.asarray(tokens, np.float16), "times": np.asarray(times), "valid": np.asarray(valid, bool)}
    if row:
        arrays["row"] = {key: getattr(row, key) for key in INDEX_FIELDS} | {"recipe": recipe}
    write_arrays(path, arrays)


def read_row(path) -> tuple[Row, str]:
    """The index row in a features file, and the digest of the recipe that made it."""
    row = read_arrays(path, ("row",), EXTRACT_AGAIN)["row"]
    if row.keys() != {*INDEX_FIELDS, "recipe"}:
        raise InputError(f"{path}: its row has other columns; {EXTRACT_AGAIN}")
    recipe = row.pop("recipe")
    return Row(**row), recipe


def room_for_tokens(shape, folder) -> np.ndarray:
    """Room for tokens of a shape, float16: in memory, or above LARGE bytes in a file in `folder` that ends with it."""
    if 2 * math.prod(shape) <= LARGE:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float16, "w+", shape=shape)


def map_tokens(path) -> np.ndarray:
    """The tokens (S, L, T, D) of a features file as a read-only memory map: a window is read alone.

    NumPy ignores mmap_mode inside .npz, so the stored array's offset is read from the zip's own headers.
    Raises InputError naming the file when the array is missing, compressed or damaged.
    """
    with open_zip(path, EXTRACT_AGAIN) as archive:
        member = archive.getinfo("tokens.npy")
    try:
        if member.compress_type:
            raise ValueError("tokens are compressed")
        with open(path, "rb") as file:
            file.seek(member.header_offset + 26)  # of a zip's local header: the lengths of name and extra fields
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or len(shape) != 4:
                raise ValueError(f"tokens have shape {shape}, expected (S, L, T, D)")
            if dtype != np.float16:
                raise ValueError(f"tokens are {dtype}, not float16")
            return np.memmap(file, dtype, "r", file.tell(), shape)
    except (ValueError, OSError, struct.error) as error:
        raise InputError(f"{path}: not a features file ({error}); {EXTRACT_AGAIN}") from error


def read_valid(row) -> np.ndarray:
    """Which frames (S, L) of a video are not padding. Raises InputError where the index counts other windows."""
    path = features_file(row.features, row.path)
    valid = read_arrays(path, ("valid",), EXTRACT_AGAIN)["valid"]
    if valid.ndim != 2 or len(valid) != row.windows:
        raise InputError(f"{path}: valid {valid.shape} does not match the index; {EXTRACT_AGAIN}")
    return valid


def mean_tokens(rows) -> np.ndarray:
    """The mean over windows, frames and tokens of each video, (V, D)."""
    files = (features_file(row.features, row.path) for row in rows)
    return np.stack([np.mean(map_tokens(file), axis=(0, 1, 2), dtype="float64") for file in files])


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
            self.shape = map_tokens(features_file(rows[0].features, rows[0].path)).shape[1:]  # (L, T, D)
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
        """The tokens (S, L, T, D) of window i's video, memory-mapped. Raises InputError where the index has others."""
        row = self.rows[self.video[i]]
        tokens = map_tokens(file := features_file(row.features, row.path))
        if tokens.shape[1:] != self.shape or row.windows > len(tokens):
            raise InputError(
                f"{file}: tokens {tokens.shape} do not match the index ({row.windows} windows of {self.shape});"
                " delete the file and run 01 again"
            )
        return tokens

    def read(self, i, windows):
        """Read window i and those after it into an array (n, L, T, D) of float16; all are of one video."""
        windows[...] = self.mapped(i)[self.offset[i] :][: len(windows)]
        if not np.isfinite(windows).all():
            row = self.rows[self.video[i]]
            file = features_file(row.features, row.path)
            raise InputError(f"{file}: tokens are not finite; delete the file and run 01 again")


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
