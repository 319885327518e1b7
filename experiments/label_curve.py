"""Fig. S-1: accuracy against labels, on a zoo so large that a thousandth of its labels is one of every class.

reads   a features folder (datasets.py, by default `large`); trains what is not up to date (stages.py)
writes  results/<data>/figure-s1.json, .md, .png: accuracy by level and share of the labels, and the knee of each curve
"""

import numpy as np

from basics.figures import plt, save_figure
from experiments.stages import Arm, fold_videos, markdown
from experiments.tables import OVERALL, arm_results, caption, described, overall_cells
from tokens.generators import level_name

SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of all labels, those of val too
LABEL_LEVELS = ("sd", "team", "gen")
KNEE = 0.05  # as near to the accuracy with the most labels


def measure_labels(args, data):
    """CE+HNM after stage 1 on all of real and fake, by the share of a level's labels, as many of every class."""
    curves = {}
    for level in LABEL_LEVELS:
        videos = fold_videos(args, data, level, "all", 0, data.folds[0])
        there = np.bincount([row.label for row in videos.train + videos.val])
        counts = dict.fromkeys(max(1, round(share * there.sum() / len(there))) for share in SHARES)
        curves[level] = []
        for count in counts:
            used = int(np.minimum(there, count).sum())
            point = {"per_class": count, "share": used / int(there.sum())}
            curves[level].append(point | arm_results(args, data, Arm(2, count, "CE+HNM"), level))
    return described(data, curves=curves)


def knee(curve):
    """The point of fewest labels whose mean macro accuracy is within KNEE of that of the most; None where the curve
    still rises there, or without results.
    """
    macro = [np.mean([seed["macro"] for seed in point["seeds"]]) if point["seeds"] else -1 for point in curve]
    return next((point for point, own in zip(curve[:-1], macro, strict=False) if own >= macro[-1] - KNEE > 0), None)


def percent(share):
    return f"{100 * share:.2g}%"


def render_labels(results):
    rows, knees = [], []
    for level, curve in results["curves"].items():
        for point in curve:
            rows.append([level_name(level), percent(point["share"]), f"{point['per_class']}", *overall_cells(point)])
        bend = knee(curve)
        where = f"at {percent(bend['share'])} ({bend['per_class']} of each class)" if bend else "none"
        knees.append(f"{level_name(level)} {where}")
    header = ["level", "share of all labels", "of each class", *OVERALL]
    what = "Accuracy against labels: two stages with CE+HNM; stage 1 has every clip's real or fake"
    most = percent(max(SHARES))
    rule = f"The knee: the fewest labels whose macro accuracy is within {100 * KNEE:.0f} points of that of {most}."
    return [caption(results, what), "", *markdown(header, rows), "", f"{rule} {', '.join(knees)}. {NOTE}"]


NOTE = "All points train for the same number of steps. The paper's figure has no numbers."


def draw_labels(args, data, results, path):
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for axis, key, chance in zip(axes, ("micro", "macro"), ("majority", "uniform"), strict=True):
        for i, (level, curve) in enumerate(results["curves"].items()):
            trained = [point for point in curve if point["seeds"]]
            values = [[100 * seed[key] for seed in point["seeds"]] for point in trained]
            points = [np.mean(own) for own in values], [np.std(own) for own in values]
            shares = [100 * point["share"] for point in trained]
            axis.errorbar(shares, *points, fmt=f"o-C{i}", label=level_name(level), capsize=2)
            if trained:
                axis.axhline(100 * trained[0]["seeds"][0][chance], color=f"C{i}", ls=":")
            if bend := knee(curve):
                axis.axvline(100 * bend["share"], color=f"C{i}", ls="--", lw=0.8)
        title = f"{data.name}, {key}; dotted: chance, dashed: knee of macro"
        axis.set(xscale="log", xlabel="labels, per cent of all", title=title, ylim=(0, 100))
    axes[0].set(ylabel="accuracy, per cent")
    axes[0].legend(loc="upper left")
    save_figure(figure, path)
