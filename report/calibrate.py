"""Calibrate a trained run on clips that it was not trained on: temperatures of its probabilities, which of two levels
to trust, and the threshold above which a generator is unknown.

reads   runs/<run>/<level>.keras, <level>.json, <level>_embeddings.npz (02, 03) and the features that they are of (01)
writes  runs/<run>/calibration.json  by level temperature (val), reliability and agreement (test); threshold of unknown
                                     (val), its rates (test, unseen); what the training clips were like
        runs/<run>/calibration.npz   training clips at the finest level: embedding (V, D), probabilities, logits (V, C),
                                     maps (V, L, L), label, video (V,); their windows: window_embedding (W, D),
                                     window_clip, window_time (W,); signatures (C, L, L) and signature_classes (C,)

`calibrate` is attribute_video.py's --calibrate. The first sections are functions of arrays: V clips, C classes.
"""

from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from basics.artifacts import make_recipe, read_arrays, write_arrays, write_json
from basics.running import InputError, printable
from basics.statistics import resample_groups, wilson_interval
from report.look import look_at_clips, nearest
from report.run import CALIBRATION, CLIPS, TRAINING_CLIPS, clips_with_maps, fingerprint, load_run
from report.scores import SCORES, as_clips, auroc, fit_scores, group_bootstrap
from tokens.dataset import features_recipe, index_digest, other_tokens, read_index, subsample, usable
from tokens.generators import LEVELS, class_index, class_names, level_name, load_generators, stage_of
from training.evaluation import ROLES, sum_members

# ---------------------------------------------------------------- probabilities that mean what they say


def apply_temperature(probabilities, temperature):
    """Probabilities (..., C) at a temperature: p^(1/T), normalised. Above 1 confidence falls; the order stays."""
    powers = np.maximum(np.float64(probabilities), 1e-12) ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


PRIOR = np.log(2)  # standard deviation of log T before any clip is seen


def fit_temperature(probabilities, labels, times=1) -> float:
    """The likeliest temperature of probabilities (V, C) with labels (V,), each clip counted so many `times` (V,).

    Temperature scaling (Guo et al. 2017) of the logits log p, p being a clip's mean over its windows, with a normal
    prior on log T around T = 1. Without it T would go to 0 wherever the few val clips are all predicted correctly.
    """

    def loss(log_temperature):
        likelihood = negative_log_likelihood(apply_temperature(probabilities, np.exp(log_temperature)), labels)
        return (times * likelihood).sum() + (log_temperature / PRIOR) ** 2 / 2

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def temperature_interval(probabilities, labels, groups, repeats=100, seed=0):
    """[low, high]: the 95% percentile interval of the temperature when groups (V,) are drawn with replacement."""
    drawn = [fit_temperature(probabilities, labels, times) for times in resampled(groups, repeats, seed)]
    return np.percentile(drawn, (2.5, 97.5)).tolist()


def resampled(groups, repeats, seed):
    """Bootstrap weights (repeats, V) of clips over their groups (V,), as resample_groups."""
    random, member = np.random.default_rng(seed), np.unique(groups, return_inverse=True)[1]
    return np.array([resample_groups(member, random) for _ in range(repeats)])


def negative_log_likelihood(probabilities, labels):
    """-log p (V,) in nats: p (V, C) of each clip's label (V,)."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))


BINS = 15  # of confidence, of equal width, as in Guo et al. 2017


def reliability(probabilities, labels, groups, repeats=1000, seed=0) -> dict:
    """{"nll", "brier", "ece"}: {"value", "interval"} of probabilities (V, C) on labels (V,).

    Mean -log p; mean squared distance from the one-hot label, in [0, 2] (Brier 1950); expected calibration error of
    the largest probability in BINS (Guo et al. 2017). The last is above 0 for few clips however good the model:
    "perfect" is its mean where these probabilities are true. Intervals are 95% percentiles of a bootstrap of groups
    (V,), corrected for its bias; None with a single group.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    in_bin = np.eye(BINS)[np.minimum((confidence * BINS).astype(int), BINS - 1)]  # (V, BINS)
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1)
    gaps = (confidence - correct)[:, None] * in_bin
    columns = np.column_stack([negative_log_likelihood(probabilities, labels), squares, gaps])

    def measures(times):  # (..., V): how often each clip counts
        means = times @ columns / times.sum(axis=-1, keepdims=True)
        return np.stack([means[..., 0], means[..., 1], np.abs(means[..., 2:]).sum(axis=-1)], axis=-1)

    values, drawn = measures(np.ones(len(labels))), measures(resampled(groups, repeats, seed))
    drawn = np.maximum(drawn - drawn.mean(axis=0) + values, 0)
    intervals = np.percentile(drawn, (2.5, 97.5), axis=0).T.tolist() if len(set(groups)) > 1 else [None] * 3
    entries = [{"value": float(values[i]), "interval": intervals[i]} for i in range(3)]
    simulated = np.random.default_rng(seed).random((repeats, len(labels))) < confidence  # correct as often as stated
    entries[2]["perfect"] = float(np.abs((confidence - simulated) @ in_bin).sum(axis=1).mean() / len(labels))
    return dict(zip(("nll", "brier", "ece"), entries, strict=True))


