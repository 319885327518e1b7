"""SAGA's tables by name, each on the data at hand, beside the paper's numbers (Tables 2 to 7, S-3).

reads   a features folder (corpora.py); trains what is not up to date (stages.py)
writes  results/<entry>.json: accuracies per seed, test clips, chance; <entry>.md: mean +- std over seeds, in per cent

An entry is `measure(args, data) -> results`, made of numbers alone, and `render(results) -> lines` of Markdown. The
paper's numbers are read from paper_results.csv, stand in brackets or in columns of their own, and are on GenVideo.
"""

import csv

import numpy as np

from common import LEVELS, class_names, load_generators
from evaluation import PAPER_TABLES, paper_lines, score_names, wilson_interval
from features import read_index, read_json
from stages import ARMS, ONE_ALL, ONE_FEW, STAGE_ONE, TWO_FEW, markdown, tested, train_arm

# ---------------------------------------------------------------- results


def arm_results(args, data, arm, level, only=()):
    """An arm's accuracies at a level, folds pooled: {"seeds": [score_names of each], "collapsed": seeds that did}."""
    seeds = []
    for seed in range(args.seeds):
        runs = train_arm(args, data, arm, level, seed, only)
        if None not in runs:
            seeds.append(score_names(*np.concatenate([tested(run, level) for run in runs], axis=1)))
    return {"seeds": seeds, "collapsed": args.seeds - len(seeds)}


def described(data, **results):
    """Results with what a table says of its data."""
    recipe = read_json(data.features / "recipe.json")
    about = {"data": data.name, "simulated": data.simulated, "encoder": recipe.get("encoder")}
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
    """Micro with the 95% interval of as many clips as one seed tests, macro, chance, clips, seeds."""
    seeds, collapsed = result["seeds"], result["collapsed"]
    note = f" ({collapsed} collapsed)" if collapsed else ""
    if not seeds:
        return ["-", "-", "-", "-", f"0{note}"]
    micro, videos = [seed["micro"] for seed in seeds], seeds[0]["videos"]
    low, high = wilson_interval(np.mean(micro) * videos, videos)
    return [
        f"{mean_std(micro)} ({100 * low:.0f}-{100 * high:.0f})",
        mean_std([seed["macro"] for seed in seeds]),
        f"{100 * seeds[0]['majority']:.0f} / {100 * seeds[0]['uniform']:.0f}",
        f"{videos}",
        f"{len(seeds)}{note}",
    ]


OVERALL = ["micro (95%)", "macro", "chance micro / macro", "test clips", "seeds"]


def by_class(result, name):
    """A class's accuracy by seed."""
    counts = [seed["per_class"][name] for seed in result["seeds"] if name in seed["per_class"]]
    return [right / videos for videos, right in counts]


def paper_values(table, setting):
    """{row: per cent} of a setting of one of the paper's tables."""
    return {line["row"]: float(line["value"]) for line in paper_lines(table) if line["setting"] == setting}


# ---------------------------------------------------------------- Tables 2, 3, 6, 7: attribution levels

LEVEL_ARMS = {"task": (ONE_FEW, ONE_ALL, TWO_FEW), "gen": ARMS}
LEVEL_ARMS |= {"sd": LEVEL_ARMS["task"], "team": LEVEL_ARMS["task"]}


def measure_level(args, data, level):
    arms = {arm: arm_results(args, data, arm, level) for arm in LEVEL_ARMS[level]}
    return described(data, level=level, arms=arms)


def paper_setting(arm, level):
    """What the paper calls an arm: its Tables 2, 3 and 6 do not say the loss."""
    setting = arm.replace("few", "0.5%").replace("all", "100%")
    return setting if level == "gen" else setting.rsplit(" ", 1)[0]


def render_level(results):
    level, arms = results["level"], results["arms"]
    theirs = {arm: paper_values(PAPER_TABLES[level], paper_setting(arm, level)) for arm in arms}
    rows = [[arm, *overall_cells(result), f"{theirs[arm]['Overall']:.2f}"] for arm, result in arms.items()]
    lines = [caption(results, f"{level.upper()}-L"), ""]
    lines += [*markdown(["setting", *OVERALL, "the paper's Overall"], rows), ""]
    lines += ["By class; in brackets the paper's, on GenVideo:", ""]
    found = next((result["seeds"][0]["per_class"] for result in arms.values() if result["seeds"]), {})
    rows = []
    for name in [name for name in class_names(level) if name in found]:
        cells = []
        for arm, result in arms.items():
            own = mean_std(by_class(result, name))
            cells.append(f"{own} ({theirs[arm][name]:.2f})" if name in theirs[arm] else own)
        rows.append([name, f"{found[name][0]}", *cells])
    return [*lines, *markdown(["class", "clips", *arms], rows)]


