"""The numbered scripts as functions, the papers' ways to train as data, and where an experiment's runs and results are.

metrics = stage("02_pretrain_binary", "--features", features)
runs = train_arm(args, data, TWO_FEW, "gen", seed=0)      a run folder per fold, trained or up to date
labels, predicted = tested(run, "gen")
"""

import contextlib
import hashlib
import importlib
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import read_arrays, read_json, write_json
from basics.running import fold as parse_fold
from tokens.dataset import read_index, usable
from tokens.generators import class_index, class_names, load_generators, stage_of
from tokens.split import Split, choose_videos

# ---------------------------------------------------------------- stages


MADE_ANEW = set()  # the calls, (name, *arguments), that this process has made with --overwrite


def stage(name, *arguments, overwrite=False):
    """Run a numbered script's main with these arguments; returns what main returns. Nothing else imports one by name.

    `overwrite` passes --overwrite the first time in this process, so that runs that tables share are made again once.
    """
    call = (name, *map(str, arguments))
    flags = ["--overwrite"] if overwrite and call not in MADE_ANEW else []
    MADE_ANEW.update([call] if flags else [])
    return importlib.import_module(name).main([*call[1:], *flags])


def script(level):
    return stage_of(level).removesuffix(".py")


def as_flags(settings):
    """Settings by name as a script's flags: {"margin": 0.2, "normalize": True} is --margin 0.2 --normalize."""
    flags = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", ",".join(value) if isinstance(value, list) else value]
    return flags


def train(level, features, run, settings, overwrite=False):
    """Run stage 1 or 2 at a level; the metrics that it wrote."""
    place = ["--features", features, "--run", run, *(() if level == "bin" else ("--level", level))]
    stage(script(level), *place, *as_flags(settings), overwrite=overwrite)
    return read_json(Path(run) / f"{level}.json")


# ---------------------------------------------------------------- what a run leaves


def clips_of(run, level, split="test"):
    """A run's clips of a split: probabilities (V, C), class, generator, video (V,) and, but for detectors on pixels,
    embedding (V, D) and group (V,); and the names of the classes (C,).
    """
    classes = np.array(read_json(Path(run) / f"{level}.json", {"classes": [str]})["classes"])
    holds = {"probabilities": f"p V {len(classes)}"}
    arrays = read_arrays(Path(run) / f"{level}_embeddings.npz", holds=holds)
    arrays.pop("recipe", None)
    chosen = arrays.pop("split") == split
    return {key: values[chosen] for key, values in arrays.items()}, classes


def tested(run, level):
    """The true and the predicted class names of a run's test videos, two arrays (V,)."""
    clips, classes = clips_of(run, level)
    return clips["class"], classes[clips["probabilities"].argmax(axis=1)]


def videos_of(metrics, features) -> Split:
    """The Split of a run, from its metrics and its features folder."""
    rows = {row.path: row for row in usable(read_index(features), features)}
    table, names = load_generators(), class_names(metrics["level"])

    def labelled(path):
        name = names[class_index(metrics["level"], rows[path].generator, table)]
        return rows[path]._replace(label=metrics["classes"].index(name))

    roles = {role: [labelled(path) for path in metrics["clips"][role]] for role in ("train", "val", "test")}
    unseen = [rows[path] for path in metrics["clips"]["unseen"]]
    return Split(tuple(metrics["classes"]), **roles, unseen=unseen, excluded=metrics["excluded"])


# ---------------------------------------------------------------- the papers' ways to train

# The paper's settings, which are the stages' defaults (a test checks it); those of mining are 03's alone.
PAPER = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-5, "decay_steps": 1000, "best": "val"}
PAPER |= {"batching": "natural", "temporal_blocks": 5, "dtype": "float32"}
PAPER_MINING = {"loss": "hnm", "ce_weight": 0.5, "margin": 1.0, "positives": "all", "normalize": False}
# Rates and steps for thousands of windows; the paper's 1e-5, halved every 1,000 steps, are for millions.
SMALL_DATA = {"batch_size": 32, "learning_rate": 3e-4, "decay_steps": 0}
# On few clips the paper's margin of 1 and lambda of 0.5 can pull all embeddings to one point.
SMALL_MINING = {"normalize": True, "margin": 0.2, "ce_weight": 0.8}
LOSS_FLAGS = {"CE": "ce", "CE+semi-HNM": "semi", "CE+HNM": "hnm"}  # as tables have them: the values of 03's --loss


class Arm(NamedTuple):
    """A way to train: in one stage or two, on how many labels per class, with which loss. Text in tables and files."""

    stages: int
    labels: str | int  # few: the paper's 0.5%, 500 labels per class; all: its 100%; or a number
    loss: str = ""  # of LOSS_FLAGS; stage 1 has no choice

    def __str__(self):
        return f"{self.stages}-stage {self.labels} {self.loss}".strip()


