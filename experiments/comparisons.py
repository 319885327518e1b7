"""Encoders, layers and options compared on few clips: SAGA beside probes, by grouped cross-validation.

reads   a corpus, a folder of real clips with clips.csv (path,label,repo,notes), or the simulated zoo
writes  features/, runs/, and results/<name>.json and .md: accuracies of SAGA and the probes, beside chance, per setting

`corpus`, `mobilenet_layers` and `options` are entries of reproduce.py and take its arguments. Of 233 real clips expect
accuracies near those of the probes, with intervals of 6 points.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from common import LEVELS
from experiments.datasets import ENCODERS, FOLDS, VARIANTS, extract_corpus, extract_zoo
from experiments.probes import PROBES
from experiments.stages import SMALL_DATA, markdown, results_folder, tested, train, write_results
from tokens.dataset import features_file, map_tokens, read_index, read_json
from training.evaluation import score_names, wilson_interval

TRAINING = f"{SMALL_DATA} --best last --epochs 12 --weight-decay 0.05"

# ---------------------------------------------------------------- training


def called(level, run, seed, *arguments):
    """Train SAGA and the probes at a level: {"labels": the test labels, model: what it calls them}."""
    _, videos = train(level, "--run", run, "--seed", seed, *TRAINING.split(), *arguments)
    names = dict(zip(("labels", "SAGA"), tested(run, level), strict=True))
    for probe, predict in PROBES.items():
        names[probe] = [videos.classes[i] for i in predict(videos, seed).argmax(axis=1)]
    return names


def accuracy_row(seeds):
    """A level's accuracies: folds are pooled, seeds averaged; the interval is that of as many clips as one seed tests.

    `seeds` holds per seed and fold what `called` returns.
    """
    models = {}
    for model in ("SAGA", *PROBES):
        micro, macro, folds = [], [], []
        for tests in seeds:
            pooled = score_names(*(np.concatenate([fold[key] for fold in tests]) for key in ("labels", model)))
            micro.append(pooled["micro"])
            macro.append(pooled["macro"])
            folds.append([np.mean(np.array(fold["labels"]) == np.array(fold[model])) for fold in tests])
        interval = wilson_interval(np.mean(micro) * pooled["videos"], pooled["videos"])
        models[model] = {"micro": np.mean(micro), "interval": interval, "macro": np.mean(macro), "folds": folds}
    row = {key: pooled[key] for key in ("videos", "classes", "majority", "uniform")}
    return json.loads(json.dumps(row | {"seeds": len(seeds), "models": models}, default=float))


def accuracy_cells(row):
    """Test clips, chance, SAGA and the linear probe as cells of a table."""
    saga, linear = row["models"]["SAGA"], row["models"]["linear on mean tokens"]
    low, high = saga["interval"]
    return [
        f"{row['videos']}",
        f"{row['majority']:.2f} / {row['uniform']:.2f}",
        f"{saga['micro']:.2f} ({low:.2f}-{high:.2f}) / {saga['macro']:.2f}",
        f"{linear['micro']:.2f} / {linear['macro']:.2f}",
    ]


ACCURACY = ["test clips", "chance micro / macro", "SAGA micro (95%) / macro", "linear micro / macro"]


# ---------------------------------------------------------------- the entry corpus


def corpus(args):
    """Five levels on a folder of real clips, as they are and equalized, by an --encoder: half an hour for one seed."""
    results = []
    for variant, flags in VARIANTS.items():
        folder = extract_corpus(args, f"{ENCODERS[args.encoder]} {flags}")
        runs = Path(args.run or "runs/corpus") / folder.name
        seeds = [
            [five_levels(folder, runs / f"seed{seed}-fold{k}", seed, k) for k in range(1, FOLDS + 1)]
            for seed in range(args.seeds)
        ]
        for level in LEVELS:
            row = accuracy_row([[fold[level] for fold in folds] for folds in seeds])
            results.append({"encoder": args.encoder, "clips": variant, "level": level} | row)
    write_corpus(args, results)
    return results


def five_levels(features, run, seed, k):
    """One fold's labels and predictions per level, each level but the first adapted from stage 1's model."""
    place = ["--features", features, "--fold", f"{k}/{FOLDS}"]
    return {level: called(level, run, seed, *place, *([] if level == "bin" else ["--normalize"])) for level in LEVELS}


def write_corpus(args, results):
    """Add an encoder's rows to results/corpus.*, in place of its older ones."""
    path = results_folder(args) / "corpus.json"
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [row for row in older if row["encoder"] != results[0]["encoder"]] + results
    order = {key: i for i, key in enumerate([*VARIANTS, *LEVELS])}
    rows.sort(key=lambda row: (order[row["clips"]], order[row["level"]], row["encoder"]))
    cells = []
    for row in rows:
        saga, metadata = row["models"]["SAGA"], row["models"]["metadata only"]
        cells.append([row["clips"], f"{row['level'].upper()}-L", row["encoder"], f"{row['classes']}"])
        cells[-1] += accuracy_cells(row)
        cells[-1] += [f"{metadata['micro']:.2f} / {metadata['macro']:.2f}"]
        cells[-1] += [", ".join(f"{value:.2f}" for value in saga["folds"][0])]
    header = ["clips", "level", "encoder", "classes", *ACCURACY, "metadata micro / macro", "SAGA by fold"]
    write_results(args, "corpus", rows, markdown(header, cells))


