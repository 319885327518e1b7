"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py table-7
    python reproduce.py table-7 --features features/mine --seeds 1
    python reproduce.py table-7 --data equalized --corpus ../shared/corpus

table-N, figure-N  the paper's tables and figures, on the simulated zoo without further arguments; `--list` has them all
demo               simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/demo
readme             make the tables in README.md from results/

All but demo and readme write results/<name>.json and .md, figures a .png too; for other data in a folder in it.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import comparisons
import figures
import open_set
import tables
from baselines import linear_probe
from common import positive, run_script
from corpora import ENCODERS, choose_data
from evaluation import score
from readme import write_readme
from stages import SMALL_DATA, SMALL_MINING, results_folder, stage, train, write_results

# ---------------------------------------------------------------- the papers' tables and figures


class Entry(NamedTuple):
    """One of the paper's tables or figures: `measure(args, data)` gives numbers alone, `render` their Markdown."""

    what: str
    measure: callable
    render: callable
    minutes: int  # on the zoo, three seeds, alone
    paper: str  # what it takes at the paper's scale, beside GenVideo's features
    draw: callable = None  # draw(args, data, results, path)
    folds: bool = False  # whether it can pool grouped folds
    several: bool = False  # whether it compares several features folders


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


PAPER = {
    "table-2": level_table(2, "task", 0),
    "table-3": level_table(3, "sd", 0),
    "table-4": Entry(
        "Table 4: BIN-L across generators, five train/test splits",
        tables.measure_splits,
        tables.render_splits,
        0,
        "five times stage 1 (10 h each on 8 TPUv3)",
    ),
    "table-5": Entry(
        "Table 5: BIN-L on this data and, with --test-features, on another data set",
        tables.measure_datasets,
        tables.render_datasets,
        0,
        f"{FIT}; features of DVF (6,738 videos) by 01 in the same way",
    ),
    "table-6": level_table(6, "team", 0),
    "table-7": level_table(7, "gen", 0),
    "table-s3": Entry(
        "Table S-3: encoders, every folder of --features side by side at five levels",
        tables.measure_encoders,
        tables.render_encoders,
        0,
        f"for each encoder {FIT} and four fits of 20 min; SigLIP's and DINOv2's weights",
        several=True,
    ),
    "figure-1a": Entry(
        "Fig. 1(a): T-Sigs of real, seen and unseen generators, trained on GenVideo's ten train generators",
        figures.measure_unseen_signatures,
        figures.render_unseen_signatures,
        0,
        f"{FIT} on ten generators, 20 min",
        figures.draw_unseen_signatures,
    ),
    "figure-1b": tsne("Fig. 1(b): t-SNE of GEN-L", figures.GENERATOR_PANELS, 0, f"{FIT}, 20 min"),
    "figure-1c": Entry(
        "Fig. 1(c): radar chart over the five levels",
        figures.measure_levels,
        figures.render_levels,
        0,
        "the runs of table-2, 3, 6 and 7",
        figures.draw_levels,
        folds=True,
    ),
    "figure-4": tsne(
        "Fig. 4: t-SNE by level, coloured by class and by generator",
        figures.LEVEL_PANELS,
        0,
        f"{FIT} on all and on ten generators, 3 fits of 20 min",
    ),
    "figure-5": tsne(
        "Fig. 5: t-SNE of GEN-L under CE, semi-HNM, HNM", figures.LOSS_PANELS, 0, f"{FIT}, 3 fits of 20 min"
    ),
    "figure-6": Entry(
        "Fig. 6: T-Sigs per level",
        figures.measure_signatures,
        figures.render_signatures,
        0,
        f"{FIT}, 4 fits of 20 min",
        figures.draw_signatures,
        folds=True,
    ),
    "figure-s2": Entry(
        "Fig. S-2: per generator under CE, CE+semi-HNM, CE+HNM",
        figures.measure_by_loss,
        figures.render_by_loss,
        0,
        f"{FIT}, 3 fits of 20 min",
        figures.draw_by_loss,
        folds=True,
    ),
    "figure-s3": Entry(
        "Fig. S-3: T-Sigs by content (the index's strata, else k-means)",
        figures.measure_content,
        figures.render_content,
        0,
        f"{FIT}, 20 min; a stratum (scenes, animals, humans) for every video",
        figures.draw_content,
    ),
    "losses": Entry(
        "why CE and HNM differ at GEN-L: embedding scale, hard pairs, collapse, learning rate",
        tables.measure_losses,
        tables.render_losses,
        0,
        f"{FIT}, 6 fits of 20 min",
        folds=True,
    ),
}