# ---------------------------------------------------------------- Tables 4 and 5: BIN-L

GENVIDEO_TRAIN = ("ZeroScope", "I2VGen-XL", "SVD", "VideoCrafter", "Pika", "DynamiCrafter", "SD", "SEINE", "Latte")
GENVIDEO_TRAIN += ("OpenSora",)
FOUR_TEAMS = (
    "Alibaba Group",
    "Stability AI",
    "Tencent AI Lab",
    "Pika",
)  # 7 generators of Table S-1, where 8 are printed
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
    "Alibaba+Stability+Tencent+Pika (8) -> rest (11)": (
        lambda generator: generator.team in FOUR_TEAMS,
        lambda generator: generator.team not in FOUR_TEAMS,
    ),
}
BINARY = ("accuracy", "precision", "recall", "macro_accuracy", "auc", "majority", "videos")


def generators_of(data, chosen):
    """The names of the table's generators, but for Real, that are in the features and chosen."""
    present = {row["generator"] for row in read_index(data.features)}
    table = load_generators()
    return [name for name in table if name in present - {"Real"} and chosen(table[name])]


def split_flags(data, split):
    """The flags of one of SPLITS, or None where the features have no generator of a side."""
    if not SPLITS[split]:
        return ()
    sides = [",".join(generators_of(data, chosen)) for chosen in SPLITS[split]]
    return ("--train-generators", sides[0], "--test-generators", sides[1]) if all(sides) else None


def binary_results(args, data, only=()):
    """BINARY of stage 1 by seed."""
    if len(data.folds) > 1:
        raise ValueError("BIN-L across generators and data sets needs the recorded split; leave out --folds and --data")
    runs = [train_arm(args, data, STAGE_ONE, "bin", seed, only)[0] for seed in range(args.seeds)]
    return [{key: read_json(run / "bin.json")[key] for key in BINARY} for run in runs]


def measure_splits(args, data):
    flags = {split: split_flags(data, split) for split in SPLITS}
    return described(
        data, splits={name: binary_results(args, data, own) for name, own in flags.items() if own is not None}
    )


def binary_cells(seeds):
    cells = [mean_std([seed[key] for seed in seeds]) for key in BINARY[:5]]
    return [*cells, f"{100 * seeds[0]['majority']:.1f} / 50", f"{seeds[0]['videos']}", f"{len(seeds)}"]


BINARY_HEADER = ["accuracy", "precision of Fake", "recall of Fake", "macro accuracy", "AUC", "chance micro / macro"]
BINARY_HEADER += ["test clips", "seeds"]


def render_splits(results):
    rows = []
    for split, seeds in results["splits"].items():
        theirs = [paper_values("4 BIN-L", key)[split] for key in BINARY[:3]]
        rows.append([split, *binary_cells(seeds), " / ".join(f"{value:.2f}" for value in theirs)])
    header = ["train -> test", *BINARY_HEADER, "the paper's accuracy / precision / recall"]
    return [caption(results, "BIN-L across generators"), "", *markdown(header, rows)]


def measure_datasets(args, data):
    found = {}
    if args.test_features:  # first, since it may not fit
        found[args.test_features] = binary_results(args, data, ("--test-features", args.test_features))
    return described(data, tested={"in-domain": binary_results(args, data)} | found)


def render_datasets(results):
    rows = [[name, *binary_cells(seeds)] for name, seeds in results["tested"].items()]
    lines = [caption(results, "BIN-L, trained on this data"), "", *markdown(["tested on", *BINARY_HEADER], rows), ""]
    if len(rows) == 1:
        lines += [
            "Across data sets: name another features folder, made by 01 in the same way, with --test-features.",
            "",
        ]
    rows = []
    for name in ("DeMamba", "DVF"):
        methods = dict.fromkeys(line["row"] for line in paper_lines(f"5 BIN-L {name}"))
        for method in methods:
            values = [paper_values(f"5 BIN-L {name}", key).get(method) for key in BINARY[:3]]
            rows.append([name, method, *("-" if value is None else f"{value:.2f}" for value in values)])
    header = ["data", "method", "accuracy", "precision", "recall"]
    return [*lines, "The paper's Table 5; on DVF only SAGA is trained on other data:", "", *markdown(header, rows)]


