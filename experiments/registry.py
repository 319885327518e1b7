"""SAGA's tables and figures, and the questions beside them, as data: what each shows and takes, and by which functions
of this room. They are imported when an entry runs, so that the list of entries takes no time.

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/<entry>.json, .md and, for figures, .png

`run_entry` runs one of ENTRIES with reproduce.py's arguments.
"""

from pkgutil import resolve_name
from typing import NamedTuple

from basics.running import InputError
from experiments.conditions import ABLATIONS
from experiments.datasets import choose_data
from experiments.stages import results_folder, write_results
from tokens.generators import level_name


class Entry(NamedTuple):
    """A table, a figure or a question. Of `code` "tables.level" are tables.measure_level(args, data, **given), which
    gives numbers alone, render_level(results), their Markdown, and with `drawn` draw_level(args, data, results, path,
    **given); `render` names another function, called with the title as well.
    """

    what: str
    code: str
    minutes: int  # on the zoo, three seeds, JAX, one core, with the runs that other entries share
    paper: str  # what it takes at the paper's scale, beside GenVideo's features
    given: dict = {}
    drawn: bool = False
    folds: bool = False  # whether it can pool grouped folds
    several: bool = False  # whether it compares several features folders
    seeds: int = 3
    titled: bool = False

    def function(self, verb):
        module, noun = self.code.split(".")
        return resolve_name(f"experiments.{module}:{verb}_{noun}")

    def measure(self, args, data):
        return self.function("measure")(args, data, **self.given)

    def render(self, results):
        if self.titled:
            return resolve_name(f"experiments.{self.code.split('.')[0]}:render")(results, what=self.what)
        return self.function("render")(results)

    def draw(self, args, data, results, path):
        self.function("draw")(args, data, results, path, **self.given)


FIT = "stage 1 (10 h on 8 TPUv3)"
FEW, ALL = "20 min each for few labels", "10 h each for all labels"


def level_table(number, level, minutes):
    losses, fits = (", CE and CE+HNM", "6 fits") if level == "gen" else ("", "3 fits")
    what = f"Table {number}: {level_name(level)} in one and two stages, few and all labels{losses}"
    return Entry(what, "tables.level", minutes, f"{FIT}, then {fits}: {FEW}, {ALL}", {"level": level}, folds=True)


def tsne(what, panels, minutes, paper):
    return Entry(what, "figures.embedding", minutes, paper, {"panels": panels}, drawn=True)


def ablation(what, minutes):
    fits = sum(map(len, ABLATIONS[what].values()))
    return Entry(
        f"ablation of {what} at GEN-L: {', '.join(ABLATIONS[what])}",
        "ablations.ablation",
        minutes,
        f"{FIT}, {fits} fits of 20 min, of depth 12 of 10 h as well",
        {"what": what},
        folds=True,
    )


def wild(code, minutes, what, given=None, **more):
    paper = "CLIP features of the images by 01, then as here"
    title = f"unknown-aware attribution: {what}"
    return Entry(title, f"wild.{code}", minutes, paper, given or {}, folds=True, seeds=5, titled=True, **more)