# ---------------------------------------------------------------- the entries mobilenet-layers and options

# Per encoder its settings: (flags of 01, flags of 03). Tokens are compared with those of the first.
LAYERS = {
    "mobilenet": {  # four tokens a frame each
        f"--layer {layer} --pool {pool}": (f"--encoder mobilenet --layer {layer} --pool {pool}", "")
        for layer, pool in {"conv_pw_3": 28, "conv_pw_5": 14, "conv_pw_11": 7}.items()
    }
}
OPTIONS = {
    "dct": {
        "--pool 1": ("", ""),
        "--pool 2": ("--pool 2", ""),
        "--pool 4": ("--pool 4", ""),
        "--pool 2, --dtype mixed_bfloat16": ("--pool 2", "--dtype mixed_bfloat16"),
    },
    "mobilenet": {
        "--pool 14": (ENCODERS["mobilenet"], ""),
        "--pool 14, --encoder-dtype bfloat16": (f"{ENCODERS['mobilenet']} --encoder-dtype bfloat16", ""),
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
    rows, cells = [], []
    for data, equalize in datasets.items():
        for encoder, settings in encoders.items():
            folders = []
            for setting, (extraction, training) in settings.items():
                folder = (
                    extract_zoo(args, extraction) if data == "zoo" else extract_corpus(args, f"{extraction} {equalize}")
                )
                folders.append(folder)
                seeds = one_stage(args, folder, training, [None] if data == "zoo" else range(1, FOLDS + 1))
                row = {"clips": data, "encoder": encoder, "setting": setting}
                row["change"] = None if folder in folders[:-1] else token_change(folder, folders[0])
                rows.append(row | accuracy_row(seeds))
                recipe = read_json(folder / "recipe.json")
                tokens = f"{recipe['tokens']} x {recipe['dim']}"
                tokens += "" if row["change"] is None else f" ({row['change']:.3f})"
                cells.append([data, encoder, f"`{setting}`", tokens, *accuracy_cells(rows[-1])])
    header = ["clips", "encoder", "setting", "tokens (change)" if any(row["change"] for row in rows) else "tokens"]
    write_results(args, name, rows, markdown([*header, *ACCURACY], cells))
    return rows


def one_stage(args, features, flags, folds):
    """SAGA at GEN-L from scratch with cross-entropy, and the probes, by seed and fold."""
    runs = Path(args.run or "runs/compare") / "-".join([features.name, *re.findall(r"\w+", flags)])
    place = ["--features", features, "--init", "scratch", "--loss", "ce", *flags.split()]
    return [
        [
            called("gen", runs / f"seed{seed}-fold{k}", seed, *place, *(["--fold", f"{k}/{FOLDS}"] if k else []))
            for k in folds
        ]
        for seed in range(args.seeds)
    ]


def token_change(folder, reference) -> float | None:
    """RMS difference of tokens from a reference's, pooled ones spread again, over the RMS deviation from their mean.

    None for the reference itself and for tokens of another width.
    """
    widths = [read_json(place / "recipe.json")["dim"] for place in (folder, reference)]
    if folder == reference or widths[0] != widths[1]:
        return None
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
