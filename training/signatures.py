"""What 04_tsigs.py stands on: the clips of a trained run, and signatures as arrays.

    table = measure(maps, grand_mean, labels, groups, halves, repeats=200, seed=0)

A clip's map (L, L) is the attention between its frames; a signature is the mean map of n clips of one class. Signatures
of one half of a class's groups are matched with those of the other half.
"""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from tqdm import tqdm

from basics.artifacts import differing, read_arrays, read_csv
from basics.running import InputError
from basics.statistics import draw_groups
from common import load_saga
from tokens.dataset import features_recipe, mean_tokens, read_valid, subsample, usable
from tokens.generators import stage_of

COUNTS = (1, 5, 20, 50, 100, 200, 500, 1000)  # clips per signature, as far as two classes have them
MEASURES = ("accuracy", "within", "between", "raw_within", "raw_between", "classes", "chance")
REFERENCE = 20  # train clips per class whose mean is the grand mean
STRATA = 6  # the largest are shown and compared
SAMPLE = 10000  # clips that k-means sees at a time

# ---------------------------------------------------------------- the clips of a trained run


def run_files(run, level):
    """The model and the embeddings file of a level. Raises InputError naming the stage that writes a missing one."""
    files = [Path(run) / f"{level}{ending}" for ending in (".keras", "_embeddings.npz")]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing; run {stage_of(level)} first")
    return files


def load_trained(path, level, features):
    """The model. Raises InputError when it cannot be read, or when the features were made otherwise than its own."""
    again = f"run {stage_of(level)} on these features"
    model = load_saga(path, stage_of(level))
    if differ := differing(features_recipe(features), model.config["features"]):
        raise InputError(f"{path} was trained on other features than {features} ({', '.join(differ)}); {again}")
    if other := model.config["recipe"].get("paths", {}).get("test_features"):
        raise InputError(f"{path} was tested on {other}; T-Sigs need a run whose clips are all in one features folder")
    return model


def choose_rows(path, index, classes, features, splits, limit=None, seed=0):
    """Rows of the clips of `splits` and of the grand mean's, by the embeddings file at `path`, with split and class
    name as there; and the paths of the grand mean's.
    """
    again = f"run {stage_of(Path(path).name.split('_')[0])} again"
    arrays = read_arrays(path, ("video", "generator", "class", "split"), again)
    listed = list(zip(*(own.tolist() for own in arrays.values()), strict=True))
    if foreign := {label for _, _, label, split in listed if split != "unseen"} - set(classes):
        raise InputError(f"{path}: {', '.join(sorted(foreign))} is no class of the model beside it; {again}")
    known, rows = {row.path: row for row in usable(index, features)}, []
    listed = [clip for clip in listed if clip[3] in (*splits, "train")]
    if missing := [video for video, *_ in listed if video not in known]:
        raise InputError(f"{features} lacks {len(missing)} videos of {path}, such as {missing[0]}; {again}")
    for video, generator, label, split in listed:
        if split == "unseen":
            label = generator if generator not in classes else f"{generator} (unseen)"
        rows.append(known[video]._replace(generator=generator, class_name=label, split=split))
    if limit:
        rows = subsample(rows, ("generator", "split"), limit, seed)
    train = [row for row in rows if row.split == "train"]
    in_grand_mean = {row.path for row in subsample(train, ("class_name",), REFERENCE, seed)}
    return [row for row in rows if row.split in splits or row.path in in_grand_mean], in_grand_mean


def drop_short(rows, splits, in_grand_mean):
    """The rows with a fully valid window, their windows' validity, and how many of `splits` of each class have none."""
    with tqdm(rows, "windows", unit="clip", dynamic_ncols=True) as bar:
        whole = [read_valid(row).all(axis=1) for row in bar]
    short = Counter(
        row.class_name for row, own in zip(rows, whole, strict=True) if row.split in splits and not own.any()
    )
    kept = [(row, own) for row, own in zip(rows, whole, strict=True) if own.any()]
    seen = {row.class_name for row, _ in kept if row.split in splits}
    if len(seen) < 2:
        raise InputError(
            f"T-Sigs compare classes, but fully valid windows have only: {', '.join(seen) or 'none'} ({short.total()}"
            " clips have none); widen --splits or --limit, or extract longer clips"
        )
    if not any(row.path in in_grand_mean for row, _ in kept):
        raise InputError("no train clip has a fully valid window, so there is no grand mean; extract longer clips")
    return *zip(*kept, strict=True), short