ABLATION_MINUTES = {"margin": 8, "positives": 4, "normalize": 6, "batching": 4, "depth": 18, "dtype": 8, "schedule": 37}
WILD = {  # what: minutes, what it shows
    "threshold": (1, "how far the labelled loss may rise: tau 1 to 5"),
    "size": (1, "wild images of each generator, 1 to all; labelled only is 0"),
    "noise": (1, "the target's share of the wild images, 0 to 50%"),
    "coverage": (1, "wild images of one source, of three, of all, and of the unseen generators themselves"),
    "head": (3, "a linear head and one with a hidden layer"),
    "regularization": (3, "what the baseline's loss L0 means: weight of the penalty, or steps without one"),
}
ENTRIES = {
    "table-2": level_table(2, "task", 10),
    "table-3": level_table(3, "sd", 8),
    "table-4": Entry(
        "Table 4: BIN-L across generators, five train/test splits",
        "tables.splits",
        13,
        "five times stage 1 (10 h each on 8 TPUv3)",
    ),
    "table-5": Entry(
        "Table 5: BIN-L on this data and, with --test-features, on another data set",
        "tables.datasets",
        6,
        f"{FIT}; features of DVF (6,688 videos) by 01 in the same way",
    ),
    "table-6": level_table(6, "team", 10),
    "table-7": level_table(7, "gen", 14),
    "table-s3": Entry(
        "Table S-3: encoders, every folder of --features side by side at five levels",
        "tables.encoders",
        5,
        f"for each encoder {FIT} and four fits of 20 min; SigLIP's and DINOv2's weights",
        several=True,
    ),
    "table-s2": Entry(
        "Table S-2: NPR, F3Net, TALL, a linear probe, retrieval and metadata alone beside SAGA",
        "compared.rivals",
        35,
        f"{FIT}, four levels in one and two stages ({FEW}, {ALL}); three detectors on 1.6 million videos",
        folds=True,
    ),
    "encoder-transfer": Entry(
        "Table 4's splits with every folder of --features: each encoder in-domain and across generators",
        "tables.transfer",
        30,
        "for each encoder five times stage 1 (10 h on 8 TPUv3); their weights",
        several=True,
    ),
    "figure-1a": Entry(
        "Fig. 1(a): T-Sigs of real, seen and unseen generators, trained on GenVideo's ten train generators",
        "tsigs.unseen_signatures",
        7,
        f"{FIT} on ten generators, 20 min",
        drawn=True,
    ),
    "figure-1b": tsne("Fig. 1(b): t-SNE of GEN-L", "generator", 1, f"{FIT}, 20 min"),
    "figure-1c": Entry(
        "Fig. 1(c): radar chart over the five levels",
        "figures.levels",
        2,
        "the runs of table-2, 3, 6 and 7",
        drawn=True,
        folds=True,
    ),
    "figure-4": tsne(
        "Fig. 4: t-SNE by level, coloured by class and by generator",
        "level",
        1,
        f"{FIT} on all and on ten generators, 3 fits of 20 min",
    ),
    "figure-5": tsne("Fig. 5: t-SNE of GEN-L under CE, semi-HNM, HNM", "loss", 1, f"{FIT}, 3 fits of 20 min"),
    "figure-6": Entry(
        "Fig. 6: T-Sigs per level", "tsigs.signatures", 5, f"{FIT}, 4 fits of 20 min", drawn=True, folds=True
    ),
    "figure-s2": Entry(
        "Fig. S-2: per generator under CE, CE+semi-HNM, CE+HNM",
        "figures.by_loss",
        3,
        f"{FIT}, 3 fits of 20 min",
        drawn=True,
        folds=True,
    ),
    "figure-s3": Entry(
        "Fig. S-3: T-Sigs by content (the index's strata, else k-means)",
        "tsigs.content",
        1,
        f"{FIT}, 20 min; a stratum (scenes, animals, humans) for every video",
        drawn=True,
    ),
    "enrol": Entry(
        "new generators enrolled by 1 to 50 clips, without training: are they found, are the known ones kept?",
        "unseen.enrol",
        27,
        f"{FIT} on 13 generators, 2 fits of 20 min and of 10 h",
        drawn=True,
    ),
    "back-off": Entry(
        "Sec. 1: where GEN-L is unsure, are coarser levels right? accuracy against coverage by level",
        "back_off.back_off",
        1,
        "the runs of table-2, 3, 6 and 7",
        drawn=True,
        folds=True,
    ),
    "report": Entry(
        "attribute_video.py on held-out files: accuracy by level, calibration, unknown generators",
        "report_accuracy.report",
        15,
        f"{FIT}, 4 fits of 10 h; SigLIP on every test file",
        folds=True,
    ),
    "figure-s1": Entry(
        "Fig. S-1: accuracy against labels per class, five levels",
        "ablations.labels",
        34,
        f"{FIT}, 20 fits of 20 min and more",
        drawn=True,
    ),
    **{f"ablation-{what}": ablation(what, minutes) for what, minutes in ABLATION_MINUTES.items()},
    "ablation": Entry(
        "when hard negative mining beats cross-entropy: all ablations in one table",
        "ablations.conditions",
        1,
        "the runs of the six ablations",
        folds=True,
    ),
    "wild": wild("methods", 1, "constrained fine-tuning beside six others, three targets", {"kind": "frames"}),
    "wild-video": wild(
        "methods", 10, "the same on embeddings of SAGA, trained on the labelled generators", {"kind": "SAGA"}
    ),
    "wild-target": wild("targets", 2, "every generator in turn as the target"),
    "wild-encoder": wild("encoders", 2, "every folder of --features", several=True),
    "wild-edits": wild("edits", 3, "test images edited, and vectors attacked"),
    **{f"wild-{what}": wild("condition", *own, {"what": what}) for what, own in WILD.items()},
}
OTHERS = {  # name: what it does, and the function of reproduce.py's arguments
    "demo": (
        "Simulate, extract, pretrain, attribute: 10 minutes on two cores, no data needed; results in runs/demo.",
        "experiments.demo:demo",
    ),
    "unseen-generators": (
        "Which scores tell generators never trained on from seen ones at GEN-L, and where they land at SD-L and TEAM-L:"
        " six of the zoo's left out, 30 clips per class, two minutes a seed; of other data the generators outside the"
        " table, scores alone.",
        "experiments.unseen:unseen_generators",
    ),
    "paper": ("Every table, figure and question above these, one after the other; runs are shared.", None),
    "readme": (
        "Render results/ anew and make the tables in README.md and docs/ from them.",
        "experiments.readme:write_readme",
    ),
}


def run_entry(args):
    """Measure, write and draw one of ENTRIES on the chosen data, or run one of OTHERS."""
    if args.name in OTHERS:
        return resolve_name(OTHERS[args.name][1])(args)
    entry, data = ENTRIES[args.name], choose_data(args)
    if len(data) > 1 and not entry.several:
        raise InputError(f"{args.name} takes one folder of --features; table-s3, encoder-transfer compare several")
    if len(data[0].folds) > 1 and not entry.folds:
        raise InputError(
            f"{args.name} wants the recorded split, not grouped folds: give a --features folder without --folds"
        )
    place = None if entry.several else data[0]
    results = entry.measure(args, data if entry.several else data[0])
    write_results(args, args.name, results, entry.render(results), place)
    if entry.drawn:
        path = results_folder(args, place) / f"{args.name}.png"
        entry.draw(args, data[0], results, path)
        print(f"figure: {path}")
    return results
