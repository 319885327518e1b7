"""Which videos a stage trains on, validates on and tests: by level, split or fold, generators and labels per class."""

import hashlib
import itertools
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common import class_index, class_names, load_generators, resolve_generator
from tokens.dataset import groups_of_generators, read_index, read_json, train_every_generator


class Videos(NamedTuple):
    """Index rows by role; those of train, val and test have a "label" that counts in `classes`."""

    classes: tuple[str, ...]
    train: list[dict]
    val: list[dict]
    test: list[dict]
    unseen: list[dict]  # by generators that were not trained on and are not asked for
    excluded: dict[str, int]  # generator: videos, where its field is Unknown or Mixed


def choose_videos(rows, level, args) -> Videos:
    """Who trains, validates and tests at a level, by the index's split and the flags.

    A held-out generator is tested on all its videos, since it never trains. No tested video shares a group with a
    training video. Raises ValueError when fewer than two classes are left to train on, or no video to test.
    """
    table = load_generators(args.generators)
    rows = usable(rows, args.features)
    if args.fold:
        rows = fold_splits(rows, *args.fold, args.seed)
    other = other_features(args) if args.test_features else []
    if args.limit:
        rows, other = (first_per(part, ("generator", "split"), args.limit, args.seed) for part in (rows, other))
    trained = known_names(args.train_generators, table, rows) or set(table)
    if outside := sorted(trained - set(table)):
        raise ValueError(f"outside the generator table, so never trained on: {', '.join(outside)}")
    tested = known_names(args.test_generators, table, other or rows) or (set(table) if other else trained)
    labels = {name: class_index(level, name, table) for name in {row["generator"] for row in rows + other}}

    def trains(row):
        return row["generator"] in trained and row["split"] != "test" and labels[row["generator"]] is not None

    roles, excluded = {"train": [], "val": [], "test": [], "unseen": []}, Counter()
    for row in filter(trains, rows):
        roles["train" if args.best == "last" else row["split"]].append(row | {"label": labels[row["generator"]]})
    for row in other or itertools.filterfalse(trains, rows):
        generator, label = row["generator"], labels[row["generator"]]
        if generator in table and label is None:
            excluded[generator] += 1
        elif generator in tested & set(table):
            roles["test"].append(row | {"label": label})
        elif other or generator not in trained:
            roles["unseen"].append(row)
    roles["test"] = apart_from_training(roles)
    if args.labels_per_class != "all":
        roles["train"] = first_per(roles["train"], ("label",), args.labels_per_class, args.seed)
    return keep_trained_classes(class_names(level, table), roles, dict(excluded))


def apart_from_training(roles):
    """The test videos whose group no training video shares."""
    groups = {row["group"] for row in roles["train"] + roles["val"]}
    apart = [row for row in roles["test"] if row["group"] not in groups]
    if len(apart) < len(roles["test"]):
        print(f"{len(roles['test']) - len(apart)} videos share a group with training videos and are not tested")
    return apart


def other_features(args):
    """The rows of --test-features. Raises ValueError when its features were made in another way."""
    ours, theirs = (features_recipe(folder) for folder in (args.features, args.test_features))
    options = ("encoder", "layer", "weights_sha256", "tokens", "dim", "frames", "fps", "pool")
    differing = [key for key in options if ours.get(key) != theirs.get(key)]
    if differing:
        raise ValueError(f"{args.test_features} holds other features than {args.features} ({', '.join(differing)})")
    return usable(read_index(args.test_features), args.test_features)


def features_recipe(folder):
    if not (Path(folder) / "recipe.json").exists():
        raise ValueError(f"{folder}: no recipe.json; run 01_extract_features.py --features {folder} first")
    return read_json(Path(folder) / "recipe.json", ("frames", "tokens", "dim"))


def usable(rows, features):
    """The rows that have features, each told its folder."""
    return [row | {"features": features} for row in rows if row["windows"] and not row["error"]]


def known_names(wanted, table, rows):
    """Names given by flag, resolved, with Real; empty when the flag was not given."""
    if not wanted:
        return set()
    present = {row["generator"] for row in rows}
    resolved = {resolve_generator(name, table) or name for name in wanted}
    if missing := sorted(resolved - present):
        raise ValueError(f"no video of {', '.join(missing)} in the features; there are: {', '.join(sorted(present))}")
    return resolved | {"Real"}


def first_per(rows, keys, count, seed):
    """At most `count` rows per value of `keys`, in an order drawn by seed: fewer rows are a part of more."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['path']}".encode()).digest())
    taken, kept = {}, []
    for row in order:
        value = tuple(row[key] for key in keys)
        taken[value] = taken.get(value, 0) + 1
        if taken[value] <= count:
            kept.append(row)
    return sorted(kept, key=lambda row: row["path"])


def fold_splits(rows, k, n, seed):
    """Grouped cross-validation: rows whose split is test in fold k of n and train elsewhere; nobody is val.

    Folds are stratified by generator and drawn by seed. A generator without training videos in a fold gets a group
    back, so a generator of one group is never tested.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    generators, groups = [row["generator"] for row in rows], [row["group"] for row in rows]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # fewer groups than folds: dealt with below
        folds = list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(groups, generators, groups))
    test = {groups[i] for i in folds[k - 1][1]}
    splits = {group: "test" if group in test else "train" for group in groups}
    splits = train_every_generator(splits, groups_of_generators(groups, generators))
    return [row | {"split": splits[row["group"]]} for row in rows]


def keep_trained_classes(classes, roles, excluded):
    """Drop classes nobody trains; their videos are unseen. Says which, and which classes have no test video."""
    present = sorted({row["label"] for row in roles["train"]})
    if len(present) < 2:
        raise ValueError(
            f"training needs videos of two classes or more; there are {[classes[i] for i in present]}: add videos or"
            " widen --train-generators"
        )
    if absent := [name for i, name in enumerate(classes) if i not in present]:
        print(f"no training video, so not among the classes: {', '.join(absent)}")
    place = {label: i for i, label in enumerate(present)}
    untrained = [row for row in roles["test"] if row["label"] not in place]
    roles["unseen"] += [{key: row[key] for key in row if key != "label"} for row in untrained]
    for role in ("train", "val", "test"):
        roles[role] = [row | {"label": place[row["label"]]} for row in roles[role] if row["label"] in place]
    classes = tuple(classes[i] for i in present)
    tested = {row["label"] for row in roles["test"]}
    if not tested:
        raise ValueError("no test video: add videos, or name others by --test-generators or --test-features")
    if untested := [name for i, name in enumerate(classes) if i not in tested]:
        print(f"no test video, so not evaluated: {', '.join(untested)}")
    return Videos(classes, **roles, excluded=excluded)
