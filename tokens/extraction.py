"""What 01 and training on a stream do alike: the encoder's flags, a features folder's recipe, what its index knows."""

import argparse
import os
import platform
from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np

from common import git_commit, keras, keras_hub, positive
from tokens.dataset import read_index, read_json, write_json
from tokens.encoders import DTYPES, ENCODERS, build_encoder
from tokens.videos import describe

NOT_COMPARED = ("simulated", "preset", "versions", "git")  # all else in a recipe decides about the tokens

# ---------------------------------------------------------------- flags


def add_encoder_arguments(parser):
    """Flags that decide about the tokens, and how many videos are decoded at once."""
    add = parser.add_argument
    add("--encoder", default="dct", help=f"{', '.join(ENCODERS)}, or a KerasHub preset of the last three")
    add("--layer", help="clip: projection (768-d) or pooled (1024-d); mobilenet: conv_pw_1 to conv_pw_13")
    add("--encoder-weights", metavar="FILE", help="mobilenet: weights for a machine that cannot download them")
    add("--encoder-dtype", choices=DTYPES, help="of a pretrained encoder; without it float32")
    add("--pool", type=int, default=1, help="average the token grid over POOL x POOL neighbours")
    add("--fps", type=frame_rate, default=8, help="frames sampled per second")
    add("--frames", type=positive, default=8, help="frames per window (L)")
    add("--threads", type=positive, default=os.cpu_count(), help="videos decoded at once")


def frame_rate(text):
    if not 0 < (number := float(text)) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1000 frames per second")
    return int(number) if number.is_integer() else number


def encoder_of(args):
    return build_encoder(args.encoder, args.pool, args.layer, args.encoder_weights, args.encoder_dtype)


# ---------------------------------------------------------------- the folder's recipe and index


def is_simulated(rows):
    """Whether any video lies in a zoo of simulate_videos.py: a folder of generators' folders and a recipe."""
    zoos = {Path(folder).parent / "recipe.json" for folder in {os.path.dirname(row["file"]) for row in rows}}
    return any(recipe.is_file() and bool(read_json(recipe).get("simulated")) for recipe in zoos)


def make_recipe(args, encoder, rows, size=None):
    """How features are made: the encoder and its options; `size` of equalized clips."""
    recipe = {"encoder": encoder.name, "tokens": encoder.tokens, "dim": encoder.dim, "frames": args.frames}
    recipe |= {"fps": args.fps, "pool": args.pool, "equalize": size, "dtype": "float16"}
    recipe |= encoder.recipe | {"simulated": is_simulated(rows)}
    packages = {"numpy": np, "opencv": cv2, "av": av, "keras": keras, "keras_hub": keras_hub}
    versions = {"python": platform.python_version()} | {name: module.__version__ for name, module in packages.items()}
    return recipe | {"versions": versions, "git": git_commit()}


def open_features(folder, recipe, overwrite, flag="--features"):
    """The index rows already in a features folder, by path; writes its recipe when it is new.

    Raises ValueError when the folder holds features made in another way, unless they are to be overwritten.
    """
    path = Path(folder) / "recipe.json"
    old = read_json(path) if path.exists() else recipe
    differing = [key for key in old | recipe if key not in NOT_COMPARED and old.get(key) != recipe.get(key)]
    if differing and not overwrite:
        differences = ", ".join(f"{key} {old.get(key)} there, {recipe.get(key)} now" for key in differing)
        raise ValueError(f"{folder} holds other features ({differences}); choose another {flag}, or --overwrite")
    indexes = list(Path(folder).glob("index-*-of-*.csv"))
    if differing:
        for index in indexes:
            index.unlink(missing_ok=True)  # its rows describe the other features
        indexes = []
    if differing or not path.exists():
        write_json(path, recipe)  # makes the folder
    return {row["path"]: row for row in read_index(folder)} if indexes else {}


def relabel(row, old):
    """Complete a row with what the index says; True when a CSV has given it another group, stratum or split since."""
    labels = {key: row[key] for key in ("group", "stratum", "split", "source")}
    row |= old | labels
    return any(old[key] != labels[key] for key in labels)


def print_videos(rows, ignored, table, videos):
    groups, splits = {}, Counter(row["split"] for row in rows)
    for row in rows:
        groups.setdefault(row["generator"], set()).add(row["group"])
    shares = ", ".join(f"{splits[split]} {split}" for split in ("train", "val", "test"))
    print(f"{videos}: {len(rows)} videos of {len(groups)} generators ({shares})")
    unseen = sorted(name for name in groups if name not in table)
    single = sorted(name for name in groups if name in table and len(groups[name]) == 1)
    if unseen:
        print(f"outside the generator table, kept as unseen: {', '.join(unseen)}")
    if single:
        print(f"a single group, so train only and not evaluated: {', '.join(single)}")
    if any(ignored.values()):
        print(f"ignored: {describe(ignored)}")
