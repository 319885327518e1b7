"""From nothing to a table of all five levels, on simulated clips.

writes  data/zoo, features/zoo and runs/zoo/bin.keras, where the stages look for them; all five levels in runs/demo.
        With --limit, --features or --run all levels are in one run folder, and nothing in runs/zoo.
"""

import shutil
import time
from pathlib import Path

from experiments.probes import linear_probe, temporal_probe
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
    rows = []
    for level in LEVELS:
        settings = {"preset": "small", "labels_per_class": "all"}
        metrics = train(level, features, stage_one if level == "bin" else run, settings, args.overwrite)
        if level == "bin" and stage_one != run:
            run.mkdir(parents=True, exist_ok=True)
            for file in stage_one.glob("bin*"):
                shutil.copy(file, run)
        rows.append(level_row(level, metrics, features))
    print("\nSimulated clips, one seed: these accuracies say nothing about real generators.\n")
    print("\n".join(markdown(HEADER, rows)) + "\n")
    for name, (work, spent) in seconds.items():
        print(f"{name}: {f'{work} clips in {spent:.0f} s' if work else 'up to date'}")
    print(f"figures: {', '.join(sorted(str(path) for path in run.glob('*.png')))}")
    if stage_one != run:
        print(
            f"stage 1 is in {stage_one} too: `python 03_attribute.py --level team` goes on there, as the paper trains"
        )


def level_row(level, metrics, features):
    """A level's row of the table: SAGA's metrics and the probes'."""
    videos, (low, high) = videos_of(metrics, features), metrics["accuracy_interval"]
    labels = [row.label for row in videos.test]
    probes = [score(labels, probe(videos), videos.classes) for probe in (linear_probe, temporal_probe)]
    return [
        level_name(level),
        f"{len(metrics['classes'])}",
        f"{metrics['videos']}",
        f"{metrics['majority']:.2f} / {metrics['uniform']:.2f}",
        f"{metrics['accuracy']:.2f} ({low:.2f}-{high:.2f}) / {metrics['macro_accuracy']:.2f}",
        *(f"{probe['accuracy']:.2f} / {probe['macro_accuracy']:.2f}" for probe in probes),
        f"{metrics['recipe']['seconds']:.0f}",
    ]
