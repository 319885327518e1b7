"""Intervals of accuracies, the bootstrap over groups, average precision and ROC AUC, comparisons of classifiers, and
the minimum of a loss under a constraint.

    theta, rounds = minimize_constrained(objective, constraint, theta, unit=0.8)      so that constraint(theta) <= 0
"""

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


def resample_groups(groups, random):
    """The weights (V,) of V clips in a bootstrap over their groups (V,): how often a clip's group is drawn when as many
    groups as there are are drawn with replacement (Efron & Tibshirani 1993). Clips of one source are alike, so they are
    drawn together.
    """
    names, member = np.unique(groups, return_inverse=True)
    return np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))[member]


# ---------------------------------------------------------------- ranking: average precision and ROC AUC

RANKING = ("ap", "auc")  # average precision, area under the ROC curve


def ranking(target, other, target_weight=None, other_weight=None):
    """Average precision and ROC AUC, (2,), of scores (N,) of the positive class and (M,) of the other, with weights
    (N,) and (M,).

    scikit-learn's average_precision_score and roc_auc_score, but computed from one curve, four times as fast as both
    together: a bootstrap needs thousands.
    """
    from sklearn.metrics import roc_curve  # here, since few of those who import this room want it

    weights = [np.ones(len(target)) if target_weight is None else target_weight]
    weights += [np.ones(len(other)) if other_weight is None else other_weight]
    labels, scores = np.repeat([1, 0], [len(target), len(other)]), np.concatenate([target, other])
    fpr, recall, _ = roc_curve(labels, scores, sample_weight=np.concatenate(weights), drop_intermediate=False)
    true, false = recall[1:] * np.sum(weights[0]), fpr[1:] * np.sum(weights[1])  # positives
    average_precision = np.sum(np.diff(recall) * true / (true + false))
    return np.array([average_precision, np.sum(np.diff(fpr) * (recall[1:] + recall[:-1]) / 2)])


def ranking_table(scores, groups, roles, repeats=300, seed=0):
    """AP and AUC of the target against each other generator, by method, and their means over the generators of a role,
    with 95% intervals by bootstrap over groups.

    scores    {method: {generator: (N,)}}, higher where likelier the target; groups: {generator: (N,)}
    roles     {"target": [name], "known": names, "unseen": names}; those that are not tested are left out
    returns   {"by_generator": {generator: {"images", "groups", "prevalence", method: entry}}, "means": {role: {method:
              entry}}}, an entry being {"ap", "auc", "ap_interval", "auc_interval"}; and beside the methods "gain", the
              last one's less the first one's
    """
    from sklearn import config_context

    (target,) = roles["target"]
    numbers = {name: np.unique(values, return_inverse=True)[1] for name, values in groups.items()}
    others, methods, random = [name for name in groups if name != target], list(scores), np.random.default_rng(seed)

    def rank_all(weights):  # (generators, methods, 2)
        pairs = [(own, name) for name in others for own in scores.values()]
        values = [ranking(own[target], own[name], weights.get(target), weights.get(name)) for own, name in pairs]
        return np.reshape(values, (len(others), len(scores), 2))

    with config_context(assume_finite=True, skip_parameter_validation=True):
        points, drawn = rank_all({}), []
        for _ in range(repeats):
            drawn.append(rank_all({name: resample_groups(own, random) for name, own in numbers.items()}))
    drawn, table, means = np.array(drawn), {}, {}
    for i, name in enumerate(others):
        count, positives = len(groups[name]), len(groups[target])
        table[name] = {"images": count, "groups": int(numbers[name].max()) + 1}
        table[name] |= {"prevalence": positives / (positives + count)}
        table[name] |= with_intervals(points[i], drawn[:, i], methods)
    for role in ("known", "unseen"):
        if own := [i for i, name in enumerate(others) if name in roles[role]]:
            means[role] = with_intervals(points[own].mean(axis=0), drawn[:, own].mean(axis=1), methods)
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


def at_threshold(scores, target, threshold=0.0):
    """Where images of {generator: scores (N,)} are predicted as the target above a threshold: the target's recall, the
    false positive rate of each other generator, and the mean of recall and of the others' mean specificity, whose
    chance is 0.5.

    AP and AUC cannot see a classifier that never predicts the target.
    """
    positive = {name: float(np.mean(own > threshold)) for name, own in scores.items()}
    recall, false_alarms = positive.pop(target), positive
    accuracy = (recall + 1 - np.mean(list(false_alarms.values()))) / 2
    return {"recall": recall, "false_alarms": false_alarms, "balanced_accuracy": float(accuracy)}


