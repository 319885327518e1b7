"""Frames of clips, and stills, as vectors: the mean over a frame's tokens, or the embedding that a run gave a clip; and
the roles of images around one target generator.

    images = read_images("features/zoo", per_clip=4)        a folder of 01, or <level>_embeddings.npz of 02 or 03
    images.vectors, images.generator                        (N, D), (N,)
    roles = assign_roles(images, resolve_roles(images, named), counts, seed=0)

    vectors, mean, scale = standardize(images.vectors, roles, batch=16384)
    score_images("features/new", "runs/wild", batch=16384)  by the classifier of a run of 05

N images, D wide. What cannot be read raises InputError.
"""

import functools
import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from basics.artifacts import file_digest, first_names, read_arrays, write_csv
from basics.running import InputError, printable
from tokens.dataset import (
    EXTRACT_AGAIN,
    FEATURES,
    Row,
    features_file,
    features_recipe,
    index_digest,
    map_tokens,
    other_tokens,
    read_index,
    read_per_frame,
    subsample,
    tokens_of,
    usable,
    window_shape,
)
from tokens.generators import LEVELS, TABLE, load_generators, resolve_generator
from tokens.split import assign_splits, fold_splits


class Images(NamedTuple):
    """Arrays over the same N images; images of one clip have its path and group."""

    vectors: np.ndarray  # (N, D) float32
    path: np.ndarray  # (N,) of the index
    generator: np.ndarray  # (N,)
    group: np.ndarray  # (N,)
    split: np.ndarray  # (N,) train, val or test
    recipe: dict  # how the vectors were made
    features: str = ""  # the folder of the clips' tokens; "" of embeddings

    def rows(self, chosen):
        """The Images chosen by numbers (M,) or by a mask (N,)."""
        return Images(*(array[chosen] for array in self[:5]), self.recipe, self.features)


def read_images(source, per_clip=1, fold=None, limit=None, seed=0) -> Images:
    """The Images of a features folder, up to `per_clip` frames of each clip, evenly spread; or the embeddings of a run
    of 02 or 03, one per clip. `fold` (k, n): split test is fold k of n and val is empty; `limit`: clips per generator
    and split.
    """
    if not str(source).endswith(".npz"):
        return read_frames(source, per_clip, fold, limit, seed)
    if fold:
        raise InputError(f"{source}: the run has its own split; train it by --fold, and leave that out here")
    return read_embeddings(source, limit, seed)


