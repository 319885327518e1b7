"""SAGA's tables and figures, and the questions beside them, as data: what each shows and takes, and the functions that
measure, write and draw it.

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/<entry>.json, .md and, for figures, .png

`paper_entry` runs one of ENTRIES with reproduce.py's arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from experiments import ablations, figures, tables
from experiments import back_off as backoff
from experiments import compared as rivals
from experiments import report_accuracy as held_out
from experiments import unseen as open_set
from experiments import wild as wild_entries
from experiments.datasets import choose_data
from experiments.stages import results_folder, write_results


class Entry(NamedTuple):
    """One of the paper's tables or figures: `measure(args, data)` gives numbers alone, `render` their Markdown."""

    what: str
    measure: Callable
    render: Callable
    minutes: int  # on the zoo, three seeds, JAX, one core, with the runs that other entries share
    paper: str  # what it takes at the paper's scale, beside GenVideo's features
    draw: Callable | None = None  # draw(args, data, results, path)
    folds: bool = False  # whether it can pool grouped folds
    several: bool = False  # whether it compares several features folders
    seeds: int = 3


FIT = "stage 1 (10 h on 8 TPUv3)"
FEW, ALL = "20 min each for few labels", "10 h each for all labels"


def level_table(number, level, minutes):
    fits = "6 fits" if level == "gen" else "3 fits"
    return Entry(
        f"Table {number}: {level.upper()}-L in one and two stages, few and all labels"
        + ", CE and CE+HNM" * (level == "gen"),
        partial(tables.measure_level, level=level),
        tables.render_level,
        minutes,
        f"{FIT}, then {fits}: {FEW}, {ALL}",
        folds=True,
    )


def tsne(what, panels, minutes, paper):
    return Entry(
        what,
        partial(figures.measure_embedding, panels=panels),
        figures.render_embedding,
        minutes,
        paper,
        partial(figures.draw_embedding, panels=panels),
    )


ABLATION_MINUTES = {"margin": 8, "positives": 4, "normalize": 6, "batching": 4, "depth": 18, "dtype": 8, "schedule": 37}


def ablation(what, minutes):
    fits = sum(map(len, ablations.ABLATIONS[what].values()))
    return Entry(
        f"ablation of {what} at GEN-L: {', '.join(ablations.ABLATIONS[what])}",
        partial(ablations.measure_ablation, what=what),
        ablations.render_ablation,
        minutes,
        f"{FIT}, {fits} fits of 20 min, of depth 12 of 10 h as well",
        folds=True,
    )


WILD = {  # what: minutes, what it shows
    "threshold": (1, "how far the labelled loss may rise: tau 1 to 5"),
    "size": (1, "wild images of each generator, 1 to all; labelled only is 0"),
    "noise": (1, "the target's share of the wild images, 0 to 50%"),
    "coverage": (1, "wild images of one source, of three, of all, and of the unseen generators themselves"),
    "head": (3, "a linear head and one with a hidden layer"),
    "regularization": (3, "what the baseline's loss L0 means: weight of the penalty, or steps without one"),
}
CLIP_FEATURES = "CLIP features of the images by 01, then as here"


def wild_entry(what, measure, minutes, **more):
    title = f"unknown-aware attribution: {what}"
    render = partial(wild_entries.render, what=title)
    return Entry(title, measure, render, minutes, CLIP_FEATURES, folds=True, seeds=5, **more)


def wild_condition(name, minutes, what):
    return wild_entry(what, partial(wild_entries.measure_condition, what=name), minutes)


