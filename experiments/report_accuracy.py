"""The report of attribute_video.py on files that a run was not trained on, and on files of generators left out of it.

reads   a features folder and the videos that it is of (datasets.py); trains five levels (stages.py)
writes  runs/report/<data>-seed<N>, calibrated; results/report.json and .md

Of the zoo six generators are left out; of real clips those outside the table are. Real clips are too few for one split,
so each of five grouped folds is test once, and the next one val.
"""

import shutil
from pathlib import Path

import numpy as np

from attribute_video import attribute
from basics.running import InputError
from experiments.stages import ALL_CE, STAGE_ONE, clips_of, markdown, train_arm
from experiments.tables import caption, described, mean_std
from experiments.unseen import names_outside, new_generators
from report.calibrate import calibrate
from report.run import load_encoder, load_run
from tokens.dataset import index_digest, read_index, write_index
from tokens.generators import LEVELS, level_name
from tokens.split import fold_splits
from training.evaluation import at_level, score_names

ENDINGS = (".keras", ".json", "_embeddings.npz")
RELIABILITY = {"nll": "NLL", "brier": "Brier", "ece": "ECE"}


def measure_report(args, data):
    """By seed: accuracy of the reports by level, reliability on test, and which clips were rejected as unknown."""
    if data.videos is None:
        raise InputError("report looks at the clips themselves; name the folder that --features were made of: --videos")
    new, only = new_generators(data) if data.simulated else (names_outside(data), {})
    seeds = []
    for seed in range(args.seeds):
        parts = []
        for part in fold_data(data, seed) if len(data.folds) > 1 else [data]:
            run = assemble(args, part, seed, only)
            calibration = calibrate(run, part.features, seed=seed)
            parts.append(answer(run, part, new, calibration, args.encoder_weights))
        seeds.append(pool(parts, new))
    return described(data, seeds=seeds, left_out=new)


def fold_data(data, seed):
    """The data once per fold, as a folder of links whose index says test on that fold and val on the next."""
    rows, folds = read_index(data.features), len(data.folds)
    parts = [fold_splits([row for row in rows if not row.error], k + 1, folds, seed) for k in range(folds)]
    tests = [{row.path for row in part if row.split == "test"} for part in parts]
    for k, test in enumerate(tests):
        folder = data.features.with_name(f"{data.features.name}-seed{seed}-fold{k + 1}")
        folder.mkdir(parents=True, exist_ok=True)
        for own in data.features.iterdir():
            if not own.name.startswith("index-") and not (folder / own.name).exists():
                (folder / own.name).symlink_to(own.resolve())
        val = tests[(k + 1) % folds]
        split = {path: "val" for path in val} | {path: "test" for path in test}
        own = [row._replace(split=split.get(row.path, "train")) for row in rows]
        write_index(folder / "index-1-of-1.csv", own)
        yield data._replace(features=folder, folds=(None,), digest=data.digest + index_digest(own))


def assemble(args, data, seed, only):
    """One run folder of the five levels."""
    run = Path(args.run or "runs/report") / f"{data.place}-seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    for level in LEVELS:
        (trained,) = train_arm(args, data, STAGE_ONE if level == "bin" else ALL_CE, level, seed, only)
        for ending in ENDINGS:
            shutil.copyfile(trained / f"{level}{ending}", run / f"{level}{ending}")
    return run


def answer(run_folder, data, new, calibration, weights):
    """The answers for the files of test and of left-out generators, their true classes, and the calibration."""
    run = load_run(run_folder)
    test = set(clips_of(run_folder, run.finest)[0]["video"].tolist())
    rows = [row for row in read_index(data.features) if row.path in test or row.generator in new]
    encoder = load_encoder(run.features, weights=weights if run.features["encoder"] == "mobilenet" else None)
    reports = attribute([data.videos / row.source for row in rows], run, encoder)
    if failed := [report["file"] for report in reports if report["error"] is not None]:
        raise InputError(f"{len(failed)} files cannot be read, such as {failed[0]}; were they there when 01 ran?")
    generators, levels = np.array([row.generator for row in rows]), {}
    seen = ~np.isin(generators, new)
    for level in run.models:
        truth = at_level(generators, level)
        chosen = np.flatnonzero(seen & (truth != ""))
        answers = [reports[i]["levels"][level] for i in chosen]
        levels[level] = {"truth": truth[chosen].tolist(), "own": [entry["best"] for entry in answers]}
        if level != "gen":
            levels[level]["summed"] = [entry["by_generator"]["best"] for entry in answers]
        levels[level] |= calibration["levels"][level]
    rejected = np.array([bool(report["unknown"] and report["unknown"]["unknown"]) for report in reports])
    by_name = {"known": rejected[seen].tolist()} | {name: rejected[generators == name].tolist() for name in new}
    few = sum(bool(report["evidence"]["reasons"]) for report in reports)
    result = {"levels": levels, "rejected": by_name, "unknown": calibration["unknown"]}
    return result | {"files": len(rows), "too_little": few}


