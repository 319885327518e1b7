"""SAGA's tables by name, each on the given data, beside the paper's numbers (Tables 2 to 4, 6, 7, S-3).

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/<entry>.json: accuracies per seed, test clips, chance; <entry>.md: mean +- std over seeds, in per cent

An entry is `measure(args, data) -> results`, made of numbers alone, and `render(results) -> lines` of Markdown. The
paper's numbers (paper.py) stand in brackets or in columns of their own, and are on GenVideo.
"""

import functools

import numpy as np

from basics.artifacts import read_json
from basics.running import InputError
from basics.statistics import wilson_interval
from common import build_saga
from experiments.paper import arm_values, paper_lines, paper_values, printed
from experiments.stages import (
    ARMS,
    ONE_ALL,
    ONE_FEW,
    ONE_LONGER,
    STAGE_ONE,
    TWO_FEW,
    clips_of,
    markdown,
    spent,
    tested,
    train_arm,
)
from tokens.dataset import features_recipe, read_index
from tokens.generators import LEVELS, class_names, level_name, load_generators
from training.evaluation import score, score_names

# ---------------------------------------------------------------- results


def arm_results(args, data, arm, level, **change):
    """`scored` of an arm, whose runs are trained or up to date."""
    return scored(arm_runs(args, data, arm, level, **change), level)


def arm_runs(args, data, arm, level, **change):
    """An arm's run folders, a list of folds per seed."""
    return [train_arm(args, data, arm, level, seed, **change) for seed in range(args.seeds)]


def scored(runs, level, named=tested):
    """Accuracies of runs, a list of folds per seed, whose clips `named(run, level)` names: {"seeds": [score_names of
    all folds], "collapsed": seeds that did}; and what the first run took, where it names them itself.
    """
    seeds = []
    for seed, folds in enumerate(runs):
        if None not in folds:
            seeds.append({"seed": seed} | score_names(*np.concatenate([named(run, level) for run in folds], axis=1)))
    first = next((run for folds in runs for run in folds if run and named is tested), None)
    return {"seeds": seeds, "collapsed": len(runs) - len(seeds)} | (spent(first, level) if first else {})


def val_scores(run, level):
    """The metrics of a run's val clips (evaluation.score), and their cross-entropy in nats."""
    clips, classes = clips_of(run, level, "val")
    labels = (clips["class"][:, None] == classes).argmax(axis=1)
    likelihood = clips["probabilities"][np.arange(len(labels)), labels]
    metrics = score(labels, clips["probabilities"], classes)
    return metrics | {"cross_entropy": -float(np.mean(np.log(np.maximum(likelihood, 1e-12))))}


def described(data, **results):
    """Results with the facts that a table states about its data."""
    encoder = features_recipe(data.features).get("encoder")
    about = {"data": data.name, "simulated": data.simulated, "encoder": encoder}
    return {"about": about | {"folds": len(data.folds), "labels_few": data.few}} | results


def caption(results, what, unit=" Per cent."):
    about = results["about"]
    clips = "simulated clips" if about["simulated"] else "real clips"
    folds = f", {about['folds']} grouped folds pooled" if about["folds"] > 1 else ""
    return f"{what}; {about['data']}, {clips}{folds}; few: {about['labels_few']} labels per class.{unit}"


def mean_std(values):
    """Values in [0, 1] as per cent: mean +- standard deviation over seeds; without it for one seed, - for none."""
    values = [100 * value for value in values if value is not None]
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def overall_cells(result):
    """Micro with the 95% interval of as many clips as one seed tests, macro, chance, clips, seeds, labels, steps."""
    seeds, collapsed = result["seeds"], result["collapsed"]
    note = f" ({collapsed} collapsed)" if collapsed else ""
    if not seeds:
        return ["-", "-", "-", "-", f"0{note}", *spent_cells(result)]
    micro, videos = [seed["micro"] for seed in seeds], seeds[0]["videos"]
    low, high = wilson_interval(np.mean(micro) * videos, videos)
    return [
        f"{mean_std(micro)} ({100 * low:.0f}-{100 * high:.0f})",
        mean_std([seed["macro"] for seed in seeds]),
        f"{100 * seeds[0]['majority']:.0f} / {100 * seeds[0]['uniform']:.0f}",
        f"{videos}",
        f"{len(seeds)}{note}",
        *spent_cells(result),
    ]


OVERALL = ["micro (95%)", "macro", "chance micro / macro", "test clips", "seeds", "labels", "steps"]


def spent_cells(result):
    """Labelled clips, to train and to choose by, with those of stage 1 in brackets; and the steps of all stages, which
    probes do not have.
    """
    if "budget" not in result:
        return ["-", "-"]
    first = f" (stage 1: {sum(result['stage_1_budget'].values())})" if "stage_1_budget" in result else ""
    return [f"{sum(result['budget'].values())}{first}", f"{sum(result['steps'])}" if "steps" in result else "-"]


