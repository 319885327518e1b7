"""How well scores tell a target generator from each other one: average precision, ROC AUC, what is called the target at
a threshold; printed and drawn for 05.

    ap, auc = ranking(scores["SVD"], scores["Pika"])

Functions of arrays; the target is the positive class and a higher score is likelier the target.
"""

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from tokens.wild import score
from training.evaluation import plt, save_figure

# ---------------------------------------------------------------- how well a score tells the target

METRICS, METHODS = ("ap", "auc"), ("baseline", "constrained")


def ranking(target, other, target_weight=None, other_weight=None):
    """Average precision and ROC AUC of scores (N,), (M,) with the target as the positive class, as scikit-learn has
    them, whose checks of its input would take nearly all the time of a bootstrap.
    """
    scores = np.concatenate([target, other])
    target_weight = np.ones(len(target)) if target_weight is None else target_weight
    other_weight = np.ones(len(other)) if other_weight is None else other_weight
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of images with the same score
    hits = np.cumsum(np.append(target_weight, np.zeros(len(other)))[order])[last]
    alarms = np.cumsum(np.append(np.zeros(len(target)), other_weight)[order])[last]
    found = np.diff(hits, prepend=0)
    average_precision = np.sum(found * hits / np.maximum(hits + alarms, 1e-12)) / hits[-1]
    below = alarms[-1] - alarms + np.diff(alarms, prepend=0) / 2
    return np.array([average_precision, np.sum(found * below) / (hits[-1] * alarms[-1])])


def ranking_table(scores, groups, roles, repeats=300, seed=0):
    """AP and AUC of the target against each other generator, by method, and their means over the generators of a role,
    with 95% bootstrap intervals: whole groups are drawn.

    scores    {method: {generator: (N,)}}, higher where likelier the target; groups: {generator: (N,)}
    roles     {"target": [name], "known": names, "unseen": names}; those that are not tested are left out
    returns   {"by_generator": {generator: {"images", "groups", "prevalence", method: entry}}, "means": {role: {method:
              entry}}}, an entry being {"ap", "auc", "ap_interval", "auc_interval"}; and beside the methods "gain", the
              last one's less the first one's
    """
    (target,) = roles["target"]
    places = {name: np.unique(own, return_inverse=True)[1] for name, own in groups.items()}
    others, methods = [name for name in groups if name != target], list(scores)
    points = {name: each_ranking(scores, methods, target, name) for name in others}  # (methods, 2)
    random, drawn = np.random.default_rng(seed), {name: [] for name in others}
    for _ in range(repeats):
        weights = {name: draw_groups(place, random) for name, place in places.items()}
        for name in others:
            drawn[name].append(each_ranking(scores, methods, target, name, weights))
    table, means = {}, {}
    for name in others:
        count, positives = len(groups[name]), len(groups[target])
        table[name] = {"images": count, "groups": int(places[name].max()) + 1}
        table[name] |= {"prevalence": positives / (positives + count)}
        table[name] |= method_entries(points[name], np.array(drawn[name]), methods)
    for role in ("known", "unseen"):
        if own := [name for name in others if name in roles[role]]:
            point, draws = (np.mean([side[name] for name in own], axis=0) for side in (points, drawn))
            means[role] = method_entries(point, draws, methods)
    return {"by_generator": table, "means": means}


def each_ranking(scores, methods, target, name, weights=None):
    own = (weights[target], weights[name]) if weights else ()
    return np.array([ranking(scores[method][target], scores[method][name], *own) for method in methods])


def draw_groups(place, random):
    """How often each image is drawn (N,) when whole groups are, with replacement."""
    groups = place.max() + 1
    return np.bincount(random.integers(groups, size=groups), minlength=groups)[place].astype(float)


def method_entries(points, drawn, methods):
    """Points (methods, 2) and bootstrap draws (R, methods, 2) as {method: {"ap", "auc", "ap_interval", ...}}."""
    sides = {method: (points[i], drawn[:, i]) for i, method in enumerate(methods)}
    if len(methods) > 1:
        sides["gain"] = points[-1] - points[0], drawn[:, -1] - drawn[:, 0]
    entries = {}
    for method, (point, own) in sides.items():
        entries[method] = {metric: float(point[i]) for i, metric in enumerate(METRICS)}
        low, high = np.percentile(own, [2.5, 97.5], axis=0).tolist()
        entries[method] |= {f"{metric}_interval": [low[i], high[i]] for i, metric in enumerate(METRICS)}
    return entries


def at_threshold(scores, target, threshold):
    """Where images (N,) of {generator: scores} are called the target above a threshold: the target's recall, each other
    generator's false alarms, and the mean of recall and of the others' share called right. Chance of that is 0.5.

    AP and AUC cannot see a classifier that never calls the target.
    """
    called = {name: float(np.mean(own > threshold)) for name, own in scores.items()}
    recall, false_alarms = called.pop(target), called
    accuracy = (recall + 1 - np.mean(list(false_alarms.values()))) / 2
    return {"recall": recall, "false_alarms": false_alarms, "balanced_accuracy": float(accuracy)}


