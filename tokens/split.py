"""Groups, folds, and which videos a stage trains on, validates on and tests: by level, split, generators, labels."""

import hashlib
import os
import stat
import warnings
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from basics.artifacts import file_digest
from basics.running import InputError
from tokens.dataset import Row, features_recipe, other_tokens, read_index, subsample, usable
from tokens.generators import class_index, class_names, resolve_generator, table_lines
from tokens.listing import counts_text

# ---------------------------------------------------------------- copies: clips of the same content

KEYS = 8  # of a clip
PICTURES = 4  # that a key is made of


def byte_keys(rows) -> dict[str, list[str]]:
    """{path: [SHA-256]} of the videos whose size in bytes is another's too; all others differ from each other."""
    sizes = {}
    for row in rows:
        with suppress(OSError, ValueError):  # reading the video will say what is wrong with it
            status = os.stat(row.file)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                sizes.setdefault(status.st_size, []).append(row)
    alike, keys = [row for same in sizes.values() if len(same) > 1 for row in same], {}
    for row in tqdm(alike, "compare bytes", unit="file", dynamic_ncols=True, leave=False, delay=2):
        with suppress(InputError):
            keys[row.path] = [file_digest(row.file)]
    return keys


def picture_digest(frame) -> bytes:
    """8 bytes that stand for a frame (H, W, 3): for its size and some 32 of its rows."""
    rows = frame[:: max(1, len(frame) // 32)]
    return hashlib.sha256(str(frame.shape).encode() + rows.tobytes()).digest()[:8]


def frame_keys(pictures) -> list[str]:
    """Keys of a clip by the picture_digests of its sampled frames: clips that share one are copies of each other.

    Containers round times, which puts the neighbouring frame on screen at one sample or another, so copies need not
    have all pictures in common. Digests are numbers on a circle; a key is made of the 4 that follow one of 8 points.
    Copies share nearly all keys; clips that have a tenth of their pictures in common share none.
    """
    numbers = np.sort(np.frombuffer(b"".join(pictures), ">u8"))
    points = np.arange(KEYS, dtype=np.uint64) << np.uint64(61)
    following = np.searchsorted(numbers, points)[:, None] + np.arange(PICTURES)
    return sorted({hashlib.sha256(key.tobytes()).hexdigest()[:16] for key in np.take(numbers, following, mode="wrap")})


def find_copies(rows, keys) -> list[tuple[Row, Row]]:
    """Pairs (row, earlier row) that share a key in one of the dicts {path: keys}; a row may be in several pairs."""
    first, pairs = {}, []
    for row in rows:
        for key in (key for known in keys for key in known.get(row.path, ())):
            if (earlier := first.setdefault(key, row)) is not row:
                pairs.append((row, earlier))
    return pairs


def print_copies(rows, *keys):
    """Say how many rows are copies of others, and how many of them came with another split than these."""
    copies = find_copies(rows, keys)
    if count := len({row.path for row, _ in copies}):
        print(f"{count} videos have the same bytes or frames as another and are in its group")
    if apart := {row.path for row, earlier in copies if row.split != earlier.split}:
        print(f"warning: {len(apart)} of them are given another split than the other, and keep it")


def unite_groups(copies) -> dict[str, str]:
    """{group: its name now} where the groups of each pair of rows become one, called by the first of their names."""
    united = {}

    def name(group):
        while group in united:
            group = united[group]
        return group

    for row, earlier in copies:
        first, other = sorted((name(row.group), name(earlier.group)))
        if first != other:
            united[other] = first
    return {group: name(group) for group in united}


# ---------------------------------------------------------------- groups and the recorded split


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
        number = group_hash(group)
        splits[group] = recorded.get(group) or ("test" if number < 0.2 else "val" if number < 0.28 else "train")
    for names in members.values():
        free = [group for group in names if group not in recorded]
        if len(names) > 1 and free and "test" not in map(splits.get, names):
            splits[free[0]] = "test"
    return train_every_generator(splits, members, recorded)


def set_splits(rows, recorded, *keys):
    """The rows with their groups and splits; those that share a key in one of the dicts {path: keys} are in one group.

    A split that came with a row stays. A group without one keeps that of its first row among the `recorded`,
    {path: row}; else its split is by hash. Raises InputError when a CSV has two splits for a group.
    """
    given, united, fixed = {}, unite_groups(find_copies(rows, keys)), {}
    for row in rows:
        if row.split and given.setdefault(row.group, row.split) != row.split:
            raise InputError(f"group {row.group} is in {given[row.group]} and in {row.split}; a group has one split")
    now = [row._replace(group=united.get(row.group, row.group)) for row in rows]
    for known in ({row.path: row for row in rows if row.split}, recorded):
        for row in now:
            if row.path in known:
                fixed.setdefault(row.group, known[row.path].split)
    splits = assign_splits([row.group for row in now], [row.generator for row in now], fixed)
    return [row._replace(split=row.split or splits[row.group]) for row in now]


def print_videos(rows, ignored, table, videos):
    """Say how many videos were found in `videos`, in which splits, and what of them cannot be used as one may think."""
    groups, splits = {}, Counter(row.split for row in rows)
    for row in rows:
        groups.setdefault(row.generator, set()).add(row.group)
    counts = ", ".join(f"{splits[split]} {split}" for split in ("train", "val", "test"))
    print(f"{videos}: {len(rows)} videos of {len(groups)} generators ({counts})")
    if unseen := sorted(name for name in groups if name not in table):
        print("not in the generator table, so unseen but for BIN-L; to train on them, add", table_lines(unseen))
    if single := sorted(name for name in groups if name in table and len(groups[name]) == 1):
        print(f"a single group, so train only and not evaluated: {', '.join(single)}")
    if any(ignored.values()):
        print(f"ignored: {counts_text(ignored)}")


def train_every_generator(splits, members, fixed=()) -> dict[str, str]:
    """{group: split} where each generator has a train group: if need be its group of the highest hash not `fixed`."""
    splits = dict(splits)
    for names in members.values():
        free = [group for group in names if group not in fixed]
        if free and "train" not in map(splits.get, names):
            splits[free[-1]] = "train"
    return splits


# ---------------------------------------------------------------- which videos train and which are tested


class Split(NamedTuple):
    """Rows by role; those of train, val and test have a label, a number among `classes`."""

    classes: tuple[str, ...]
    train: list[Row]
    val: list[Row]
    test: list[Row]
    unseen: list[Row]  # of generators that are neither trained on nor tested
    excluded: dict[str, int]  # generator: number of videos, of those that are Unknown or Mixed at the level


def choose_videos(
    rows,
    level,
    features,
    table,
    *,
    train_generators=None,
    test_generators=None,
    test_features=None,
    fold=None,
    labels_per_class="all",
    limit=None,
    train_on_val=False,
    seed=0,
) -> Split:
    """The Split at a level of index rows, of the features folder `features`, by a `table` from load_generators.

    `train_generators` and `test_generators` are names, beside which Real always counts; `test_features` is another
    folder, all of whose videos are tested; `fold` (k, n) tests on fold k of n; `limit` is per generator and split.
    `labels_per_class` are those of train and val together, of which a tenth, or one, are val's.
    A generator that does not train is tested on all its videos. No tested video shares a group with a training video.
    Raises InputError when fewer than two classes are left to train on, or no video to test.
    """
    rows = usable(rows, features)
    if fold:
        rows = fold_splits(rows, *fold, seed)
    other = other_features(features, test_features) if test_features else []
    if limit:
        rows, other = (subsample(part, ("generator", "split"), limit, seed) for part in (rows, other))
    present = {row.generator for row in rows + other}
    named = present if level == "bin" else set(table)  # at BIN-L any generator is Fake, in the table or not
    trained = known_names(train_generators, table, rows) if train_generators else named
    if outside := sorted(trained - named):
        raise InputError(f"{', '.join(outside)}: not in the generator table; add {table_lines(outside)}")
    if level != "bin" and (strangers := sorted(present - named)):
        print(f"not in the generator table, so unseen: {', '.join(strangers)}; to train on them add")
        print(f"  {table_lines(strangers)}")
    tested = named if other else trained
    if test_generators:
        tested = known_names(test_generators, table, other or rows)
    tested = tested & named

    labels = {name: class_index(level, name, table) for name in present}
    roles, left, excluded = {"train": [], "val": [], "test": [], "unseen": []}, [], Counter()
    for row in rows:
        if row.generator in trained and row.split != "test" and labels[row.generator] is not None:
            roles["train" if train_on_val else row.split].append(row._replace(label=labels[row.generator]))
        else:
            left.append(row)
    for row in other or left:
        if row.generator in table and labels[row.generator] is None:
            excluded[row.generator] += 1
        elif row.generator in tested:
            roles["test"].append(row._replace(label=labels[row.generator]))
        elif other or row.generator not in trained:
            roles["unseen"].append(row)
    groups = {row.group for row in roles["train"] + roles["val"]}
    apart = [row for row in roles["test"] if row.group not in groups]
    if len(apart) < len(roles["test"]):
        print(f"{len(roles['test']) - len(apart)} videos share a group with training videos and are not tested")
    roles["test"] = apart
    if labels_per_class != "all":
        for_val = min(max(labels_per_class // 10, 1), labels_per_class - 1)
        roles["val"] = subsample(roles["val"], ("label",), for_val, seed)
        train, chosen = roles["train"], Counter(row.label for row in roles["val"])
        roles["train"] = []
        for label in sorted({row.label for row in train}):
            own = [row for row in train if row.label == label]
            roles["train"] += subsample(own, ("label",), labels_per_class - chosen[label], seed)
    return keep_trained_classes(class_names(level, table), roles, dict(excluded))


def other_features(features, test_features):
    """The usable rows of another features folder. Raises InputError where it has none, or was made in another way."""
    if differ := other_tokens(features_recipe(features), features_recipe(test_features)):
        keys = ", ".join(differ)
        raise InputError(f"{test_features} holds other features than {features} ({keys}); make them alike by 01")
    if not (rows := usable(read_index(test_features), test_features)):
        raise InputError(f"{test_features}: no video with features to test; the column error of its index says why")
    return rows


def known_names(wanted, table, rows):
    """Names given by flag, resolved, with Real."""
    present = {row.generator for row in rows}
    resolved = {resolve_generator(name, table) or name for name in wanted}
    if missing := sorted(resolved - present):
        raise InputError(f"no video of {', '.join(missing)} in the features; there are: {', '.join(sorted(present))}")
    return resolved | {"Real"}


def fold_splits(rows, k, n, seed):
    """Grouped cross-validation: rows whose split is test in fold k of n and train elsewhere; val is empty.

    Folds are stratified by generator and drawn by seed. A generator without training videos in a fold gets a group
    back, so a generator of one group is never tested.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    generators, groups = [row.generator for row in rows], [row.group for row in rows]
    if n > (most := max(Counter(generators).values(), default=0)):
        raise InputError(f"--fold {k}/{n}: no generator has more than {most} videos; make fewer folds")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # fewer groups than folds: dealt with below
        folds = list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(groups, generators, groups))
    test = {groups[i] for i in folds[k - 1][1]}
    splits = {group: "test" if group in test else "train" for group in groups}
    splits = train_every_generator(splits, groups_of_generators(groups, generators))
    return [row._replace(split=splits[row.group]) for row in rows]


def keep_trained_classes(classes, roles, excluded):
    """The Split of the classes that have training rows; rows of the others become unseen. Prints which those are, and
    which classes have no test row. Raises InputError for fewer than two classes or no test row.
    """
    present = sorted({row.label for row in roles["train"]})
    if len(present) < 2:
        raise InputError(
            f"training needs videos of two classes or more; there are {[classes[i] for i in present]}: add videos or"
            " widen --train-generators"
        )
    if absent := [name for i, name in enumerate(classes) if i not in present]:
        print(f"no training video, so not among the classes: {', '.join(absent)}")
    place = {label: i for i, label in enumerate(present)}
    untrained = [row for row in roles["test"] if row.label not in place]
    roles["unseen"] += [row._replace(label=None) for row in untrained]
    for role in ("train", "val", "test"):
        roles[role] = [row._replace(label=place[row.label]) for row in roles[role] if row.label in place]
    classes = tuple(classes[i] for i in present)
    tested = {row.label for row in roles["test"]}
    if not tested:
        raise InputError("no test video: add videos, or name others by --test-generators or --test-features")
    if untested := [name for i, name in enumerate(classes) if i not in tested]:
        print(f"no test video, so not evaluated: {', '.join(untested)}")
    return Split(classes, **roles, excluded=excluded)
