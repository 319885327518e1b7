"""The report on a file as one dict: answers at every level, evidence, unknown generators, explanation, warnings.

reports = attribute(["clip.mp4"], run="runs/zoo")       each as report.schema.json describes it
"""

import os
from pathlib import Path

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from basics.running import InputError, reason
from report.calibrate import apply_temperature, sum_along_taxonomy
from report.look import clip_values, expand, file_name, look, nearest
from report.run import LIMITS, MEASURED, Run, load_encoder, load_run
from report.scores import Clips
from tokens.generators import level_name

VERSION = 1  # of report.schema.json
UNKNOWN, TOO_LITTLE = "unknown generator", "too little evidence"
BLANK, FROZEN = 2.0, 0.1  # grey levels: deviation within a frame, change between frames; 328 real clips have 12.9, 0.27
NEAREST = 5  # training clips named
SAME = 0.05  # a file nearer than this fraction of the usual distance to a training clip is taken for that clip
PAPER_LABELS = 500  # clips of a class: the paper's few labels


def attribute(paths, run="runs/zoo", encoder=None, **options) -> list[dict]:
    """A report per file, as report.schema.json describes it, in the order of `paths`; of a folder, of each file in it.

    `run` and `encoder` may be what load_run and load_encoder give, so that a process loads them once. Options are
    those of look: max_windows, images (explanation.frames hold JPEGs for a page), encoder_batch, threads. A file that
    cannot be read is reported with its "error".
    """
    run = run if isinstance(run, Run) else load_run(run)
    encoder = encoder or load_encoder(run.features)
    paths = list(expand([paths] if isinstance(paths, str | os.PathLike) else paths))
    return list(answers(paths, run, encoder, **options))


def answers(paths, run, encoder, **options):
    """Yield the report on each file of a list, in its order, as soon as it is there."""
    ready, following = {}, 0
    with tqdm(total=len(paths), unit="file", dynamic_ncols=True, disable=len(paths) < 2, leave=False) as bar:
        for number, file in look(paths, run, encoder, **options):
            ready[number] = make_report(paths[number], file, run)
            bar.update()
            while following in ready:
                with bar.external_write_mode():
                    yield ready.pop(following)
                following += 1


def make_report(path, file, run):
    """The report, a dict as in report.schema.json, on a File from `look`."""
    report = {"version": VERSION, "file": file_name(path), "error": None}
    if file.error or not file.outputs:
        return report | {"error": reason(file.error or InputError("no frame could be decoded"))}
    full = np.array([window["frames"] == run.features["frames"] for window in file.windows])  # (S,): no padding
    seconds = [[sample[0] for sample in window["seen"]] for window in file.windows]
    outputs = {
        level: {key: np.stack([window[level][key] for window in file.outputs]) for key in file.outputs[0][level]}
        for level in run.models
    }
    clip = clip_values(outputs[run.finest], full)
    evidence = weigh_evidence(file.windows, full, run)
    unknown = judge_unknown(clip, run) if full.any() else None
    levels = {level: answer_level(level, outputs[level], seconds, run) for level in run.models}
    add_generator_sums(levels, run)
    for level, entry in levels.items():
        if evidence["reasons"]:
            entry["answer"] = TOO_LITTLE
        elif unknown and unknown["unknown"] and level == run.finest != "bin":
            entry["answer"] = UNKNOWN
    report |= {"media": file.info, "evidence": evidence, "levels": levels, "unknown": unknown}
    report["explanation"] = explain(clip, outputs[run.finest], file.windows, levels[run.finest], run)
    report["nearest"] = nearest_clips(outputs[run.finest]["embedding"], seconds, run)
    report["warnings"] = [*file_warnings(file, run), *met_before(report["nearest"]), *run_warnings(run)]
    return report | {"limits": list(LIMITS), "run": describe_run(run)}


def weigh_evidence(windows, full, run):
    """{"contrast", "change"} in grey levels, and "reasons" why these or the length are too little evidence.

    `full` (S,): which windows have no padding.
    """
    contrast, change = (max(sample[i] for window in windows for sample in window["seen"]) for i in (1, 2))
    reasons = []
    if not full.any():
        reasons.append(f"shorter than the {run.features['frames'] / run.features['fps']:g} s of a window")
    elif change < FROZEN:
        reasons.append("frozen: the frames hardly change")
    if contrast < BLANK:
        reasons.append("blank: the frames have hardly any contrast")
    return {"contrast": round(contrast, 3), "change": round(change, 3), "reasons": reasons}