def pool(parts, new):
    """The folds of a seed together: answers pooled, calibration by fold."""
    levels = {}
    for level in parts[0]["levels"]:
        own = [part["levels"][level] for part in parts]
        truth = sum((part["truth"] for part in own), [])
        levels[level] = score_names(truth, sum((part["own"] for part in own), []))
        if level != "gen":
            levels[level]["summed"] = score_names(truth, sum((part["summed"] for part in own), []))
            levels[level]["agreement"] = [part["agreement"] for part in own]
        kept = ("temperature", "val_videos", "before", "after")
        levels[level]["calibration"] = [{key: part[key] for key in kept} for part in own]
    rejected = {name: sum((part["rejected"][name] for part in parts), []) for name in ("known", *new)}
    kept = ("score", "rate", "val_clips", "auroc")
    return {
        "levels": levels,
        "called_unknown": {name: [len(files), sum(files)] for name, files in rejected.items()},
        "unknown": [{key: part["unknown"][key] for key in kept} for part in parts],
        "files": sum(part["files"] for part in parts),
        "too_little": sum(part["too_little"] for part in parts),
    }


# ---------------------------------------------------------------- the tables


def render_report(results):
    seeds = results["seeds"]
    files = f"{seeds[0]['files']} files answered, {seeds[0]['too_little']} with too little evidence (seed 0)."
    lines = [caption(results, f"The report on held-out files ({ALL_CE})", f" {files}"), ""]
    lines += ["Micro / macro accuracy in per cent of each level's own model and of GEN-L's probabilities summed:", ""]
    rows = []
    for level, first in seeds[0]["levels"].items():
        own = [seed["levels"][level] for seed in seeds]
        cells = [both(own), both([row["summed"] for row in own]) if level != "gen" else "-"]
        chance = f"{100 * first['majority']:.1f} / {100 * first['uniform']:.1f}"
        rows.append([level_name(level), *cells, chance, f"{first['videos']}", differing_cell(own)])
    header = ["level", "its own model", "GEN-L summed", "chance", "files", "where they differ, correct: own / summed"]
    lines += [*markdown(header, rows), "", *render_calibration(seeds), "", *render_unknown(seeds, results["left_out"])]
    return lines


def both(rows):
    return " / ".join(mean_std([row[key] for row in rows]) for key in ("micro", "macro"))


def differing_cell(own):
    counts = [one for row in own for one in row.get("agreement", ()) if one]
    if not counts:
        return "-"
    return f"{sum(one['own_right'] for one in counts)} / {sum(one['generator_right'] for one in counts)}"


def render_calibration(seeds):
    """Reliability on test before and after the temperature of val, means over seeds and folds."""
    rows = []
    for level in seeds[0]["levels"]:
        entries = [one for seed in seeds for one in seed["levels"][level]["calibration"]]
        cells = [f"{np.mean([one['temperature'] for one in entries]):.2f}"]
        for key in RELIABILITY:
            values = [np.mean([one[when][key]["value"] for one in entries]) for when in ("before", "after")]
            better = sum(one["after"][key]["value"] < one["before"][key]["value"] for one in entries)
            cells.append(f"{values[0]:.3f} -> {values[1]:.3f} ({better} of {len(entries)} better)")
        cells.append(f"{np.mean([one['after']['ece']['perfect'] for one in entries]):.3f}")
        rows.append([level_name(level), *cells, f"{entries[0]['val_videos']}"])
    header = ["level", "temperature", *RELIABILITY.values(), "ECE if calibrated", "val files"]
    return ["Calibration by temperature, chosen on val, measured on test:", "", *markdown(header, rows)]


def render_unknown(seeds, left_out):
    first = seeds[0]["unknown"][0]
    limit = f"threshold for {first['rate']:.0%} of val by the score {first['score']}"
    lines, rows = [f"Rejected as unknown, in per cent of files; {limit}:", ""], []
    for name in ("known", *left_out):
        counts = [seed["called_unknown"][name] for seed in seeds]
        cells = [mean_std([unknown / files for files, unknown in counts]), f"{counts[0][0]}"]
        rows.append([name if name != "known" else "known (false rejections)", *cells])
    lines += [*markdown(["generator", "rejected", "files"], rows), ""]
    lines += ["AUROC of all scores, chance 0.50:", ""]
    entries = [one["auroc"] for seed in seeds for one in seed["unknown"]]
    rows = [[name, f"{np.mean([one[name]['value'] for one in entries]):.2f}"] for name in entries[0]]
    return [*lines, *markdown(["score", "AUROC, mean over seeds and folds"], rows)]
