"""Tables 5 and S-2: SAGA compared with NPR, F3Net and TALL (detectors.py), and with baselines that the paper leaves out
(probes.py): linear probes, class means and retrieval on the same frozen tokens, and a probe on metadata alone.

reads   a features folder and, for the detectors, its clips (datasets.py); trains what is not up to date
writes  results/table-5.json, .md: BIN-L by test set, method and seed; results/table-s2.json, .md: accuracies by method,
        level and seed, parameters, steps, seconds

All methods train and are tested on the same videos, by seed and fold. With all labels, probes and detectors train on
val too; SAGA uses val to choose its best epoch. With few labels, all of those train, and none choose. Detectors hold
all frames in memory.
"""

import hashlib
import itertools
import time
from pathlib import Path

import numpy as np

from basics.artifacts import read_json
from basics.running import InputError
from basics.statistics import macro_interval
from experiments.datasets import own_name
from experiments.detecting import detect
from experiments.detectors import DETECTORS
from experiments.paper import paper_lines, paper_values
from experiments.probes import PROBES
from experiments.stages import (
    ALL_CE,
    TWO_ALL,
    TWO_FEW,
    USED,
    chosen_videos,
    clips_of,
    fold_videos,
    markdown,
    part_name,
    runs_folder,
    spent,
)
from experiments.tables import (
    BINARY,
    BINARY_HEADER,
    arm_runs,
    binary_cells,
    binary_runs,
    binary_scores,
    caption,
    described,
    mean_std,
    overall_cells,
    parameters_of,
    scored,
)
from tokens.dataset import features_recipe, read_index
from tokens.generators import level_name
from training.evaluation import at_level, score_names, sum_to_level

# ---------------------------------------------------------------- Table 5: BIN-L


def measure_datasets(args, data):
    """BINARY by test set, method and seed: on the test clips of this data and, with --test-features, on all of another.

    Detectors are tested where the clips are known.
    """
    check_clips(data)
    across = {}
    if args.test_features:  # first, since it may not fit
        across[args.test_features] = binary_methods(args, data, {"test_features": args.test_features})
    return described(data, tested={"in-domain": binary_methods(args, data, {})} | across)


def binary_methods(args, data, only):
    """BINARY by method and seed at BIN-L, all trained with all labels, and what each took; `only` may name
    test_features.
    """
    chosen = [chosen_videos(data, "bin", only | {"limit": args.limit}, seed, None) for seed in range(args.seeds)]
    methods = {"SAGA": []}
    for run in binary_runs(args, data, only):
        metrics = read_json(run / "bin.json")
        methods["SAGA"].append({key: metrics[key] for key in BINARY} | spent(run, "bin"))
    for name, probe in PROBES.items():
        methods[name] = [binary_row(videos, probe(videos, seed)) for seed, videos in enumerate(chosen)]
    known = data.videos is not None and all((data.videos / row.source).is_file() for row in chosen[0].test)
    for name in DETECTORS if known else ():
        methods[name] = []
        for seed, videos in enumerate(chosen):
            part = "-".join([part_name(seed, None), *(own_name(folder) for folder in only.values())])
            run = detector_run(args, data, name, "bin", videos, seed, part)
            row = binary_row(videos, clips_of(run, "bin")[0]["probabilities"])
            methods[name].append(row | {"steps": [read_json(run / "bin.json")["steps"]]})
    return methods


def binary_row(videos, probabilities):
    """BINARY of probabilities (V, 2) of the test clips, and the labels that a method without val took."""
    scores = binary_scores([row.label for row in videos.test], probabilities, videos.classes)
    return scores | {"budget": labels_without_val(videos)}


def labels_without_val(videos):
    """The label budget of a method that trains on val too."""
    return {"train": len(videos.train + videos.val), "val": 0}


def render_datasets(results):
    rows = [
        [place, method, *binary_cells(seeds)]
        for place, methods in results["tested"].items()
        for method, seeds in methods.items()
    ]
    lines = [caption(results, "BIN-L, trained on this data"), ""]
    lines += [*markdown(["tested on", "method", *BINARY_HEADER], rows), "", BINARY_NOTE, ""]
    if blind := [place for place, methods in results["tested"].items() if not DETECTORS.keys() & methods.keys()]:
        names = ", ".join(DETECTORS)
        lines += [f"{names} see pixels: for {', '.join(blind)} name the folder of all clips with --videos.", ""]
    if len(results["tested"]) == 1:
        how = "Across data sets: name another features folder, made by 01 in the same way, with --test-features."
        lines += [how, ""]
    rows = []
    for name in ("DeMamba", "DVF"):
        methods = dict.fromkeys(line["row"] for line in paper_lines(f"5 BIN-L {name}"))
        for method in methods:
            values = [paper_values(f"5 BIN-L {name}", key).get(method) for key in BINARY[:3]]
            rows.append([name, method, *("-" if value is None else f"{value:.2f}" for value in values)])
    header = ["data", "method", "accuracy", "precision", "recall"]
    return [*lines, "The paper's Table 5; on DVF only SAGA is trained on other data:", "", *markdown(header, rows)]