ONE_FEW, ONE_ALL, TWO_FEW = Arm(1, "few", "CE+HNM"), Arm(1, "all", "CE+HNM"), Arm(2, "few", "CE+HNM")
ALL_CE = Arm(1, "all", "CE")
ARMS = (Arm(1, "few", "CE"), ONE_FEW, Arm(2, "few", "CE"), TWO_FEW, ALL_CE, ONE_ALL)
STAGE_ONE = Arm(1, "all")  # at BIN-L
EPOCHS = 60  # at most, on small data
CHOICE = ("train_generators", "test_generators", "test_features", "labels_per_class", "limit")


def train_arm(args, data, arm, level, seed, only=None, **change) -> list[Path | None]:
    """The run folders of an arm at a level, one per fold; None where mining collapsed. What is up to date stays.

    `only` are settings that stage 1 shares, such as train_generators. An ablation's `change`: `last`, settings of the
    last stage alone, and `longer`, times as many of its steps.
    """
    return [train_fold(args, data, arm, level, seed, fold, only or {}, **change) for fold in data.folds]


def arm_settings(args, data, arm, level, fold, only, last):
    """All settings of the last stage of an arm but for its epochs: those that change nothing are the same ones."""
    settings = PAPER | ({} if args.full else SMALL_DATA)
    settings |= {"labels_per_class": data.few if arm.labels == "few" else arm.labels}
    settings |= {"limit": args.limit} if args.limit else {}
    if level != "bin":
        settings |= PAPER_MINING | {"loss": LOSS_FLAGS[arm.loss]}
        settings |= {} if args.full or settings["loss"] == "ce" else SMALL_MINING
    # a fold has no val to choose by
    return settings | only | last | ({"best": "last"} if fold else {})


def train_fold(args, data, arm, level, seed, fold, only, last=None, longer=1):
    settings = arm_settings(args, data, arm, level, fold, only, last or {})
    key = hashlib.sha256(f"{sorted(settings.items())} {longer} {data.digest}".encode()).hexdigest()[:8]
    folder = Path(args.run or "runs/paper") / data.place
    folder /= "-".join([*re.findall(r"\w+", f"{arm} {level}"), key])
    run = folder / part_name(seed, fold)
    if args.full:
        settings["epochs"] *= longer
    else:
        windows = sum(row.windows for row in chosen_videos(data, level, settings, seed, fold).train)
        steps = longer * data.steps["all" if arm.labels == "all" else "few"]
        settings["epochs"] = min(math.ceil(steps / max(windows // 32, 1)), EPOCHS * longer)
    settings |= {"seed": seed} | ({"fold": fold} if fold else {})
    if arm.stages == 2:
        settings["init"] = train_fold(args, data, STAGE_ONE, "bin", seed, fold, only) / "bin.keras"
    elif level != "bin":
        settings["init"] = "scratch"
    from training.callbacks import CollapseError  # here, since Keras comes with it

    try:
        train(level, data.features, run, settings, args.overwrite)
    except CollapseError as collapse:
        print(f"{run}: {collapse}")
        return None
    return run


def part_name(seed, fold):
    """The name of the folder of one run of an arm."""
    return f"seed{seed}" + (f"-fold{fold.split('/')[0]}" if fold else "")


def chosen_videos(data, level, settings, seed, fold) -> Split:
    """The Split at a level with these settings."""
    choice = {key: settings[key] for key in CHOICE if key in settings} | {"fold": parse_fold(fold) if fold else None}
    with contextlib.redirect_stdout(None):  # the stage says it itself
        return choose_videos(
            read_index(data.features),
            level,
            data.features,
            load_generators(),
            **choice,
            train_on_val=settings.get("best") == "last",
            seed=seed,
        )


def fold_videos(args, data, level, labels, seed, fold):
    """The Split at a level, as for SAGA. With few labels val is empty, since val is not limited by label counts."""
    settings = {"labels_per_class": data.few if labels == "few" else "all", "best": "last" if fold else "val"}
    videos = chosen_videos(data, level, settings | {"limit": args.limit}, seed, fold)
    return videos._replace(val=[]) if labels == "few" else videos


# ---------------------------------------------------------------- results


BUILT_IN = "zoo-dct"  # the data set whose results are in results/ itself


def results_folder(args, data=BUILT_IN):
    """Where an experiment writes: results, or a folder in it by the data's name, --full and --limit."""
    parts = ["full"] * args.full + ([f"limit-{args.limit}"] if args.limit else [])
    parts += [data] if data != BUILT_IN else []
    folder = Path("results", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_results(args, name, results, lines, data=BUILT_IN):
    """Write <name>.json and, the lines of its table, <name>.md; print the table."""
    folder = results_folder(args, data)
    write_json(folder / f"{name}.json", results)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def markdown(header, rows):
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
