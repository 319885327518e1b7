"""The numbered scripts as functions, the papers' ways to train as data, and where an experiment's runs and results are.

metrics = stage("02_pretrain_binary", "--features", features)
runs = train_arm(args, data, "2-stage few CE+HNM", "gen", seed=0)      a run folder per fold, trained or up to date
labels, called = tested(run, "gen")
"""

import contextlib
import hashlib
import importlib
import math
import re
from pathlib import Path

import numpy as np

from tokens.dataset import read_index, read_json, write_json
from tokens.split import choose_videos
from training.callbacks import CollapseError

# Rates and steps for thousands of windows; the paper's 1e-5, halved every 1,000 steps, are for millions.
SMALL_DATA = "--batch-size 32 --learning-rate 3e-4 --decay-steps 0"
# On few clips the paper's margin of 1 and lambda of 0.5 can pull all embeddings to one point.
SMALL_MINING = "--normalize --margin 0.2 --ce-weight 0.8"


def stage(name, *arguments):
    """Run a numbered script's main with these arguments."""
    return importlib.import_module(name).main([str(argument) for argument in arguments])


def script(level):
    return "02_pretrain_binary" if level == "bin" else "03_attribute"


def chosen_videos(level, *arguments):
    """The videos that stage 1 or 2 chooses at a level with these arguments."""
    args = importlib.import_module(script(level)).get_args([str(argument) for argument in arguments])
    with contextlib.redirect_stdout(None):  # the stage says it itself
        return choose_videos(read_index(args.features), level, args)


def train(level, *arguments):
    """Stage 1 or 2 at a level; (metrics, the videos it chose)."""
    arguments = [*arguments, *([] if level == "bin" else ["--level", level])]
    return stage(script(level), *arguments), chosen_videos(level, *arguments)


def tested(run, level):
    """What a run's test videos are and what it calls them, two arrays (V,) of class names."""
    classes = np.array(read_json(Path(run) / f"{level}.json", ("classes",))["classes"])
    with np.load(Path(run) / f"{level}_embeddings.npz", allow_pickle=False) as arrays:
        test = arrays["split"] == "test"
        return arrays["class"][test], classes[arrays["probabilities"][test].argmax(axis=1)]


# ---------------------------------------------------------------- the papers' ways to train

# An arm is "<stages> <labels> <loss>": few is the paper's 0.5%, 500 labels per class, all its 100%, a number itself.
ONE_FEW, ONE_ALL, TWO_FEW = "1-stage few CE+HNM", "1-stage all CE+HNM", "2-stage few CE+HNM"
ARMS = ("1-stage few CE", ONE_FEW, "2-stage few CE", TWO_FEW, "1-stage all CE", ONE_ALL)
STAGE_ONE = "1-stage all"
PAPER_LOSSES = {"CE": "--loss ce", "CE+semi-HNM": "--loss semi", "CE+HNM": "--loss hnm"}
SMALL_LOSSES = {
    "CE": "--loss ce",
    "CE+semi-HNM": f"--loss semi {SMALL_MINING}",
    "CE+HNM": f"--loss hnm {SMALL_MINING}",
}
EPOCHS = 60  # at most, on small data


def train_arm(args, data, arm, level, seed, only=(), **change) -> list[Path | None]:
    """The run folders of an arm at a level, one per fold; None where mining collapsed. What is up to date stays.

    `only` are flags that stage 1 shares, such as --train-generators. An ablation's `change`: `last`, flags of the last
    stage alone, and `longer`, times as many of its steps.
    """
    return [train_fold(args, data, arm, level, seed, fold, only, **change) for fold in data.folds]


def effective(level, settings, flags):
    """The flags, or none where they change nothing, so that the run is shared."""
    parse = importlib.import_module(script(level)).get_args
    return () if parse([*settings, *flags]) == parse([*settings]) else flags


def train_fold(args, data, arm, level, seed, fold, only, last=(), longer=1):
    stages, labels, loss = f"{arm} ".split(" ", 2)
    count = {"few": str(data.few)}.get(labels, labels)
    settings = [] if args.full else SMALL_DATA.split()
    settings += ["--labels-per-class", count, *effective(level, (), only)]
    settings += ["--best", "last"] if fold else []  # a fold has no val to choose by
    settings += ["--limit", str(args.limit)] if args.limit else []
    if level != "bin":
        losses = PAPER_LOSSES if args.full else SMALL_LOSSES
        settings += ["--level", level, *losses[loss.strip()].split()]
    settings += effective(level, settings, last)
    key = " ".join([*settings, *[f"longer {longer}"] * (longer > 1), data.digest])
    key = hashlib.sha256(key.encode()).hexdigest()[:8]
    folder = (
        Path(args.run or "runs/paper") / data.features.name / "-".join([*re.findall(r"\w+", f"{arm} {level}"), key])
    )
    run = folder / "-".join([f"seed{seed}", *([f"fold{fold[0]}"] if fold else [])])
    if stages == "2-stage":
        settings += ["--init", train_fold(args, data, STAGE_ONE, "bin", seed, fold, only) / "bin.keras"]
    elif level != "bin":
        settings += ["--init", "scratch"]
    settings += ["--features", data.features, "--seed", seed, *(["--fold", fold] if fold else [])]
    if args.full:
        settings += ["--epochs", 10 * longer]
    else:
        windows = sum(row["windows"] for row in chosen_videos(level, *settings).train)
        steps = longer * data.steps["all" if labels == "all" else "few"]
        settings += ["--epochs", min(math.ceil(steps / max(windows // 32, 1)), EPOCHS * longer)]
    try:
        stage(script(level), *settings, "--run", run)
    except CollapseError as collapse:
        print(f"{run}: {collapse}")
        return None
    return run


def fold_videos(args, data, level, labels, seed, fold):
    """Who trains and who is tested at a level, as SAGA has it. With few labels nobody is val, which has no limit."""
    flags = ["--features", data.features, "--seed", seed, "--labels-per-class", data.few if labels == "few" else "all"]
    flags += [] if level == "bin" else ["--level", level]
    flags += ["--fold", fold, "--best", "last"] if fold else []
    flags += ["--limit", args.limit] if args.limit else []
    videos = chosen_videos(level, *flags)
    return videos._replace(val=[]) if labels == "few" else videos


# ---------------------------------------------------------------- results


def results_folder(args, data=None):
    """Where an experiment writes: results, or a folder in it for other data than the zoo's, --full and --limit."""
    parts = ["full"] * args.full + ([f"limit-{args.limit}"] if args.limit else [])
    parts += [data.name] if data and data.name != "zoo-dct" else []
    folder = Path("results", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_results(args, name, results, lines, data=None):
    """Write <name>.json and, the lines of its table, <name>.md; print the table."""
    folder = results_folder(args, data)
    write_json(folder / f"{name}.json", results)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def markdown(header, rows):
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