# ---------------------------------------------------------------- strata (Fig. S-3)


def name_strata(rows, index, strata):
    """Each row's stratum (V,), where strata come from, and how many videos a CSV names that the index does not."""
    if strata == "none":
        return np.array(["none"] * len(rows)), None, 0
    if strata:
        given = read_strata(strata)
        unknown = len(given.keys() - {row.path for row in index})
        return np.array([given.get(row.path, "none") for row in rows]), Path(strata).name, unknown
    if any(row.stratum for row in rows):
        return np.array([row.stratum or "none" for row in rows]), "the index", 0
    sample = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    means = KMeans(min(3, len(rows)), n_init=10, random_state=0).fit(mean_tokens([rows[i] for i in sample]))
    parts = [rows[start : start + SAMPLE] for start in range(0, len(rows), SAMPLE)]
    found = np.concatenate([means.predict(mean_tokens(part)) for part in parts])
    names = np.array([f"cluster {i + 1}" for i in range(means.n_clusters)])
    return names[found], "k-means of the mean token, a stand-in for content", 0


def read_strata(path):
    """{path: stratum} of a CSV."""
    rows = read_csv(path, ("path", "stratum"), "strata are path,stratum")
    return {row["path"]: row["stratum"] or "none" for row in rows}


# ---------------------------------------------------------------- who is compared: no group on both sides


