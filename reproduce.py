"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py corpus --corpus ../shared/corpus

demo              simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/demo
corpus            a folder of real clips with clips.csv (path,label,repo,notes): five-fold grouped cross-validation of
                  all five levels, as the clips are and equalized, beside a metadata-only and a linear probe
mobilenet-layers  three layers of MobileNet on the corpus at GEN-L: linear probe, and SAGA in one stage
options           what --pool, --dtype and --encoder-dtype change, in tokens and at GEN-L

All but the first write results/<name>.json and .md; results/corpus.* keeps the rows of other encoders.
"""

import argparse
import contextlib
import csv
import importlib
import json
import math
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
    parser.add_argument("--encoder", choices=tuple(CORPUS_ENCODERS), default="dct", help="corpus: the frozen encoder")
    parser.add_argument("--encoder-weights", help="mobilenet's weights, for a machine that cannot download them")
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


CORPUS_ENCODERS = {  # four tokens a frame each
    "dct": "--pool 2",
    "mobilenet": "--encoder mobilenet --layer conv_pw_3 --pool 28",
}
VARIANTS = {"as they are": "", "equalized": "--equalize"}


def extract_corpus(args, flags):
    """Features of the corpus by stage 01, in a folder named after its flags."""
    if not (Path(args.corpus) / "clips.csv").exists():
        raise ValueError(f"{args.corpus}/clips.csv is missing; name the folder of real clips with --corpus")
    videos = Path(args.features or "features/corpus").with_suffix(".csv")
    corpus_csv(args.corpus, videos)
    return extract(args, videos, videos.with_suffix(""), flags)


def extract(args, videos, features, flags):
    folder = features.with_name("-".join([features.name, *re.findall(r"\w+", flags)]))
    weights = ["--encoder-weights", args.encoder_weights] if "mobilenet" in flags and args.encoder_weights else []
    limit = ["--limit", args.limit] if args.limit else []
    stage("01_extract_features", "--videos", videos, "--features", folder, *flags.split(), *weights, *limit)
    return folder


def corpus(args):
    """Five levels on a folder of real clips, as they are and equalized, by an --encoder: half an hour for one seed."""
    from common import LEVELS

    results = []
    for variant, flags in VARIANTS.items():
        folder = extract_corpus(args, f"{CORPUS_ENCODERS[args.encoder]} {flags}")
        runs = Path(args.run or "runs/corpus") / folder.name
        seeds = [
            [corpus_fold(folder, runs / f"seed{seed}-fold{k}", seed, k) for k in range(1, FOLDS + 1)]
            for seed in range(args.seeds)
        ]
        results += [
            {"encoder": args.encoder, "clips": variant, "seeds": args.seeds} | accuracy_row(level, seeds)
            for level in LEVELS
        ]
    write_corpus(results)
    return results


def corpus_fold(features, run, seed, k):
    """One fold's test labels and what each model calls them: {level: {"labels": names, model: names}}."""
    from common import LEVELS

    place = ["--features", features, "--run", run, "--fold", f"{k}/{FOLDS}", "--seed", seed, *CORPUS.split()]
    return {level: called(level, run, seed, *place, *([] if level == "bin" else ["--normalize"])) for level in LEVELS}


def called(level, run, seed, *arguments):
    """Train SAGA and the probes at a level: {"labels": the test labels, model: what it calls them}."""
    import numpy as np

    from baselines import PROBES

    metrics, videos = train(level, *arguments)
    with np.load(Path(run) / f"{level}_embeddings.npz") as arrays:
        test = arrays["split"] == "test"
        names = {"SAGA": [metrics["classes"][i] for i in arrays["probabilities"][test].argmax(axis=1)]}
    for probe, predict in PROBES.items():
        names[probe] = [videos.classes[i] for i in predict(videos, seed).argmax(axis=1)]
    return {"labels": [videos.classes[row["label"]] for row in videos.test]} | names


def accuracy_row(level, seeds):
    """A level's accuracies: folds are pooled, seeds averaged; the interval is that of as many clips as one seed tests.

    `seeds` holds per seed and fold {level: {"labels": names, model: names}}.
    """
    import numpy as np

    from evaluation import wilson_interval

    seeds = [[fold[level] for fold in folds] for folds in seeds]
    row = {"level": level, "models": {}}
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


