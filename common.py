"""What two or more stages share, in the order of a forward pass: generator table -> features on disk ->
batches -> model -> losses. Every class saved in a `.keras` file lives here, so that any script can load it.

The training loop is in training.py, reading and encoding videos in encoders.py.
"""

import csv
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

# TensorFlow's C++ code writes start-up notes to file descriptor 2, whatever its log level; nobody needs them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
with open(os.devnull, "w") as devnull:
    os.dup2(devnull.fileno(), 2)
    try:
        import keras
        import keras_hub
        from keras import ops
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)

LEVELS = ("bin", "task", "sd", "team", "gen")
HERE = Path(__file__).resolve().parent

# ---------------------------------------------------------------- generator table (Table S-1)


class Generator(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    task: str
    sd_version: str
    team: str


def load_generators(path=HERE / "generators.csv") -> dict[str, Generator]:
    """The generator table (Table S-1) by name, in the file's order.

    Raises ValueError naming the file when a column is missing, a name or alias is taken twice, or Real is absent.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {"name", "aliases", "task", "sd_version", "team"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(sorted(missing))}; see generators.csv")
    table, taken = {}, {}
    for row in rows:
        aliases = tuple(filter(None, (row["aliases"] or "").split("|")))
        generator = Generator(row["name"], aliases, row["task"], row["sd_version"], row["team"])
        for spelling in {spelling_key(name) for name in (generator.name, *aliases)}:
            if spelling in taken:
                raise ValueError(f"{path}: {generator.name} and {taken[spelling]} share the name {spelling!r}")
            taken[spelling] = generator.name
        table[generator.name] = generator
    if "Real" not in table:
        raise ValueError(f"{path}: no row named Real")
    return table


def spelling_key(name: str) -> str:
    """Folder names are compared without case, '-', '_' and spaces."""
    return re.sub(r"[-_\s]", "", name).casefold()


def resolve_generator(name: str, generators: dict[str, Generator]) -> str | None:
    """The table's name for a folder name or alias; None when it is outside the table."""
    wanted = spelling_key(name)
    for generator in generators.values():
        if wanted in map(spelling_key, (generator.name, *generator.aliases)):
            return generator.name
    return None


def class_names(level: str, generators: dict[str, Generator] | None = None) -> tuple[str, ...]:
    """The classes of a level: Real first, then in order of first appearance in the table; Unknown, Mixed left out."""
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
    if level == "bin":
        return ("Real", "Fake")
    generators = generators or load_generators()
    names = ["Real", *(level_value(level, generator) for generator in generators.values())]
    return tuple(name for name in dict.fromkeys(names) if name not in ("Unknown", "Mixed"))


def class_index(level: str, generator: str, generators: dict[str, Generator] | None = None) -> int | None:
    """The class of a generator at a level, or None: Unknown or Mixed there, or not in the table.

    At bin every generator but Real is Fake (1, the positive class), in the table or not.
    """
    generators = generators or load_generators()
    name = resolve_generator(generator, generators)
    if level == "bin":
        return int(name != "Real")
    names = class_names(level, generators)
    value = level_value(level, generators[name]) if name else None
    return names.index(value) if value in names else None


def level_value(level: str, generator: Generator) -> str:
    return {
        "task": generator.task,
        "sd": generator.sd_version,
        "team": generator.team,
        "gen": generator.name,
    }[level]


# ---------------------------------------------------------------- features on disk

INDEX_FIELDS = (
    *("path", "generator", "group", "stratum", "split", "windows"),
    *("fps", "size", "length", "container", "error", "source"),
)


def replace_whole(path, write, suffix=""):
    """Let `write(temporary path)` make a file that appears at `path` whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content: dict):
    replace_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def read_json(path) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error


def write_index(path, rows: list[dict]):
    """Write index rows (INDEX_FIELDS) sorted by path."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, INDEX_FIELDS)
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
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(INDEX_FIELDS) - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: missing column(s) {', '.join(sorted(missing))}; run 01 again")
            for row in reader:
                row["windows"] = int(row["windows"] or 0)
                if not row["error"] or rows.get(row["path"], row)["error"]:
                    rows[row["path"]] = row
    return [rows[path] for path in sorted(rows)]


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
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("tokens.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("tokens are compressed")
        with open(path, "rb") as file:
            file.seek(member.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
            file.seek(int(name_length) + int(extra_length), os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or len(shape) != 4:
                raise ValueError(f"tokens have shape {shape}, expected (S, L, T, D)")
            return np.memmap(file, dtype, "r", file.tell(), shape)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a features file ({error}); delete it and run 01 again") from error


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
        self.video = np.repeat(np.arange(len(rows)), [row["windows"] for row in rows])
        self.files = [features_file(row["features"], row["path"]) for row in rows]
        self.offset = np.concatenate([np.arange(row["windows"]) for row in rows]) if rows else np.zeros(0, int)
        self.held = None
        if rows:
            self.shape = map_tokens(self.files[0]).shape[1:]  # (L, T, D)
            if 2 * len(self.video) * np.prod(self.shape) <= memory:
                self.held = np.stack([self.read(i) for i in range(len(self.video))])

    def __len__(self):
        return len(self.video)

    def __getitem__(self, i):
        if self.held is not None:
            return self.held[i]
        return self.read(i) if np.ndim(i) == 0 else np.stack([self.read(j) for j in i])

    def read(self, i):
        tokens = map_tokens(self.files[self.video[i]])
        if tokens.shape[1:] != self.shape or self.offset[i] >= len(tokens):
            raise ValueError(
                f"{self.files[self.video[i]]}: tokens {tokens.shape} do not match the index (window {self.offset[i]} of"
                f" {self.shape}); delete the file and run 01 again"
            )
        return np.array(tokens[self.offset[i]])


# ---------------------------------------------------------------- batches


class WindowBatches(keras.utils.PyDataset):
    """Training batches (tokens (B, L, T, D), labels (B,)) that depend only on seed, epoch and step.

    `natural` shuffles all windows anew each epoch; windows short of a full batch wait for a later epoch's shuffle.
    `pk` deals the batch's slots round-robin over the classes; a class shows each of its videos once before another
    window of one, and repeats windows only when it has no more. Labels (N,) are per window.
    """

    def __init__(self, windows: Windows, labels, batch_size=64, seed=0, batching="natural", start_epoch=0, workers=1):
        super().__init__(workers=workers)
        self.windows, self.labels = windows, np.asarray(labels, "int32")
        self.batch_size = min(batch_size, len(windows))
        self.seed, self.batching, self.epoch = seed, batching, start_epoch
        self.order = (None, None)  # (epoch, permutation of the windows)

    def __len__(self):
        return len(self.windows) // self.batch_size

    def __getitem__(self, step):
        chosen = self.deal(step) if self.batching == "pk" else self.shuffle(step)
        return self.windows[chosen], dict.fromkeys(OUTPUTS, self.labels[chosen])  # Keras wants a target per output

    def on_epoch_end(self):
        self.epoch += 1

    def shuffle(self, step):
        epoch, order = self.order
        if epoch != self.epoch:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.windows))
            self.order = (self.epoch, order)
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def deal(self, step):
        random = np.random.default_rng((self.seed, self.epoch, step))
        classes = random.permutation(np.unique(self.labels))
        slots = np.bincount(np.arange(self.batch_size) % len(classes), minlength=len(classes))
        return np.concatenate([self.deal_class(label, n, random) for label, n in zip(classes, slots, strict=True)])

    def deal_class(self, label, slots, random):
        own = random.permutation(np.flatnonzero(self.labels == label))
        by_video = np.argsort(self.windows.video[own], kind="stable")
        videos = self.windows.video[own[by_video]]
        nth = np.empty(len(own), int)
        nth[by_video] = np.arange(len(own)) - np.searchsorted(videos, videos)  # 0 for a video's first window here
        return np.resize(own[np.argsort(nth, kind="stable")], slots)


# ---------------------------------------------------------------- model (Sec. 3.1)


OUTPUTS = ("logits", "embedding", "attention")


@keras.saving.register_keras_serializable("saga")
class SAGA(keras.Model):
    """Frozen tokens -> spatial block -> mean over tokens -> positions -> temporal blocks -> mean over frames -> head.

    `class_names` and `features` (the recipe of the features it was trained on) travel in its config.
    """

    def __init__(
        self,
        num_classes,
        frames,
        tokens,
        dim,
        heads,
        temporal_blocks,
        dropout,
        class_names=(),
        features=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = dict(num_classes=num_classes, frames=frames, tokens=tokens, dim=dim, heads=heads)
        self.config |= dict(temporal_blocks=temporal_blocks, dropout=dropout)
        self.config |= dict(class_names=tuple(class_names), features=dict(features or {}))

        def block(name):
            return keras_hub.layers.TransformerEncoder(
                4 * dim, heads, dropout=dropout, activation="gelu", dtype=self.dtype_policy, name=name
            )

        self.spatial = block("spatial")
        self.positions = keras_hub.layers.SinePositionEncoding(dtype=self.dtype_policy, name="positions")  # Eq. S-1
        self.temporal = [block(f"temporal_{i}") for i in range(temporal_blocks)]
        self.classifier = keras.layers.Dense(num_classes, dtype="float32", name="classifier")

    def call(self, tokens, training=False):
        frames, count, dim = (self.config[key] for key in ("frames", "tokens", "dim"))
        x = ops.reshape(tokens, (-1, count, dim))  # (B L, T, D)
        x = self.spatial(x, training=training)
        x = ops.reshape(ops.mean(x, axis=1), (-1, frames, dim))  # (B, L, D)
        x = x + self.positions(x)
        for block in self.temporal[:-2]:
            x = block(x, training=training)
        x, attention = self.temporal[-2](x, training=training, return_attention_scores=True)  # T-Sigs: (B, H, L, L)
        x = self.temporal[-1](x, training=training)
        embedding = ops.cast(ops.mean(x, axis=1), "float32")  # phi (B, D)
        return {
            "logits": self.classifier(embedding),  # (B, C)
            "embedding": embedding,
            "attention": ops.cast(attention, "float32"),
        }

    def get_config(self):
        return {**super().get_config(), **self.config}


def build_saga(
    num_classes,
    frames=8,
    tokens=729,
    dim=1152,
    heads=12,
    temporal_blocks=5,
    dropout=0.1,
    class_names=(),
    features=None,
) -> keras.Model:
    """SAGA's video transformer, built: 95,643,650 parameters for 2 classes at the paper's sizes (Sec. S-2).

    model(tokens (B, L, T, D)) -> {"logits": (B, C), "embedding": (B, D), "attention": (B, H, L, L) after softmax}, in
    float32. Attention is that of the penultimate temporal block. Raises ValueError for sizes that cannot work.
    """
    if temporal_blocks < 2:
        raise ValueError(f"temporal_blocks is {temporal_blocks}; T-Sigs need a penultimate block, so at least 2")
    if dim < heads:
        raise ValueError(f"{heads} heads do not fit into tokens of width {dim}")
    model = SAGA(num_classes, frames, tokens, dim, heads, temporal_blocks, dropout, class_names, features)
    model(np.zeros((1, frames, tokens, dim), "float32"))
    return model


# ---------------------------------------------------------------- losses (Sec. 3.2)


def pairwise_squared_distances(embeddings):
    """Squared Euclidean distances (B, B) between embeddings (B, D): never negative, zero diagonal."""
    embeddings = ops.cast(embeddings, "float32")
    embeddings = embeddings - ops.mean(embeddings, axis=0)  # distances stay; the cancellation below loses fewer digits
    squares = ops.sum(ops.square(embeddings), axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * ops.matmul(embeddings, ops.transpose(embeddings))
    return ops.maximum(distances, 0.0) * (1.0 - ops.eye(ops.shape(embeddings)[0]))


def same_label_mask(labels):
    """True (B, B) where two of the labels, (B,) or (B, 1), are equal."""
    labels = ops.reshape(labels, (-1,))
    return labels[:, None] == labels[None, :]


def positive_pairs(same, distances, positives="all"):
    """True (B, B) at the ordered pairs (a, p), a != p, that enter the loss.

    "hardest" and "random" keep one p per anchor (Eq. 5's index i): the farthest, or the next of its class in the
    batch, which is a random one because the batch is shuffled.
    """
    size = ops.shape(same)[0]
    pairs = ops.logical_and(same, ops.logical_not(ops.eye(size, dtype="bool")))
    if positives == "all":
        return pairs
    place = ops.arange(size)
    ahead = ops.cast((place[None, :] - place[:, None]) % size, "float32")
    rank = distances if positives == "hardest" else -ahead
    best = ops.argmax(ops.where(pairs, rank, -np.inf), axis=1)  # (B,)
    return ops.logical_and(pairs, best[:, None] == place[None, :])


def hardest_negative(same, distances):
    """d(a, n) of the nearest other-class embedding, (B, 1), infinite where the batch has none (Eq. 6)."""
    return ops.min(ops.where(same, np.inf, distances), axis=1, keepdims=True)


def semi_hard_negative(same, distances):
    """d(a, n) (B, B) of the nearest negative farther than p for each pair (a, p), infinite without one (Eq. 3).

    The search goes one p at a time, so that memory stays O(B^2).
    """
    fixed = ops.stop_gradient(distances)

    def nearest(to_positive):  # (B,): d(a, p) of all anchors for one p
        farther = ops.logical_and(ops.logical_not(same), fixed > to_positive[:, None])
        return ops.argmin(ops.where(farther, fixed, np.inf), axis=1), ops.any(farther, axis=1)

    negative, found = ops.map(nearest, ops.transpose(fixed))  # (P, B) each
    chosen = ops.take_along_axis(distances, ops.transpose(negative), axis=1)
    return ops.where(ops.transpose(found), chosen, np.inf)


def triplet_terms(labels, embeddings, margin, semi_hard=False, positives="all"):
    """max(0, d(a, p) - d(a, n) + margin) (B, B) of Eq. (2) with mined negatives, and the mask of pairs that count.

    DEVIATION: Eq. (4) and (5) print the margin with the other sign; margin=-1 is that reading.
    """
    distances = pairwise_squared_distances(embeddings)
    same = same_label_mask(labels)
    pairs = positive_pairs(same, distances, positives)
    negative = semi_hard_negative(same, distances) if semi_hard else hardest_negative(same, distances)
    terms = ops.where(ops.isfinite(negative), ops.maximum(distances - negative + margin, 0.0), 0.0)
    return terms, ops.cast(pairs, "float32")


def mean_over_pairs(terms, pairs):
    return ops.sum(terms * pairs) / ops.maximum(ops.sum(pairs), 1.0)


def hard_negative_loss(labels, embeddings, margin=1.0, positives="all"):
    """Hard negative mining, Eq. (5) and (6), averaged over all pairs (a, p); 0 without a pair or a negative."""
    return mean_over_pairs(*triplet_terms(labels, embeddings, margin, positives=positives))


def semi_hard_negative_loss(labels, embeddings, margin=1.0, positives="all"):
    """Semi-hard mining, Eq. (3) and (4): a pair without a semi-hard negative adds 0 and still counts."""
    return mean_over_pairs(*triplet_terms(labels, embeddings, margin, semi_hard=True, positives=positives))
