"""What SAGA's second stage depends on at GEN-L: mining, batches, depth, schedule (Sec. 3.2, S-2). Under which
conditions does hard negative mining (HNM) beat cross-entropy (CE) alone, and why?

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/ablation-<what>.json, .md: accuracies, embeddings and cost under each condition; results/ablation.json,
        .md: HNM less CE under all of them; results/ablation-depth.png: accuracy against cost

A condition is a row of ABLATIONS: which arms are trained, and what it changes in them.
"""

from pathlib import Path

import numpy as np
from scipy.stats import t

from basics.artifacts import read_csv, read_json
from basics.figures import plt, save_figure
from experiments.figures import neighbours_by_loss
from experiments.stages import TWO_FEW, Arm, clips_of, markdown
from experiments.tables import (
    OVERALL,
    arm_runs,
    caption,
    described,
    mean_std,
    overall_cells,
    parameters_of,
    scored,
)
from training.presets import PRESETS

# ---------------------------------------------------------------- the conditions

CE = Arm(2, "few", "CE")
PLAIN = {"CE alone": {CE: {}}}
WARM_UP = PRESETS["small"]["warmup_steps"]


def mined(**settings):
    """HNM with these settings; its CE is the plain one."""
    return {TWO_FEW: {"last": settings}}


def both(**change):
    """CE and HNM, changed in the same way."""
    return {CE: change, TWO_FEW: change}


def plain(**settings):
    """CE alone with these settings of stage 2."""
    return {CE: {"last": settings}}


PAPERS_MINING = {"margin": 1.0, "ce_weight": 0.5}
ABLATIONS = {  # what: condition: arm: what the condition changes in it
    "margin": PLAIN
    | {f"margin {margin:g}": mined(margin=margin) for margin in (0.2, 1.0, 5.0)}
    | {"margin 1 subtracted, as Eq. (5) prints it": mined(margin=-1.0)},
    # Batches of 32 have one or two clips of each of 20 classes: an anchor's one positive is hardest and random, too.
    "positives": {"CE alone": plain(batch_size=64)}
    | {f"{kind} positives": mined(positives=kind, batch_size=64) for kind in ("all", "hardest", "random")},
    "normalize": PLAIN
    | {
        f"{scale}, {name}": mined(normalize=on, **own)
        for scale, on in {"normalised": True, "raw": False}.items()
        for name, own in {"the recipe's margin and lambda": {}, "margin 1, lambda 0.5": PAPERS_MINING}.items()
    },
    "batching": {f"{kind} batches": both(last={"batching": kind}) for kind in ("natural", "balanced")},
    "depth": {f"{blocks} temporal blocks": both(only={"temporal_blocks": blocks}) for blocks in (2, 4, 6, 8, 12)},
    "dtype": {name: plain(dtype=name) for name in ("float32", "mixed_bfloat16")},
    "schedule": {
        f"{schedule}{' after a warm-up' if steps else ''}": plain(schedule=schedule, warmup_steps=steps)
        for schedule in ("halving", "cosine", "constant")
        for steps in (0, WARM_UP)
    },
}

# ---------------------------------------------------------------- one ablation


def measure_ablation(args, data, what):
    """Per condition and setting its accuracies, and of every run what its embeddings, losses and cost are."""
    conditions = {
        condition: {str(arm): trained(args, data, arm, change) for arm, change in settings.items()}
        for condition, settings in ABLATIONS[what].items()
    }
    return described(data, what=what, conditions=conditions)


def trained(args, data, arm, change):
    runs = arm_runs(args, data, arm, "gen", **change)
    return scored(runs, "gen") | {"runs": [run_facts(run) for own in runs for run in own if run]}


