"""Are coarser levels still correct where GEN-L has low confidence, as SAGA's Sec. 1 says?

reads   runs of the five levels (stages.py)
writes  results/back-off.json, .md: accuracy of every level on the clips with GEN-L's lowest confidence, accuracy
        against coverage, and a policy that answers at the finest level of enough confidence; results/back-off.png: the
        curves

A level's answer is its own model's, or GEN-L's probabilities summed along the generator table. The confidence in an
answer is its probability. Coverage is the fraction of clips that are answered, the most confident first (selective
classification, El-Yaniv & Wiener 2010).
"""

import numpy as np

from basics.figures import plt, save_figure
from experiments.stages import ONE_ALL, STAGE_ONE, TWO_FEW, clips_of, markdown, train_arm
from experiments.tables import caption, described, mean_std
from tokens.generators import LEVELS, level_name
from training.evaluation import at_level, sum_to_level

ARMS = (TWO_FEW, ONE_ALL)
FINEST_FIRST = tuple(reversed(LEVELS))  # gen, team, sd, task, bin
COVERAGES = (0.25, 0.5, 0.75, 1.0)
WANTED = 0.9  # accuracy on val above which the policy answers at a level


# ---------------------------------------------------------------- answers


def judged(probabilities, classes, generators, level):
    """Of each video at a level, by probabilities (V, C): the confidence (V,), whether the answer is correct (V,), and
    the true class (V,), which is empty where the level is not defined.
    """
    truth = at_level(generators, level)
    return probabilities.max(axis=1), np.array(classes)[probabilities.argmax(axis=1)] == truth, truth


def seed_runs(args, data, arm, seed):
    """{level: run folders by fold} of one seed; None where mining collapsed."""
    runs = {level: train_arm(args, data, STAGE_ONE if level == "bin" else arm, level, seed) for level in LEVELS}
    return None if any(None in folds for folds in runs.values()) else runs


def seed_answers(runs):
    """{"own" or "summed": {level: judged}} over the test videos of GEN-L, folds pooled."""
    own = {}
    for level in FINEST_FIRST:
        own[level] = pool_folds(own_model(*pair, level) for pair in zip(runs["gen"], runs[level], strict=True))
    return {"own": own, "summed": summed(runs, "test")}


def summed(runs, split):
    """{level: judged} of GEN-L's probabilities summed along the generator table, folds pooled."""
    parts = {level: [] for level in FINEST_FIRST}
    for run in runs["gen"]:
        clips, classes = clips_of(run, "gen", split)
        for level in FINEST_FIRST:
            sums = sum_to_level(clips["probabilities"], classes, level)
            parts[level].append(judged(*sums, clips["generator"], level))
    return {level: pool_folds(folds) for level, folds in parts.items()}


def own_model(gen_run, run, level):
    """judged of a level's own model for GEN-L's test videos; those that it does not know have no true class."""
    (gen_clips, _), (clips, classes) = clips_of(gen_run, "gen"), clips_of(run, level)
    number = {video: i for i, video in enumerate(clips["video"].tolist())}
    there = np.array([number.get(video, -1) for video in gen_clips["video"].tolist()])
    confidence, correct, truth = judged(clips["probabilities"][there], classes, gen_clips["generator"], level)
    return confidence, correct, np.where(there < 0, "", truth)


def pool_folds(parts):
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


# ---------------------------------------------------------------- measures


def coverage_curve(confidence, correct):
    """Accuracy (V,) over the 1, 2, ..., V most confident of V videos, ties in the order given; both inputs (V,)."""
    order = np.argsort(-confidence, kind="stable")
    return np.cumsum(correct[order]) / np.arange(1, len(correct) + 1)


def accuracies(seed):
    """Of one seed {how: {level: accuracy at COVERAGES, on GEN-L's more and less confident half, and chance there}}."""
    gen_confidence = seed["summed"]["gen"][0]
    unsure = gen_confidence < np.median(gen_confidence)
    results = {}
    for how, levels in seed.items():
        results[how] = {}
        for level, (confidence, correct, truth) in levels.items():
            there = truth != ""
            curve = coverage_curve(confidence[there], correct[there])
            row = {"videos": int(there.sum()), "majority": majority(truth[there])}
            row["coverage"] = [float(curve[max(int(np.ceil(part * len(curve))), 1) - 1]) for part in COVERAGES]
            for name, half in (("unsure", there & unsure), ("surer", there & ~unsure)):
                row[name] = float(correct[half].mean()) if half.any() else None
                row[f"{name}_videos"], row[f"{name}_majority"] = int(half.sum()), majority(truth[half])
            results[how][level] = row
    return results


def majority(truth):
    """The fraction of the commonest of the names (V,); None without any."""
    return float(np.unique(truth, return_counts=True)[1].max() / len(truth)) if len(truth) else None


def thresholds(val, wanted=WANTED):
    """{level: the least confidence from which on at least `wanted` of val's answers are correct}; infinite where no
    confidence is enough. An answer at a level that is not defined for the video is wrong.
    """
    limits = {}
    for level, (confidence, correct, _) in val.items():
        curve, ordered = coverage_curve(confidence, correct), np.sort(confidence)[::-1]
        enough = np.flatnonzero(curve >= wanted)
        limits[level] = float(ordered[enough[-1]]) if len(enough) else np.inf
    return limits