BINARY_NOTE = (
    "All methods train at BIN-L with all labels, probes and detectors on val too. NPR, F3Net and TALL are small ones on"
    " 128 px, but with --full."
)

# ---------------------------------------------------------------- Table S-2: attribution levels

COMPARED_LEVELS = ("task", "sd", "team", "gen")
PROBE_LABELS = ("few", "all")


def measure_detectors(args, data):
    """By method and level its accuracies by seed; parameters and seconds of a fit at GEN-L, where detectors train."""
    check_clips(data)
    methods = {}
    for arm in (TWO_FEW, TWO_ALL):
        runs = {level: arm_runs(args, data, arm, level) for level in COMPARED_LEVELS}
        levels = {level: scored(own, level) for level, own in runs.items()}
        methods[f"SAGA, {arm}"] = {"trained": arm.labels, "levels": levels} | cost(runs["gen"])
    runs = arm_runs(args, data, ALL_CE, "gen")  # as the detectors are trained
    levels = by_level(runs, spent(runs[0][0], "gen")["budget"])
    methods[f"SAGA, {ALL_CE}, summed"] = {"trained": "all", "levels": levels} | cost(runs)
    for name, probe in PROBES.items():
        for labels in PROBE_LABELS:
            methods[f"{name}, {labels}"] = {"trained": labels} | probe_results(args, data, probe, labels)
    for name in DETECTORS if data.videos is not None else ():
        methods[name] = {"trained": "all"} | detector_results(args, data, name)
    return described(data, methods=methods)


def check_clips(data):
    """Raise InputError, before anything is trained, when a clip that detectors will want is not there."""
    for row in read_index(data.features) if data.videos is not None else ():
        if row.windows and not row.error and not (data.videos / row.source).is_file():
            raise InputError(f"{data.videos / row.source} is missing; name the folder of the clips with --videos")


def tested_by_sums(run, level):
    """`tested` at a coarser level of a run at GEN-L, whose probabilities are summed along the generator table."""
    clips, classes = clips_of(run, "gen")
    truth = at_level(clips["class"], level)
    sums, names = sum_to_level(clips["probabilities"], classes, level)
    return truth[truth != ""], np.array(names)[sums[truth != ""].argmax(axis=1)]


def by_level(runs, budget):
    """`scored` at every level of runs at GEN-L, by sums, with the label budget of these runs."""
    return {level: scored(runs, level, tested_by_sums) | {"budget": budget} for level in COMPARED_LEVELS}


def cost(runs):
    """Parameters, steps and seconds of runs at GEN-L, a list of folds per seed; those of stage 1 are added."""
    costs = {"parameters": None, "seconds": []}
    for run in [run for folds in runs for run in folds if run]:
        recipe = read_json(run / "gen.json", ("recipe",))["recipe"]
        start = recipe["paths"]["init"]
        earlier = 0 if start == "scratch" else read_json(Path(start).with_name("bin.json"))["recipe"]["seconds"]
        costs["seconds"].append(recipe["seconds"] + earlier)
        costs |= {"parameters": parameters_of(run), "steps": sum(spent(run, "gen")["steps"])}
    return costs


def probe_results(args, data, probe, labels):
    levels, seconds = {level: {"seeds": [], "collapsed": 0} for level in COMPARED_LEVELS}, []
    for level, seed in itertools.product(COMPARED_LEVELS, range(args.seeds)):
        truth, predicted = [], []
        for fold in data.folds:
            videos, started = fold_videos(args, data, level, labels, seed, fold), time.perf_counter()
            predicted += [videos.classes[i] for i in probe(videos, seed).argmax(axis=1)]
            seconds += [time.perf_counter() - started] if level == "gen" else []
            truth += [videos.classes[row.label] for row in videos.test]
        levels[level]["seeds"].append({"seed": seed} | score_names(truth, predicted))
        levels[level]["budget"] = labels_without_val(videos)
    return {"parameters": None, "seconds": seconds, "levels": levels}


def detector_results(args, data, name):
    """A detector at GEN-L, and at the coarser levels its probabilities summed along the generator table."""
    runs = []
    for seed in range(args.seeds):
        runs.append([])
        for fold in data.folds:
            videos = fold_videos(args, data, "gen", "all", seed, fold)
            runs[-1].append(detector_run(args, data, name, "gen", videos, seed, part_name(seed, fold)))
    metrics = [read_json(run / "gen.json") for folds in runs for run in folds]
    facts = {"parameters": metrics[0]["parameters"], "seconds": [run["seconds"] for run in metrics]}
    facts["steps"] = metrics[0]["steps"]
    return facts | {"levels": by_level(runs, labels_without_val(videos))}