def write_corpus(results):
    """Add an encoder's rows to results/corpus.*, in place of its older ones."""
    path = Path("results/corpus.json")
    older = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in older if row["encoder"] != results[0]["encoder"]] + results
    lines = [
        "| clips | level | encoder | classes | test clips | chance micro / macro | SAGA micro (95%) / macro |"
        " SAGA by fold | linear micro / macro | metadata micro / macro |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {key: i for i, key in enumerate([*VARIANTS, "bin", "task", "sd", "team", "gen"])}
    rows.sort(key=lambda row: (order[row["clips"]], order[row["level"]], row["encoder"]))
    for row in rows:
        saga, linear, metadata = row["models"].values()
        low, high = saga["interval"]
        lines.append(
            f"| {row['clips']} | {row['level'].upper()}-L | {row['encoder']} | {row['classes']} | {row['videos']} |"
            f" {row['majority']:.2f} / {row['uniform']:.2f} |"
            f" {saga['micro']:.2f} ({low:.2f}-{high:.2f}) / {saga['macro']:.2f} |"
            f" {', '.join(f'{value:.2f}' for value in saga['folds'][0])} |"
            f" {linear['micro']:.2f} / {linear['macro']:.2f} | {metadata['micro']:.2f} / {metadata['macro']:.2f} |"
        )
    write_results("corpus", rows, lines)


def write_results(name, results, lines):
    from features import write_json

    write_json(Path(f"results/{name}.json"), results)
    Path(f"results/{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


# ---------------------------------------------------------------- mobilenet-layers, options

# Per encoder its settings: (flags of 01, flags of 03). The first is what the tokens of the others are compared with.
LAYERS = {  # each pooled to four tokens a frame
    layer: {layer: (f"--encoder mobilenet --layer {layer} --pool {pool}", "")}
    for layer, pool in {"conv_pw_3": 28, "conv_pw_5": 14, "conv_pw_11": 7}.items()
}
MOBILENET = CORPUS_ENCODERS["mobilenet"]
OPTIONS = {
    "dct": {
        "--pool 1": ("", ""),
        "--pool 2": ("--pool 2", ""),
        "--pool 4": ("--pool 4", ""),
        "--pool 2, --dtype mixed_bfloat16": ("--pool 2", "--dtype mixed_bfloat16"),
    },
    "mobilenet": {
        "--pool 28": (MOBILENET, ""),
        "--pool 28, --encoder-dtype bfloat16": (f"{MOBILENET} --encoder-dtype bfloat16", ""),
    },
}


def mobilenet_layers(args):
    """Layers of MobileNet at GEN-L on the corpus, as the clips are and equalized: SAGA from scratch, linear probe."""
    return compare(args, "mobilenet-layers", LAYERS, VARIANTS)


def options(args):
    """What --pool, --dtype and --encoder-dtype change, in tokens and at GEN-L, on 30 clips per class and the corpus."""
    return compare(args, "options", OPTIONS, {"zoo": None, "equalized": "--equalize"})


def compare(args, name, encoders, datasets):
    """A row per data set and setting: tokens, their change, GEN-L accuracy of SAGA (one stage, CE) and the probe."""
    lines = [
        "| clips | encoder | setting | tokens | change | test clips | chance micro / macro | SAGA micro (95%) / macro |"
        " linear micro / macro |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for data, equalize in datasets.items():
        for encoder, settings in encoders.items():
            reference = None
            for setting, (extraction, training) in settings.items():
                folder = (
                    extract_zoo(args, extraction) if data == "zoo" else extract_corpus(args, f"{extraction} {equalize}")
                )
                reference = reference or folder
                seeds = one_stage(args, folder, training, [None] if data == "zoo" else range(1, FOLDS + 1))
                row = {"clips": data, "encoder": encoder, "setting": setting, "seeds": args.seeds} | accuracy_row(
                    "gen", seeds
                )
                rows.append(row | {"change": token_change(folder, reference)})
                lines.append(compare_line(rows[-1], folder))
    write_results(name, rows, lines)
    return rows


def extract_zoo(args, flags):
    stage("simulate_videos")
    return extract(args, "data/zoo", Path("features/zoo"), f"{flags} --limit 30")


def one_stage(args, features, flags, folds):
    """SAGA at GEN-L from scratch with cross-entropy, and the probes, by seed and fold."""
    runs = Path(args.run or "runs/compare") / "-".join([features.name, *re.findall(r"\w+", flags)])
    seeds = []
    for seed in range(args.seeds):
        seeds.append([])
        for k in folds:
            run = runs / f"seed{seed}-fold{k}"
            place = ["--features", features, "--run", run, "--seed", seed, *CORPUS.split(), *flags.split()]
            fold = ["--fold", f"{k}/{FOLDS}"] if k else []
            seeds[-1].append({"gen": called("gen", run, seed, *place, *fold, "--init", "scratch", "--loss", "ce")})
    return seeds


def token_change(folder, reference) -> float:
    """RMS difference of tokens from a reference's, pooled ones spread again, over the RMS deviation from their mean."""
    import numpy as np

    from features import features_file, map_tokens, read_index

    difference = total = square = count = 0
    for row in read_index(reference):
        files = (features_file(place, row["path"]) for place in (folder, reference))
        ours, theirs = (np.float64(map_tokens(file)) for file in files)  # (S, L, T, D)
        side, grid = (math.isqrt(tokens.shape[2]) for tokens in (ours, theirs))
        spread = ours.reshape(*ours.shape[:2], side, side, -1).repeat(grid // side, 2).repeat(grid // side, 3)
        difference += np.square(spread.reshape(theirs.shape) - theirs).sum()
        total += theirs.sum((0, 1, 2))
        square += np.square(theirs).sum()
        count += theirs[..., 0].size
    return float(np.sqrt(difference / (square - np.square(total).sum() / count)))


def compare_line(row, folder):
    from features import read_json

    recipe = read_json(folder / "recipe.json")
    saga, linear, _ = row["models"].values()
    low, high = saga["interval"]
    return (
        f"| {row['clips']} | {row['encoder']} | {row['setting']} | {recipe['tokens']} x {recipe['dim']} |"
        f" {row['change']:.3f} | {row['videos']} | {row['majority']:.2f} / {row['uniform']:.2f} |"
        f" {saga['micro']:.2f} ({low:.2f}-{high:.2f}) / {saga['macro']:.2f} |"
        f" {linear['micro']:.2f} / {linear['macro']:.2f} |"
    )


ENTRIES = {"demo": demo, "corpus": corpus, "mobilenet-layers": mobilenet_layers, "options": options}


def main(argv=None):
    args = get_args(argv)
    if args.list:
        print("\n".join(f"{name:16} {entry.__doc__.strip()}" for name, entry in ENTRIES.items()))
        return None
    return ENTRIES[args.name](args)


if __name__ == "__main__":
    from common import run_script

    run_script(main)
