"""Compare runs on the same test clips: accuracies, and which differences are more than chance.

reads   runs/<run>/<level>_embeddings.npz and <level>.json of two runs or more (02, 03, detecting.py)
prints  per level: micro and macro accuracy with 95% intervals, accuracies by class, and of each pair of runs McNemar's
        exact test with Holm's correction over the pairs of the level
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from basics.running import InputError
from basics.statistics import bootstrap_accuracies, holm, mcnemar
from experiments.stages import clips_of, markdown
from tokens.generators import LEVELS, level_name

NAMED = 3  # clips in a message


def compare(args) -> list[dict]:
    """The comparison of reproduce.py's args.runs at args.level, or at every level that all of them have, printed."""
    results = [compare_level(args.runs, level) for level in common_levels(args.runs, args.level)]
    for result in results:
        print("\n".join(render_comparison(result)))
    return results


def common_levels(runs, wanted=None):
    """The levels that all runs have, or the one wanted of them. Raises InputError where there is none."""
    there = {run: [level for level in LEVELS if (Path(run) / f"{level}.json").exists()] for run in runs}
    if common := [level for level in ([wanted] if wanted else LEVELS) if all(level in own for own in there.values())]:
        return common
    has = "; ".join(f"{run} has {', '.join(own) or 'none'}" for run, own in there.items())
    raise InputError(f"not all runs have {wanted or 'one level'}: {has}; train it with 02 or 03")


def compare_level(runs, level):
    """The comparison of runs at a level as a dict, with accuracies in [0, 1]."""
    truth, predicted = None, []
    for run in runs:
        clips, names = clips_of(run, level)
        labels = dict(zip(clips["video"].tolist(), zip(clips["class"], clips["group"], strict=True), strict=True))
        truth = truth or labels
        check_same(f"{run}/{level}_embeddings.npz", labels, runs[0], truth)
        answers = dict(zip(labels, names[clips["probabilities"].argmax(axis=1)], strict=True))
        predicted.append([answers[video] for video in truth])
    classes, groups = np.array(list(truth.values())).T
    correct = np.array(predicted) == classes  # (R, V)
    draws = bootstrap_accuracies(correct, classes, groups)
    names, counts = np.unique(classes, return_counts=True)
    by_class = np.stack([correct[:, classes == name].mean(axis=1) for name in names], axis=1)  # (R, K)
    entries = []
    for i, run in enumerate(runs):
        entry = {"run": str(run), "micro": float(correct[i].mean()), "macro": float(by_class[i].mean())}
        entry |= {f"{key}_interval": percentiles(draws[:, i, k]) for k, key in enumerate(("micro", "macro"))}
        entries.append(entry | {"per_class": dict(zip(names.tolist(), by_class[i].tolist(), strict=True))})
    pairs = []
    for i, j in combinations(range(len(runs)), 2):
        only_one, only_other, p = mcnemar(correct[i], correct[j])
        pair = {"runs": [str(runs[i]), str(runs[j])], "only_one": only_one, "only_other": only_other, "p": p}
        pair["difference"] = float(correct[i].mean() - correct[j].mean())
        pairs.append(pair | {"difference_interval": percentiles(draws[:, i, 0] - draws[:, j, 0])})
    for pair, corrected in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["holm"] = corrected
    result = {"level": level, "clips": len(classes), "groups": len(np.unique(groups))}
    result |= {"counts": dict(zip(names.tolist(), counts.tolist(), strict=True))}
    result |= {"majority": float(counts.max() / counts.sum()), "uniform": 1 / len(names)}
    return result | {"runs": entries, "pairs": pairs}


def percentiles(draws):
    return np.percentile(draws, [2.5, 97.5]).tolist()


def check_same(path, own, first_run, first):
    """Raise InputError naming clips where a run's test clips, {video: (class, group)}, are not those of the first."""
    remedy = "train both on the same features and split"
    if own.keys() != first.keys():
        here, there = ([video for video in one if video not in other] for one, other in ((own, first), (first, own)))
        counts = f"{listed(here)} tested here alone, {listed(there)} there alone"
        raise InputError(f"{path}: its test clips are not those of {first_run}: {counts}; {remedy}")
    if changed := [video for video in own if own[video] != first[video]]:
        video = changed[0]
        (name, group), (wanted, wanted_group) = own[video], first[video]
        raise InputError(
            f"{path}: {len(changed)} test clips are labelled or grouped otherwise than in {first_run}, such as"
            f" {video}: {name} of group {group} here, {wanted} of group {wanted_group} there; {remedy}"
        )


def listed(videos):
    """How many, and the first of them: 5 (SVD/1.mp4, SVD/2.mp4, SVD/3.mp4, ...)."""
    names = ", ".join([*videos[:NAMED], *["..."] * (len(videos) > NAMED)])
    return f"{len(videos)} ({names})" if videos else "0"


# ---------------------------------------------------------------- tables


def percent_text(value, interval, sign=""):
    low, high = interval
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def p_value(p):
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def render_comparison(result) -> list[str]:
    """A level's comparison as lines of Markdown."""
    entries = result["runs"]
    chance = f"chance {100 * result['majority']:.1f} micro, {100 * result['uniform']:.1f} macro"
    about = f"{result['clips']} test clips in {result['groups']} groups; {chance}"
    rows = [
        [own["run"], *(percent_text(own[key], own[f"{key}_interval"]) for key in ("micro", "macro"))] for own in entries
    ]
    lines = [f"{level_name(result['level'])}, {about}. Per cent; 95% by bootstrap over groups.", ""]
    lines += [*markdown(["run", "micro (95%)", "macro (95%)"], rows), ""]
    rows = [
        [name, f"{count}", *(f"{100 * own['per_class'][name]:.1f}" for own in entries)]
        for name, count in result["counts"].items()
    ]
    lines += [*markdown(["class", "clips", *(own["run"] for own in entries)], rows), ""]
    rows = []
    for pair in result["pairs"]:
        cells = [", ".join(pair["runs"]), percent_text(pair["difference"], pair["difference_interval"], "+")]
        cells += [f"{pair['only_one']}", f"{pair['only_other']}", p_value(pair["p"]), p_value(pair["holm"])]
        rows.append(cells)
    header = ["pair", "first less second, micro (95%)", "only first correct", "only second correct"]
    lines += markdown([*header, "McNemar's p", "p by Holm"], rows)
    if result["groups"] < result["clips"]:
        lines += ["", "McNemar's test takes clips as independent, and those of a group are not: trust the intervals."]
    return [*lines, ""]
