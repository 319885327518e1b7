"""Features on disk, written by 01 and read by every later stage: the index, the split, a file of tokens per video.

    rows = read_index("features/zoo")                               a dict per video, sorted by path
    tokens = map_tokens(features_file("features/zoo", "SVD/a.mp4"))   (S, L, T, D), memory-mapped

No Keras here: the index of a million videos is read without it.
"""

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import struct
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------- files that appear whole

INDEX_FIELDS = (
    *("path", "generator", "group", "stratum", "split", "windows"),
    *("fps", "size", "length", "container", "codec", "error", "source"),
)
INDEX_SECONDS = 30  # while it is being made, an index on disk is at most this old
LATER_FIELDS = {"codec": ""}  # columns that older indexes lack, and what stands for them


def replace_whole(path, write, suffix=""):
    """Let `write(temporary path)` make a file that appears at `path` whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not the process's number: two containers on one file system may both be number 1
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content: dict):
    replace_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def read_json(path, required=()) -> dict:
    """A JSON object from a file. Raises ValueError naming the file when it is missing, damaged or lacks a key."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error
    missing = set(required) - set(content) if isinstance(content, dict) else {"everything"}
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; delete it and run its stage again")
    return content


def read_arrays(path, keys, remedy) -> dict:
    """Arrays by name, each over the same clips, and "recipe". Raises ValueError naming the file and the remedy when
    it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in (*keys, "recipe")}
        if len({len(found[key]) for key in keys}) > 1 or not np.isfinite(found.get("embedding", 0)).all():
            raise ValueError("arrays of different lengths or not finite")
    except (KeyError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); {remedy}") from error
    return found


def differing(ours: dict, theirs: dict, besides=()) -> list[str]:
    """The keys in which two recipes of features differ, versions and commit left aside."""
    keys = (ours.keys() | theirs.keys()) - {"versions", "git", *besides}
    return sorted(key for key in keys if ours.get(key) != theirs.get(key))


def write_index(path, rows: list[dict]):
    """Write index rows (INDEX_FIELDS) sorted by path."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, INDEX_FIELDS, extrasaction="ignore")  # where the file is, its features
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["path"]))

    replace_whole(path, write)