# ---------------------------------------------------------------- the minimum of a loss under a constraint


def minimize_lbfgs(objective, start):
    """theta (P,) of the minimum of a smooth function theta -> (value, gradient (P,)), of all where it is convex."""
    from scipy.optimize import minimize  # here, since a script's --help need not wait for it

    limits = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-9, "gtol": 1e-5}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=limits).x


def minimize_constrained(objective, constraint, start, unit, tolerance=1e-3, rounds=40):
    """Minimise objective(theta) so that constraint(theta) <= tolerance x unit, from a `start` that meets it. Both
    return (value, gradient (P,)).

    An augmented Lagrangian (Nocedal & Wright 2006, Alg. 17.4): each round minimises, from where the last one ended,
    objective + (max(0, m + b c)^2 - m^2) / 2b, where c is the constraint, m the multiplier and b the weight, and then
    sets m to max(0, m + b c). b begins at 1 / unit and grows fourfold where a round has not brought c to a quarter.
    Returns the best theta that meets the constraint, the start at worst, and a row per round: its number, "round", and
    what it reached, "objective", "constraint", "multiplier" and "weight".
    """
    theta, multiplier, weight, violation, rows = start, 0.0, 1 / unit, np.inf, []
    best, least = start, objective(start)[0]

    def lagrangian(theta):
        value, gradient = objective(theta)
        excess, slope = constraint(theta)
        push = max(0.0, multiplier + weight * excess)
        return value + (push**2 - multiplier**2) / (2 * weight), gradient + push * slope

    for number in range(1, rounds + 1):
        theta = minimize_lbfgs(lagrangian, theta)
        excess, value = constraint(theta)[0], objective(theta)[0]
        if excess <= tolerance * unit and value < least:
            best, least = theta, value
        slack = max(excess, -multiplier / weight)  # 0 where c = 0, or m = 0 and c < 0
        multiplier = max(0.0, multiplier + weight * excess)
        reached = {"objective": value, "constraint": excess, "multiplier": multiplier, "weight": weight}
        rows.append({"round": number} | reached)
        if abs(slack) <= tolerance * unit:
            break
        weight *= 4 if abs(slack) > violation / 4 else 1
        violation = abs(slack)
    return best, rows


def stop_early(objective, held_out, start, rate, patience=200, steps=20000):
    """theta of gradient descent at the step where held_out(theta), a number, is least, and that step.

    `patience` steps without a lower one end it.
    """
    theta, best, least, at = start, start, np.inf, 0
    for step in range(steps + 1):
        if (loss := held_out(theta)) < least:
            best, least, at = theta, loss, step
        if step - at >= patience:
            break
        theta = theta - rate * objective(theta)[1]
    return best, at


# ---------------------------------------------------------------- comparing classifiers on the same clips


def bootstrap_accuracies(correct, classes, groups, repeats=2000, seed=0):
    """Bootstrap draws (repeats, R, 2) of micro and macro accuracy of R runs: correct (R, V) bool; class and group (V,).

    Groups are drawn, the same ones for all runs. A class without a clip in a draw is left out of its mean.
    """
    names, number = np.unique(classes, return_inverse=True)
    _, groups = np.unique(groups, return_inverse=True)
    of_class = np.eye(len(names))[number]  # (V, K)
    random, draws = np.random.default_rng(seed), np.empty((repeats, len(correct), 2))
    for draw in draws:
        weights = resample_groups(groups, random)
        clips, hits = weights @ of_class, (correct * weights) @ of_class  # (K,), (R, K)
        draw[:, 0] = hits.sum(axis=1) / clips.sum()
        draw[:, 1] = (hits[:, clips > 0] / clips[clips > 0]).mean(axis=1)
    return draws


def mcnemar(one, other):
    """McNemar's exact two-sided test (McNemar 1947) that two classifiers are equally often correct, (V,) and (V,) bool,
    on the same clips. Returns how many clips only the first has correct, how many only the second, and p (1 where they
    agree).
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