ENTRIES = {
    "table-2": level_table(2, "task", 10),
    "table-3": level_table(3, "sd", 8),
    "table-4": Entry(
        "Table 4: BIN-L across generators, five train/test splits",
        tables.measure_splits,
        tables.render_splits,
        13,
        "five times stage 1 (10 h each on 8 TPUv3)",
    ),
    "table-5": Entry(
        "Table 5: BIN-L on this data and, with --test-features, on another data set",
        tables.measure_datasets,
        tables.render_datasets,
        6,
        f"{FIT}; features of DVF (6,688 videos) by 01 in the same way",
    ),
    "table-6": level_table(6, "team", 10),
    "table-7": level_table(7, "gen", 14),
    "table-s3": Entry(
        "Table S-3: encoders, every folder of --features side by side at five levels",
        tables.measure_encoders,
        tables.render_encoders,
        5,
        f"for each encoder {FIT} and four fits of 20 min; SigLIP's and DINOv2's weights",
        several=True,
    ),
    "table-s2": Entry(
        "Table S-2: NPR, F3Net, TALL, a linear probe, retrieval and metadata alone beside SAGA",
        rivals.measure_rivals,
        rivals.render_rivals,
        35,
        f"{FIT}, four levels in one and two stages ({FEW}, {ALL}); three detectors on 1.6 million videos",
        folds=True,
    ),
    "encoder-transfer": Entry(
        "Table 4's splits with every folder of --features: each encoder in-domain and across generators",
        tables.measure_transfer,
        tables.render_transfer,
        30,
        "for each encoder five times stage 1 (10 h on 8 TPUv3); their weights",
        several=True,
    ),
    "figure-1a": Entry(
        "Fig. 1(a): T-Sigs of real, seen and unseen generators, trained on GenVideo's ten train generators",
        figures.measure_unseen_signatures,
        figures.render_unseen_signatures,
        7,
        f"{FIT} on ten generators, 20 min",
        figures.draw_unseen_signatures,
    ),
    "figure-1b": tsne("Fig. 1(b): t-SNE of GEN-L", figures.GENERATOR_PANELS, 1, f"{FIT}, 20 min"),
    "figure-1c": Entry(
        "Fig. 1(c): radar chart over the five levels",
        figures.measure_levels,
        figures.render_levels,
        2,
        "the runs of table-2, 3, 6 and 7",
        figures.draw_levels,
        folds=True,
    ),
    "figure-4": tsne(
        "Fig. 4: t-SNE by level, coloured by class and by generator",
        figures.LEVEL_PANELS,
        1,
        f"{FIT} on all and on ten generators, 3 fits of 20 min",
    ),
    "figure-5": tsne(
        "Fig. 5: t-SNE of GEN-L under CE, semi-HNM, HNM", figures.LOSS_PANELS, 1, f"{FIT}, 3 fits of 20 min"
    ),
    "figure-6": Entry(
        "Fig. 6: T-Sigs per level",
        figures.measure_signatures,
        figures.render_signatures,
        5,
        f"{FIT}, 4 fits of 20 min",
        figures.draw_signatures,
        folds=True,
    ),
    "figure-s2": Entry(
        "Fig. S-2: per generator under CE, CE+semi-HNM, CE+HNM",
        figures.measure_by_loss,
        figures.render_by_loss,
        3,
        f"{FIT}, 3 fits of 20 min",
        figures.draw_by_loss,
        folds=True,
    ),
    "figure-s3": Entry(
        "Fig. S-3: T-Sigs by content (the index's strata, else k-means)",
        figures.measure_content,
        figures.render_content,
        1,
        f"{FIT}, 20 min; a stratum (scenes, animals, humans) for every video",
        figures.draw_content,
    ),
    "enrol": Entry(
        "new generators enrolled by 1 to 50 clips, without training: are they found, are the known ones kept?",
        open_set.measure_enrol,
        open_set.render_enrol,
        27,
        f"{FIT} on 13 generators, 2 fits of 20 min and of 10 h",
        open_set.draw_enrol,
    ),
    "back-off": Entry(
        "Sec. 1: where GEN-L is unsure, are coarser levels right? accuracy against coverage by level",
        backoff.measure_back_off,
        backoff.render_back_off,
        1,
        "the runs of table-2, 3, 6 and 7",
        backoff.draw_back_off,
        folds=True,
    ),
    "report": Entry(
        "attribute_video.py on held-out files: accuracy by level, calibration, unknown generators",
        held_out.measure_report,
        held_out.render_report,
        15,
        f"{FIT}, 4 fits of 10 h; SigLIP on every test file",
        folds=True,
    ),
    "figure-s1": Entry(
        "Fig. S-1: accuracy against labels per class, five levels",
        ablations.measure_labels,
        ablations.render_labels,
        34,
        f"{FIT}, 20 fits of 20 min and more",
        ablations.draw_labels,
    ),
    **{f"ablation-{what}": ablation(what, minutes) for what, minutes in ABLATION_MINUTES.items()},
    "ablation": Entry(
        "when hard negative mining beats cross-entropy: all ablations in one table",
        ablations.measure_conditions,
        ablations.render_conditions,
        1,
        "the runs of the six ablations",
        folds=True,
    ),
    "wild": wild_entry(
        "constrained fine-tuning beside six others, three targets",
        partial(wild_entries.measure_methods, kind="frames"),
        1,
    ),
    "wild-video": wild_entry(
        "the same on embeddings of SAGA, trained on the labelled generators",
        partial(wild_entries.measure_methods, kind="SAGA"),
        10,
    ),
    "wild-target": wild_entry("every generator in turn as the target", wild_entries.measure_targets, 2),
    "wild-encoder": wild_entry("every folder of --features", wild_entries.measure_encoders, 2, several=True),
    "wild-edits": wild_entry("test images edited, and vectors attacked", wild_entries.measure_edits, 3),
    **{f"wild-{name}": wild_condition(name, *own) for name, own in WILD.items()},
}


def paper_entry(args):
    """Measure, write and draw one of ENTRIES on the chosen data."""
    entry, data = ENTRIES[args.name], choose_data(args)
    if len(data) > 1 and not entry.several:
        raise ValueError(f"{args.name} takes one folder of --features; table-s3, encoder-transfer compare several")
    if len(data[0].folds) > 1 and not entry.folds:
        raise ValueError(
            f"{args.name} wants the recorded split, not grouped folds: give a --features folder without --folds"
        )
    place = None if entry.several else data[0]
    results = entry.measure(args, data if entry.several else data[0])
    write_results(args, args.name, results, entry.render(results), place)
    if entry.draw:
        path = results_folder(args, place) / f"{args.name}.png"
        entry.draw(args, data[0], results, path)
        print(f"figure: {path}")
    return results
