"""From nothing to a table of all five levels, on simulated clips.

writes  data/zoo, features/zoo and runs/zoo/bin.keras, where the stages look for them; all five levels in runs/demo, and
        the table as demo.json and demo.md. With --limit, --features or --run all levels are in one run folder, and
        nothing in runs/zoo.
"""

import shutil
import time
from pathlib import Path

from experiments.datasets import ZOO, make_data
from experiments.probes import linear_probe, temporal_probe
from experiments.results import BUILT_IN, settings_line, write_results
from experiments.stages import markdown, stage, train, videos_of
from tokens.generators import LEVELS, level_name
from training.evaluation import score

HEADER = ["level", "classes", "test clips", "chance micro / macro", "SAGA micro (95%) / macro"]
HEADER += ["linear probe micro / macro", "temporal probe micro / macro", "seconds"]


def demo(args):
    limit, name = (["--limit", args.limit], f"demo-{args.limit}") if args.limit else ([], "demo")
    features = Path(args.features[0] if args.features else f"features/{name}" if limit else "features/zoo")
    run = Path(args.run or f"runs/{name}")
    stage_one = run if limit or args.features or args.run else Path("runs/zoo")
    started = time.time()
    simulated = stage("simulate_videos", overwrite=args.overwrite)["written"]
    seconds = {"simulate": (simulated, time.time() - started)}
    started = time.time()
    flags = ["--features", features, "--pool", 2, *limit]
    extracted = stage("01_extract_features", *flags, overwrite=args.overwrite)["videos"]
    seconds["extract"] = (extracted, time.time() - started)
    levels = {}
    for level in LEVELS:
        settings = {"preset": "small", "labels_per_class": "all"}
        metrics = train(level, features, stage_one if level == "bin" else run, settings, args.overwrite)
        if level == "bin" and stage_one != run:
            run.mkdir(parents=True, exist_ok=True)
            for file in stage_one.glob("bin*"):
                shutil.copy(file, run)
        levels[level] = level_results(metrics, features)
    print()
    args.results = args.results or run
    write_results(args, "demo", {"levels": levels}, render_demo, [make_data(args, BUILT_IN, features, None, ZOO, None)])
    print()
    for name, (work, spent) in seconds.items():
        print(f"{name}: {f'{work} clips in {spent:.0f} s' if work else 'up to date'}")
    print(f"figures: {', '.join(sorted(str(path) for path in run.glob('*.png')))}")
    if stage_one != run:
        print(
            f"stage 1 is in {stage_one} too: `python 03_attribute.py --level team` goes on there, as the paper trains"
        )


def level_results(metrics, features):
    """The accuracies of SAGA and of two probes on the test clips of a level, from SAGA's metrics."""
    videos, kept = videos_of(metrics, features), ("accuracy", "macro_accuracy", "accuracy_interval", "videos")
    found = {key: metrics[key] for key in (*kept, "majority", "uniform", "classes")}
    for name, probe in {"linear": linear_probe, "temporal": temporal_probe}.items():
        own = score([row.label for row in videos.test], probe(videos), videos.classes)
        found[name] = {key: own[key] for key in kept}
    return found | {"seconds": metrics["recipe"]["seconds"]}


def render_demo(results):
    rows = []
    for level, own in results["levels"].items():
        low, high = own["accuracy_interval"]
        chance = f"{own['majority']:.2f} / {own['uniform']:.2f}"
        saga = f"{own['accuracy']:.2f} ({low:.2f}-{high:.2f}) / {own['macro_accuracy']:.2f}"
        probes = [f"{own[name]['accuracy']:.2f} / {own[name]['macro_accuracy']:.2f}" for name in ("linear", "temporal")]
        clips = [f"{len(own['classes'])}", f"{own['videos']}"]
        rows.append([level_name(level), *clips, chance, saga, *probes, f"{own['seconds']:.0f}"])
    what = "Simulated clips, one seed: these accuracies say nothing about real generators."
    return [what, "", *markdown(HEADER, rows), "", settings_line(results)]
