"""Unknown-aware attribution compared with other methods, and its dependence on settings (arXiv 2601.00218).

reads   a features folder (datasets.py), four frames of a clip as images; SAGA trained on the labelled generators alone
writes  runs/paper/<place of the features>/wild-<target>-<settings>/, a run of 05 per trial
        results/wild.json, .md: methods; results/wild-<what>.json, .md: one setting changed at a time

The labelled are a target and three known generators; three others are unseen, and all that are left are wild. All
numbers are means over three targets, by seed: a seed draws which images have which role.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from basics.artifacts import file_digest, read_arrays
from basics.running import InputError
from basics.running import fold as parse_fold
from basics.statistics import RANKING, at_threshold, ranking
from experiments.paper import paper_lines
from experiments.stages import ALL_CE, as_flags, markdown, part_name, runs_folder, stage, train_arm
from experiments.tables import described, mean_std
from experiments.wild_edits import ATTACKS, EDITS, attacked, edited_images
from experiments.wild_methods import COMPARED, FITTED, read_run, score_by, with_few_steps, with_hidden_layer
from tokens.dataset import read_index, usable
from tokens.split import fold_splits

PER_CLIP, TAU = 4, 2.0
SETTINGS = {"images_per_clip": PER_CLIP, "tau": TAU, "target_count": 200, "known_count": 67, "wild_count": 67}
KNOWN, UNSEEN = ("Real", "Lavie", "VideoCrafter", "ZeroScope"), ("Gen2", "Sora", "Pika", "Show_1")
TARGETS = {"simulated": ("HotShot", "SVD", "SD"), "real": ("ModelScope", "SEINE", "DynamiCrafter")}

# ---------------------------------------------------------------- who has which role


def generators_in(source):
    """The generators of a features folder, or of a run's embeddings."""
    if source.suffix == ".npz":
        return set(read_arrays(source, ("generator",))["generator"].tolist())
    return {row.generator for row in usable(read_index(source), source)}


def target_names(data):
    """The targets of some data: those of TARGETS that it has, else its first three generators."""
    there, wanted = generators_in(data.features), TARGETS["simulated" if data.simulated else "real"]
    return [name for name in wanted if name in there] or every_target(data)[:3]


def every_target(data):
    there = sorted(generators_in(data.features) - {"Real"})
    if len(there) < 6:
        raise InputError(f"{data.features} has clips of {len(there)} generators and Real; a trial takes six and Real")
    return there


def by_role(there, target):
    """Generators by role among those there: known and unseen the first three of KNOWN and UNSEEN but the target."""
    known, unseen = ([name for name in own if name in there and name != target][:3] for own in (KNOWN, UNSEEN))
    taken = {target, *known, *unseen}
    return {"known": known, "unseen": unseen, "wild": sorted(set(there) - taken)}


# ---------------------------------------------------------------- a trial


class Change(NamedTuple):
    """What a trial has that is not the paper's."""

    settings: dict = MappingProxyType({})  # of 05
    test_split_only: bool = False  # of unseen generators as well, so that others of their images may be wild
    refit: Callable | None = None  # refit(run, tau, seed) -> scores of FITTED and facts, in place of 05's


PAPERS = Change()


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
    made_from = data.digest if kind == "frames" else file_digest(source)
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
        fitted, facts = change.refit(run, TAU, seed)
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


# ---------------------------------------------------------------- what is changed

POOL = 120  # wild images where sources are compared


def noisy(fraction, total=144):
    """This fraction of the wild images is the target's; all others are as many of each other wild generator."""

    def change(there, target, seed):
        others = by_role(there, target)["wild"]
        counts = dict.fromkeys(others, round(total * (1 - fraction) / len(others)))
        counts |= {target: round(total * fraction)} if fraction else {}
        return Change({"target_count": 67, "wild": [f"{name}={count}" for name, count in counts.items()]})

    return change


def covering(sources, unseen=0):
    """POOL wild images from so many of the wild generators, drawn by seed, and from so many of the unseen ones."""

    def change(there, target, seed):
        roles = by_role(there, target)
        drawn = np.random.default_rng((seed, 7)).permutation(roles["wild"])[:sources]
        names = [*drawn.tolist(), *roles["unseen"][:unseen]]
        settings = {"wild": names, "wild_count": max(1, round(POOL / len(names)))}
        return Change(settings, test_split_only=True)

    return change


CONDITIONS = {  # what: condition: Change, or change(there, target, seed) -> Change
    "threshold": {f"tau {tau:g}": Change({"tau": tau}) for tau in (1.0, 1.5, 2.0, 3.0, 5.0)},
    "size": {f"{count} of each": Change({"wild_count": count}) for count in (1, 4, 16, 67)}
    | {"all": Change({"wild_count": 10**6})},
    "noise": {f"{100 * fraction:.0f}% target": noisy(fraction) for fraction in (0.0, 0.1, 0.25, 0.5)},
    "coverage": {
        "one source": covering(1),
        "three sources": covering(3),
        "all sources": covering(None),
        "all, and other images of the unseen": covering(None, unseen=3),
        "other images of the unseen alone": covering(0, unseen=3),
    },
    "head": {"linear": PAPERS, "MLP, 32 units": Change(refit=partial(with_hidden_layer, units=32))},
    "regularization": {f"l2 {l2:g}": Change({"l2": l2}) for l2 in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)}
    | {f"none, {steps} steps": Change(refit=partial(with_few_steps, steps=steps)) for steps in (10, 100, 1000, 10000)},
}


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
            seeds.append({"seed": seed, "training": mean, "methods": outcomes})
        print(f"{kind}, {label}, {target}: done")
        rows.append({"vectors": kind, "condition": label, "target": target, "seeds": seeds})
    return described(data, rows=rows)


def measure_methods(args, data, kind):
    return measure_trials(args, data, {"": PAPERS}, kind=kind, compared=COMPARED)


def measure_condition(args, data, what):
    return measure_trials(args, data, CONDITIONS[what])


def measure_targets(args, data):
    rows = [measure_trials(args, data, {target: PAPERS}, [target])["rows"] for target in every_target(data)]
    return described(data, rows=sum(rows, []))


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
    """A row per condition and method: means over targets, +- standard deviation over seeds."""
    groups = {}
    for row in results["rows"]:
        groups.setdefault(row["condition"], []).append(row)
    cells = []
    for condition, rows in groups.items():
        loss = np.mean([seed["training"]["labelled_loss"] for row in rows for seed in row["seeds"]])
        for name in rows[0]["seeds"][0]["methods"]:
            seeds = zip(*(row["seeds"] for row in rows), strict=True)
            owns = [[target["methods"][name] for target in seed] for seed in seeds]
            values = [
                mean_std([np.mean([read(own) for own in seed]) for seed in owns]) for read in TABLE_COLUMNS.values()
            ]
            cells.append([*[condition] * bool(condition), name, *values, f"{loss:.4f}"])
    header = [*["condition"] * bool(condition), "method", *TABLE_COLUMNS, "L0"]
    targets = list(dict.fromkeys(row["target"] for row in results["rows"]))
    images = results["rows"][0]["seeds"][0]["methods"]["constrained"]["images"]
    lines = [f"{what}; {data_line(results)} Per cent; chance AUC 50.", "", *markdown(header, cells), ""]
    counts = ", ".join(f"{name} {count}" for name, count in images.items())
    lines += [f"Targets: {', '.join(targets)}. Test images of {targets[0]}'s trial: {counts}."]
    return [*lines, f"{paper_line()} L0: mean BCE over the labelled images of the baseline, in nats."]


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