# ---------------------------------------------------------------- Table S-3: encoders


def level_results(args, data, level):
    """The paper's own setting at a level: stage 1 itself at BIN-L, else two stages, few labels, hard negatives."""
    return arm_results(args, data, STAGE_ONE if level == "bin" else TWO_FEW, level)


def measure_encoders(args, several):
    folders = [
        described(data, levels={level: level_results(args, data, level) for level in LEVELS}) for data in several
    ]
    return {"folders": folders}


def render_encoders(results):
    rows = []
    for folder in results["folders"]:
        for level, result in folder["levels"].items():
            rows.append(
                [folder["about"]["data"], folder["about"]["encoder"], f"{level.upper()}-L", *overall_cells(result)]
            )
    lines = [*markdown(["features", "encoder", "level", *OVERALL], rows), "", "The paper's Table S-3, micro:", ""]
    levels = [f"{level.upper()}-L" for level in LEVELS]
    encoders = dict.fromkeys(line["row"] for line in paper_lines("S-3 backbone"))
    rows = [[name, *(f"{paper_values('S-3 backbone', level)[name]:.2f}" for level in levels)] for name in encoders]
    return [*lines, *markdown(["encoder", *levels], rows)]


# ---------------------------------------------------------------- why losses differ: scale, hard pairs, collapse, rate

ANALYSED = (
    "2-stage few CE",
    TWO_FEW,
    f"{TWO_FEW}, margin 1, lambda 0.5",
    f"{TWO_FEW} as printed",
    "2-stage few CE, rate 3e-5",
    f"{TWO_FEW}, rate 3e-5",
)


def measure_losses(args, data):
    """Per arm at GEN-L its accuracies, and per seed what its embeddings and its mining look like."""
    arms = {}
    for arm in ANALYSED:
        arms[arm] = arm_results(args, data, arm, "gen") | {"geometry": []}
        for seed in range(args.seeds):
            for run in filter(None, train_arm(args, data, arm, "gen", seed)):
                arms[arm]["geometry"].append(geometry(run))
    return described(data, arms=arms)


def geometry(run):
    """Of a run's test embeddings: mean squared length, the share of it that is spread, and the share of same-class
    pairs that are farther apart than the nearest clip of another class (hard pairs, whatever the scale). From its
    history the loss that mining ends with and the share of pairs in a batch that still enter it.
    """
    with np.load(run / "gen_embeddings.npz", allow_pickle=False) as arrays:
        test = arrays["split"] == "test"
        embedding, names = np.float64(arrays["embedding"][test]), arrays["class"][test]
    squares = np.square(embedding).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * embedding @ embedding.T
    same = names[:, None] == names[None]
    nearest = np.where(same, np.inf, distances).min(axis=1, keepdims=True)
    pairs = same & ~np.eye(len(names), dtype=bool)
    with open(run / "gen_history.csv", newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "square_length": float(squares.mean()),
        "spread": float(embedding.var(axis=0).sum() / squares.mean()),
        "hard_pairs": float((distances >= nearest)[pairs].mean()),
        "cross_entropy": float(last.get("logits_loss", last["loss"])),
        "mined_loss": float(last["embedding_loss"]) if "embedding_loss" in last else None,
    }


def render_losses(results):
    rows = []
    for arm, result in results["arms"].items():
        own = result["geometry"]
        columns = {key: [run[key] for run in own if run[key] is not None] for key in (own[0] if own else ())}
        plain = [f"{np.mean(values):.3g}" if values else "-" for values in columns.values()] or ["-"] * 5
        rows.append([arm, *overall_cells(result)[:2], *plain, overall_cells(result)[-1]])
    header = ["setting", *OVERALL[:2], "squared length", "share of it that varies", "hard pairs", "final cross-entropy"]
    return [
        caption(results, "GEN-L, why losses differ", unit=""),
        "",
        *markdown([*header, "final mined loss", "seeds"], rows),
        "",
        "Accuracies in per cent. Squared length and hard pairs are of test embeddings; hard pairs: the share of"
        " same-class pairs farther apart than the nearest clip of another class. Losses are those of the last epoch.",
    ]