def parameters_of(run):
    """How many weights the model of a run at GEN-L has."""
    metrics = read_json(run / "gen.json", ("classes", "recipe"))
    sizes = [metrics["recipe"]["features"][key] for key in ("frames", "tokens", "dim")]
    return parameters_at_sizes(len(metrics["classes"]), *sizes, metrics["recipe"]["arguments"]["temporal_blocks"])


@functools.cache
def parameters_at_sizes(classes, frames, tokens, dim, blocks):
    return build_saga(classes, frames, tokens, dim, temporal_blocks=blocks).count_params()


def by_class(result, name):
    """A class's accuracy by seed."""
    counts = [seed["per_class"][name] for seed in result["seeds"] if name in seed["per_class"]]
    return [correct / videos for videos, correct in counts]


# ---------------------------------------------------------------- Tables 2, 3, 6, 7: attribution levels

LEVEL_ARMS = {"task": (ONE_FEW, ONE_LONGER, ONE_ALL, TWO_FEW), "gen": ARMS}
LEVEL_ARMS |= {"sd": LEVEL_ARMS["task"], "team": LEVEL_ARMS["task"]}


def measure_level(args, data, level):
    """With --full without the controls: twice the passes over few labels are not the steps of stage 1 over all."""
    arms = [arm for arm in LEVEL_ARMS[level] if arm.times == 1 or not args.full]
    arms = {str(arm): arm_results(args, data, arm, level) for arm in arms}
    return described(data, level=level, arms=arms)


def render_level(results):
    level, arms = results["level"], results["arms"]
    theirs = {str(arm): arm_values(arm, level) for arm in LEVEL_ARMS[level]}
    rows = [[arm, *overall_cells(result), printed(theirs[arm].get("Overall"))] for arm, result in arms.items()]
    lines = [caption(results, level_name(level)), ""]
    lines += [*markdown(["setting", *OVERALL, "the paper's Overall"], rows), ""]
    lines += ["By class; in brackets the paper's, on GenVideo:", ""]
    tested = next((result["seeds"][0]["per_class"] for result in arms.values() if result["seeds"]), {})
    rows = []
    for name in [name for name in class_names(level) if name in tested]:
        cells = []
        for arm, result in arms.items():
            ours = mean_std(by_class(result, name))
            cells.append(f"{ours} ({theirs[arm][name]:.2f})" if name in theirs[arm] else ours)
        rows.append([name, f"{tested[name][0]}", *cells])
    return [*lines, *markdown(["class", "clips", *arms], rows)]


# ---------------------------------------------------------------- Table 4: BIN-L across generators

GENVIDEO_TRAIN = ("ZeroScope", "I2VGen-XL", "SVD", "VideoCrafter", "Pika", "DynamiCrafter", "SD", "SEINE", "Latte")
GENVIDEO_TRAIN += ("OpenSora",)
FOUR_TEAMS = ("Alibaba Group", "Stability AI", "Tencent AI Lab", "Pika")
SPLITS = {  # the paper's row: which generators train, which are tested
    "all 80% -> all 20%": None,
    "GenVideo train generators (10) -> val generators (9)": (
        lambda generator: generator.name in GENVIDEO_TRAIN,
        lambda generator: generator.name not in GENVIDEO_TRAIN,
    ),
    "T2V (12) -> I2V (4)": (lambda generator: generator.task == "T2V", lambda generator: generator.task == "I2V"),
    "SD 2.1 (6) -> other known SD backbones (5)": (
        lambda generator: generator.sd_version == "SD 2.1",
        lambda generator: generator.sd_version in ("SD 1.4", "SD 1.5", "SDXL"),
    ),
    "Alibaba+Stability+Tencent+Pika (7) -> rest (12)": (
        lambda generator: generator.team in FOUR_TEAMS,
        lambda generator: generator.team not in FOUR_TEAMS,
    ),
}
AS_PRINTED = {  # where the paper's Table 4 counts otherwise than its Table S-1
    "Alibaba+Stability+Tencent+Pika (7) -> rest (12)": "Alibaba+Stability+Tencent+Pika (8) -> rest (11)",
}
BINARY = ("accuracy", "precision", "recall", "macro_accuracy", "auc", "majority", "videos")


def generators_of(data, chosen):
    """The names of the table's generators, but for Real, that are in the features and chosen."""
    present = {row.generator for row in read_index(data.features)}
    table = load_generators()
    return [name for name in table if name in present - {"Real"} and chosen(table[name])]


def ten_generators(data):
    """Settings: train on GenVideo's ten train generators alone."""
    return {"train_generators": generators_of(data, lambda generator: generator.name in GENVIDEO_TRAIN)}


def split_settings(data, split):
    """The settings of one of SPLITS, or None where the features have no generator of a side."""
    if not SPLITS[split]:
        return {}
    train, test = (generators_of(data, chosen) for chosen in SPLITS[split])
    return {"train_generators": train, "test_generators": test} if train and test else None


