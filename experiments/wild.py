"""Unknown-aware attribution beside what it could be replaced by, and what it depends on (arXiv 2601.00218).

reads   a features folder (datasets.py), four frames of a clip as images; SAGA trained on the labelled generators alone
writes  results/wild.json, .md: methods; results/wild-<what>.json, .md: one setting changed at a time

The labelled are a target and three known generators; three others are unseen, and all that are left are wild. All
numbers are means over three targets, by seed: a seed draws which images have which role. The method is 05's.
"""

import functools
import importlib
import re
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from experiments.datasets import extract
from experiments.stages import markdown, train_arm
from experiments.tables import described, mean_std
from experiments.wild_compared import RIVALS, by_theta, mlp, mlp_start
from simulate_videos import named_random
from tokens.dataset import read_index
from tokens.ranking import METRICS, at_threshold, ranking
from tokens.split import features_recipe, usable
from tokens.videos import Video
from tokens.wild import chosen_frames, deal, linear, prepare, read_images, resolve_roles
from training.callbacks import fold as parse_fold
from training.evaluation import paper_lines

method = importlib.import_module("05_wild_constrained")

PER_CLIP, COUNTS, TAU = 4, {"target": 200, "known": 67, "wild": 67}, 2.0
KNOWN, UNSEEN = ("Real", "Lavie", "VideoCrafter", "ZeroScope"), ("Gen2", "Sora", "Pika", "Show_1")
TARGETS = {"simulated": ("HotShot", "SVD", "SD"), "real": ("ModelScope", "SEINE", "DynamiCrafter")}

# ---------------------------------------------------------------- who has which role


def target_names(data):
    """The targets of some data: those of TARGETS that it has, else its first three generators."""
    there = {row["generator"] for row in read_index(data.features)}
    wanted = TARGETS["simulated" if data.simulated else "real"]
    return [name for name in wanted if name in there] or every_target(data)[:3]


def every_target(data):
    there = sorted({row["generator"] for row in read_index(data.features)} - {"Real"})
    if len(there) < 6:
        raise ValueError(f"{data.features} has clips of {len(there)} generators and Real; a trial takes six and Real")
    return there


def by_role(there, target, wild=None):
    """Generators by role among those there: known and unseen the first three of KNOWN and UNSEEN but the target."""
    known, unseen = ([name for name in own if name in there and name != target][:3] for own in (KNOWN, UNSEEN))
    taken = {target, *known, *unseen}
    return {"known": known, "unseen": unseen, "wild": wild or sorted(set(there) - taken)}


# ---------------------------------------------------------------- vectors


@functools.lru_cache(maxsize=32)
def frames(folder, limit, fold=None, seed=0):
    return read_images(folder, PER_CLIP, fold, limit, seed)


def images_of(args, data, kind, target, fold, seed):
    """Images by kind of vectors: frames of clips, or embeddings of SAGA trained on the labelled generators alone."""
    own = frames(data.features, args.limit, *((parse_fold(fold), seed) if fold else ()))
    if kind == "frames":
        return own
    known = by_role(set(own.generator.tolist()), target)["known"]
    only = ("--train-generators", ",".join([target, *known]))
    run = train_arm(args, data._replace(folds=(fold,)), "1-stage all CE", "gen", seed, only)[0]
    return read_images(run / "gen_embeddings.npz")


# ---------------------------------------------------------------- a trial


class Change(NamedTuple):
    """What a trial has that is not the paper's."""

    tau: float = TAU
    l2: float | str = "auto"  # the best on val
    steps: int | None = None  # of gradient descent without penalty, in place of an l2
    hidden: int | None = None  # units of a hidden layer
    counts: dict = {}
    wild: tuple = ()  # in place of all generators that are left
    apart: bool = False  # unseen generators are tested on split test alone, so that others of their images may be wild


PAPERS = Change()


def trial(args, data, target, seed, kind="frames", rivals=(), change=PAPERS):
    """One target and seed: {method: outcome}, pooled over the data's folds, and the facts of training by fold."""
    found, facts, names = {}, [], None
    for fold in folds_with(args, data, target, seed, kind):
        images, names, roles, problem = set_up(args, data, target, seed, fold, kind, change)
        scores, own = fit_all(problem, rivals, change, seed)
        facts.append(own)
        for name, score in scores.items():
            own = found.setdefault(name, {})
            for generator, places in roles.test.items():
                add_scores(own.setdefault(generator, {}), images.path[places], score(images.vectors[places]))
    outcomes = {name: outcome({key: pooled(clips) for key, clips in own.items()}, names) for name, own in found.items()}
    return outcomes, facts