def detector_run(args, data, name, level, videos, seed, part):
    """The run folder of a detector, trained or up to date; `part` is its name in the detector's folder."""
    run, equalized = pixel_folder(args, data, name) / part, features_recipe(data.features).get("equalize")
    steps = 10 * len(videos.train + videos.val) // 32 if args.full else data.pixel_steps
    detect(name, level, videos, data.videos, run, seed, equalized, steps, args.full, args.overwrite)
    facts = labels_without_val(videos) | {"steps": steps, "seed": seed, "start": None}
    USED[f"{run}", f"pixels-{level}"] = facts | {"settings": {"level": level, "detector": name}}
    return run


def pixel_folder(args, data, name):
    """Runs on pixels do not depend on the encoder, so features of the same clips share them."""
    rows = [
        {key: getattr(row, key) for key in ("path", "generator", "group", "split")} for row in read_index(data.features)
    ]
    equalized = features_recipe(data.features).get("equalize")
    key = f"{data.videos} {rows} {equalized} {data.pixel_steps} {args.full} {args.limit} {len(data.folds)}"
    key = hashlib.sha256(key.encode()).hexdigest()[:8]
    return runs_folder(args) / "pixels" / f"{name}-{key}"


def render_detectors(results):
    rows = []
    theirs = {level: paper_values("S-2 SOTA", level_name(level)) for level in COMPARED_LEVELS}
    for method, result in results["methods"].items():
        cells = []
        for level in COMPARED_LEVELS:
            seeds = result["levels"][level]["seeds"]
            cells.append(" / ".join(mean_std([seed[key] for seed in seeds]) for key in ("micro", "macro")))
        interval = overall_cells(result["levels"]["gen"])[0].split("(")[-1].rstrip(")")
        count = f"{result['parameters'] / 1e6:.2f}M" if result["parameters"] else "-"
        seconds = f"{np.mean(result['seconds']):.0f}" if result["seconds"] else "-"
        paper = theirs["task"].get("SAGA" if method == f"SAGA, {TWO_FEW}" else method)
        printed = " / ".join(f"{theirs[level][method.split(',')[0]]:.2f}" for level in COMPARED_LEVELS) if paper else ""
        steps = f"{result['steps']}" if "steps" in result else "-"
        labels = f"{result['trained']}, {overall_cells(result['levels']['gen'])[-2]}"
        rows.append([method, labels, *cells, interval, count, steps, seconds, printed])
    first = {level: own["seeds"][0] for level, own in results["methods"]["metadata only, all"]["levels"].items()}
    chance = [f"{100 * own['majority']:.1f} / {100 * own['uniform']:.1f}" for own in first.values()]
    rows.append(["chance", "", *chance, "", "", "", "", ""])
    clips = [f"{level.upper()}-L {own['videos']}" for level, own in first.items()]
    header = ["method", "labels at GEN-L", *(f"{level.upper()}-L micro / macro" for level in COMPARED_LEVELS)]
    header += ["95% of GEN-L micro", "parameters", "steps of 32", "seconds a fit"]
    header.append("the paper's TASK / SD / TEAM / GEN-L")
    lines = [caption(results, "SAGA compared with detectors and probes"), "", *markdown(header, rows), ""]
    detectors = PIXELS if set(DETECTORS) & set(results["methods"]) else NO_PIXELS
    return [*lines, f"Test clips: {', '.join(clips)}. {metadata_line(results)} {detectors} {NOTE}"]


PIXELS = (
    "NPR, F3Net and TALL are trained at GEN-L on pixels, small ones on 128 px; as with `summed`, coarser levels are"
    " GEN-L's probabilities summed over generators."
)
NO_PIXELS = "NPR, F3Net and TALL see pixels: name the folder of the clips with --videos."
NOTE = (
    "With all labels, probes and detectors train on val too. With few, all of them train and none choose; two"
    " stages have all real/fake labels before. Temporal statistics: the mean of a clip's tokens, their deviation"
    " over frames and their mean absolute change. Class means: the nearest class mean (Mahalanobis) names the clip,"
    " whatever the classes' frequencies. All others are trained at each level."
    " Seconds: one core, beside another run. The paper's numbers are on GenVideo."
)


def metadata_line(results):
    """A sentence: whether size, rate, length and container alone separate the classes at GEN-L, by macro accuracy."""
    seeds = results["methods"]["metadata only, all"]["levels"]["gen"]["seeds"]
    macro, chance = np.mean([seed["macro"] for seed in seeds]), seeds[0]["uniform"]
    correct, count = ([seed["per_class"][name][i] for seed in seeds for name in seed["per_class"]] for i in (1, 0))
    low, high = macro_interval(np.array(correct), np.array(count))
    finding = "is at chance" if low <= chance <= high else "separates the classes, so methods may use it and not pixels"
    numbers = f"macro {100 * macro:.1f} (95% {100 * low:.1f}-{100 * high:.1f}), chance {100 * chance:.1f}"
    return f"Metadata alone {finding}: {numbers}."
