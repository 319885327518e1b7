"""Measures of T-Sigs for 04_tsigs.py, and their controls.

    table = identify(maps, grand_mean, labels, groups, split_groups_in_halves, repeats=200, seed=0)

A clip's map (L, L) is the attention between its frames; a signature is the mean map of n clips of one class. Signatures
of one half of a class's groups are matched with those of the other half.
"""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from basics.artifacts import read_csv
from basics.figures import draw_maps, wrap_panels
from basics.statistics import resample_groups
from common import build_saga, keras
from tokens.dataset import mean_tokens

COUNTS = (1, 5, 20, 50, 100, 200, 500, 1000)  # clips per signature, as far as two classes have them
MEASURES = ("accuracy", "within", "between", "raw_within", "raw_between", "classes", "chance")
STRATA = 6  # the largest are shown and compared
SAMPLE = 10000  # clips that k-means sees at a time

# ---------------------------------------------------------------- halves without a common group


def split_groups_in_halves(labels, groups, random):
    """One comparison [(first, second) per class]: each of a class's groups is in one half. `first` and `second` are
    numbers (n,) of clips below V; labels and groups (V,) are integers.
    """
    sides = []
    for label in range(labels.max() + 1):
        clips = np.flatnonzero(labels == label)
        names, member = np.unique(groups[clips], return_inverse=True)
        second = (random.permutation(len(names)) < len(names) // 2)[member]
        sides.append((clips[~second], clips[second]))
    return [sides]


# ---------------------------------------------------------------- what is measured


def compare_signatures(first, second, grand_mean):
    """MEASURES (7,) of two signatures per class (C, L, L): the accuracy, a class being correct whose nearest second
    signature is of the same class (Euclidean), and the mean correlation within and between classes, less the grand mean
    (L, L) and raw.
    """
    classes = len(first)
    first, second, shift = first.reshape(classes, -1), second.reshape(classes, -1), grand_mean.reshape(1, -1)
    distances = np.square(first[:, None] - second[None]).sum(axis=2)  # (C, C)
    accuracy = np.mean(distances.argmin(axis=1) == np.arange(classes))
    same_class = np.eye(classes, dtype=bool)
    with np.errstate(invalid="ignore"):  # a constant signature correlates with none
        related = [np.corrcoef(first - by, second - by)[:classes, classes:] for by in (shift, 0)]  # (C, C)
    pairs = [np.nan_to_num(values)[chosen].mean() for values in related for chosen in (same_class, ~same_class)]
    return np.array([accuracy, *pairs, classes, 1 / classes])


def compare_counts(maps, grand_mean, groups, sides, random):
    """{n: MEASURES (2, 7) as drawn and of resampled groups} for each n of COUNTS that both sides of two classes have.

    maps (V, L, L), grand_mean (L, L), groups (V,); sides are per class two arrays of clips, each a number below V.
    """
    drawn = [[random.permutation(clips) for clips in pair] for pair in sides]
    resampled = [
        [random.permutation(np.repeat(clips, resample_groups(groups[clips], random))) for clips in pair]
        for pair in sides
    ]
    measures = {}
    for count in COUNTS:
        classes = [i for i, pair in enumerate(sides) if min(map(len, pair)) >= count]
        if len(classes) < 2:
            break
        measures[count] = []
        for pairs in (drawn, resampled):
            # the first clips of each side; where resampled ones are too few they repeat
            first, second = (
                np.stack([maps[np.resize(pairs[i][side], count)].mean(axis=0, dtype="float64") for i in classes])
                for side in (0, 1)
            )
            measures[count].append(compare_signatures(first, second, grand_mean))
    return measures


def identify(maps, grand_mean, labels, groups, draw_sides, repeats, seed):
    """Identification and correlation by clips per signature: a dict for each n of COUNTS that two classes have, of
    maps (V, L, L), grand_mean (L, L), labels and groups (V,) as integers.

    `draw_sides(labels, groups, random)` gives comparisons, each a pair of sets of clips per class; a repeat's value is
    the mean over them. Values are means over repeats. An interval holds 95 per cent of the repeats with each side's
    groups resampled with replacement. Resampling groups repeats clips, so the interval is biased downwards.
    """
    random, by_count = np.random.default_rng(seed), {}
    for _ in range(repeats):
        rows = [compare_counts(maps, grand_mean, groups, sides, random) for sides in draw_sides(labels, groups, random)]
        for count in COUNTS:
            if measures := [row[count] for row in rows if count in row]:
                by_count.setdefault(count, []).append(np.mean(measures, axis=0))
    table = []
    for count, values in by_count.items():
        values = np.stack(values)  # (repeats, 2, 7)
        entry = {"clips": count, "repeats": len(values)}
        entry |= dict(zip(MEASURES, values[:, 0].mean(axis=0).tolist(), strict=True))
        intervals = np.percentile(values[:, 1], (2.5, 97.5), axis=0).T.tolist()
        entry |= {f"{name}_interval": intervals[i] for i, name in enumerate(MEASURES[:5])}
        table.append(entry)
    return table


# ---------------------------------------------------------------- controls


def measure_controls(maps, grand_mean, labels, groups, strata, repeats, seed):
    """The tables of `identify` with labels permuted and, where strata (V,) have names, across strata."""
    tables = {"labels permuted": identify(maps, grand_mean, labels, groups, permuted_halves, repeats, seed)}
    if largest_strata(strata):
        pairs = partial(across_strata, strata=strata)
        tables["across strata"] = identify(maps, grand_mean, labels, groups, pairs, repeats, seed)
    return tables


def untrained(model, seed):
    """A model of the same sizes with newly drawn weights."""
    keras.utils.set_random_seed(seed)
    return build_saga(**model.config, dtype=model.dtype_policy)


def permuted_halves(labels, groups, random):
    """Halves after permuting the classes among all classes' groups; a class keeps its number of groups."""
    width = groups.max() + 1
    units, member = np.unique(labels * width + groups, return_inverse=True)
    return split_groups_in_halves(random.permutation(units // width)[member], groups, random)


def across_strata(labels, groups, random, strata):
    """For every ordered pair of the largest strata, per class (clips of one, clips of the other)."""
    classes = range(labels.max() + 1)
    cells = {
        name: [np.flatnonzero((labels == i) & (strata == name)) for i in classes]
        for name in sorted(largest_strata(strata))
    }
    return [
        [drop_shared_groups(*pair, groups, random) for pair in zip(cells[first], cells[second], strict=True)]
        for first, second in itertools.permutations(cells, 2)
    ]


def drop_shared_groups(one, other, groups, random):
    """Two sets of clips (n,), (m,) without a common group: each shared group stays on one side, drawn at random."""
    shared = np.intersect1d(groups[one], groups[other])
    stays = random.random(len(shared)) < 0.5
    return one[~np.isin(groups[one], shared[~stays])], other[~np.isin(groups[other], shared[stays])]


# ---------------------------------------------------------------- strata of content (Fig. S-3)


def name_strata(rows, index, given):
    """The stratum (V,) of each row, and the source of the strata. `given` is a CSV path,stratum, of which videos
    outside the index are ignored, or "kmeans": three clusters of the mean token.
    """
    if given != "kmeans":
        table = {row["path"]: row["stratum"] for row in read_csv(given, ("path", "stratum"), "strata are path,stratum")}
        if unknown := table.keys() - {row.path for row in index}:
            print(f"{given}: {len(unknown)} videos that the features lack are ignored")
        return np.array([table.get(row.path) or "none" for row in rows]), Path(given).name
    sample = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    clusters = KMeans(min(3, len(rows)), n_init=10, random_state=0).fit(mean_tokens([rows[i] for i in sample]))
    parts = [rows[start : start + SAMPLE] for start in range(0, len(rows), SAMPLE)]
    nearest = np.concatenate([clusters.predict(mean_tokens(part)) for part in parts])
    names = np.array([f"cluster {i + 1}" for i in range(clusters.n_clusters)])
    return names[nearest], "k-means of the mean token, a stand-in for content"


def largest_strata(strata):
    return [name for name, _ in Counter(strata.tolist()).most_common() if name != "none"][:STRATA]


def draw_strata(maps, labels, names, strata, what, path):
    """T-Sigs by class, side by side, and the largest strata, one below the other; nothing where no clip has a stratum.
    Maps (V, L, L), labels (V,), numbers in the classes' `names`, strata (V,).
    """
    by_stratum = []
    for stratum in sorted(largest_strata(strata)):
        panels = []
        for label in np.unique(labels):
            clips = maps[(labels == label) & (strata == stratum)]
            panels.append((f"{names[label]}\nclips: {len(clips)}", clips.mean(axis=0) if len(clips) else None))
        by_stratum.append(wrap_panels(stratum, panels))
    if by_stratum:
        draw_maps([row for rows in zip(*by_stratum, strict=True) for row in rows], what, path)