def folds_with(args, data, target, seed, kind):
    """The folds that test the target: one of few groups is not in all of them."""
    if len(data.folds) == 1:
        return data.folds
    own = ((fold, images_of(args, data, kind, target, fold, seed)) for fold in data.folds)
    found = [fold for fold, images in own if np.any((images.generator == target) & (images.split == "test"))]
    if not found:
        raise ValueError(f"{target}: no fold tests it; it takes clips of two groups")
    return found


def set_up(args, data, target, seed, fold, kind="frames", change=PAPERS):
    """Images, generators by role, places by role, and the problem of a trial."""
    images = images_of(args, data, kind, target, fold, seed)
    names = resolve_roles(images, target, by_role(set(images.generator.tolist()), target, list(change.wild)))
    roles = deal(images, names, COUNTS | change.counts, seed, change.apart)
    return images, names, roles, prepare(images, roles, target)


def fit_all(problem, rivals, change, seed):
    """{method: score(vectors (n, D)) -> (n,)}: 05's two and the rivals, all with the penalty of the baseline."""
    head, start, width = linear, np.zeros(len(problem.mean) + 1), len(problem.mean)
    if change.hidden:
        head, start = mlp(change.hidden), mlp_start(width, change.hidden, seed)
    if change.steps:
        thetas, facts = stopped(problem, change.steps, change.tau, start)
    else:
        thetas, facts = method.train(problem, change.tau, change.l2, head=head, start=start)
    fitted = {"labelled only": thetas["baseline"], "constrained": thetas["constrained"]}
    scores = {name: by_theta(theta, head) for name, theta in fitted.items()}
    scores |= {name: RIVALS[name](problem, facts["l2"]) for name in rivals}

    def of_raw(score):
        return lambda vectors: score((np.float64(vectors) - problem.mean) / problem.scale)

    kept = {"l2": facts["l2"], "labelled_loss": facts["baseline"]["labelled_loss"], "rounds": len(facts["rounds"])}
    kept |= {"multiplier": facts["rounds"][-1]["multiplier"]}
    kept |= {f"norm, {name}": float(np.linalg.norm(theta[:-1])) for name, theta in fitted.items()}
    return {name: of_raw(score) for name, score in scores.items()}, kept


def stopped(problem, steps, tau, start):
    """Baseline of so many steps of gradient descent without penalty, and fine-tuning without penalty."""
    baseline, _ = method.stop_early(problem.labelled, problem.labelled, start, steps=steps)
    constrained, rounds = method.fine_tune(baseline, problem.labelled, problem.wild, 0.0, tau)
    loss = method.mean_bce(baseline, [problem.labelled])[0]
    thetas = {"baseline": baseline, "constrained": constrained}
    return thetas, {"l2": 0.0, "baseline": {"labelled_loss": loss}, "rounds": rounds}


def add_scores(clips, path, values):
    """Add a fold's scores (n,) of images of clips (n,) to {clip: [scores of its images, by fold]}."""
    for clip in np.unique(path):
        clips.setdefault(str(clip), []).append(values[path == clip])


def pooled(clips):
    """Scores (n,) of a generator's images; one that several folds test has their mean."""
    return np.concatenate([np.mean(clips[clip], axis=0) for clip in sorted(clips)])


def outcome(scores, roles):
    """Metrics of {generator: scores (n,)}: means over the unseen and over the known generators, and by generator."""
    (target,) = roles["target"]
    each = {name: ranking(scores[target], own) for name, own in scores.items() if name != target}
    result = {"images": {name: len(own) for name, own in scores.items()}}
    for role in ("unseen", "known"):
        values = [each[name] for name in roles[role] if name in each]
        result[role] = dict(zip(METRICS, np.mean(values, axis=0).tolist(), strict=True))
    called, unseen = at_threshold(scores, target, 0.0), roles["unseen"]
    shares = [len(scores[target]) / (len(scores[target]) + len(scores[name])) for name in unseen]
    result |= {"recall": called["recall"], "prevalence": float(np.mean(shares))}
    result["unseen_called"] = float(np.mean([called["false_alarms"][name] for name in unseen]))
    return result | {
        "by_generator": {name: dict(zip(METRICS, own.tolist(), strict=True)) for name, own in each.items()}
    }


# ---------------------------------------------------------------- what is changed

