"""What unknown-aware attribution works on: one vector per image, the roles that images have, and a linear classifier.

    images = read_images("features/zoo")                   folder of 01, or <level>_embeddings.npz of 02 or 03
    roles = deal(images, resolve_roles(images, "SVD", {"known": [...], "wild": [...], "unseen": [...]}), counts, seed=0)
    problem = prepare(images, roles, "SVD")

N images, D wide. Whatever cannot be done raises a ValueError.
"""

import hashlib
import json
import tempfile
import zipfile
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import HERE, load_generators, resolve_generator
from tokens.dataset import assign_splits, features_file, group_hash, map_tokens, read_index
from tokens.split import features_recipe, first_per, fold_splits, usable
from training.callbacks import PATHS, file_digest, index_digest

# ---------------------------------------------------------------- one vector per image


class Images(NamedTuple):
    """Arrays over the same N images; those of a clip share its path and group."""

    vectors: np.ndarray  # (N, D) float32
    path: np.ndarray  # (N,) of the index
    generator: np.ndarray  # (N,)
    group: np.ndarray  # (N,)
    split: np.ndarray  # (N,) train, val or test
    recipe: dict  # how the vectors were made

    def rows(self, chosen):
        """The same arrays of the images (M,) chosen by place or by mask."""
        return Images(*(own[chosen] for own in self[:-1]), self.recipe)


def read_images(source, per_clip=1, fold=None, limit=None, seed=0) -> Images:
    """The images of a features folder, `per_clip` frames of each clip, evenly spread; or the embeddings of a run of 02
    or 03, one per clip. `fold` (k, n): split test is fold k of n and nobody is val; `limit`: clips per generator and
    split.
    """
    if str(source).endswith(".npz"):
        if fold:
            raise ValueError(f"{source}: the run has its own split; train it by --fold, and leave that out here")
        images = read_embeddings(source, limit, seed)
    else:
        images = read_frames(source, per_clip, fold, limit, seed)
    for start in range(0, len(images.path), 1 << 16):
        wrong = ~np.isfinite(images.vectors[start : start + (1 << 16)]).all(axis=1)
        if wrong.any():
            path = images.path[start + wrong.argmax()]
            raise ValueError(f"{source}: the vector of {path} is not finite; run the stage that wrote it again")
    return images


def read_frames(folder, per_clip, fold, limit, seed):
    """A frame's vector is the mean over its tokens. The vectors are kept in a file without a name and not in memory."""
    recipe, index = features_recipe(folder), read_index(folder)
    rows = usable(index, folder)
    if not rows:
        raise ValueError(f"{folder}: no video with features; run 01 again")
    rows = fold_splits(rows, *fold, seed) if fold else rows
    rows = first_per(rows, ("generator", "split"), limit, seed) if limit else rows
    places = []
    with tempfile.TemporaryFile() as file:
        for place, row in enumerate(tqdm(rows, "reading vectors", unit="clip", disable=len(rows) < 1000)):
            vectors = clip_vectors(row, per_clip)
            if vectors.shape[1] != recipe["dim"]:
                width = f"{vectors.shape[1]} wide, the recipe says {recipe['dim']}"
                raise ValueError(f"{features_file(folder, row['path'])}: {width}; delete it and run 01 again")
            file.write(vectors.tobytes())
            places += [place] * len(vectors)
        file.flush()
        vectors = np.memmap(file, np.float32, "r", shape=(len(places), recipe["dim"]))
    columns = (np.array([row[key] for row in rows])[places] for key in ("path", "generator", "group", "split"))
    made = {key: value for key, value in recipe.items() if key not in ("versions", "git")}
    return Images(vectors, *columns, {"features": made, "index_sha256": index_digest(index)})


def clip_vectors(row, per_clip):
    """The vectors (K, D) of a clip's chosen frames, float32."""
    tokens = map_tokens(features_file(row["features"], row["path"]))
    window, frame = np.divmod(chosen_frames(row, per_clip), tokens.shape[1])
    return np.stack([np.mean(tokens[i, j], axis=0, dtype="float32") for i, j in zip(window, frame, strict=True)])


def chosen_frames(row, per_clip):
    """The numbers (K,) of up to `per_clip` frames of a clip, evenly spread over those that are not padding."""
    file = features_file(row["features"], row["path"])
    try:
        with np.load(file, allow_pickle=False) as arrays:
            valid = np.flatnonzero(arrays["valid"])
        if not len(valid):
            raise ValueError("every frame is padding")
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: not a features file ({error}); delete it and run 01 again") from error
    count = min(per_clip, len(valid))
    return valid[((np.arange(count) + 0.5) * len(valid) / count).astype(int)]