def policy(test, limits):
    """Answer each test video at the finest level of enough confidence, or not at all: {level: [videos, correct]}."""
    open_ = np.ones(len(test["gen"][0]), bool)
    counts = {}
    for level in FINEST_FIRST:
        confidence, correct, _ = test[level]
        chosen = open_ & (confidence >= limits[level])
        counts[level] = [int(chosen.sum()), int(correct[chosen].sum())]
        open_ &= ~chosen
    return counts | {"none": [int(open_.sum()), 0]}


def measure_back_off(args, data):
    arms = {}
    for arm in ARMS:
        seeds = [runs for seed in range(args.seeds) if (runs := seed_runs(args, data, arm, seed))]
        result = {"seeds": [accuracies(seed_answers(runs)) for runs in seeds], "collapsed": args.seeds - len(seeds)}
        chosen = [(summed(runs, "test"), summed(runs, "val")) for runs in seeds]
        # Folds have no val to choose confidences on.
        result["policy"] = [policy(test, thresholds(val)) for test, val in chosen if len(val["gen"][0])]
        arms[str(arm)] = result
    return described(data, arms=arms)


# ---------------------------------------------------------------- table and figure

HOW = {"own": "its own model", "summed": "GEN-L summed"}


def render_back_off(results):
    lines = [caption(results, "Coarser levels where GEN-L has low confidence"), ""]
    rows, coverage = [], []
    for arm, result in results["arms"].items():
        for level in FINEST_FIRST:
            for how, name in HOW.items():
                seeds = [seed[how][level] for seed in result["seeds"]]
                if level == "gen" and how == "own" or not seeds:
                    continue
                label = [arm, level_name(level), name]
                cells = [mean_std([seed[key] for seed in seeds]) for key in ("unsure", "unsure_majority")]
                cells += [mean_std([seed[key] for seed in seeds]) for key in ("surer", "surer_majority")]
                rows.append([*label, *cells, f"{seeds[0]['unsure_videos']} / {seeds[0]['surer_videos']}"])
                points = [mean_std([seed["coverage"][i] for seed in seeds]) for i in range(len(COVERAGES))]
                coverage.append([*label, *points, mean_std([seeds[0]["majority"]]), f"{seeds[0]['videos']}"])
    header = ["runs", "level", "answered by", "accuracy, GEN-L's less confident half", "chance there"]
    header += ["accuracy, more confident half", "chance there", "clips less / more confident"]
    lines += [*markdown(header, rows), ""]
    lines += ["Accuracy on the most confident clips, by the answer's own confidence:", ""]
    header = ["runs", "level", "answered by", *(f"{part:.0%} of clips" for part in COVERAGES), "chance", "clips"]
    lines += [*markdown(header, coverage), ""]
    return lines + render_policy(results)


def render_policy(results):
    """A row per level of what the policy answers, clips and correct ones summed over seeds."""
    rows = []
    for arm, result in results["arms"].items():
        seeds = result["policy"]
        total = sum(count for seed in seeds for count, _ in seed.values())
        for level in (*FINEST_FIRST, "none") if seeds else ():
            count, correct = (sum(seed[level][i] for seed in seeds) for i in (0, 1))
            accuracy = f"{100 * correct / count:.1f}" if count and level != "none" else "-"
            name = level_name(level) if level != "none" else "not answered"
            rows.append([arm, name, f"{100 * count / total:.1f}", accuracy, f"{count} of {total}"])
    if not rows:
        return []
    what = (
        f"The policy answers at the finest level whose summed probability is at least that from which {WANTED:.0%} of"
        " val's answers were correct. An answer where the level is not defined is wrong. Clips of all seeds:"
    )
    return [what, "", *markdown(["runs", "answered at", "per cent of clips", "accuracy", "clips"], rows)]


def draw_back_off(args, data, results, path):
    """Accuracy against coverage of every level, seed 0."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    runs = seed_runs(args, data, TWO_FEW, 0)
    seed = seed_answers(runs) if runs else {}
    for axis, how in zip(axes, seed, strict=False):
        for i, level in enumerate(FINEST_FIRST):
            confidence, correct, truth = seed[how][level]
            there = truth != ""
            curve = coverage_curve(confidence[there], correct[there])
            axis.plot(np.arange(1, len(curve) + 1) / len(curve), 100 * curve, f"C{i}", label=level_name(level))
            axis.axhline(100 * majority(truth[there]), color=f"C{i}", ls=":", lw=0.8)
        axis.set(xlabel="coverage: fraction of clips, the most confident first", title=f"answered by {HOW[how]}")
    axes[0].set(ylabel="accuracy, per cent", ylim=(0, 102))
    if seed:
        axes[1].legend(loc="lower left")
    figure.suptitle(f"{TWO_FEW}, {data.name}, seed 0; dotted: the largest class")
    save_figure(figure, path)
