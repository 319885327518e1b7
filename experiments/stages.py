"""The numbered scripts as functions, the papers' ways to train as data, and where an experiment's runs are.

metrics = stage("02_pretrain_binary", "--features", features)
runs = train_arm(args, data, TWO_FEW, "gen", seed=0)      a run folder per fold, trained or up to date
labels, predicted = tested(run, "gen")
"""

import contextlib
import functools
import hashlib
import importlib
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import read_arrays, read_json, versions
from basics.running import fold as parse_fold
from tokens.dataset import read_index, usable
from tokens.generators import class_index, class_names, load_generators, stage_of
from tokens.split import Split, choose_videos
from training.presets import PRESETS

# ---------------------------------------------------------------- stages


MADE_ANEW = set()  # the calls, (name, *arguments), that this process has made with --overwrite
USED = {}  # {(run folder, what it holds): how it was made}: all that an entry has trained or found up to date


def stage(name, *arguments, overwrite=False):
    """Run a numbered script's main with these arguments; returns what main returns. Nothing else imports one by name.

    `overwrite` passes --overwrite the first time in this process, so that runs that tables share are made again once.
    """
    call = (name, *map(str, arguments))
    flags = ["--overwrite"] if overwrite and call not in MADE_ANEW else []
    MADE_ANEW.update([call] if flags else [])
    made = importlib.import_module(name).main([*call[1:], *flags])
    if "recipe" in (made or ()):
        note_use(name, made)
    return made


def note_use(name, metrics):
    """Keep for the entry's provenance how a stage made a run: its settings, labelled clips and steps."""
    recipe, clips = metrics["recipe"], metrics.get("clips", {})
    settings = {"level": metrics["level"]} if "level" in metrics else {}
    settings |= {key: own for key, own in recipe["arguments"].items() if key not in ("seed", "fold")}
    facts = {"settings": settings, "seed": recipe["arguments"].get("seed"), "start": recipe["paths"].get("init")}
    facts |= {role: len(clips[role]) for role in ("train", "val") if role in clips}
    facts |= {"steps": metrics["steps"]} if "steps" in metrics else {}
    USED[recipe["paths"]["run"], "-".join([name[:2], settings["level"]] if "level" in settings else [name[:2]])] = facts


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
PAPER = {"epochs": 10, "steps": None, "batch_size": 64, "learning_rate": 1e-5, "best": "val", "batching": "natural"}
PAPER |= {"schedule": "halving", "decay_steps": 1000, "warmup_steps": 0, "temporal_blocks": 5, "dtype": "float32"}
PAPER |= {"head": "linear"}
PAPER_MINING = {"loss": "hnm", "ce_weight": 0.5, "margin": 1.0, "positives": "all", "normalize": False}
LOSS_FLAGS = {"CE": "ce", "CE+semi-HNM": "semi", "CE+HNM": "hnm"}  # as tables have them: the values of 03's --loss


class Arm(NamedTuple):
    """A way to train: in one stage or two, on how many labels per class, with which loss. Text in tables and files."""

    stages: int
    labels: str | int  # few: the paper's 0.5%, 500 labels per class; all: its 100%; or a number
    loss: str = ""  # of LOSS_FLAGS; stage 1 has no choice
    times: int = 1  # as many steps: 2 in one stage are those of two stages together

    def __str__(self):
        steps = f", {self.times} x the steps" if self.times > 1 else ""
        return f"{self.stages}-stage {self.labels} {self.loss}".strip() + steps


ONE_FEW, ONE_ALL, TWO_FEW = Arm(1, "few", "CE+HNM"), Arm(1, "all", "CE+HNM"), Arm(2, "few", "CE+HNM")
ONE_LONGER = ONE_FEW._replace(times=2)  # what two stages must beat, since they train for twice the steps
TWO_ALL, ALL_CE = Arm(2, "all", "CE+HNM"), Arm(1, "all", "CE")
ARMS = (Arm(1, "few", "CE"), ONE_FEW, Arm(1, "few", "CE", times=2), ONE_LONGER)
ARMS += (Arm(2, "few", "CE"), TWO_FEW, ALL_CE, ONE_ALL)
STAGE_ONE = Arm(1, "all")  # at BIN-L
CHOICE = ("train_generators", "test_generators", "test_features", "labels_per_class", "limit")


