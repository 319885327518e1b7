"""Unknown-aware attribution compared with other methods, and its dependence on settings (arXiv 2601.00218).

reads   a features folder (datasets.py), four frames of a clip as images; SAGA trained on the labelled generators alone
writes  runs/paper/<place of the features>/wild-<target>-<settings>/, a run of 05 per trial
        results/wild.json, .md: methods; results/wild-<what>.json, .md: one setting changed at a time

The labelled are a target and three known generators; three others are unseen, and all that are left are wild
(wild_roles.py). A seed draws which images have which role. Each table of means over targets has one of each target's
gains below it, by which a mean that one target carries is seen.
"""

import hashlib
from itertools import product
from pathlib import Path

import numpy as np

from basics.artifacts import read_arrays
from basics.running import InputError
from basics.running import fold as parse_fold
from basics.statistics import RANKING, at_threshold, ranking
from experiments.paper import paper_lines
from experiments.stages import ALL_CE, as_flags, markdown, part_name, runs_folder, stage, train_arm
from experiments.tables import described, mean_std
from experiments.wild_edits import ATTACKS, EDITS, attacked, edited_images
from experiments.wild_methods import COMPARED, FITTED, read_run, score_by
from experiments.wild_roles import (
    CONDITIONS,
    PAPERS,
    PER_CLIP,
    SETTINGS,
    TAU,
    by_release,
    by_role,
    earlier_targets,
    every_target,
    generators_in,
    target_names,
)
from tokens.dataset import read_index, usable
from tokens.split import fold_splits

# ---------------------------------------------------------------- a trial


def trial(args, data, target, seed, kind="frames", compared=(), change=PAPERS):
    """One target and seed: {method: outcome}, pooled over the data's folds, and the facts of training by fold."""
    clips, facts, roles = {}, [], None
    for fold in folds_with(args, data, target, seed, kind):
        run = read_run(run_stage(args, data, target, seed, fold, kind, change), change.test_split_only)
        scores, own, roles = *fit_all(run, compared, change, seed), run.roles
        facts.append(own)
        for name, values in scores.items():
            for generator, chosen in of_each(run.generator).items():
                add_scores(clips.setdefault(name, {}).setdefault(generator, {}), run.path[chosen], values[chosen])
    scores = {name: {key: mean_over_folds(images) for key, images in own.items()} for name, own in clips.items()}
    return {name: outcome(own, roles) for name, own in scores.items()}, facts


def source_of(args, data, kind, target, fold, seed):
    """What 05 reads, by kind of vectors: frames of clips, or embeddings of SAGA trained on the labelled generators."""
    if kind == "frames":
        return data.features
    known = by_role(generators_in(data.features), target)["known"]
    only = {"train_generators": [target, *known]}
    return train_arm(args, data._replace(folds=(fold,)), ALL_CE, "gen", seed, only)[0] / "gen_embeddings.npz"


def folds_with(args, data, target, seed, kind):
    """The folds that test the target: one of few groups is not in all of them."""
    if len(data.folds) == 1:
        return data.folds
    tested = []
    for fold in data.folds:
        if kind == "frames":
            rows = fold_splits(usable(read_index(data.features), data.features), *parse_fold(fold), seed)
            pairs = {(row.generator, row.split) for row in rows}
        else:
            arrays = read_arrays(source_of(args, data, kind, target, fold, seed), ("generator", "split"))
            pairs = set(zip(arrays["generator"].tolist(), arrays["split"].tolist(), strict=True))
        tested += [fold] * ((target, "test") in pairs)
    if not tested:
        raise InputError(f"{target}: no fold tests it; it takes clips of two groups")
    return tested