def measure(images, roles, names, classifier, repeats=300):
    """Metrics of baseline and constrained on the test images of `names`, generators by role; and their scores."""
    vectors = {name: images.vectors[places] for name, places in roles.test.items()}
    groups = {name: images.group[places] for name, places in roles.test.items()}
    scores = {method: {name: score(classifier, method, own) for name, own in vectors.items()} for method in METHODS}
    threshold = {method: at_threshold(own, names["target"][0], 0.0) for method, own in scores.items()}
    facts = {"test_images": {name: len(own) for name, own in vectors.items()}}
    facts |= ranking_table(scores, groups, names, repeats)
    return scores, facts | {"at_threshold": threshold, "simulated": bool(images.recipe["features"].get("simulated"))}


# ---------------------------------------------------------------- what is printed and drawn


def print_report(metrics):
    training, (last, *_) = metrics["training"], metrics["training"]["rounds"][::-1]
    before, after = (training[method] for method in METHODS)
    print(
        f"labelled loss {before['labelled_loss']:.4f} (l2 {training['l2']:g}), allowed {training['allowed']:.4f},"
        f" reached {after['labelled_loss']:.4f}; wild loss {before['wild_loss']:.4f} -> {after['wild_loss']:.4f};"
        f" multiplier {last['multiplier']:.3g} after {last['round']} rounds"
    )
    print("\nagainst the target, baseline -> constrained, 95% over groups; chance: AP the prevalence, AUC 0.5")
    print(f"{'role':7} {'generator':16} {'images':>6} {'prevalence':>10}  {'AP':34} AUC")
    for role in ("known", "unseen"):
        rows = {name: row for name, row in metrics["by_generator"].items() if name in metrics["roles"][role]}
        for name, row in rows.items():
            what = f"{role:7} {name:16} {row['images']:6} {row['prevalence']:10.2f}"
            print(f"{what}  {change_cell(row, 'ap'):34} {change_cell(row, 'auc')}")
        if means := metrics["means"].get(role):
            print(f"{role:7} {'mean':34}  {change_cell(means, 'ap'):34} {change_cell(means, 'auc')}")
            gains = [interval_cell(means["gain"], metric) for metric in METRICS]
            print(f"{'':7} {'mean gain':34}  {gains[0]:34} {gains[1]}")
    for method, row in metrics["at_threshold"].items():
        alarms = ", ".join(f"{name} {share:.2f}" for name, share in row["false_alarms"].items())
        print(
            f"{method}: finds {row['recall']:.2f} of the target (balanced accuracy {row['balanced_accuracy']:.2f});",
            end="",
        )
        print(f" called the target: {alarms}")


def change_cell(row, metric):
    return " -> ".join(interval_cell(row[method], metric) for method in METHODS)


def interval_cell(entry, metric):
    low, high = entry[f"{metric}_interval"]
    return f"{entry[metric]:.2f} ({low:.2f}-{high:.2f})"


def draw_scores(scores, metrics, path):
    """Histograms of scores by role, baseline above constrained; the line is the threshold."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
    for axis, method in zip(axes, METHODS, strict=True):
        roles = {role: own for role, own in metrics["roles"].items() if role != "wild"}
        parts = {role: [scores[method][name] for name in own if name in scores[method]] for role, own in roles.items()}
        bins = np.histogram_bin_edges(np.concatenate([*scores[method].values()]), 30)
        for role, own in parts.items():
            axis.hist(np.concatenate(own), bins, density=True, histtype="step", lw=1.8, label=role)
        axis.axvline(0, color="k", ls=":")
        axis.set(title=method, ylabel="density", xlabel=f"score of {metrics['target']} (logit)")
    axes[0].legend()
    figure.suptitle(title_of(metrics))
    save_figure(figure, path)


def draw_curves(scores, metrics, path):
    """ROC and precision against recall of the target against each unseen generator; dotted: baseline."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    target = metrics["target"]
    for number, name in enumerate(metrics["roles"]["unseen"]):
        for method, style in zip(METHODS, (":", "-"), strict=True):
            own = scores[method]
            labels = np.repeat([1, 0], [len(own[target]), len(own[name])])
            values, line = np.concatenate([own[target], own[name]]), {"color": f"C{number}", "ls": style}
            axes[0].plot(*roc_curve(labels, values)[:2], **line)
            precision, recall, _ = precision_recall_curve(labels, values)
            axes[1].plot(recall, precision, **line, label=f"{name}, {method}")
    axes[0].plot([0, 1], [0, 1], "k", lw=0.5)
    axes[0].set(xlabel="share of others called the target", ylabel="share of the target found", title="ROC")
    axes[1].set(xlabel="recall of the target", ylabel="precision", title="precision and recall", ylim=(0, 1.02))
    axes[1].legend(fontsize=8)
    figure.suptitle(title_of(metrics))
    save_figure(figure, path)


def title_of(metrics):
    images = sum(metrics["test_images"].values())
    return f"{metrics['target']} against others, {images} test images{', simulated' * metrics['simulated']}"