POOL = 120  # wild images where sources are compared


def noisy(share, total=144):
    """A share of the wild images is the target's; all others are as many of each other wild generator."""

    def change(there, target, seed):
        others = by_role(there, target)["wild"]
        counts = dict.fromkeys(others, round(total * (1 - share) / len(others)))
        counts |= {target: round(total * share)} if share else {}
        return Change(wild=tuple(counts), counts={"target": 67, "wild": counts})

    return change


def covering(sources, unseen=0):
    """POOL wild images from so many of the wild generators, drawn by seed, and from so many of the unseen ones."""

    def change(there, target, seed):
        roles = by_role(there, target)
        drawn = np.random.default_rng((seed, 7)).permutation(roles["wild"])[:sources]
        names = (*drawn.tolist(), *roles["unseen"][:unseen])
        return Change(wild=names, counts={"wild": max(1, round(POOL / len(names)))}, apart=True)

    return change


CONDITIONS = {  # what: condition: Change, or change(there, target, seed) -> Change
    "threshold": {f"tau {tau:g}": Change(tau=tau) for tau in (1.0, 1.5, 2.0, 3.0, 5.0)},
    "size": {f"{count} of each": Change(counts={"wild": count}) for count in (1, 4, 16, 67)}
    | {"all": Change(counts={"wild": 10**6})},
    "noise": {f"{100 * share:.0f}% target": noisy(share) for share in (0.0, 0.1, 0.25, 0.5)},
    "coverage": {
        "one source": covering(1),
        "three sources": covering(3),
        "all sources": covering(None),
        "all, and other images of the unseen": covering(None, unseen=3),
        "other images of the unseen alone": covering(0, unseen=3),
    },
    "head": {"linear": Change(), "MLP, 32 units": Change(hidden=32)},
    "regularization": {f"l2 {l2:g}": Change(l2=l2) for l2 in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)}
    | {f"none, {steps} steps": Change(steps=steps) for steps in (10, 100, 1000, 10000)},
}


# ---------------------------------------------------------------- entries


def measure(args, data, conditions, targets=None, kind="frames", rivals=()):
    """By condition and target the outcomes by seed."""
    rows, there = [], {row["generator"] for row in read_index(data.features)}
    for (label, change), target in product(conditions.items(), targets or target_names(data)):
        seeds = []
        for seed in range(args.seeds):
            own = change(there, target, seed) if callable(change) else change
            outcomes, facts = trial(args, data, target, seed, kind, rivals, own)
            mean = {key: float(np.mean([fold[key] for fold in facts])) for key in facts[0]}
            seeds.append({"seed": seed, "training": mean, "methods": outcomes})
        print(f"{kind}, {label}, {target}: done")
        rows.append({"vectors": kind, "condition": label, "target": target, "seeds": seeds})
    return described(data, rows=rows)


def measure_methods(args, data, kind):
    return measure(args, data, {"": PAPERS}, kind=kind, rivals=RIVALS)


def measure_condition(args, data, what):
    return measure(args, data, CONDITIONS[what])


def measure_targets(args, data):
    rows = [measure(args, data, {target: PAPERS}, [target])["rows"] for target in every_target(data)]
    return described(data, rows=sum(rows, []))


def measure_encoders(args, several):
    rows = [measure(args, data, {data.name: PAPERS})["rows"] for data in several]
    return described(several[0], rows=sum(rows, []))


# ---------------------------------------------------------------- edited images, attacked vectors

EDITS = {  # name: edit(RGB uint8 (H, W, 3), random) -> the same
    "as they are": lambda image, random: image,
    "JPEG 90": lambda image, random: jpeg(image, 90),
    "JPEG 50": lambda image, random: jpeg(image, 50),
    "half size and back": lambda image, random: cv2.resize(cv2.resize(image, None, fx=0.5, fy=0.5), image.shape[1::-1]),
    "blur, 1 px": lambda image, random: cv2.GaussianBlur(image, (0, 0), 1),
    "noise, 5 levels": lambda image, random: np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8),
}
ATTACKS = (0.5, 1.0, 2.0)  # how far a vector is moved, in standard deviations of the labelled images


def jpeg(image, quality):
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]  # OpenCV's order is BGR
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]


