"""From nothing to a table of all five levels, on simulated clips."""

import time
from pathlib import Path

from experiments.probes import linear_probe
from experiments.stages import SMALL_DATA, SMALL_MINING, markdown, stage, train, videos_of
from tokens.generators import level_name
from training.evaluation import score

DEMO_LEVELS = {  # level: settings beside SMALL_DATA
    "bin": {"epochs": 5},
    "task": SMALL_MINING | {"labels_per_class": 300, "epochs": 5},
    "sd": SMALL_MINING | {"labels_per_class": 100, "epochs": 5},
    "team": SMALL_MINING | {"labels_per_class": 100, "epochs": 8},
    "gen": SMALL_MINING | {"labels_per_class": 100, "epochs": 11},
}
HEADER = ["level", "classes", "test clips", "chance micro / macro", "SAGA micro (95%) / macro"]
HEADER += ["linear probe micro / macro", "seconds"]


def demo(args):
    name = f"demo-{args.limit}" if args.limit else "demo"
    run, features = args.run or f"runs/{name}", args.features[0] if args.features else f"features/{name}"
    limit = ["--limit", args.limit] if args.limit else []
    started = time.time()
    simulated = stage("simulate_videos")["written"]
    seconds = {"simulate": (simulated, time.time() - started)}
    started = time.time()
    extracted = stage("01_extract_features", "--features", features, "--pool", 2, *limit)["videos"]
    seconds["extract"] = (extracted, time.time() - started)
    rows = []
    for level, settings in DEMO_LEVELS.items():
        metrics = train(level, features, run, SMALL_DATA | settings)
        videos = videos_of(metrics, features)
        linear = score([row.label for row in videos.test], linear_probe(videos), videos.classes)
        rows.append([level_name(level), *cells(metrics, linear)])
    print("\nSimulated clips, one seed: these accuracies say nothing about real generators.\n")
    print("\n".join(markdown(HEADER, rows)) + "\n")
    for name, (work, spent) in seconds.items():
        print(f"{name}: {f'{work} clips in {spent:.0f} s' if work else 'up to date'}")
    print(f"figures: {', '.join(sorted(str(path) for path in Path(run).glob('*.png')))}")


def cells(metrics, linear):
    """A level's row of the table: SAGA's metrics and the linear probe's."""
    low, high = metrics["accuracy_interval"]
    return [
        f"{len(metrics['classes'])}",
        f"{metrics['videos']}",
        f"{metrics['majority']:.2f} / {metrics['uniform']:.2f}",
        f"{metrics['accuracy']:.2f} ({low:.2f}-{high:.2f}) / {metrics['macro_accuracy']:.2f}",
        f"{linear['accuracy']:.2f} / {linear['macro_accuracy']:.2f}",
        f"{metrics['recipe']['seconds']:.0f}",
    ]