def train_arm(args, data, arm, level, seed, only=None, last=None) -> list[Path | None]:
    """The run folders of an arm at a level, one per fold; None where mining collapsed. What is up to date stays.

    `only` are settings that stage 1 shares, such as train_generators; `last`, of an ablation, those of the last stage
    alone.
    """
    return [train_fold(args, data, arm, level, seed, fold, only or {}, last or {}) for fold in data.folds]


def defaults(args, level):
    """The settings that a stage takes where no flag gives another: the paper's, or those of the preset."""
    papers = PAPER | ({} if level == "bin" else PAPER_MINING)
    small = {} if args.full else PRESETS["small"]
    return papers | {key: value for key, value in small.items() if level != "bin" or key not in PAPER_MINING}


def arm_settings(args, data, arm, level, fold, only, last):
    """All settings of the last stage of an arm: those that change nothing are the same ones."""
    settings = defaults(args, level) | {"labels_per_class": data.few if arm.labels == "few" else arm.labels}
    settings |= {"limit": args.limit} if args.limit else {}
    settings |= {} if level == "bin" else {"loss": LOSS_FLAGS[arm.loss]}
    settings |= {"best": "last"} if arm.labels != "all" and not args.full else {}  # a few are too few for val as well
    settings |= only | last | ({"best": "last"} if fold else {})  # a fold has no val to choose by
    length = "steps" if settings["steps"] else "epochs"
    return settings | {length: arm.times * settings[length]}


def train_fold(args, data, arm, level, seed, fold, only, last):
    settings = arm_settings(args, data, arm, level, fold, only, last)
    key = hashlib.sha256(f"{sorted(settings.items())} {data.digest}".encode()).hexdigest()[:8]
    run = runs_folder(args) / data.place / "-".join([*re.findall(r"\w+", f"{arm} {level}"), key])
    run /= part_name(seed, fold)
    common = defaults(args, level)
    flags = {} if args.full else {"preset": "small"}
    flags |= {name: value for name, value in settings.items() if name not in common or value != common[name]}
    flags |= {"seed": seed} | ({"fold": fold} if fold else {})
    if arm.stages == 2:
        flags["init"] = train_fold(args, data, STAGE_ONE, "bin", seed, fold, only, {}) / "bin.keras"
    elif level != "bin":
        flags["init"] = "scratch"
    from training.callbacks import CollapseError  # here, since Keras comes with it

    try:
        train(level, data.features, run, flags, args.overwrite)
    except CollapseError as collapse:
        print(f"{run}: {collapse}")
        return None
    return run


@functools.cache
def environment():
    """What may change the last digits of a number although nothing else does: packages, Keras's backend, how many cores
    it computes on, over which XLA divides its sums, and the instructions of the processor.
    """
    import basics.backend  # noqa: F401  (chooses it; here, since it wants a backend, which --list does not)

    backend = os.environ["KERAS_BACKEND"]
    packages = ("keras", *{"jax": ("jax", "jaxlib")}.get(backend, (backend,)), "scikit-learn", "scipy")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return versions(*packages) | {"backend": backend, "cores": cores, "processor": processor()}


def processor() -> str:
    """The kind of processor, with its widest vector instructions where Linux names them: "x86_64 avx512f"."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        return " ".join([platform.machine(), *[name for name in ("avx512f", "avx2", "asimd") if name in flags][:1]])
    return platform.machine()


def runs_folder(args, default="runs/paper"):
    """Where entries keep their runs. Those of another environment are not shared: their numbers may differ."""
    found = environment()
    key = hashlib.sha256(f"{sorted(found.items())}".encode()).hexdigest()[:8]
    return Path(args.run or default) / f"{found['backend']}-{key}"


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
    """The Split at a level on which SAGA trains in one stage."""
    settings = arm_settings(args, data, Arm(1, labels, "CE"), level, fold, {}, {})
    return chosen_videos(data, level, settings, seed, fold)


# ---------------------------------------------------------------- what a run took


def spent(run, level):
    """What an accuracy of a run took: its labelled clips to train and to choose by, those that stage 1 had to tell real
    from fake, and the steps of all stages.
    """
    metrics = read_json(Path(run) / f"{level}.json", ("clips", "steps", "recipe"))
    cost = {"run": Path(run).parent.name, "steps": [metrics["steps"]]}
    cost["budget"] = {role: len(metrics["clips"][role]) for role in ("train", "val")}
    start = metrics["recipe"]["paths"].get("init")
    if level != "bin" and start != "scratch":
        first = spent(Path(start).parent, "bin")
        cost |= {"steps": first["steps"] + cost["steps"], "stage_1_budget": first["budget"]}
    return cost


def markdown(header, rows):
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
