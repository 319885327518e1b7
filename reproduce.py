"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py corpus --corpus ../shared/corpus

demo    simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/demo
corpus  a folder of real clips with clips.csv (path,label,repo,notes): five-fold grouped cross-validation of all five
        levels, as the clips are and equalized, beside a metadata-only and a linear probe; writes results/corpus.*
"""

import argparse
import contextlib
import csv
import importlib
import json
import re
import time
from pathlib import Path

FOLDS = 5


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=tuple(ENTRIES), help="the experiment")
    parser.add_argument("--list", action="store_true", help="print the experiments")
    parser.add_argument("--corpus", default="../shared/corpus", help="corpus: folder with clips/ and clips.csv")
    parser.add_argument("--features", help="folder of the features; default features/demo or features/corpus")
    parser.add_argument("--run", help="folder of the runs; default runs/demo or runs/corpus")
    parser.add_argument("--seeds", type=int, default=1, help="corpus: repetitions with other folds and weights")
    parser.add_argument("--limit", type=int, help="at most this many videos per generator: a small run")
    args = parser.parse_args(argv)
    if not args.name and not args.list:
        parser.error("name an experiment or pass --list")
    return args


def stage(name, *arguments):
    """Run a numbered script's main with these arguments."""
    return importlib.import_module(name).main([str(argument) for argument in arguments])


def train(level, *arguments):
    """Stage 1 or 2 at a level; (metrics, the videos it chose)."""
    from features import read_index
    from training import choose_videos

    name = "02_pretrain_binary" if level == "bin" else "03_attribute"
    arguments = [str(argument) for argument in arguments] + ([] if level == "bin" else ["--level", level])
    metrics = stage(name, *arguments)
    args = importlib.import_module(name).get_args(arguments)
    with contextlib.redirect_stdout(None):  # said by the stage already
        return metrics, choose_videos(read_index(args.features), level, args)


# Rates and steps for thousands of windows; the paper's 1e-5, halved every 1,000 steps, are for millions.
SMALL_DATA = "--batch-size 32 --learning-rate 3e-4 --decay-steps 0"

# ---------------------------------------------------------------- demo

DEMO_LEVELS = {  # on few clips the paper's margin of 1 and lambda of 0.5 can pull all embeddings to one point
    "bin": "--epochs 5",
    "task": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 300 --epochs 5",
    "sd": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 5",
    "team": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 8",
    "gen": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 11",
}


