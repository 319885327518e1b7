"""How the settings for few clips (--preset small) were chosen: one change at a time, judged on val alone.

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/recipe.json, .md: accuracies on val under each change, at the two levels of most classes

In one stage with all labels. Validation chooses the epoch too, so its accuracies are a little high; test is not read.
"""

import numpy as np

from experiments.ablations import ablation_verdict, signed
from experiments.stages import ONE_ALL, markdown
from experiments.tables import arm_runs, caption, described, mean_std, val_scores
from tokens.generators import level_name

SEARCHED = ("team", "gen")
CHANGES = {  # of the preset
    "the preset": {},
    "rate 2e-4": {"learning_rate": 2e-4},
    "rate 1e-3": {"learning_rate": 1e-3},
    "300 steps": {"steps": 300},
    "1,200 steps": {"steps": 1200},
    "no warm-up": {"warmup_steps": 0},
    "constant rate": {"schedule": "constant"},
    "natural batches": {"batching": "natural"},
    "dropout 0": {"dropout": 0.0},
    "dropout 0.3": {"dropout": 0.3},
    "5 temporal blocks": {"temporal_blocks": 5},
    "the head as trained": {"head": "linear"},
    "cross-entropy alone": {"loss": "ce"},
    "lambda 0.5": {"ce_weight": 0.5},
    "margin 1": {"margin": 1.0},
    "raw embeddings": {"normalize": False},
}


def measure_recipe(args, data):
    """By change and level `val_scores` of each seed; None where mining collapsed."""
    changes = {}
    for change, settings in CHANGES.items():
        runs = {level: arm_runs(args, data, ONE_ALL, level, last=settings) for level in SEARCHED}
        changes[change] = {level: [run and val_scores(run, level) for [run] in own] for level, own in runs.items()}
    return described(data, changes=changes)


def render_recipe(results):
    rows, changes = [], results["changes"]
    for change, levels in changes.items():
        row = [change]
        for seeds in levels.values():
            found = [seed for seed in seeds if seed]
            row.append(" / ".join(mean_std([seed[key] for seed in found]) for key in ("accuracy", "macro_accuracy")))
            row.append(f"{np.mean([seed['cross_entropy'] for seed in found]):.2f}" if found else "-")
        gains = gains_over(changes["the preset"], levels) if change != "the preset" else []
        rows.append([*row, signed(gains), ablation_verdict({"macro": gains, "collapsed": 0}) if gains else "-"])
    first = {level: seeds[0] for level, seeds in changes["the preset"].items()}
    chance = [(f"{100 * own['majority']:.1f} / {100 * own['uniform']:.1f}", "-") for own in first.values()]
    rows.append(["chance", *sum(chance, ()), "", ""])
    header = [part for level in first for part in (f"{level_name(level)} micro / macro", "cross-entropy")]
    header = ["changed", *header, "macro less the preset's", "verdict"]
    clips = ", ".join(f"{level_name(level)} {own['videos']}" for level, own in first.items())
    what = "Settings for few clips, chosen on val: one stage, all labels, one change at a time"
    return [caption(results, what), "", *markdown(header, rows), "", f"Val clips: {clips}. {NOTE}"]


NOTE = (
    "Cross-entropy is val's, in nats. The difference is the mean over both levels, with its 95% t interval over seeds;"
    " ahead or behind where the interval leaves out 0, else open; of fifteen changes without effect chance calls one"
    " ahead or behind."
)


def gains_over(preset, levels):
    """Macro accuracy less the preset's by seed, mean over levels, of the seeds that did not collapse in either."""
    gains = []
    for seed in range(len(preset[SEARCHED[0]])):
        pairs = [(levels[level][seed], preset[level][seed]) for level in SEARCHED]
        if all(own and plain for own, plain in pairs):
            gains.append(float(np.mean([own["macro_accuracy"] - plain["macro_accuracy"] for own, plain in pairs])))
    return gains
