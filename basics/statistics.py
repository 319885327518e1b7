"""Intervals of accuracies, the bootstrap of whole groups, and how well a score tells one side from another."""

import numpy as np


def wilson_interval(correct, count):
    """The 95% Wilson score interval of a proportion, [low, high]. `correct` may be a mean over seeds."""
    from scipy.stats import binomtest  # here, since it takes a second to import

    if float(correct).is_integer():
        return list(map(float, binomtest(int(correct), count).proportion_ci(method="wilson")))
    below, above = (np.array(wilson_interval(end, count)) for end in (np.floor(correct), np.ceil(correct)))
    return (below + (above - below) * (correct % 1)).tolist()


def macro_interval(correct, count, z=1.96):
    """The 95% normal interval of the mean of classes' accuracies (C,), each with its own count (C,).

    The classes' variances are those of (correct + 1) / (count + 2), so that a class of one video is not certain.
    """
    p = (correct + 1) / (count + 2)
    half = z * np.sqrt(np.sum(p * (1 - p) / count)) / len(count)
    middle = np.mean(correct / count)
    return [float(max(middle - half, 0)), float(min(middle + half, 1))]


def draw_groups(groups, random):
    """How often each of V clips counts, (V,), when as many whole groups (V,) are drawn with replacement.

    The bootstrap of groups (Efron & Tibshirani 1993): clips of one source are alike, so that they come together.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = member.max() + 1
    return np.bincount(random.integers(count, size=count), minlength=count)[member]


# ---------------------------------------------------------------- how well a score tells one side from another

RANKING = ("ap", "auc")  # average precision, area under the ROC curve


def ranking(target, other, target_weight=None, other_weight=None):
    """Average precision and ROC AUC, (2,), of scores (N,) of the positive class and (M,) of the other, each score as
    often as its weight says.

    scikit-learn's average_precision_score and roc_auc_score, which are four times as slow together as the curve that
    both are read off: a bootstrap wants thousands.
    """
    from sklearn.metrics import roc_curve  # here, since few of those who import this room want it

    weights = [np.ones(len(target)) if target_weight is None else target_weight]
    weights += [np.ones(len(other)) if other_weight is None else other_weight]
    labels, scores = np.repeat([1, 0], [len(target), len(other)]), np.concatenate([target, other])
    alarm, found, _ = roc_curve(labels, scores, sample_weight=np.concatenate(weights), drop_intermediate=False)
    hits, alarms = found[1:] * np.sum(weights[0]), alarm[1:] * np.sum(weights[1])
    average_precision = np.sum(np.diff(found) * hits / (hits + alarms))
    return np.array([average_precision, np.sum(np.diff(alarm) * (found[1:] + found[:-1]) / 2)])


def ranking_table(scores, groups, roles, repeats=300, seed=0):
    """AP and AUC of the target against each other generator, by method, and their means over the generators of a role,
    with 95% bootstrap intervals: whole groups are drawn.

    scores    {method: {generator: (N,)}}, higher where likelier the target; groups: {generator: (N,)}
    roles     {"target": [name], "known": names, "unseen": names}; those that are not tested are left out
    returns   {"by_generator": {generator: {"images", "groups", "prevalence", method: entry}}, "means": {role: {method:
              entry}}}, an entry being {"ap", "auc", "ap_interval", "auc_interval"}; and beside the methods "gain", the
              last one's less the first one's
    """
    from sklearn import config_context

    (target,) = roles["target"]
    numbers = {name: np.unique(own, return_inverse=True)[1] for name, own in groups.items()}
    others, methods = [name for name in groups if name != target], list(scores)

    def each(name, weights):  # (methods, 2)
        own = [weights[target], weights[name]] if weights else []
        return np.array([ranking(scores[method][target], scores[method][name], *own) for method in methods])

    random, drawn = np.random.default_rng(seed), {name: [] for name in others}
    with config_context(assume_finite=True, skip_parameter_validation=True):
        points = {name: each(name, None) for name in others}
        for _ in range(repeats):
            weights = {name: draw_groups(own, random) for name, own in numbers.items()}
            for name in others:
                drawn[name].append(each(name, weights))
    table, means = {}, {}
    for name in others:
        count, positives = len(groups[name]), len(groups[target])
        table[name] = {"images": count, "groups": int(numbers[name].max()) + 1}
        table[name] |= {"prevalence": positives / (positives + count)}
        table[name] |= with_intervals(points[name], np.array(drawn[name]), methods)
    for role in ("known", "unseen"):
        if own := [name for name in others if name in roles[role]]:
            point, draws = (np.mean([side[name] for name in own], axis=0) for side in (points, drawn))
            means[role] = with_intervals(point, draws, methods)
    return {"by_generator": table, "means": means}


def with_intervals(points, drawn, methods):
    """Points (methods, 2) and bootstrap draws (R, methods, 2) as {method: {"ap", "auc", "ap_interval", ...}}."""
    sides = {method: (points[i], drawn[:, i]) for i, method in enumerate(methods)}
    if len(methods) > 1:
        sides["gain"] = points[-1] - points[0], drawn[:, -1] - drawn[:, 0]
    entries = {}
    for method, (point, own) in sides.items():
        entries[method] = dict(zip(RANKING, point.tolist(), strict=True))
        low, high = np.percentile(own, [2.5, 97.5], axis=0).tolist()
        entries[method] |= {f"{metric}_interval": [low[i], high[i]] for i, metric in enumerate(RANKING)}
    return entries


def ranking_lines(table, roles, methods):
    """A ranking_table as lines of text: a row per generator and per mean, the methods from left to right."""

    def row(what, *entries):
        cells = []
        for metric in RANKING:
            ends = [(entry[metric], *entry[f"{metric}_interval"]) for entry in entries]
            cells.append(" -> ".join(f"{point:.2f} ({low:.2f}-{high:.2f})" for point, low, high in ends))
        return f"{what}  {cells[0]:34} {cells[1]}"

    lines = [f"against the target, {' -> '.join(methods)}, 95% over groups; chance: AP the prevalence, AUC 0.5"]
    lines += [f"{'role':7} {'generator':16} {'images':>6} {'prevalence':>10}  {'AP':34} AUC"]
    for role, means in table["means"].items():
        for name, own in table["by_generator"].items():
            if name in roles[role]:
                what = f"{role:7} {name:16} {own['images']:6} {own['prevalence']:10.2f}"
                lines.append(row(what, *(own[method] for method in methods)))
        lines.append(row(f"{role:7} {'mean':34}", *(means[method] for method in methods)))
        lines.append(row(f"{'':7} {'mean gain':34}", means["gain"]))
    return lines


def at_threshold(scores, target, threshold=0.0):
    """Where images (N,) of {generator: scores} are called the target above a threshold: the target's recall, each other
    generator's false alarms, and the mean of recall and of the others' share called right. Chance of that is 0.5.

    AP and AUC cannot see a classifier that never calls the target.
    """
    called = {name: float(np.mean(own > threshold)) for name, own in scores.items()}
    recall, false_alarms = called.pop(target), called
    accuracy = (recall + 1 - np.mean(list(false_alarms.values()))) / 2
    return {"recall": recall, "false_alarms": false_alarms, "balanced_accuracy": float(accuracy)}


def threshold_lines(table):
    """{method: at_threshold} as lines of text."""
    lines = []
    for method, row in table.items():
        alarms = ", ".join(f"{name} {share:.2f}" for name, share in row["false_alarms"].items())
        found = f"finds {row['recall']:.2f} of the target (balanced accuracy {row['balanced_accuracy']:.2f})"
        lines.append(f"{method}: {found}; called the target: {alarms}")
    return lines


# ---------------------------------------------------------------- classifiers beside each other on the same clips


def draw_accuracies(correct, classes, groups, repeats=2000, seed=0):
    """Bootstrap draws (repeats, R, 2) of micro and macro accuracy of R runs: correct (R, V) bool; class and group (V,).

    Whole groups are drawn, the same ones for all runs. A class that a draw has no clip of is left out of its mean.
    """
    names, number = np.unique(classes, return_inverse=True)
    _, groups = np.unique(groups, return_inverse=True)
    of_class = np.eye(len(names))[number]  # (V, K)
    random, draws = np.random.default_rng(seed), np.empty((repeats, len(correct), 2))
    for draw in draws:
        weights = draw_groups(groups, random)
        clips, hits = weights @ of_class, (correct * weights) @ of_class  # (K,), (R, K)
        draw[:, 0] = hits.sum(axis=1) / clips.sum()
        draw[:, 1] = (hits[:, clips > 0] / clips[clips > 0]).mean(axis=1)
    return draws


def mcnemar(one, other):
    """McNemar's exact two-sided test (McNemar 1947) that two classifiers are equally often correct, (V,) and (V,) bool,
    on the same clips: how many the first alone has correct, how many the second alone, and p, 1 where they agree.
    """
    from scipy.stats import binomtest

    only_one, only_other = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    differing = only_one + only_other
    return only_one, only_other, float(binomtest(only_one, differing).pvalue) if differing else 1.0


def holm(p):
    """p values (M,) of M tests, corrected by Holm's step-down method (Holm 1979): each compared with 0.05, the chance
    of any false rejection among them is at most 0.05.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected.tolist()