def edited_images(args, data, edit):
    """The images of split test, edited: written as stills, and read by 01 as the features were."""
    recipe, name = features_recipe(data.features), "-".join(re.findall(r"\w+", edit))
    if recipe.get("equalize"):
        raise ValueError(f"{data.features} was made by --equalize; wild-edits wants features of the clips as they are")
    rows = [row for row in usable(read_index(data.features), data.features) if row["split"] == "test"]
    folder, clips = Path("data/wild-edits") / data.features.name / name, {}
    for row in tqdm(rows, f"editing, {edit}", unit="clip"):
        random = named_random(edit, row["path"])
        wanted = chosen_frames(row, PER_CLIP)
        with Video(data.videos / row["source"]) as video:
            for number, (_, image) in enumerate(islice(video.sample(recipe["fps"]), wanted[-1] + 1)):
                if number in wanted:
                    place = folder / row["generator"] / f"{clip_name(row)}-{number}.png"
                    clips[f"{row['generator']}/{place.name}"] = row["path"]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(place), EDITS[edit](image, random)[..., ::-1])
    settings = {key: recipe[key] for key in ("encoder", "layer", "pool", "fps", "frames") if recipe.get(key)}
    flags = " ".join(f"--{key} {value}" for key, value in settings.items())
    features = extract(args, folder, Path("features/wild-edits") / data.features.name / name, flags)
    images = read_images(features)
    return images._replace(path=np.array([clips[path] for path in images.path.tolist()]))


def clip_name(row):
    return "-".join(re.findall(r"\w+", row["path"]))


def attacked(score, vectors, target, distance):
    """Scores of {generator: vectors}, the target's lower by `distance`, all others' higher."""
    return {name: score(own) + (-distance if name == target else distance) for name, own in vectors.items()}


def measure_edits(args, data):
    """Classifiers of unedited images on edited test images, and on vectors moved against them.

    The attack is projected gradient descent on the classifier's input; with a linear head its every step goes the same
    way, so one step to the edge of the ball is its end. The target's images go away from the target, all others to it.
    """
    if len(data.folds) > 1 or data.videos is None:
        raise ValueError("wild-edits wants the clips of a recorded split: the zoo, or --features with --videos")
    rows, edited = [], {edit: edited_images(args, data, edit) for edit in EDITS}
    for target in target_names(data):
        seeds = {}
        for seed in range(args.seeds):
            change = PAPERS._replace(apart=True)
            images, names, roles, problem = set_up(args, data, target, seed, None, change=change)
            scores, facts = fit_all(problem, (), change, seed)
            tested = {name: np.unique(images.path[places]) for name, places in roles.test.items()}
            for edit, found in edited.items():
                own = {name: found.vectors[np.isin(found.path, clips)] for name, clips in tested.items()}
                outcomes = {
                    name: outcome({key: score(part) for key, part in own.items()}, names)
                    for name, score in scores.items()
                }
                seeds.setdefault(edit, []).append({"seed": seed, "training": facts, "methods": outcomes})
            for radius in ATTACKS:
                own = {name: images.vectors[places] for name, places in roles.test.items()}
                outcomes = {
                    name: outcome(attacked(score, own, target, radius * facts[f"norm, {name}"]), names)
                    for name, score in scores.items()
                }
                edit = f"attack, {radius:g} deviations"
                seeds.setdefault(edit, []).append({"seed": seed, "training": facts, "methods": outcomes})
        for edit, own in seeds.items():
            rows.append({"vectors": "frames", "condition": edit, "target": target, "seeds": own})
    return described(data, rows=rows)


COLUMNS = {
    "unseen AP": lambda own: own["unseen"]["ap"],
    "unseen AUC": lambda own: own["unseen"]["auc"],
    "known AP": lambda own: own["known"]["ap"],
    "known AUC": lambda own: own["known"]["auc"],
    "target found": lambda own: own["recall"],
    "unseen called target": lambda own: own["unseen_called"],
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
            values = [mean_std([np.mean([read(own) for own in seed]) for seed in owns]) for read in COLUMNS.values()]
            cells.append([*[condition] * bool(condition), name, *values, f"{loss:.4f}"])
    header = [*["condition"] * bool(condition), "method", *COLUMNS, "L0"]
    targets = list(dict.fromkeys(row["target"] for row in results["rows"]))
    images = results["rows"][0]["seeds"][0]["methods"]["constrained"]["images"]
    lines = [f"{what}; {data_line(results)} Per cent; chance AUC 50.", "", *markdown(header, cells), ""]
    lines += [f"Targets: {', '.join(targets)}. Test images of {targets[0]}'s trial: {named_counts(images)}."]
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


def named_counts(images):
    return ", ".join(f"{name} {count}" for name, count in images.items())