def run_stage(args, data, target, seed, fold, kind, change) -> Path:
    """The run folder of 05 with the trial's settings, trained or up to date."""
    source = source_of(args, data, kind, target, fold, seed)
    settings = {"target": target} | by_role(generators_in(source), target) | SETTINGS | change.settings
    if kind == "frames":
        settings |= ({"fold": fold} if fold else {}) | ({"limit": args.limit} if args.limit else {})
    made_from = data.digest if kind == "frames" else source.parent.parent.name  # which has the digits of its settings
    key = hashlib.sha256(f"{sorted(settings.items())} {made_from}".encode()).hexdigest()[:8]
    run = runs_folder(args) / data.place / f"wild-{target}-{key}"
    run /= part_name(seed, fold)
    flags = ["--features", source, "--run", run, "--seed", seed, *as_flags(settings)]
    stage("05_wild_constrained", *flags, overwrite=args.overwrite)
    return run


def fit_all(run, compared, change, seed):
    """Scores (n,) of the test images by method, 05's two and those compared; and the facts of training."""
    scores, facts = run.scores, run.training
    if change.refit:
        fitted, own = change.refit(run, TAU, seed)
        facts = facts | own
        scores = {name: score(run.test) for name, score in fitted.items()}
    return scores | {name: COMPARED[name](run, facts["l2"])(run.test) for name in compared}, facts


def of_each(generator):
    """{name: whether each image (n,) is of this generator}."""
    return {name: generator == name for name in dict.fromkeys(generator.tolist())}


def add_scores(clips, path, values):
    """Add a fold's scores (n,) of images of clips (n,) to {clip: [scores of its images, by fold]}."""
    for clip in np.unique(path):
        clips.setdefault(str(clip), []).append(values[path == clip])


def mean_over_folds(clips):
    """Scores (n,) of a generator's images; one that several folds test has their mean."""
    return np.concatenate([np.mean(clips[clip], axis=0) for clip in sorted(clips)])


def outcome(scores, roles):
    """Metrics of {generator: scores (n,)}: means over the unseen and over the known generators, and by generator."""
    (target,) = roles["target"]
    each = {name: ranking(scores[target], own).tolist() for name, own in scores.items() if name != target}
    result = {"images": {name: len(own) for name, own in scores.items()}}
    for role in ("unseen", "known"):
        values = [each[name] for name in roles[role] if name in each]
        result[role] = dict(zip(RANKING, np.mean(values, axis=0).tolist(), strict=True))
    predicted, count = at_threshold(scores, target), result["images"]
    prevalence = [count[target] / (count[target] + count[name]) for name in roles["unseen"]]
    rates = [predicted["false_alarms"][name] for name in roles["unseen"]]
    result |= {"recall": predicted["recall"], "prevalence": float(np.mean(prevalence))}
    result["unseen_false_positives"] = float(np.mean(rates))
    return result | {"by_generator": {name: dict(zip(RANKING, own, strict=True)) for name, own in each.items()}}


# ---------------------------------------------------------------- entries


def measure_trials(args, data, conditions, targets=None, kind="frames", compared=()):
    """By condition and target the outcomes by seed."""
    rows, there = [], generators_in(data.features)
    for (label, change), target in product(conditions.items(), targets or target_names(data)):
        seeds = []
        for seed in range(args.seeds):
            own = change(there, target, seed) if callable(change) else change
            outcomes, facts = trial(args, data, target, seed, kind, compared, own)
            mean = {key: float(np.mean([fold[key] for fold in facts])) for key in facts[0]}
            if abs(mean["wild, of the target"] / mean["wild"] - own.share) > 0.02:
                few = f"{target} has too few images to be {100 * own.share:.0f}% of {mean['wild']:.0f} wild ones"
                raise InputError(f"{data.features}: {few}; give --features of more clips")
            seeds.append({"seed": seed, "training": mean, "methods": outcomes})
        print(f"{kind}, {label}, {target}: done")
        rows.append({"vectors": kind, "condition": label, "target": target, "seeds": seeds})
    return described(data, rows=rows)


def measure_methods(args, data, kind):
    return measure_trials(args, data, {"": PAPERS}, kind=kind, compared=COMPARED)


def measure_condition(args, data, what):
    return measure_trials(args, data, CONDITIONS[what])


def measure_targets(args, data):
    return measure_trials(args, data, {"": PAPERS}, every_target(data))