def read_embeddings(path, limit, seed):
    """The embeddings that a run wrote. Clips of generators it was not trained on are split here, by group as in 01."""
    keys = ("embedding", "video", "generator", "group", "split")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            vectors, video, generator, group, split = (arrays[key] for key in keys)
            recipe = json.loads(str(arrays["recipe"]))
        if len({len(column) for column in (vectors, video, generator, group, split)}) > 1 or vectors.ndim != 2:
            raise ValueError("arrays of different lengths")
        settings = {key: value for key, value in recipe["arguments"].items() if key not in PATHS}
        made = {"features": recipe["features"], "index_sha256": recipe["index_sha256"]}
        run = {"level": recipe["level"], "arguments": settings}
    except (KeyError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no embeddings of 02 or 03 ({error}); run the stage again") from error
    own = {str(name): str(part) for name, part in zip(group, split, strict=True) if part != "unseen"}
    splits = assign_splits(group.tolist(), generator.tolist(), own)
    trained = sorted(set(generator[np.isin(split, ("train", "val"))].tolist()))
    split = np.array([splits[name] if part == "unseen" else part for name, part in zip(group, split, strict=True)])
    made |= {"embeddings_sha256": file_digest(path), "run": run | {"trained_on": trained}}
    images = Images(np.float32(vectors), video, generator, group, split, made)
    if not limit:
        return images
    columns = zip(video.tolist(), generator.tolist(), split.tolist(), strict=True)
    rows = [dict(path=own[0], generator=own[1], split=own[2], place=i) for i, own in enumerate(columns)]
    return images.rows([row["place"] for row in first_per(rows, ("generator", "split"), limit, seed)])


# ---------------------------------------------------------------- roles


class Roles(NamedTuple):
    """Places (M,) among the images. Those that train share no group with those that test."""

    labelled: np.ndarray  # of target and known
    val: np.ndarray  # of target and known
    wild: np.ndarray  # whatever the wild generators are, the target among them or not
    test: dict[str, np.ndarray]  # by generator: target, known, unseen


def resolve_roles(images, target, others, table=HERE / "generators.csv"):
    """The generators by role as the images name them. Raises ValueError where a name is none or has two roles.

    `others` are {"known": names, "wild": names, "unseen": names}. A wild generator may have another role as well, for
    other images. `table` is the file of generators and their aliases.
    """
    table, there = load_generators(table), set(images.generator.tolist())
    named = {"target": [target]} | others
    roles = {role: [resolve_generator(name, table) or name for name in own] for role, own in named.items()}
    for role, own in roles.items():
        if missing := [name for name in own if name not in there]:
            raise ValueError(f"{role}: no image of {', '.join(missing)}; there are: {', '.join(sorted(there))}")
        if not own:
            raise ValueError(f"{role}: no generator named; there are: {', '.join(sorted(there))}")
        if twice := {name for name in own if own.count(name) > 1}:
            raise ValueError(f"{role}: {', '.join(sorted(twice))} named twice")
    taken = [*roles["target"], *roles["known"], *roles["unseen"]]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)}: in two roles of target, known and unseen; leave one out")
    trained = images.recipe.get("run", {}).get("trained_on", ())
    if met := [name for name in roles["unseen"] if name in trained]:
        print(f"the run of these embeddings was trained on {', '.join(met)}, so unseen here is not unseen by it")
    return roles


def deal(images, roles, counts, seed, apart=False) -> Roles:
    """Deal the images of `roles` (resolve_roles), `counts` of each generator: {"target", "known", "wild": number}, or
    {"wild": {generator: number}}.

    Labelled and wild images are of split train; what is left over of a group has no role. Val images are all of split
    val, or where target or known have none there a fifth of their groups of split train (of one group, of its clips).
    Target and known are tested on split test, unseen generators on all their images, or on split test where others of
    theirs are wild, and with `apart` in any case.
    """
    target, known = roles["target"], roles["known"]
    order = sorted(range(len(images.path)), key=lambda i: group_hash(f"{seed} {images.group[i]}"))
    order = np.array(order)[images.split[order] == "train"]
    val = np.flatnonzero((images.split == "val") & np.isin(images.generator, target + known))
    if len(set(images.generator[val] == target[0])) < 2:
        val = np.concatenate([first_groups(images, order, name) for name in target + known])
    used, dealt = set(val.tolist()), {}
    for role in ("target", "known", "wild"):
        wanted = counts[role] if isinstance(counts[role], dict) else dict.fromkeys(roles[role], counts[role])
        dealt[role] = np.concatenate([take(images, order, name, wanted[name], used) for name in roles[role]])
    labelled, wild = np.concatenate([dealt["target"], dealt["known"]]), dealt["wild"]
    trained = np.isin(images.group, np.unique(images.group[np.concatenate([labelled, wild])]))
    free, test = ~trained & (images.split == "test"), {}
    for name in [*target, *known, *roles["unseen"]]:
        whole = name in roles["unseen"] and name not in roles["wild"] and not apart
        test[name] = np.flatnonzero((images.generator == name) & (~trained if whole else free))
    if untested := [name for name in known if not len(test[name])]:
        print(f"no test image, so not evaluated: {', '.join(untested)}")
    found = Roles(np.sort(labelled), np.sort(val), np.sort(wild), test)
    check_roles(images, found, roles)
    return found._replace(test={name: places for name, places in test.items() if len(places)})