def halves(labels, groups, random):
    """Per class (first, second) clips: each of its groups is dealt to one half. labels, groups (V,) are integers."""
    sides = []
    for label in range(labels.max() + 1):
        clips = np.flatnonzero(labels == label)
        names, member = np.unique(groups[clips], return_inverse=True)
        second = (random.permutation(len(names)) < len(names) // 2)[member]
        sides.append((clips[~second], clips[second]))
    return [sides]


def permuted_halves(labels, groups, random):
    """The same after dealing the classes anew among all classes' groups; a class keeps its number of groups."""
    width = groups.max() + 1
    units, member = np.unique(labels * width + groups, return_inverse=True)
    return halves(random.permutation(units // width)[member], groups, random)


def across_strata(labels, groups, random, strata):
    """For every ordered pair of strata, per class (clips of one, clips of the other)."""
    classes = range(labels.max() + 1)
    cells = {name: [np.flatnonzero((labels == i) & (strata == name)) for i in classes] for name in np.unique(strata)}
    return [
        [apart(one, other, groups, random) for one, other in zip(cells[first], cells[second], strict=True)]
        for first, second in itertools.permutations(cells, 2)
    ]


def apart(one, other, groups, random):
    """Two sets of clips without a common group: a shared group stays, by a coin, on one side only."""
    shared = np.intersect1d(groups[one], groups[other])
    stays = random.random(len(shared)) < 0.5
    return one[~np.isin(groups[one], shared[~stays])], other[~np.isin(groups[other], shared[stays])]


# ---------------------------------------------------------------- what is measured


def mean_of_classes(maps, labels):
    """The mean (L, L) over classes of their mean maps."""
    return np.mean([maps[labels == i].mean(axis=0, dtype="float64") for i in np.unique(labels)], axis=0)


def correlations(first, second):
    """Pearson correlation (C, C) between the rows of two arrays (C, N); 0 for a constant row."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.corrcoef(first, second)[: len(first), len(first) :])


def compare(first, second, grand_mean):
    """MEASURES of two signatures per class (C, L, L): the share of classes whose nearest second signature is their own
    (Euclidean), and the mean correlation within and between classes, less the grand mean (L, L) and raw.
    """
    classes = len(first)
    first, second, shift = first.reshape(classes, -1), second.reshape(classes, -1), grand_mean.reshape(1, -1)
    distances = np.square(first[:, None] - second[None]).sum(axis=2)  # (C, C)
    found = np.mean(distances.argmin(axis=1) == np.arange(classes))
    own = np.eye(classes, dtype=bool)
    related = [correlations(first - shift, second - shift), correlations(first, second)]
    pairs = [values[chosen].mean() for values in related for chosen in (own, ~own)]
    return np.array([found, *pairs, classes, 1 / classes])


def resample(clips, groups, random):
    """The clips of as many groups, drawn with replacement."""
    return np.repeat(clips, draw_groups(groups[clips], random)) if len(clips) else clips


def compare_counts(maps, grand_mean, groups, sides, random):
    """{n: MEASURES (2, 7) as drawn and of resampled groups} for each n that both sides of two classes or more have."""
    drawn = [[random.permutation(clips) for clips in pair] for pair in sides]
    again = [[random.permutation(resample(clips, groups, random)) for clips in pair] for pair in sides]
    found = {}
    for count in COUNTS:
        able = [i for i, pair in enumerate(sides) if min(map(len, pair)) >= count]
        if len(able) < 2:
            break
        found[count] = []
        for pairs in (drawn, again):
            first, second = (np.stack([mean_map(maps, pairs[i][side], count) for i in able]) for side in (0, 1))
            found[count].append(compare(first, second, grand_mean))
    return found


def mean_map(maps, clips, count):
    """The mean map (L, L) of the first `count` clips; resampled clips that are too few come again."""
    return maps[np.resize(clips, count)].mean(axis=0, dtype="float64")


def measure(maps, grand_mean, labels, groups, draw_sides, repeats, seed):
    """Identification and correlation by clips per signature: a dict for each n of COUNTS that two classes have.

    `draw_sides(labels, groups, random)` gives comparisons, each a pair of sets of clips per class; a repeat's value is
    the mean over them. Values are means over repeats; an interval holds 95 per cent of the repeats when each side's
    groups are drawn again with replacement, which repeats clips: the interval is biased downwards.
    """
    random, found = np.random.default_rng(seed), {}
    for _ in range(repeats):
        rows = [compare_counts(maps, grand_mean, groups, sides, random) for sides in draw_sides(labels, groups, random)]
        for count in COUNTS:
            if here := [row[count] for row in rows if count in row]:
                found.setdefault(count, []).append(np.mean(here, axis=0))
    table = []
    for count, values in found.items():
        values = np.stack(values)  # (repeats, 2, 7)
        entry = {"clips": count, "repeats": len(values)}
        entry |= dict(zip(MEASURES, values[:, 0].mean(axis=0).tolist(), strict=True))
        intervals = np.percentile(values[:, 1], (2.5, 97.5), axis=0).T.tolist()
        entry |= {f"{name}_interval": intervals[i] for i, name in enumerate(MEASURES[:5])}
        table.append(entry)
    return table


def largest_strata(strata):
    return [name for name, _ in Counter(strata.tolist()).most_common() if name != "none"][:STRATA]


def measure_all(conditions, grand_means, labels, groups, strata, used, repeats, seed):
    """Tables of `measure` by name over the clips `used` (V,). Conditions are maps (V, L, L) by name: "trained", and the
    controls that ran the model anew, beside which labels are permuted.
    """

    def table(name, draw_sides, chosen=used):
        clips = conditions[name][chosen], grand_means[name], labels[chosen], groups[chosen]
        return measure(*clips, draw_sides, repeats, seed)

    tables = {name: table(name, halves) for name in conditions}
    if len(conditions) > 1:
        tables["labels permuted"] = table("trained", permuted_halves)
    named = used & np.isin(strata, largest_strata(strata[used]))
    if named.any():
        tables["across strata"] = table("trained", partial(across_strata, strata=strata[named]), named)
    return tables