def demo(args):
    """Simulate, extract, pretrain, attribute: 6 minutes on two cores, no data needed; results in runs/demo."""
    from baselines import linear_probe
    from evaluation import score

    name = f"demo-{args.limit}" if args.limit else "demo"
    run, features = args.run or f"runs/{name}", args.features or f"features/{name}"
    limit = ["--limit", args.limit] if args.limit else []
    started = time.time()
    simulated = stage("simulate_videos")["written"]
    seconds = {"simulate": (simulated, time.time() - started)}
    started = time.time()
    extracted = stage("01_extract_features", "--features", features, "--pool", 2, *limit)["videos"]
    seconds["extract"] = (extracted, time.time() - started)
    lines = [
        "| level | classes | test clips | chance micro / macro | SAGA micro (95%) / macro | linear probe micro / macro "
        "| seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for level, flags in DEMO_LEVELS.items():
        metrics, videos = train(level, "--features", features, "--run", run, *SMALL_DATA.split(), *flags.split())
        linear = score([row["label"] for row in videos.test], linear_probe(videos), videos.classes)
        low, high = metrics["accuracy_interval"]
        lines.append(
            f"| {level.upper()}-L | {len(metrics['classes'])} | {metrics['videos']} |"
            f" {metrics['majority']:.2f} / {metrics['uniform']:.2f} |"
            f" {metrics['accuracy']:.2f} ({low:.2f}-{high:.2f}) / {metrics['macro_accuracy']:.2f} |"
            f" {linear['accuracy']:.2f} / {linear['macro_accuracy']:.2f} | {metrics['recipe']['seconds']:.0f} |"
        )
    print("\nSimulated clips, one seed: these accuracies say nothing about real generators.\n")
    print("\n".join(lines) + "\n")
    for name, (work, spent) in seconds.items():
        print(f"{name}: {f'{work} clips in {spent:.0f} s' if work else 'up to date'}")
    print(f"figures: {', '.join(sorted(str(path) for path in Path(run).glob('*.png')))}")


# ---------------------------------------------------------------- corpus

CORPUS = f"{SMALL_DATA} --best last --epochs 12 --weight-decay 0.05"


def corpus_csv(corpus, path):
    """Write the CSV that 01 reads: path, generator, group.

    Clips of one source repository are one group where their label has several repositories, and so are clips noted
    to share a first frame or content; every other clip stands alone.
    """
    with open(Path(corpus) / "clips.csv", newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    if missing := {"path", "label", "repo", "notes"} - set(clips[0] if clips else ()):
        raise ValueError(f"{corpus}/clips.csv: missing column(s) {', '.join(sorted(missing))}")
    repositories, group = {}, {clip["path"]: clip["path"] for clip in clips}
    for clip in clips:
        repositories.setdefault(clip["label"], set()).add(clip["repo"])
    joined = [(clip["path"], clip["repo"]) for clip in clips if len(repositories[clip["label"]]) > 1]
    for clip in clips:
        if shared := re.search(r"shares first frame/content with (\S+)", clip["notes"]):
            joined.append((clip["path"], f"{clip['label']}/{shared[1]}"))
    for one, other in joined:
        old, new = group[one], group.setdefault(other, other)
        group = {name: new if whose == old else whose for name, whose in group.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "generator", "group"])
        for clip in clips:
            place = (Path(corpus) / "clips" / clip["path"]).resolve()
            writer.writerow([place, clip["label"], group[clip["path"]]])


def corpus(args):
    """Five levels on a folder of real clips, as they are and equalized: half an hour for 328 clips and one seed."""
    from common import LEVELS

    run, features = Path(args.run or "runs/corpus"), Path(args.features or "features/corpus")
    if not (Path(args.corpus) / "clips.csv").exists():
        raise ValueError(f"{args.corpus}/clips.csv is missing; name the folder of real clips with --corpus")
    videos = features.parent / f"{features.name}.csv"
    corpus_csv(args.corpus, videos)
    limit = ["--limit", args.limit] if args.limit else []
    results = []
    for variant, flags in {"as they are": [], "equalized": ["--equalize"]}.items():
        folder = features.with_name(features.name + "-equalized" * bool(flags))
        stage("01_extract_features", "--videos", videos, "--features", folder, "--pool", 2, *flags, *limit)
        seeds = []
        for seed in range(args.seeds):
            places = [run / f"{folder.name}-seed{seed}-fold{k}" for k in range(1, FOLDS + 1)]
            seeds.append([corpus_fold(folder, place, seed, k) for k, place in enumerate(places, 1)])
        results += [
            corpus_row(variant, level, [[fold[level] for fold in folds] for folds in seeds]) for level in LEVELS
        ]
    write_corpus(results, args.seeds)
    return results


def corpus_fold(features, run, seed, k):
    """One fold's test labels and what each model calls them: {level: {"labels": names, model: names}}."""
    from baselines import PROBES
    from common import LEVELS

    found = {}
    place = ["--features", features, "--run", run, "--fold", f"{k}/{FOLDS}", "--seed", seed, *CORPUS.split()]
    for level in LEVELS:
        metrics, videos = train(level, *place, *([] if level == "bin" else ["--normalize"]))
        found[level] = {"labels": [videos.classes[row["label"]] for row in videos.test]}
        found[level]["SAGA"] = saga_predictions(run, level, metrics["classes"])
        for probe, predict in PROBES.items():
            found[level][probe] = [videos.classes[i] for i in predict(videos, seed).argmax(axis=1)]
    return found


def saga_predictions(run, level, classes):
    import numpy as np

    with np.load(Path(run) / f"{level}_embeddings.npz") as arrays:
        test = arrays["split"] == "test"
        return [classes[i] for i in arrays["probabilities"][test].argmax(axis=1)]


def corpus_row(variant, level, seeds):
    """A level's accuracies: folds are pooled, seeds averaged; the interval is that of as many clips as one seed tests.

    `seeds` holds per seed and fold {"labels": names, model: names}.
    """
    import numpy as np

    from evaluation import wilson_interval

    row = {"clips": variant, "level": level, "models": {}}
    for model in ("SAGA", "linear on mean tokens", "metadata only"):
        micro, macro, folds = [], [], []
        for tests in seeds:
            labels, called = (np.concatenate([fold[key] for fold in tests]) for key in ("labels", model))
            names, counts = np.unique(labels, return_counts=True)
            right = labels == called
            micro.append(right.mean())
            macro.append(np.mean([right[labels == name].mean() for name in names]))
            folds.append([np.mean(np.array(fold["labels"]) == np.array(fold[model])) for fold in tests])
        interval = wilson_interval(np.mean(micro) * len(labels), len(labels))
        row["models"][model] = {"micro": np.mean(micro), "interval": interval, "macro": np.mean(macro), "folds": folds}
    row |= {"videos": len(labels), "classes": len(names), "majority": counts.max() / len(labels)}
    return json.loads(json.dumps(row | {"uniform": 1 / len(names)}, default=float))


def write_corpus(results, seeds):
    lines = [
        "| clips | level | classes | test clips | chance micro / macro | SAGA micro (95%) / macro | SAGA by fold |"
        " linear micro / macro | metadata micro / macro |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        saga, linear, metadata = row["models"].values()
        low, high = saga["interval"]
        lines.append(
            f"| {row['clips']} | {row['level'].upper()}-L | {row['classes']} | {row['videos']} |"
            f" {row['majority']:.2f} / {row['uniform']:.2f} |"
            f" {saga['micro']:.2f} ({low:.2f}-{high:.2f}) / {saga['macro']:.2f} |"
            f" {', '.join(f'{value:.2f}' for value in saga['folds'][0])} |"
            f" {linear['micro']:.2f} / {linear['macro']:.2f} | {metadata['micro']:.2f} / {metadata['macro']:.2f} |"
        )
    Path("results").mkdir(exist_ok=True)
    Path("results/corpus.json").write_text(json.dumps({"seeds": seeds, "rows": results}, indent=1) + "\n")
    Path("results/corpus.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


ENTRIES = {"demo": demo, "corpus": corpus}


def main(argv=None):
    args = get_args(argv)
    if args.list:
        print("\n".join(f"{name:8} {entry.__doc__.strip()}" for name, entry in ENTRIES.items()))
        return None
    return ENTRIES[args.name](args)


if __name__ == "__main__":
    from common import run_script

    run_script(main)