def judge_unknown(clip, run):
    """The novelty of a clip beside its threshold; None where the run has none."""
    if run.novelty is None:
        return None
    measured = run.calibration["unknown"]
    value = float(run.novelty(Clips(**{key: values[None] for key, values in clip.items()}))[0])
    judged = {key: measured[key] for key in ("score", "threshold", "rate", "test")} | {"value": round(value, 6)}
    judged["auroc"] = measured["auroc"].get(measured["score"])
    return judged | {"unknown": value > measured["threshold"]}


def answer_level(level, outputs, seconds, run):
    """The best class, all classes' probabilities, and the windows' votes."""
    classes = run.models[level].config["class_names"]
    temperature = run.calibration["levels"][level]["temperature"] if run.calibration else None
    by_window = softmax(np.float64(outputs["logits"]), axis=1)  # (S, C)
    probabilities = apply_temperature(by_window.mean(axis=0), temperature or 1)
    order = np.argsort(-probabilities, kind="stable")
    tempered, votes = apply_temperature(by_window, temperature or 1), by_window.argmax(axis=1)
    windows = [
        {"start": times[0], "end": times[-1], "class": classes[vote], "probability": rounded(row[vote])}
        for times, vote, row in zip(seconds, votes, tempered, strict=True)
    ]
    return {
        "answer": classes[order[0]],
        "best": classes[order[0]],
        "calibrated": temperature is not None,
        "probabilities": {classes[i]: rounded(probabilities[i]) for i in order},
        "votes": {name: int(np.sum(votes == i)) for i, name in enumerate(classes) if (votes == i).any()},
        "windows": windows,
        "by_generator": None,
        "measured": {key: run.metrics[level][key] for key in MEASURED},
    }


def rounded(value):
    return round(float(value), 6)


def as_lists(values):
    return np.round(np.float64(values), 6).tolist()


def add_generator_sums(levels, run):
    """Add GEN-L's probabilities, summed along the generator table, to every other level of a calibrated run."""
    if not run.calibration or not run.calibration["taxonomy"]:
        return
    generators = levels["gen"]["probabilities"]
    for level in levels.keys() - {"gen"}:
        values = np.array(list(generators.values()))
        sums, names, undefined = sum_along_taxonomy(values, list(generators), run.calibration["taxonomy"], level)
        order = np.argsort(-sums, kind="stable")
        best = names[order[0]]
        levels[level]["by_generator"] = {
            "best": best,
            "probabilities": {names[i]: rounded(sums[i]) for i in order},
            "not_defined": rounded(undefined),
            "agrees": best == levels[level]["best"] if sums.max() >= undefined else None,
            "measured": run.calibration["levels"][level]["agreement"],
        }


def explain(clip, outputs, windows, level, run):
    """The clip's attention map beside those of the best two classes, and how much each frame is attended to."""
    frames, strip, signatures = run.features["frames"], [], []
    weight = outputs["attention"].mean(axis=1) * frames  # (S, L): mean over attending frames; 1: attention is uniform
    for row, window in zip(weight, windows, strict=True):
        for value, (seconds, _, _, picture) in zip(row, window["seen"], strict=False):
            strip.append({"seconds": seconds, "attention": rounded(value)} | ({"image": picture} if picture else {}))
    has_map = bool(np.isfinite(clip["maps"]).all())
    if has_map and run.clips:
        known = dict(zip(run.clips["signature_classes"].tolist(), run.clips["signatures"], strict=True))
        for name in [name for name in level["probabilities"] if name in known][:2]:
            distance = float(np.sqrt(np.mean(np.square(clip["maps"] - known[name])))) * frames
            signatures.append({"class": name, "distance": rounded(distance), "map": as_lists(known[name])})
    explanation = {"level": run.finest, "frames": strip, "map": as_lists(clip["maps"]) if has_map else None}
    return explanation | {"signatures": signatures}


def nearest_clips(embedding, seconds, run):
    """The training clips with the nearest windows in the embedding of the finest level."""
    if not run.clips:
        return None
    clips = [
        {
            "video": str(run.clips["video"][clip]),
            "class": str(run.clips["label"][clip]),
            "seconds": rounded(run.clips["window_time"][window]),
            "own_seconds": seconds[file_window][0],
            "distance": rounded(distance),
        }
        for distance, clip, window, file_window in nearest(embedding, run.clips, NEAREST)
    ]
    return {"clips": clips, "usual": run.calibration["nearest"]}