# ---------------------------------------------------------------- levels beside the generator's sums


def sum_along_taxonomy(probabilities, classes, taxonomy, level):
    """The generator's probabilities (..., C) summed along the table: the level's classes' probabilities (..., K), the
    names of these classes, and the rest (...,), which belongs to generators that are Unknown or Mixed there.

    `taxonomy` is {generator: {level: its class or None}}.
    """
    members = [taxonomy[generator][level] for generator in classes]
    undefined = probabilities[..., [member is None for member in members]].sum(axis=-1)
    return *sum_members(probabilities, members), undefined


def agreement(level_answer, summed_answer, truth) -> dict:
    """Which answer is correct where a level's own model and the generator's sums differ, names (V,) each. "trust" is
    "own" (the level's model) or "generator" when a sign test at 5% tells them apart, else None.
    """
    differ = level_answer != summed_answer
    level_correct, summed_correct = (int(np.sum(differ & (name == truth))) for name in (level_answer, summed_answer))
    decided = level_correct + summed_correct
    significant = decided and binomtest(level_correct, decided).pvalue < 0.05
    trust = ("own" if level_correct > summed_correct else "generator") if significant else None
    counts = {"clips": len(truth), "differ": int(differ.sum())}
    return counts | {"own_right": level_correct, "generator_right": summed_correct, "trust": trust}


# ---------------------------------------------------------------- unknown generators


def rejection_threshold(scores, rate):
    """The score (higher is likelier unknown) above which at most `rate` of known clips lie, from those of val (V,).

    The ceil((V + 1) (1 - rate))-th smallest: a new known clip is above it with probability `rate` at most (split
    conformal prediction, Vovk et al. 2005). None where V is too small to say so.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - rate) - 1e-9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


# ---------------------------------------------------------------- a run

ROLE_KEYS = ("video", "generator", "group", "class", "split", "probabilities")


def calibrate(run, features, rate=0.05, score="Mahalanobis", limit=200, seed=0) -> dict:
    """Write calibration.json and calibration.npz of a run folder; returns the former.

    `features` is the folder that the run was trained on. At most `limit` clips per generator in each split are looked
    at again at the finest level. Raises InputError when a level, its embeddings or their features are missing or do not
    go together.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"{run}: calibrating wants the folder that 02 and 03 wrote")
    run, arrays, index = load_run(folder, calibrated=False), {}, read_index(features)
    if keys := other_tokens(features_recipe(features), run.features):
        raise InputError(f"{folder} was trained on other features than {features} ({', '.join(keys)})")
    for level, model in run.models.items():
        arrays[level] = read_roles(folder / f"{level}_embeddings.npz", level, model.config["class_names"])
    result = {"version": 1, "models": {level: fingerprint(folder / f"{level}.keras") for level in run.models}}
    result |= calibrate_levels(run, arrays)
    rows = rows_of(arrays[run.finest], index, features, limit, seed)
    if not rows["train"] or not rows["val"] + rows["test"]:
        raise InputError(f"{folder}: no clip of training, or none of val and test, is in {run.finest}_embeddings.npz")
    result["trained_on"] = describe_training(arrays[run.finest], rows["train"], run)
    clips, windows = {}, {}
    for role in filter(rows.get, rows):
        clips[role], windows[role] = look_at_clips(run, rows[role], role)
    result["unknown"] = measure_unknown(clips, score, rate) | {"level": run.finest}
    held_out, member = ("val", windows["val"]) if "val" in clips else ("test", windows["test"])
    near = [
        nearest(member["window_embedding"][member["window_clip"] == i], windows["train"], 1)[0][0]
        for i in range(len(rows[held_out]))
    ]
    result["nearest"] = {"split": held_out, "median": float(np.median(near))}
    saved = {key: clips["train"][key] for key in TRAINING_CLIPS} | windows["train"] | class_signatures(clips["train"])
    given = {"run": str(folder), "features": str(features), "rate": rate, "score": score, "limit": limit, "seed": seed}
    recipe = make_recipe(given, ("run", "features"), packages=("keras",), index_sha256=index_digest(index))
    write_arrays(folder / CLIPS, saved | {"recipe": recipe})
    write_json(folder / CALIBRATION, result | {"recipe": recipe})
    return result