def paper_entry(args):
    """Measure, write and draw one of PAPER on the chosen data."""
    entry, data = PAPER[args.name], choose_data(args)
    if len(data) > 1 and not entry.several:
        raise ValueError(f"{args.name} takes one folder of --features; table-s3 compares several")
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


# ---------------------------------------------------------------- the demo


DEMO_LEVELS = {
    "bin": "--epochs 5",
    "task": f"{SMALL_MINING} --labels-per-class 300 --epochs 5",
    "sd": f"{SMALL_MINING} --labels-per-class 100 --epochs 5",
    "team": f"{SMALL_MINING} --labels-per-class 100 --epochs 8",
    "gen": f"{SMALL_MINING} --labels-per-class 100 --epochs 11",
}


def demo(args):
    """Simulate, extract, pretrain, attribute: 10 minutes on two cores, no data needed; results in runs/demo."""
    name = f"demo-{args.limit}" if args.limit else "demo"
    run, features = args.run or f"runs/{name}", args.features[0] if args.features else f"features/{name}"
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


# ---------------------------------------------------------------- the command


def readme(args):
    """Render results/ anew and make the tables in README.md from them."""
    write_readme(PAPER)


OTHERS = {
    "demo": demo,
    "corpus": comparisons.corpus,
    "mobilenet-layers": comparisons.mobilenet_layers,
    "options": comparisons.options,
    "unseen-generators": open_set.unseen_generators,
    "readme": readme,
}


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("name", nargs="?", choices=(*PAPER, *OTHERS), metavar="NAME", help="the experiment; --list names them")
    add("--list", action="store_true", help="print the experiments, what each needs and how long it takes")
    add(
        "--data", choices=("zoo", "corpus", "equalized"), default="zoo", help="tables, figures: simulated or real clips"
    )
    add(
        "--features",
        nargs="+",
        metavar="DIR",
        help="tables, figures: features of your own, instead of --data; demo: where",
    )
    add("--test-features", metavar="DIR", help="table-5: features of another data set, made in the same way")
    add("--folds", type=positive, help="grouped cross-validation instead of the recorded split; of --data corpus: 5")
    add("--few", type=positive, help="labels per class where the paper has 500; default 15, of real clips 5")
    add("--full", action="store_true", help="tables, figures: the paper's batch size, rate, epochs, margin, 500 labels")
    add("--corpus", default="../shared/corpus", help="folder of real clips: clips/ and clips.csv")
    add("--encoder", choices=tuple(ENCODERS), default="dct", help="the frozen encoder of --data and of corpus")
    add("--encoder-weights", help="mobilenet's weights, for a machine that cannot download them")
    add("--run", help="folder of the runs; default runs/paper, demo, corpus, compare or unseen")
    add("--seeds", type=positive, default=3, help="all but demo: other weights, choice of labels and corpus folds")
    add("--limit", type=positive, help="at most this many videos per generator: a small run")
    args = parser.parse_args(argv)
    if not args.name and not args.list:
        parser.error("name an experiment or pass --list")
    return args


def print_list():
    for name, entry in PAPER.items():
        print(f"{name:18} {entry.what}\n{'':18} zoo, 3 seeds: {entry.minutes} min; at the paper's scale: {entry.paper}")
    print(
        f"{'':18} A table or figure needs nothing on the zoo; --features needs a folder that 01 made, --data corpus and"
    )
    print(f"{'':18} equalized a folder of real clips. Runs are shared: one after the other they take less.")
    print(f"{'':18} The paper's scale: GenVideo, 2.3 million videos, and SigLIP-So400m/14, 27 TB of tokens.\n")
    print("\n".join(f"{name:18} {' '.join(entry.__doc__.split())}" for name, entry in OTHERS.items()))


def main(argv=None):
    args = get_args(argv)
    if args.list:
        return print_list()
    return paper_entry(args) if args.name in PAPER else OTHERS[args.name](args)


if __name__ == "__main__":
    run_script(main)
