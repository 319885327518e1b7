"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py corpus --corpus ../shared/corpus

demo    simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/zoo
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
    parser.add_argument("--features", help="folder of the features; default features/zoo or features/corpus")
    parser.add_argument("--run", help="folder of the runs; default runs/zoo or runs/corpus")
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
        return metrics, choose_videos(read_index(args.features), level, args, args.labels_per_class)


# Rates and steps for thousands of windows; the paper's 1e-5, halved every 1,000 steps, are for millions.
SMALL_DATA = "--batch-size 32 --learning-rate 3e-4 --decay-steps 0"

# ---------------------------------------------------------------- demo

DEMO_LEVELS = {
    "bin": "--epochs 5",
    "task": "--normalize --labels-per-class 150 --epochs 6",
    "sd": "--normalize --labels-per-class 100 --epochs 6",
    "team": "--normalize --labels-per-class 100 --epochs 8",
    "gen": "--normalize --labels-per-class 100 --epochs 12",
}


def demo(args):
    """Simulate, extract, pretrain, attribute: 6 minutes on two cores, no data needed; results in runs/zoo."""
    from baselines import linear_probe
    from evaluation import score

    run, features = args.run or "runs/zoo", args.features or "features/zoo"
    started = time.time()
    simulated = stage("simulate_videos", "--clips-per-generator", args.limit or 60)["written"]
    seconds = {"simulate": (simulated, time.time() - started)}
    started = time.time()
    extracted = stage("01_extract_features", "--features", features, "--pool", 2)["videos"]
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
    """Write the CSV that 01 reads. The group is the source repository where a label has several; otherwise clips that
    are noted to share a first frame or content with another go with it, and every other clip stands alone.
    """
    with open(Path(corpus) / "clips.csv", newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    repositories = {}
    for clip in clips:
        repositories.setdefault(clip["label"], set()).add(clip["repo"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "generator", "group"])
        for clip in clips:
            shared = re.search(r"shares first frame/content with (\S+)", clip["notes"])
            own = f"{clip['label']}/{shared[1]}" if shared else clip["path"]
            group = clip["repo"] if len(repositories[clip["label"]]) > 1 else own
            writer.writerow([(Path(corpus) / "clips" / clip["path"]).resolve(), clip["label"], group])


def corpus(args):
    """Five levels on a folder of real clips, as they are and equalized: half an hour for 328 clips and one seed."""
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
        tests = {}
        for seed in range(args.seeds):
            for k in range(1, FOLDS + 1):
                fold_run = run / f"{folder.name}-seed{seed}-fold{k}"
                for level, scores in corpus_fold(folder, fold_run, seed, k).items():
                    tests.setdefault(level, []).append(scores)
        results += [corpus_row(variant, level, folds) for level, folds in tests.items()]
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


def corpus_row(variant, level, folds):
    """Pool the folds of a level: micro and macro accuracy per model, both chance levels, accuracies per fold."""
    import numpy as np

    from evaluation import wilson_interval

    labels = np.array([name for fold in folds for name in fold["labels"]])
    names, counts = np.unique(labels, return_counts=True)
    row = {"clips": variant, "level": level, "videos": len(labels), "classes": len(names)}
    row |= {"majority": counts.max() / len(labels), "uniform": 1 / len(names), "models": {}}
    for model in ("SAGA", "linear on mean tokens", "metadata only"):
        right = np.array([name for fold in folds for name in fold[model]]) == labels
        row["models"][model] = {
            "micro": right.mean(),
            "interval": wilson_interval(right.sum(), len(right)),
            "macro": np.mean([right[labels == name].mean() for name in names]),
            "folds": [np.mean(np.array(fold[model]) == np.array(fold["labels"])) for fold in folds],
        }
    return json.loads(json.dumps(row, default=float))


def write_corpus(results, seeds):
    lines = [
        "| clips | level | classes | test clips | chance micro / macro | SAGA micro (95%) / macro | folds of SAGA |"
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
            f" {', '.join(f'{value:.2f}' for value in saga['folds'])} |"
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
