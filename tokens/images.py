"""Frames of clips, and stills, as vectors: the mean over a frame's tokens, or the embedding that a run gave a clip.

    images = read_images("features/zoo", per_clip=4)        a folder of 01, or <level>_embeddings.npz of 02 or 03
    images.vectors, images.generator                        (N, D), (N,)

N images, D wide. What cannot be read raises InputError.
"""

import tempfile
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from basics.artifacts import file_digest, read_arrays
from basics.running import InputError
from tokens.dataset import (
    EXTRACT_AGAIN,
    Row,
    features_file,
    features_recipe,
    index_digest,
    map_tokens,
    other_tokens,
    read_index,
    read_valid,
    subsample,
    usable,
)
from tokens.split import assign_splits, fold_splits


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
            raise InputError(f"{source}: the run has its own split; train it by --fold, and leave that out here")
        images = read_embeddings(source, limit, seed)
    else:
        images = read_frames(source, per_clip, fold, limit, seed)
    for start in range(0, len(images.path), 1 << 16):
        wrong = ~np.isfinite(images.vectors[start : start + (1 << 16)]).all(axis=1)
        if wrong.any():
            path = images.path[start + wrong.argmax()]
            raise InputError(f"{source}: the vector of {path} is not finite; run the stage that wrote it again")
    return images


def on_disk(parts, width) -> np.ndarray:
    """Vectors (n, D) of one part after the other as one array (N, D) of float32, kept in a file without a name and not
    in memory.
    """
    with tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(np.float32(part).tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(file.tell() // (4 * width), width))


def refuse_other_vectors(source, theirs, ours):
    """Raise InputError where images of a recipe are not comparable with those of another."""
    differ = other_tokens(theirs["features"], ours["features"])
    differ += ["run"] * (theirs.get("run") != ours.get("run"))
    if differ:
        keys = ", ".join(differ)
        raise InputError(f"{source} holds other vectors than the classifier was trained on ({keys}); make them alike")


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
            vectors = clip_vectors(row, per_clip)
            if vectors.shape[1] != recipe["dim"]:
                width = f"{vectors.shape[1]} wide, the recipe says {recipe['dim']}"
                raise InputError(f"{features_file(folder, row.path)}: {width}; {EXTRACT_AGAIN}")
            places.extend([place] * len(vectors))
            yield vectors

    vectors = on_disk(clips(), recipe["dim"])
    columns = (np.array([getattr(row, key) for row in rows])[places] for key in ("path", "generator", "group", "split"))
    return Images(vectors, *columns, {"features": recipe, "index_sha256": index_digest(index)})


def clip_vectors(row, per_clip):
    """The vectors (K, D) of a clip's chosen frames, float32."""
    tokens = map_tokens(features_file(row.features, row.path))
    window, frame = np.divmod(chosen_frames(row, per_clip), tokens.shape[1])
    return np.stack([np.mean(tokens[i, j], axis=0, dtype="float32") for i, j in zip(window, frame, strict=True)])


def chosen_frames(row, per_clip):
    """The numbers (K,) of up to `per_clip` frames of a clip, evenly spread over those that are not padding."""
    valid = np.flatnonzero(read_valid(row))
    if not len(valid):
        raise InputError(f"{features_file(row.features, row.path)}: every frame is padding; {EXTRACT_AGAIN}")
    count = min(per_clip, len(valid))
    return valid[((np.arange(count) + 0.5) * len(valid) / count).astype(int)]


# ---------------------------------------------------------------- embeddings


def read_embeddings(path, limit, seed):
    """The embeddings that a run wrote. Clips of generators it was not trained on are split here, by group as in 01."""
    keys = ("embedding", "video", "generator", "group", "split")
    arrays = read_arrays(path, (*keys, "recipe"), "run 02 or 03 again", keys)
    vectors, video, generator, group, split = (arrays[key] for key in keys)
    recipe = arrays["recipe"]
    if vectors.ndim != 2:
        raise InputError(f"{path}: embeddings of shape {vectors.shape}; run 02 or 03 again")
    if missing := {"level", "arguments", "features", "index_sha256"} - set(recipe):
        raise InputError(f"{path}: its recipe lacks {', '.join(sorted(missing))}; run 02 or 03 again")
    own = {str(name): str(part) for name, part in zip(group, split, strict=True) if part != "unseen"}
    splits = assign_splits(group.tolist(), generator.tolist(), own)
    trained = sorted(set(generator[np.isin(split, ("train", "val"))].tolist()))
    split = np.array([splits[name] if part == "unseen" else part for name, part in zip(group, split, strict=True)])
    made = {key: recipe[key] for key in ("features", "index_sha256")} | {"embeddings_sha256": file_digest(path)}
    made["run"] = {"level": recipe["level"], "arguments": recipe["arguments"], "trained_on": trained}
    images = Images(np.float32(vectors), video, generator, group, split, made)
    if not limit:
        return images
    columns = zip(video.tolist(), generator.tolist(), split.tolist(), strict=True)
    rows = [Row(path, own, path, split=part, label=i) for i, (path, own, part) in enumerate(columns)]
    return images.rows([row.label for row in subsample(rows, ("generator", "split"), limit, seed)])