def first_groups(images, order, generator, share=0.2):
    """The images of the first groups of a generator in the given order; of the first clips where it has one group."""
    own = order[images.generator[order] == generator]
    units = images.group[own] if len(set(images.group[own])) > 1 else images.path[own]
    names = list(dict.fromkeys(units.tolist()))
    count = max(round(share * len(names)), 1) if len(names) > 1 else 0
    return own[np.isin(units, names[:count])]


def take(images, order, name, count, used):
    """Up to `count` images of a generator in the given order; their whole groups are added to `used`."""
    chosen = []
    for place in order[images.generator[order] == name]:
        if len(chosen) == count:
            break
        if place not in used:
            chosen.append(place)
    used.update(np.flatnonzero(np.isin(images.group, images.group[chosen]) & (images.generator == name)))
    return np.array(chosen, int)


def check_roles(images, found, roles):
    """Raise ValueError where a role is empty, or an image is in two roles."""
    (target,), generators = roles["target"], set(images.generator[found.labelled].tolist())
    for name in [target, *roles["known"]]:
        if name not in generators:
            raise ValueError(f"{name}: no image of split train to label; add videos and run 01 again")
    if not len(found.wild):
        raise ValueError(f"wild: no image of {', '.join(roles['wild'])} is left; name other generators")
    for name in [target, *roles["unseen"]]:
        if not len(found.test[name]):
            raise ValueError(f"{name}: no image to test on; add videos and run 01 again, or leave it out")
    parts = {"labelled": found.labelled, "val": found.val, "wild": found.wild}
    parts["test"] = np.concatenate(list(found.test.values()))
    places, part = np.concatenate(list(parts.values())), np.repeat(list(parts), [len(own) for own in parts.values()])
    digests = (hashlib.blake2b(images.vectors[place], digest_size=8).digest() for place in places)
    digests = np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(places))
    order = np.argsort(digests, kind="stable")  # images that are the same lie side by side, by role
    same = (np.diff(digests[order]) == 0) & (part[order[1:]] != part[order[:-1]])
    if same.any():
        first, second = (f"{images.path[places[i]]} ({part[i]})" for i in order[same.argmax() :][:2])
        raise ValueError(f"{first} and {second} are the same image in two roles; remove one of them")


# ---------------------------------------------------------------- a classifier


def linear(theta, vectors):
    """Logits (n,) of vectors (n, D) by theta (D + 1,), and the way back: residual (n,) -> gradient (D + 1,)."""
    weights = theta.astype(vectors.dtype)
    return vectors @ weights[:-1] + weights[-1], lambda residual: np.append(residual @ vectors, residual.sum())


class WildBatches:
    """Batches of (standardised vectors (n, D) float32, all non-target), read from a file without a name each time."""

    def __init__(self, images, places, mean, scale, size):
        self.size, shape = size, (len(places), len(mean))
        mean, scale = np.float32(mean), np.float32(scale)
        with tempfile.TemporaryFile() as file:
            for start in range(0, len(places), size):
                file.write(((images.vectors[places[start : start + size]] - mean) / scale).tobytes())
            file.flush()
            self.vectors = np.memmap(file, np.float32, "r", shape=shape)

    def __iter__(self):
        for start in range(0, len(self.vectors), self.size):
            vectors = self.vectors[start : start + self.size]
            yield vectors, np.ones(len(vectors))


class Problem(NamedTuple):
    """What trains: vectors less `mean` over `scale`, the labelled images' (D,), and whether each is non-target."""

    labelled: tuple[np.ndarray, np.ndarray]  # (n, D), (n,)
    val: tuple[np.ndarray, np.ndarray]
    wild: WildBatches
    mean: np.ndarray
    scale: np.ndarray


def prepare(images, roles, target, batch_size=16384) -> Problem:
    """The problem of some roles. What does not vary among the labelled images keeps its scale."""
    vectors = np.float64(images.vectors[roles.labelled])
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1.0)

    def side(places):
        return (np.float64(images.vectors[places]) - mean) / scale, np.float64(images.generator[places] != target)

    wild = WildBatches(images, roles.wild, mean, scale, batch_size)
    return Problem(side(roles.labelled), side(roles.val), wild, mean, scale)


def score(classifier, name, vectors):
    """Scores (n,) of vectors (n, D), higher where likelier the target: the negative logit of non-target, in nats."""
    return -linear(classifier[name], (np.float64(vectors) - classifier["mean"]) / classifier["scale"])[0]


def load_classifier(path):
    """The arrays of wild_classifier.npz and its recipe. Raises ValueError naming the file when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            classifier = {key: arrays[key] for key in ("baseline", "constrained", "mean", "scale")}
            return classifier, json.loads(str(arrays["recipe"]))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; train it first, without --apply") from error
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); train it anew with --overwrite") from error


def refuse_other_features(source, theirs, ours):
    """Raise ValueError where images of a recipe cannot be scored by a classifier of another."""
    keys = ("encoder", "layer", "weights_sha256", "tokens", "dim", "frames", "fps", "pool")
    differing = [key for key in keys if theirs["features"].get(key) != ours["features"].get(key)]
    differing += ["run"] * (theirs.get("run") != ours.get("run"))
    if differing:
        raise ValueError(f"{source} holds other vectors than the classifier was trained on ({', '.join(differing)})")