def binary_runs(args, data, only=None):
    """A run folder of stage 1 per seed."""
    if len(data.folds) > 1:
        raise InputError("BIN-L across generators and data sets needs the recorded split; leave out --folds and --data")
    return [train_arm(args, data, STAGE_ONE, "bin", seed, only)[0] for seed in range(args.seeds)]


def binary_scores(labels, probabilities, classes):
    """BINARY of test clips from labels (V,) and probabilities (V, 2)."""
    found = score(labels, probabilities, classes)
    return {key: found[key] for key in BINARY}


def balanced_results(args, data, only):
    """BINARY of stage 1 by seed, on as many Real as Fake test clips, and what each took."""
    results = []
    for seed, run in enumerate(binary_runs(args, data, only)):
        clips, classes = clips_of(run, "bin")
        labels = np.array([classes.tolist().index(name) for name in clips["class"]])
        chosen = balanced_places(labels, seed)
        results.append(binary_scores(labels[chosen], clips["probabilities"][chosen], classes) | spent(run, "bin"))
    return results


def balanced_places(labels, seed):
    """Places in labels (V,): all of the rarest class, as many of each other one, which are drawn by seed."""
    random, places = np.random.default_rng(seed), [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([random.permutation(own)[: min(map(len, places))] for own in places]))


def measure_splits(args, data):
    there = {split: own for split in SPLITS if (own := split_settings(data, split)) is not None}
    rate = own_rate(args, data)
    return described(data, splits={split: balanced_results(args, data, own | rate) for split, own in there.items()})


def binary_cells(seeds):
    cells = [mean_std([seed[key] for seed in seeds]) for key in BINARY[:5]]
    first = seeds[0]
    return [*cells, f"{100 * first['majority']:.1f} / 50", f"{first['videos']}", f"{len(seeds)}", *spent_cells(first)]


BINARY_HEADER = ["accuracy", "precision of Fake", "recall of Fake", "macro accuracy", "AUC", "chance micro / macro"]
BINARY_HEADER += ["test clips", "seeds", "labels", "steps"]


def render_splits(results):
    rows = []
    for split, seeds in results["splits"].items():
        theirs = [paper_values("4 BIN-L", key)[AS_PRINTED.get(split, split)] for key in BINARY[:3]]
        rows.append([split, *binary_cells(seeds), " / ".join(f"{value:.2f}" for value in theirs)])
    header = ["train -> test", *BINARY_HEADER, "the paper's accuracy / precision / recall"]
    return [caption(results, "BIN-L across generators"), "", *markdown(header, rows), "", BALANCED]


BALANCED = (
    "Test sets are balanced: all clips of the rarer of Real and Fake, and as many of the other, drawn by seed. For its"
    " last row the paper prints 8 and 11 generators; its Table S-1 counts 7 and 12."
)

# ---------------------------------------------------------------- Table S-3: encoders


RATES = {"mobilenet": 1e-4}  # at 3e-4 its stage 1 stays at chance on train and val of the zoo


def own_rate(args, data):
    """The learning rate of an encoder that wants its own on small data, as settings."""
    rate = RATES.get(features_recipe(data.features).get("encoder"))
    return {"learning_rate": rate} if rate and not args.full else {}


def measure_encoders(args, several):
    """Per folder the paper's own setting: stage 1 itself at BIN-L, else two stages, few labels, hard negatives."""
    folders = []
    for data in several:
        arms = {level: STAGE_ONE if level == "bin" else TWO_FEW for level in LEVELS}
        only = own_rate(args, data)
        levels = {level: arm_results(args, data, arm, level, only=only) for level, arm in arms.items()}
        folders.append(described(data, levels=levels))
    return {"folders": folders}


def render_encoders(results):
    rows = []
    for folder in results["folders"]:
        about = [folder["about"][key] for key in ("data", "encoder")]
        rows += [[*about, level_name(level), *overall_cells(result)] for level, result in folder["levels"].items()]
    lines = [*markdown(["features", "encoder", "level", *OVERALL], rows), "", "The paper's Table S-3, micro:", ""]
    levels = list(map(level_name, LEVELS))
    encoders = dict.fromkeys(line["row"] for line in paper_lines("S-3 backbone"))
    rows = [[name, *(f"{paper_values('S-3 backbone', level)[name]:.2f}" for level in levels)] for name in encoders]
    return [*lines, *markdown(["encoder", *levels], rows)]


# ---------------------------------------------------------------- encoders across generators


def measure_transfer(args, several):
    return {"folders": [measure_splits(args, data) for data in several]}


def render_transfer(results):
    rows = []
    for folder in results["folders"]:
        about = [folder["about"][key] for key in ("data", "encoder")]
        rows += [[*about, split, *binary_cells(seeds)] for split, seeds in folder["splits"].items()]
    return [*markdown(["features", "encoder", "train -> test", *BINARY_HEADER], rows), "", BALANCED]