def measure_released(args, data):
    earlier, later, since = by_release(generators_in(data.features))
    results = measure_trials(args, data, CONDITIONS["released"], earlier_targets(data))
    return results | {"released": {"earlier": earlier, "later": later, "since": since}}


def measure_encoders(args, several):
    rows = [measure_trials(args, data, {data.name: PAPERS})["rows"] for data in several]
    return described(several[0], rows=sum(rows, []))


def measure_edits(args, data):
    """Classifiers of unedited images on edited test images, and on vectors moved against them."""
    if len(data.folds) > 1 or data.videos is None:
        raise InputError("wild-edits wants the clips of a recorded split: the zoo, or --features with --videos")
    rows, edited = [], {edit: edited_images(args, data, edit, PER_CLIP) for edit in EDITS}
    for target in target_names(data):
        seeds = {}
        for seed in range(args.seeds):
            folder = run_stage(args, data, target, seed, None, "frames", PAPERS)
            run = read_run(folder, test_split_only=True)
            for edit, scores in edited_scores(folder, run, edited, target).items():
                outcomes = {name: outcome(own, run.roles) for name, own in scores.items()}
                seeds.setdefault(edit, []).append({"seed": seed, "training": run.training, "methods": outcomes})
        for edit, own in seeds.items():
            rows.append({"vectors": "frames", "condition": edit, "target": target, "seeds": own})
    return described(data, rows=rows)


def edited_scores(folder, run, edited, target):
    """{edit or attack: {method: {generator: scores (n,)}}} of a run's test images; `edited` are Images by edit."""
    classifier, chosen, by_edit = read_arrays(folder / "wild_classifier.npz"), of_each(run.generator), {}
    for edit, images in edited.items():
        vectors = (np.float64(images.vectors) - classifier["mean"]) / classifier["scale"]
        own = {name: np.isin(images.path, run.path[clips]) for name, clips in chosen.items()}
        scores = {name: score_by(classifier[key]) for name, key in FITTED.items()}
        by_edit[edit] = {name: {key: score(vectors[own[key]]) for key in own} for name, score in scores.items()}
    for radius in ATTACKS:
        attack = by_edit[f"attack, {radius:g} deviations"] = {}
        for name, scores in run.scores.items():
            own = {key: scores[part] for key, part in chosen.items()}
            attack[name] = attacked(own, target, radius * run.training[f"norm, {name}"])
    return by_edit


# ---------------------------------------------------------------- tables

TABLE_COLUMNS = {
    "unseen AP": lambda own: own["unseen"]["ap"],
    "unseen AUC": lambda own: own["unseen"]["auc"],
    "known AP": lambda own: own["known"]["ap"],
    "known AUC": lambda own: own["known"]["auc"],
    "recall": lambda own: own["recall"],
    "unseen predicted as target": lambda own: own["unseen_false_positives"],
    "chance AP": lambda own: own["prevalence"],
}


def render(results, what):
    """A row per condition and method: means over targets, +- standard deviation over seeds; and the gains below."""
    groups = {}
    for row in results["rows"]:
        groups.setdefault(row["condition"], []).append(row)
    cells, gains = [], []
    for condition, rows in groups.items():
        facts = [seed["training"] for row in rows for seed in row["seeds"]]
        loss, counts = np.mean([own["labelled_loss"] for own in facts]), image_counts(facts)
        for name in rows[0]["seeds"][0]["methods"]:
            seeds = zip(*(row["seeds"] for row in rows), strict=True)
            owns = [[target["methods"][name] for target in seed] for seed in seeds]
            values = [
                mean_std([np.mean([read(own) for own in seed]) for seed in owns]) for read in TABLE_COLUMNS.values()
            ]
            cells.append([*[condition] * bool(condition), name, *values, f"{loss:.4f}", counts])
        gains += [[*[condition] * bool(condition), *own] for own in gain_rows(rows)]
    first = ["condition"] * bool(condition)
    header = [*first, "method", *TABLE_COLUMNS, "L0", "images: target (clips) / known / wild (of the target)"]
    images = results["rows"][0]["seeds"][0]["methods"]["constrained"]["images"]
    lines = [f"{what}; {data_line(results)} Per cent; chance AUC 50.", "", *markdown(header, cells), ""]
    lines += ["Gain of constrained over labelled only, in points, of the same seed: mean (least to most of the seeds)."]
    lines += ["Without an effect it is 0.", "", *markdown([*first, *GAIN_HEADER], gains), ""]
    lines += released_lines(results["released"], results["about"]) if "released" in results else []
    counts = ", ".join(f"{name} {count}" for name, count in images.items())
    lines += [f"Test images of {results['rows'][0]['target']}'s trial: {counts}."]
    return [*lines, f"{paper_line()} L0: mean BCE over the labelled images of the baseline, in nats."]