def read_index(features) -> list[dict]:
    """All shards' index rows of a features folder, one per video, sorted by path.

    A row without an error wins over one with it, then the newer file. Raises ValueError naming the folder when there
    is no index, or the file when a column is missing.
    """
    files = sorted(Path(features).glob("index-*-of-*.csv"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"{features}: no index-*.csv; run 01_extract_features.py --features {features} first")
    rows = {}
    for path in files:
        for row in read_rows(path):
            if not row["error"] or rows.get(row["path"], row)["error"]:
                rows[row["path"]] = row
    return [rows[path] for path in sorted(rows)]


def read_rows(path) -> list[dict]:
    """The rows of one part of an index, "windows" as a number."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = set(INDEX_FIELDS) - set(LATER_FIELDS) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: missing column(s) {', '.join(sorted(missing))}; run 01 again")
        rows = [LATER_FIELDS | row for row in reader]
    for number, row in enumerate(rows, 2):
        if not (row["windows"] or "").isdecimal():
            raise ValueError(f"{path}, row {number}: windows is {row['windows']!r}; delete the file and run 01 again")
        row["windows"] = int(row["windows"])
    return rows


@contextlib.contextmanager
def locked(path):
    """Hold a file's lock, `.<name>.lock` beside it, while it is read and written anew.

    The lock file stays: a worker that waits for one that is deleted would share it with nobody. On a file system
    without locks there is none, and two workers on one shard may lose rows, which the same command finds missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def add_to_index(path, rows):
    """Add rows to this shard's part of the index; those of another worker on the same shard stay."""
    with locked(path):
        there = read_rows(path) if path.exists() else []
        write_index(path, {row["path"]: row for row in [*there, *rows]}.values())


def forget_renamed(rows, old, folder):
    """Drop what the folder holds of videos that now have another path, because their generator was renamed."""
    paths, sources = {row["path"] for row in rows}, {row["source"] for row in rows}
    gone = {path for path, row in old.items() if row["source"] in sources and path not in paths}
    if not gone:
        return
    print(f"{len(gone)} videos have another generator now; what was kept under the old one is dropped")
    for index in Path(folder).glob("index-*-of-*.csv"):
        with locked(index):
            write_index(index, [row for row in read_rows(index) if row["path"] not in gone])
    for path in gone:
        features_file(folder, path).unlink(missing_ok=True)
        del old[path]


def features_file(features, path: str) -> Path:
    """The features of the video that the index calls `path`."""
    return Path(features) / f"{path}.npz"


def write_features(path, tokens, times, valid):
    """Save tokens (S, L, T, D) float16, times (S, L) in seconds, valid (S, L) bool, uncompressed and whole."""
    arrays = {
        "tokens": np.asarray(tokens, np.float16),
        "times": np.asarray(times),
        "valid": np.asarray(valid, bool),
    }
    replace_whole(path, lambda file: np.savez(file, **arrays), suffix=".npz")


def map_tokens(path) -> np.ndarray:
    """The tokens (S, L, T, D) of a features file as a read-only memory map: a window is read alone.

    NumPy ignores mmap_mode inside .npz, so the stored array's offset is read from the zip's own headers.
    Raises ValueError naming the file when the array is missing, compressed or damaged.
    """
    try:
        with open(path, "rb") as file:
            place, dtype, shape = stored_tokens(file)
            return np.memmap(file, dtype, "r", place, shape)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a features file ({error}); delete it and run 01 again") from error


FIRST = struct.Struct(
    "<4s4xH16xHH"
)  # a zip's first header: magic, compression, lengths of the name and of extra fields
STORED_FIRST = zipfile.ZIP_STORED, b"tokens.npy"


def stored_tokens(file):
    """Place in bytes, dtype and shape of a features file's tokens. Those of 01 stand first, which saves looking for
    them in the zip's directory at the end: half of the time that a small file takes.
    """
    head = file.read(FIRST.size + len(STORED_FIRST[1]))
    magic, compression, name, extra = FIRST.unpack_from(head) if len(head) >= FIRST.size else (b"", 0, 0, 0)
    if magic != b"PK\x03\x04" or (compression, head[FIRST.size :][:name]) != STORED_FIRST:
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo("tokens.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("tokens are compressed")
        file.seek(member.header_offset)
        name, extra = FIRST.unpack(file.read(FIRST.size))[2:]
        file.seek(name, os.SEEK_CUR)
    file.seek(extra, os.SEEK_CUR)
    np.lib.format.read_magic(file)
    (length,) = struct.unpack("<H", file.read(2))
    dtype, shape = array_header(file.read(length))
    if file.tell() + dtype.itemsize * math.prod(shape) > os.fstat(file.fileno()).st_size:
        raise ValueError("the file is cut off")
    return file.tell(), dtype, shape


@functools.lru_cache(maxsize=1024)
def array_header(header: bytes):
    """dtype and shape of tokens by their .npy header, which most files share."""
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(struct.pack("<H", len(header)) + header))
    if fortran or len(shape) != 4:
        raise ValueError(f"tokens have shape {shape}, expected (S, L, T, D)")
    return dtype, shape


def read_batches(windows, batches):
    """Yield windows[batch], tokens (B, L, T, D), of each batch in order; the next ones are read meanwhile."""
    batches, waiting, pool = iter(batches), deque(), ThreadPoolExecutor(windows.workers)
    try:
        for batch in batches:
            waiting.append(pool.submit(windows.__getitem__, batch))
            if len(waiting) > windows.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- splits


def group_hash(group: str) -> float:
    """A number in [0, 1) that depends on the group's name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def groups_of_generators(groups, generators) -> dict[str, list[str]]:
    """Each generator's groups by hash, from each video's group and generator."""
    members = {}
    for group, generator in sorted(set(zip(groups, generators, strict=True)), key=lambda pair: group_hash(pair[0])):
        members.setdefault(generator, []).append(group)
    return dict(sorted(members.items()))


def assign_splits(groups, generators, recorded=None) -> dict[str, str]:
    """{group: train, val or test} from each video's group and generator.

    Groups with a recorded split keep it, whatever is added later; test takes 20 per cent of the others by hash, val 8.
    A generator of two groups or more and none in test gives its group of the lowest hash.
    """
    recorded, members = recorded or {}, groups_of_generators(groups, generators)
    splits = {}
    for group in groups:
        place = group_hash(group)
        splits[group] = recorded.get(group) or ("test" if place < 0.2 else "val" if place < 0.28 else "train")
    for own in members.values():
        free = [group for group in own if group not in recorded]
        if len(own) > 1 and free and "test" not in map(splits.get, own):
            splits[free[0]] = "test"
    return train_every_generator(splits, members, recorded)


def set_splits(rows, recorded):
    """Give every row its split: a CSV's own, else the one recorded for its group, else by hash."""
    given = {}
    for row in rows:
        if row["split"] and given.setdefault(row["group"], row["split"]) != row["split"]:
            raise ValueError(
                f"group {row['group']} is in {given[row['group']]} and in {row['split']}; a group has one split"
            )
    splits = assign_splits([row["group"] for row in rows], [row["generator"] for row in rows], recorded | given)
    for row in rows:
        row["split"] = splits[row["group"]]


def train_every_generator(splits, members, fixed=()) -> dict[str, str]:
    """A generator left without a train group gets its group of the highest hash back; groups in `fixed` stay."""
    splits = dict(splits)
    for own in members.values():
        free = [group for group in own if group not in fixed]
        if free and "train" not in map(splits.get, own):
            splits[free[-1]] = "train"
    return splits


class Windows:
    """The windows of some videos: `windows[i]` are tokens (L, T, D) for an index, (B, L, T, D) for an array of them.

    Rows are the index's with their folder as "features". `video` (N,) tells each window's place in them. The windows
    are held in memory when they fit in `memory` bytes and otherwise read one by one from the files.
    """

    def __init__(self, rows: list[dict], memory: int = 2 << 30):
        self.rows = rows
        self.video = np.repeat(np.arange(len(rows)), [row["windows"] for row in rows])
        self.offset = window_numbers(self.video)
        self.held = None
        if rows:
            self.shape = map_tokens(self.file(0)).shape[1:]  # (L, T, D)
            if 2 * len(self.video) * math.prod(self.shape) <= memory:
                self.held = np.empty((len(self.video), *self.shape), np.float16)
                for i in range(len(self.video)):
                    self.read(i, self.held[i])
        self.workers = 1 if self.held is not None else 4  # batches read at once

    def __len__(self):
        return len(self.video)

    def __getitem__(self, i):
        if self.held is not None:
            return self.held[i]
        windows = np.empty((*np.shape(i), *self.shape), np.float16)
        for place in np.ndindex(np.shape(i)):
            self.read(np.asarray(i)[place], windows[place])
        return windows

    def file(self, video):
        return features_file(self.rows[video]["features"], self.rows[video]["path"])

    def mapped(self, i):
        """The tokens (S, L, T, D) that hold window i, memory-mapped. Raises ValueError where the index has others."""
        file = self.file(self.video[i])
        tokens = map_tokens(file)
        if tokens.shape[1:] != self.shape or self.offset[i] >= len(tokens):
            raise ValueError(
                f"{file}: tokens {tokens.shape} do not match the index (window {self.offset[i]} of {self.shape});"
                " delete the file and run 01 again"
            )
        return tokens

    def read(self, i, window):
        """Read window i into an array (L, T, D) of float16."""
        window[...] = self.mapped(i)[self.offset[i]]
        if not all_finite(window):
            raise ValueError(f"{self.file(self.video[i])}: tokens are not finite; delete the file and run 01 again")


def all_finite(values) -> bool:
    """np.isfinite(values).all() of float16 (...), by the bits of the exponent: NumPy takes eight times as long."""
    return bool((values.view(np.uint16) & 0x7FFF).max() < 0x7C00)


def window_numbers(video):
    """Which of its video's windows each is, (N,), of the videos (N,) of windows in order."""
    return np.arange(len(video)) - np.searchsorted(video, video)