def read_roles(path, level, classes):
    """The arrays ROLE_KEYS of a level's videos, whose classes and roles must be its own."""
    again = f"run {stage_of(level)} again"
    arrays = read_arrays(path, ROLE_KEYS, again, holds={"probabilities": f"p V {len(classes)}"})
    known = arrays["split"] != "unseen"
    if not (set(arrays["class"][known].tolist()) <= set(classes) and set(arrays["split"].tolist()) <= set(ROLES)):
        raise InputError(f"{path}: a class or a role that the level has not; {again}")
    return arrays


def calibrate_levels(run, arrays):
    """What calibrate_level and level_agreement give, by level, and the taxonomy of a run that has GEN-L."""
    levels = {level: calibrate_level(arrays[level], model) for level, model in run.models.items()}
    if "gen" not in levels:
        return {"levels": levels, "taxonomy": None}
    table = load_generators(run.metrics["gen"]["recipe"]["paths"]["generators"])
    taxonomy = {name: taxonomy_of(name, table) for name in run.models["gen"].config["class_names"]}
    temperature = levels["gen"]["temperature"] or 1
    for level in levels.keys() - {"gen"}:
        levels[level]["agreement"] = level_agreement(run, arrays, level, taxonomy, temperature)
    return {"levels": levels, "taxonomy": taxonomy}


def calibrate_level(arrays, model):
    """Temperature by val, and reliability on test before and after it; temperature None without val."""
    places = {name: i for i, name in enumerate(model.config["class_names"])}

    def part(split):
        chosen = arrays["split"] == split
        labels = np.array([places[name] for name in arrays["class"][chosen]], int)
        return np.float64(arrays["probabilities"][chosen]), labels, arrays["group"][chosen]

    val, test = part("val"), part("test")
    temperature = fit_temperature(*val[:2]) if len(val[1]) else None
    result = {"temperature": temperature, "temperature_interval": temperature_interval(*val) if len(val[1]) else None}
    result |= {"val_videos": len(val[1]), "test_videos": len(test[1])}
    after = apply_temperature(test[0], temperature) if temperature else test[0]
    return result | {"before": reliability(*test), "after": reliability(after, *test[1:])}


def taxonomy_of(generator, table):
    """{level: the generator's class there, or None where Unknown or Mixed}."""
    if generator not in table:
        raise InputError(f"{generator} is a class of gen.keras but not in the generator table that it was trained with")
    places = {level: class_index(level, generator, table) for level in LEVELS}
    return {level: None if place is None else class_names(level, table)[place] for level, place in places.items()}


def level_agreement(run, arrays, level, taxonomy, temperature):
    """agreement() on the test videos that the level and GEN-L share, except where most of GEN-L's probability, at its
    temperature, is on generators without a class at the level.
    """
    level_arrays, generator = arrays[level], arrays["gen"]
    number = {video: i for i, video in enumerate(generator["video"].tolist()) if generator["split"][i] == "test"}
    videos = level_arrays["video"].tolist()
    both = [i for i, video in enumerate(videos) if level_arrays["split"][i] == "test" and video in number]
    if not both:
        return None
    tempered = apply_temperature(generator["probabilities"][[number[videos[i]] for i in both]], temperature)
    sums, names, undefined = sum_along_taxonomy(tempered, run.models["gen"].config["class_names"], taxonomy, level)
    predicted = np.array(run.models[level].config["class_names"])[level_arrays["probabilities"][both].argmax(axis=1)]
    answers = predicted, np.array(names)[sums.argmax(axis=1)], level_arrays["class"][both]
    return agreement(*(answer[sums.max(axis=1) >= undefined] for answer in answers))


def rows_of(arrays, index, features, limit, seed):
    """Rows by role, each with its class name, at most `limit` of a generator in a split."""
    known = {row.path: row for row in usable(index, features)}
    rows = {"train": [], "val": [], "test": [], "unseen": []}
    for video, name, split in zip(*(arrays[key].tolist() for key in ("video", "class", "split")), strict=True):
        if video not in known:
            raise InputError(f"{features} lacks {video}, which the run was made with; give the run's own --features")
        rows[split].append(known[video]._replace(class_name=name))
    return {role: subsample(part, ("generator",), limit, seed) for role, part in rows.items()}