def run_facts(run):
    """Of a run's test embeddings: mean squared norm, variance as a fraction of it, and the fraction of same-class
    pairs that are farther apart than the nearest clip of another class (hard pairs, whatever the scale). The losses of
    its last epoch, its parameters and seconds.
    """
    clips, _ = clips_of(run, "gen")
    embedding, names = np.float64(clips["embedding"]), clips["class"]
    squares = np.square(embedding).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * embedding @ embedding.T
    same = names[:, None] == names[None]
    nearest = np.where(same, np.inf, distances).min(axis=1, keepdims=True)
    pairs = same & ~np.eye(len(names), dtype=bool)
    last = read_csv(run / "gen_history.csv", ("loss",))[-1]
    return {
        "square_length": float(squares.mean()),
        "variance_fraction": float(embedding.var(axis=0).sum() / squares.mean()),
        "hard_pairs": float((distances >= nearest)[pairs].mean()),
        "cross_entropy": float(last.get("logits_loss", last["loss"])),
        "mined_loss": float(last["embedding_loss"]) if "embedding_loss" in last else None,
        "parameters": parameters_of(run),
        "seconds": seconds_of(run),
    }


def seconds_of(run):
    """What the two stages of a run took."""
    recipe = read_json(run / "gen.json", ("recipe",))["recipe"]
    stage_one = read_json(Path(recipe["paths"]["init"]).with_name("bin.json"), ("recipe",))["recipe"]
    return stage_one["seconds"] + recipe["seconds"]


FACTS = {
    "square_length": "squared norm",
    "variance_fraction": "variance fraction",
    "hard_pairs": "hard pairs",
    "cross_entropy": "final cross-entropy",
    "mined_loss": "final mined loss",
    "seconds": "seconds of both stages",
}


def fact_cells(result):
    cells = []
    for key in FACTS:
        values = [run[key] for run in result["runs"] if run[key] is not None]
        cells.append(f"{np.mean(values):.3g}" if values else "-")
    return cells


LOSSES = {str(arm): arm.loss for arm in (CE, TWO_FEW)}


def render_ablation(results):
    rows = []
    for condition, settings in results["conditions"].items():
        for arm, result in settings.items():
            count = f"{result['runs'][0]['parameters'] / 1e6:.2f}M" if result["runs"] else "-"
            rows.append([condition, LOSSES[arm], *overall_cells(result), *fact_cells(result), count])
    header = ["condition", "loss", *OVERALL, *FACTS.values(), "parameters"]
    what = f"Ablation of {results['what']} at GEN-L, two stages, few labels"
    return [caption(results, what), "", *markdown(header, rows), "", untrained_note(results["conditions"]), "", MEANING]


MEANING = (
    "Squared norm, variance fraction and hard pairs are of test embeddings. Hard pairs: the fraction of same-class"
    " pairs farther apart than the nearest clip of another class. Losses are those of the last epoch; seconds are of"
    " both stages with their evaluation, as the machine was."
)


def untrained(result):
    """Of how many seeds, collapsed ones too, macro accuracy is less than twice its chance."""
    return result["collapsed"] + sum(seed["macro"] < 2 * seed["uniform"] for seed in result["seeds"])


def untrained_note(conditions):
    names = [
        f"{condition} with {LOSSES[arm]} ({count} of {len(result['seeds']) + result['collapsed']} seeds)"
        for condition, settings in conditions.items()
        for arm, result in settings.items()
        if (count := untrained(result))
    ]
    return f"Not trained, macro accuracy below twice chance: {', '.join(names) or 'none'}."