def on_disk(parts, width) -> np.ndarray:
    """The vectors (n, D) of all parts as one array (N, D) of float32, kept in an unnamed file and not in memory."""
    with tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(np.float32(part).tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(file.tell() // (4 * width), width))


# ---------------------------------------------------------------- frames


def read_frames(folder, per_clip, fold, limit, seed):
    """A frame's vector is the mean over its tokens."""
    recipe, index = features_recipe(folder), read_index(folder)
    rows = usable(index, folder)
    if not rows:
        raise InputError(f"{folder}: no video with features; run 01 again")
    rows = fold_splits(rows, *fold, seed) if fold else rows
    rows = subsample(rows, ("generator", "split"), limit, seed) if limit else rows
    places = []  # in rows, of each image's clip

    def clips():
        for place, row in enumerate(tqdm(rows, "reading vectors", unit="clip", disable=len(rows) < 1000)):
            vectors = clip_vectors(row, per_clip, window_shape(recipe))
            if not np.isfinite(vectors).all():
                raise InputError(f"{features_file(folder, row.path)}: a vector is not finite; {EXTRACT_AGAIN}")
            places.extend([place] * len(vectors))
            yield vectors

    vectors = on_disk(clips(), recipe["dim"])
    columns = (np.array([getattr(row, key) for row in rows])[places] for key in ("path", "generator", "group", "split"))
    return Images(vectors, *columns, {"features": recipe, "index_sha256": index_digest(index)}, str(folder))


def clip_vectors(row, per_clip, shape):
    """The vectors (K, D) of a clip's chosen frames, float32; its windows must have the shape (L, T, D)."""
    tokens = tokens_of(row, shape)
    window, frame = np.divmod(chosen_frames(row, per_clip, shape[0]), shape[0])
    return np.stack([np.mean(tokens[i, j], axis=0, dtype="float32") for i, j in zip(window, frame, strict=True)])


def chosen_frames(row, per_clip, frames):
    """The numbers (K,) of up to `per_clip` frames of a clip, evenly spread over those that are not padding, where a
    window has `frames`.
    """
    valid = read_per_frame(row, "valid")
    if valid.shape[1] != frames or not valid.any():
        what = "every frame is padding" if valid.shape[1] == frames else f"valid {valid.shape}"
        raise InputError(f"{features_file(row.features, row.path)}: {what}; {EXTRACT_AGAIN}")
    valid = np.flatnonzero(valid)
    count = min(per_clip, len(valid))
    return valid[((np.arange(count) + 0.5) * len(valid) / count).astype(int)]


# ---------------------------------------------------------------- embeddings


def read_embeddings(path, limit, seed):
    """The embeddings that a run wrote. Clips of generators it was not trained on are split here, by group as in 01."""
    keys = ("embedding", "video", "generator", "group", "split", "recipe")
    holds = {"recipe": {"level": set(LEVELS), "arguments": dict, "features": FEATURES, "index_sha256": str}}
    vectors, video, generator, group, split, recipe = read_arrays(
        path, keys, "run 02 or 03 again", holds=holds
    ).values()
    if not (vectors.size and np.isfinite(vectors := np.float32(vectors)).all()):
        raise InputError(f"{path}: embeddings {vectors.shape} are none, or too large; run 02 or 03 again")
    own = {str(name): str(part) for name, part in zip(group, split, strict=True) if part != "unseen"}
    splits = assign_splits(group.tolist(), generator.tolist(), own)
    trained = sorted(set(generator[np.isin(split, ("train", "val"))].tolist()))
    split = np.array([splits[name] if part == "unseen" else part for name, part in zip(group, split, strict=True)])
    made = {key: recipe[key] for key in ("features", "index_sha256")} | {"embeddings_sha256": file_digest(path)}
    made["run"] = {"level": recipe["level"], "arguments": recipe["arguments"], "trained_on": trained}
    images = Images(vectors, video, generator, group, split, made)
    if not limit:
        return images
    columns = zip(video.tolist(), generator.tolist(), split.tolist(), strict=True)
    rows = [Row(path, own, path, split=part, label=i) for i, (path, own, part) in enumerate(columns)]
    return images.rows([row.label for row in subsample(rows, ("generator", "split"), limit, seed)])


# ---------------------------------------------------------------- roles around one target generator


class Roles(NamedTuple):
    """Numbers (M,) of images by role. No group is both in training and in test."""

    labelled: np.ndarray  # target and known
    val: np.ndarray  # target and known
    wild: np.ndarray  # unlabelled; may include the target
    test: dict[str, np.ndarray]  # by generator: target, known, unseen


def resolve_roles(images, named, table=TABLE) -> dict[str, list[str]]:
    """{role: generators} as the images name them.

    `named` are {"target": [name], "known": names, "wild": names, "unseen": names}; a name may be an alias in `table`,
    the path of a generator table. A wild generator may have another role as well, for other images. Raises InputError
    where a name is of no image, or has two roles.
    """
    present, roles = set(images.generator.tolist()), {}
    for role, names in named.items():
        if not present.issuperset(names):
            generators = load_generators(table)
            names = [name if name in present else resolve_generator(name, generators) or name for name in names]
        missing = [name for name in names if name not in present]
        if missing or not names:
            wrong = f"no image of {', '.join(missing)}" if missing else "no generator named"
            raise InputError(f"{role}: {wrong}; there are: {', '.join(sorted(present))}")
        if len(set(names)) < len(names):
            raise InputError(f"{role}: {', '.join(name for name, n in Counter(names).items() if n > 1)} named twice")
        roles[role] = names
    count = Counter([*roles["target"], *roles["known"], *roles["unseen"]])
    if twice := sorted(name for name in count if count[name] > 1):
        raise InputError(f"{', '.join(twice)}: in two roles of target, known and unseen; leave one out")
    trained_on = images.recipe.get("run", {}).get("trained_on", ())
    if seen := [name for name in roles["unseen"] if name in trained_on]:
        print(f"the run of these embeddings was trained on {', '.join(seen)}, so unseen here is not unseen by it")
    return roles


def assign_roles(images, roles, counts, seed) -> Roles:
    """Assign images to the `roles` of resolve_roles, of each generator at most as many as `counts` says: {"target",
    "known", "wild": [a number of images per generator of that role]}.

    Labelled and wild images are of split train; what is left over of a group has no role. Val images are all of split
    val, or where target or known have none there a fifth of their groups of split train (of one group, of its clips).
    Target and known are tested on split test, unseen generators on all their images, or on split test where others of
    theirs are wild. Raises InputError where a role is empty, or an image is in two roles.
    """
    target, known, unseen = roles["target"], roles["known"], roles["unseen"]
    train = np.flatnonzero(images.split == "train").tolist()
    drawn_by_group = [hashlib.sha256(f"{seed} {group}".encode()).digest() for group in images.group[train]]
    order = np.array([place for _, place in sorted(zip(drawn_by_group, train, strict=True))], int)
    val = np.flatnonzero((images.split == "val") & np.isin(images.generator, target + known))
    if len(set(images.generator[val] == target[0])) < 2:
        val = np.concatenate([first_groups(images, order, name) for name in target + known])
    used, drawn = set(val.tolist()), {"target": [], "known": [], "wild": []}
    for role, places in drawn.items():
        for name, count in zip(roles[role], counts[role], strict=True):
            places += (chosen := choose_images(images, order, name, count, used))
            if role != "wild" and not chosen:
                raise InputError(f"{name}: no image of split train to label; add videos and run 01 again")
    labelled, wild = np.sort(drawn["target"] + drawn["known"]), np.sort(drawn["wild"])
    if not len(wild):
        raise InputError(f"wild: no image of {', '.join(roles['wild'])} is left; name other generators")
    trained = np.isin(images.group, np.unique(images.group[np.concatenate([labelled, wild])]))
    test = {}
    for name in target + known + unseen:
        everywhere = name in unseen and name not in roles["wild"]
        free = ~trained & (everywhere | (images.split == "test"))
        test[name] = np.flatnonzero((images.generator == name) & free)
        if not len(test[name]) and name not in known:
            raise InputError(f"{name}: no image to test on; add videos and run 01 again, or leave it out")
    if untested := [name for name in known if not len(test[name])]:
        print(f"no test image, so not evaluated: {', '.join(untested)}")
    assigned = Roles(labelled, np.sort(val), wild, {name: places for name, places in test.items() if len(places)})
    refuse_same_images(images, assigned)
    return assigned


def first_groups(images, order, generator, fraction=0.2):
    """The images of the first groups of a generator in the given order; of the first clips where it has one group."""
    numbers = order[images.generator[order] == generator]
    units = images.group[numbers] if len(set(images.group[numbers])) > 1 else images.path[numbers]
    names = list(dict.fromkeys(units.tolist()))
    count = max(round(fraction * len(names)), 1) if len(names) > 1 else 0
    return numbers[np.isin(units, names[:count])]


def choose_images(images, order, name, count, used):
    """Up to `count` images of a generator in the given order; their whole groups are added to `used`."""
    chosen = [place for place in order[images.generator[order] == name].tolist() if place not in used][:count]
    used.update(np.flatnonzero(np.isin(images.group, images.group[chosen]) & (images.generator == name)).tolist())
    return chosen


def refuse_same_images(images, roles):
    """Raise InputError where images of different roles are the same: where their vectors are, and the tokens of their
    whole clips too, since unlike clips may begin with the same black frame.
    """
    parts = roles._asdict() | {"test": np.concatenate(list(roles.test.values()))}
    places, part = np.concatenate(list(parts.values())), np.repeat(list(parts), [len(own) for own in parts.values()])
    digests = np.array([hash(images.vectors[place].tobytes()) for place in places])
    order = np.argsort(digests, kind="stable")  # images that are the same lie side by side, by role
    held = functools.cache(lambda path: hashlib.sha256(map_tokens(features_file(images.features, path))).hexdigest())
    clips = {}  # {what a clip holds: {role: the first clip of it}}
    edges = np.concatenate([[0], np.flatnonzero(np.diff(digests[order])) + 1, [len(order)]])
    for i in np.flatnonzero(np.diff(edges) > 1):
        own = order[edges[i] : edges[i + 1]]
        for place in own if len(set(part[own])) > 1 else ():
            path = str(images.path[places[place]])
            holds = held(path) if images.features else digests[place]
            clips.setdefault(holds, {}).setdefault(part[place], path)
    pairs = [" and ".join(f"{path} ({role})" for role, path in of.items()) for of in clips.values() if len(of) > 1]
    if pairs:
        each = "each" if len(pairs) > 1 else "them"
        raise InputError(f"{first_names(pairs)} are the same image in two roles; remove one of {each}")


# ---------------------------------------------------------------- a classifier's images


def standardize(vectors, places, batch):
    """{role: standardised vectors (n, D)}, with mean 0 and deviation 1 over the labelled ones; and their mean, scale
    (D,).

    `places` are the numbers of the vectors (N, D) by role. A dimension that does not vary among the labelled keeps its
    scale. Wild vectors may be many: they are float32 and on disk, `batch` of them at a time in memory.
    """
    labelled = np.float64(vectors[places["labelled"]])
    mean, deviation = labelled.mean(axis=0), labelled.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1.0)
    standard = {role: (np.float64(vectors[own]) - mean) / scale for role, own in places.items() if role != "wild"}
    parts = np.split(places["wild"], range(batch, len(places["wild"]), batch))
    wild = on_disk(((vectors[part] - np.float32(mean)) / np.float32(scale) for part in parts), len(mean))
    return standard | {"wild": wild}, mean, scale


def score_images(source, run, batch) -> int:
    """Write run/wild_applied.csv: path, generator, and the scores of a run's two classifiers, of all images of other
    features. Returns how many. Raises InputError where their vectors are not like those it was trained on.
    """
    run, methods, remedy = Path(run), ("baseline", "constrained"), "train it first, without --apply"
    holds = {"recipe": {"arguments": {"images_per_clip": range(1, 1 << 31), "target": str}, "features": FEATURES}}
    ours = read_arrays(run / "wild_classifier.npz", ("recipe",), remedy, holds=holds)["recipe"]
    images = read_images(source, ours["arguments"]["images_per_clip"])
    differ = other_tokens(images.recipe["features"], ours["features"])
    if differ := differ + ["run"] * (images.recipe.get("run") != ours.get("run")):
        keys = ", ".join(differ)
        raise InputError(f"{source} holds other vectors than the classifier was trained on ({keys}); make them alike")
    width = images.vectors.shape[1]
    holds = dict.fromkeys(methods, f"f {width + 1}") | dict.fromkeys(("mean", "scale"), f"f {width}")
    classifier = read_arrays(file := run / "wild_classifier.npz", tuple(holds), remedy, holds=holds)
    if not (classifier["scale"] > 0).all():
        raise InputError(f"{file}: a scale is not above 0; {remedy}")
    columns, rows = ("path", "generator", *methods), []
    for start in range(0, len(images.path), batch):
        part = images.rows(slice(start, start + batch))
        vectors = (np.float64(part.vectors) - classifier["mean"]) / classifier["scale"]
        logits = [vectors @ classifier[method][:-1] + classifier[method][-1] for method in methods]  # of non-target
        values = zip(part.path, part.generator, *(np.round(-own, 6) for own in logits), strict=True)
        rows += [dict(zip(columns, row, strict=True)) for row in values]
    write_csv(run / "wild_applied.csv", columns, rows)
    target = printable(ours["arguments"]["target"])
    print(f"{len(rows)} images scored in {run / 'wild_applied.csv'}; above 0: predicted as {target}")
    return len(rows)