def describe_training(arrays, rows, run):
    """How many clips trained the finest level, and the ranges of size, rate, length and the containers, codecs seen."""
    names, counts = np.unique(arrays["class"][arrays["split"] == "train"], return_counts=True)
    seen = {"videos": int(counts.sum()), "fewest": int(counts.min()), "fewest_class": str(names[counts.argmin()])}
    seen |= {"simulated": bool(run.features.get("simulated")), "equalized": run.features["equalize"]}
    facts = [(*row.size.split("x"), row.fps, row.length) for row in rows]
    for key, values in zip(("width", "height", "fps", "length"), np.float64(facts).T, strict=True):
        seen[key] = [float(values.min()), float(values.max())]
    return seen | {key: sorted({getattr(row, key) for row in rows} - {""}) for key in ("container", "codec")}


def measure_unknown(clips, score, rate):
    """The threshold of a score by val, what it rejects of test and of unseen generators, and the AUROC of all scores.

    Of all roles only clips that have a window without padding.
    """
    clips = {role: part for role in clips if len((part := clips_with_maps(clips[role]))["label"])}
    result = {"score": score, "rate": rate, "threshold": None, "val_clips": 0, "test": None, "unseen": {}, "auroc": {}}
    if "val" in clips:
        result["val_clips"] = len(clips["val"]["label"])
    if not {"train", "val"} <= clips.keys():
        return result
    score_clips = fit_scores(as_clips(clips["train"]))
    scores = {role: score_clips(as_clips(clips[role])) for role in clips if role != "train"}
    threshold = result["threshold"] = rejection_threshold(scores["val"][score], rate)
    if threshold is None:
        return result
    if "test" in scores:
        result["test"] = rejected(scores["test"][score], threshold)
    if "unseen" in scores:
        for name in np.unique(generators := clips["unseen"]["generator"]):
            result["unseen"][str(name)] = rejected(scores["unseen"][score][generators == name], threshold)
    for name in SCORES if {"test", "unseen"} <= scores.keys() else ():
        sides, groups = zip(*((scores[role][name], clips[role]["group"]) for role in ("test", "unseen")), strict=True)
        interval = group_bootstrap(*sides, *groups, repeats=300)["auroc"]
        result["auroc"][name] = {"value": auroc(*sides), "interval": interval}
    return result


def rejected(scores, threshold):
    """How many of scores (V,) lie above a threshold, with the 95% Wilson interval of the fraction."""
    count = int(np.sum(scores > threshold))
    return {"clips": len(scores), "rejected": count, "interval": wilson_interval(count, len(scores))}


def class_signatures(train):
    """Classes (C,) with a training clip that has a map, and the mean maps (C, L, L) of those clips."""
    train = clips_with_maps(train)
    names, maps = np.unique(train["label"]), train["maps"]
    means = np.array([maps[train["label"] == name].mean(axis=0) for name in names])
    return {"signature_classes": names, "signatures": means.reshape(-1, *maps.shape[1:])}


def print_calibration(result):
    """Print what `calibrate` measured, by level and of unknown generators."""
    print("measured on test, before -> after the temperature of val (95% interval):")
    for level, entry in result["levels"].items():
        if entry["temperature"] is None:
            print(f"{level_name(level)}: no val videos, so no temperature")
            continue
        cells = ["temperature {:.2f} ({:.2f} to {:.2f})".format(entry["temperature"], *entry["temperature_interval"])]
        before, after = entry["before"], entry["after"]
        cells += [f"{key} {before[key]['value']:.3f} -> {after[key]['value']:.3f}" for key in before]
        cells += [f"ece of as many calibrated clips {after['ece']['perfect']:.3f}"]
        print(f"{level_name(level)}: {', '.join(cells)}; {entry['val_videos']} val, {entry['test_videos']} test videos")
    unknown = result["unknown"]
    if unknown["threshold"] is None:
        few = f"{unknown['val_clips']} val clips are too few for {unknown['rate']:.0%}"
        return print(f"unknown generators: no threshold, {few}")
    counts = {"known": unknown["test"]} if unknown["test"] else {}
    counts |= unknown["unseen"]
    cells = ", ".join(f"{name} {entry['rejected']} of {entry['clips']}" for name, entry in counts.items())
    print(printable(f"predicted as unknown ({unknown['score']} above {unknown['threshold']:.4g}): {cells}"))
    for name, entry in unknown["auroc"].items():
        print(f"AUROC of {name}: {entry['value']:.2f} (chance 0.50)")