def describe_run(run):
    kept = ("encoder", "layer", "tokens", "dim", "frames", "fps", "pool", "equalize", "simulated")
    paths, calibration = run.metrics[run.finest]["recipe"].get("paths", {}), run.calibration
    described = {"name": run.name, "levels": list(run.models), "calibrated": calibration is not None}
    described["data"] = Path(paths.get("features", "unknown")).name
    described["features"] = {key: run.features[key] for key in kept if key in run.features}
    return described | {"trained_on": calibration["trained_on"] if calibration else None}


# ---------------------------------------------------------------- warnings in plain words


def file_warnings(file, run):
    """Yield in which way this file is unlike the training clips, and how much of it was not analysed."""
    info, equalized = file.info, run.features["equalize"]
    if "damage" in info:
        yield f"The file is {info['damage']}; what follows was not analysed."
    if len(file.windows) < info["windows"]:
        yield f"{len(file.windows)} of its {info['windows']} windows were analysed."
    if not run.calibration or equalized:
        return
    seen, outside = run.calibration["trained_on"], []
    width, height = map(int, info["size"].split("x"))
    for what, value, shown in (("width", width, f"{width} px wide"), ("height", height, f"{height} px high")):
        low, high = seen[what]
        if not low <= value <= high:
            outside.append(f"it is {shown} (training clips: {low:g} to {high:g})")
    low, high = seen["fps"]
    if info["fps"] and not 0.99 * low <= info["fps"] <= 1.01 * high:
        outside.append(f"it has {info['fps']:g} frames a second ({low:g} to {high:g})")
    for what in ("container", "codec"):
        if seen[what] and info[what] not in seen[what]:
            outside.append(f"its {what} is {info[what]} ({', '.join(seen[what])})")
    if outside:
        yield f"The file is unlike the training clips: {'; '.join(outside)}. The answer may come from that."


def met_before(nearest):
    """Yield a warning where the file looks like a training clip itself."""
    if nearest and nearest["clips"][0]["distance"] < SAME * nearest["usual"]["median"]:
        same = nearest["clips"][0]["video"]
        yield f"This file is, or is nearly, a training clip: {same}. The answer was learnt from it."


def run_warnings(run):
    """Yield why answers of this run are weak."""
    if run.features.get("simulated"):
        yield "This run was trained on simulated clips. Its answers on real files mean nothing."
    if not run.calibration:
        yield (
            "This run is not calibrated: probabilities are as the model gives them, no generator is reported as"
            " unknown, and no training clips are named. Run attribute_video.py --calibrate."
        )
        return
    seen, levels, unknown = (run.calibration[key] for key in ("trained_on", "levels", "unknown"))
    if seen["fewest"] < PAPER_LABELS:
        yield (
            f"This run was trained on few clips: {seen['videos']}, of which {seen['fewest']} of {seen['fewest_class']}."
            f" The paper uses {PAPER_LABELS} labels per class after pretraining on millions of clips."
        )
    if untested := [level for level, entry in levels.items() if entry["temperature"] is None]:
        yield f"There are no val clips, so the probabilities are not calibrated at {names_of(untested)}."
    error = {level: [entry[when]["ece"]["value"] for when in ("before", "after")] for level, entry in levels.items()}
    if worse := [level for level in levels if level not in untested and error[level][1] > error[level][0]]:
        yield f"On the test clips, calibration made the probabilities less reliable at {names_of(worse)}."
    if weak := [level for level, metrics in run.metrics.items() if not above_chance(metrics)]:
        yield f"On its test clips this run is not clearly above chance at {names_of(weak)}."
    if run.novelty is None:
        rate, clips = unknown["rate"], unknown["val_clips"]
        yield f"Too few val clips ({clips}) to reject unknown generators at a false-rejection rate of {rate:g}."


def above_chance(metrics):
    """Whether micro or macro accuracy has its 95% interval above its chance level."""
    micro, macro = metrics["accuracy_interval"][0], metrics["macro_interval"][0]
    return micro > metrics["majority"] or macro > metrics["uniform"]


def names_of(levels):
    return ", ".join(map(level_name, levels))