def draw_ablation(args, data, results, path, what):
    """Macro accuracy against what a run costs, a line per loss."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("seconds", "parameters"), strict=True):
        for arm, loss in LOSSES.items():
            trained = {name: own[arm] for name, own in results["conditions"].items() if own[arm]["seeds"]}
            macro = [[100 * seed["macro"] for seed in result["seeds"]] for result in trained.values()]
            cost = [np.mean([run[key] for run in result["runs"]]) for result in trained.values()]
            axis.errorbar(cost, [*map(np.mean, macro)], [*map(np.std, macro)], fmt="o-", capsize=2, label=loss)
            for (name, result), *point in zip(trained.items(), cost, map(np.mean, macro), strict=True):
                axis.annotate(name.split()[0], point, xytext=(4, 4), textcoords="offset points")
                axis.axhline(100 * result["seeds"][0]["uniform"], color="gray", ls=":")
        axis.set(xlabel=f"{key} of a run", ylim=(0, 100))
    axes[0].set(ylabel="macro accuracy, per cent", title=f"{data.name}, {what} at GEN-L; dotted: chance")
    axes[0].legend(loc="lower right")
    save_figure(figure, path)


# ---------------------------------------------------------------- when does mining win?


def measure_conditions(args, data):
    """HNM less CE by seed under every condition of the method (a dtype is none), with what may explain it."""
    rows = []
    for what in [what for what, conditions in ABLATIONS.items() if any(TWO_FEW in own for own in conditions.values())]:
        conditions = measure_ablation(args, data, what)["conditions"]
        plain = conditions.get("CE alone", {}).get(str(CE))
        for condition, settings in conditions.items():
            if str(TWO_FEW) in settings:
                differences = hnm_minus_ce(settings.get(str(CE), plain), settings[str(TWO_FEW)])
                rows.append({"what": what, "condition": condition} | differences)
    if len(data.folds) == 1:  # else no embedding holds all clips
        plain, mined = (neighbours_by_loss(args, data)[loss] | {"runs": []} for loss in ("CE", "CE+HNM"))
        rows.append({"what": "figure-5", "condition": FIVE_NEAREST} | hnm_minus_ce(plain, mined))
    return described(data, rows=rows)


FIVE_NEAREST = "clips named by their five nearest neighbours in the embedding"


def less_ce(plain, mined):
    """Differences in [-1, 1] over the seeds that both have."""
    theirs = {seed["seed"]: seed for seed in plain["seeds"]}
    pairs = [(seed, theirs[seed["seed"]]) for seed in mined["seeds"] if seed["seed"] in theirs]
    row = {key: [ours[key] - other[key] for ours, other in pairs] for key in ("micro", "macro")}
    return row | {"collapsed": mined["collapsed"]}


def hnm_minus_ce(plain, mined):
    """less_ce, and means over runs of what mining changes."""
    row = less_ce(plain, mined)
    row["ce_macro"] = [seed["macro"] for seed in plain["seeds"]]
    for name, result in (("ce", plain), ("hnm", mined)):
        for key in ("hard_pairs", "variance_fraction", "cross_entropy", "mined_loss"):
            row[f"{name}_{key}"] = [run[key] for run in result["runs"] if run[key] is not None]
    return row


def render_conditions(results):
    rows = []
    for row in results["rows"]:
        seeds = len(row["macro"])
        ahead = f"{sum(value > 0 for value in row['macro'])} of {seeds}"
        cells = [mean_std(row["ce_macro"]), signed(row["macro"]), signed(row["micro"]), ahead, ablation_verdict(row)]
        for key in ("hard_pairs", "variance_fraction"):
            cells.append(" / ".join(plain_mean(row[f"{name}_{key}"]) for name in ("ce", "hnm")))
        rows.append([row["what"], row["condition"], *cells, plain_mean(row["hnm_mined_loss"])])
    header = ["ablation", "condition", "CE macro", "HNM less CE, macro", "micro", "HNM ahead", "verdict"]
    header += ["hard pairs CE / HNM", "variance fraction CE / HNM", "final mined loss"]
    what = "When does hard negative mining beat cross-entropy? GEN-L, two stages, few labels, pairs of the same seed"
    return [caption(results, what, " Points of per cent."), "", *markdown(header, rows), "", VERDICT]


VERDICT = (
    "Brackets: 95% t interval of the mean over seeds. Verdict: ahead or behind where it leaves out 0, else open;"
    " collapsed: mining ended at one point for a seed or more. With three seeds, chance alone puts HNM ahead in all of"
    " them in one row of eight."
)


def interval(values):
    """The 95% t interval of the mean of values over seeds; None of fewer than two."""
    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def ablation_verdict(row):
    if row["collapsed"]:
        return f"collapsed ({row['collapsed']})"
    low, high = interval(row["macro"]) or (-1, 1)
    return "ahead" if low > 0 else "behind" if high < 0 else "open"


def signed(values):
    """Mean and interval of differences in [-1, 1], in points."""
    if not values:
        return "-"
    ends = interval(values)
    return f"{100 * np.mean(values):+.1f}" + (f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else "")


def plain_mean(values):
    return f"{np.mean(values):.2f}" if values else "-"