def image_counts(facts):
    """Images by role as a cell of a table: how many there are, or the least and the most of all trials."""

    def span(key):
        values = sorted({round(own[key]) for own in facts})
        return "-".join(map(str, dict.fromkeys((values[0], values[-1]))))

    parts = ("{target} ({clips})", "{known}", "{wild} ({of})")
    keys = {"target": "target", "clips": "target, clips", "known": "known", "wild": "wild", "of": "wild, of the target"}
    return " / ".join(parts).format(**{name: span(key) for name, key in keys.items()})


GAINS = ("unseen AP", "unseen AUC", "recall")
GAIN_HEADER = ["target", "test images", "chance AP", "AP, labelled only", *(f"gain in {name}" for name in GAINS)]


def gain_rows(rows):
    """The cells of each target's gains and, of several, of their mean."""
    gains, cells = [], []  # (targets, GAINS, seeds)
    for row in rows:
        methods = [seed["methods"] for seed in row["seeds"]]
        before, after = ([own[name] for own in methods] for name in ("labelled only", "constrained"))
        reads = [TABLE_COLUMNS[name] for name in GAINS]
        pairs = list(zip(before, after, strict=True))
        gains.append([[100 * (read(new) - read(old)) for old, new in pairs] for read in reads])
        level = [mean_std([TABLE_COLUMNS[name](own) for own in before]) for name in ("chance AP", "unseen AP")]
        images = str(after[0]["images"][row["target"]])
        cells.append([row["target"], images, *level, *map(mean_range, gains[-1])])
    if len(rows) > 1:
        rises = np.mean(gains, axis=2)[:, 0]
        clear = f"AP up by over a point for {(rises > 1).sum()}, down for {(rises < -1).sum()}"
        cells.append([f"mean of {len(rows)}; {clear}", "", "", "", *map(mean_range, np.mean(gains, axis=0))])
    return cells


def mean_range(values):
    seeds = f" ({min(values):+.1f} to {max(values):+.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):+.1f}{seeds}"


def released_lines(released, about):
    earlier, later = (", ".join(released[side]) for side in ("earlier", "later"))
    lines = [
        f"Released before {released['since']}: {earlier}. Later, and unseen: {later}. Drawn at random: as many are"
    ]
    lines += ["unseen, of all these but target and known. The other generators have no month and no part."]
    simulated = (
        "**These clips are simulated: a month says nothing about their pixels**, and later ones are one more draw."
    )
    return [*lines, *[simulated] * about["simulated"]]


def data_line(results):
    about, first = results["about"], results["rows"][0]
    clips = f"{'simulated' if about['simulated'] else 'real'} clips, {first['vectors']}"
    folds = f", {about['folds']} grouped folds pooled" if about["folds"] > 1 else ""
    alike = sum(row["condition"] == first["condition"] for row in results["rows"])
    means = f", means over {alike} targets" if alike > 1 else ""
    return f"{about['data']}, {clips}{folds}, {len(first['seeds'])} seeds{means}."


def paper_line():
    """The paper's means, measured on other data."""
    values = {}
    for line in paper_lines("Unknown-Aware"):
        values.setdefault(line["row"], []).append(f"{line['setting']} {100 * float(line['value']):.2f}")
    means = "; ".join(f"{name} {', '.join(own)}" for name, own in values.items())
    return f"The paper's, of other data (images, CLIP, target DALL-E 3, its unseen generators not all named): {means}."
