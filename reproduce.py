"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py table-7
    python reproduce.py table-7 --features features/mine --seeds 1
    python reproduce.py table-7 --data equalized --corpus ../shared/corpus

table-N, figure-N  the paper's tables and figures, on the simulated zoo without further arguments
ablation-WHAT, ... what else was asked of SAGA, in the same form; `--list` has them all
demo               simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/demo
readme             make the tables in README.md and docs/ from results/

All but demo and readme write results/<name>.json and .md, figures a .png too; for other data in a folder in it.
"""

import argparse
import time
from pathlib import Path

from common import positive, run_script
from experiments import comparisons
from experiments import unseen as open_set
from experiments.datasets import ENCODERS, SIMULATED
from experiments.probes import linear_probe
from experiments.readme import write_readme
from experiments.registry import ENTRIES, paper_entry
from experiments.stages import SMALL_DATA, SMALL_MINING, stage, train
from training.evaluation import score

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
    """Render results/ anew and make the tables in README.md and docs/ from them."""
    write_readme()


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
    add("name", nargs="*", metavar="NAME", help="the experiment; --list names them")
    add("--list", action="store_true", help="print the experiments, what each needs and how long it takes")
    add(
        "--data",
        choices=(*SIMULATED, "corpus", "equalized"),
        default="zoo",
        help="tables, figures: simulated clips, the same with marks twice as strong, or real clips",
    )
    add(
        "--features",
        nargs="+",
        metavar="DIR",
        help="tables, figures: features of your own, instead of --data; demo: where",
    )
    add("--test-features", metavar="DIR", help="table-5: features of another data set, made in the same way")
    add("--videos", metavar="DIR", help="table-s2, report: the clips that --features were made of")
    add("--folds", type=positive, help="grouped cross-validation instead of the recorded split; of --data corpus: 5")
    add("--few", type=positive, help="labels per class where the paper has 500; default 15, of real clips 5")
    add("--full", action="store_true", help="tables, figures: the paper's batch size, rate, epochs, margin, 500 labels")
    add("--corpus", default="../shared/corpus", help="folder of real clips: clips/ and clips.csv")
    add("--encoder", choices=tuple(ENCODERS), default="dct", help="the frozen encoder of --data and of corpus")
    add("--encoder-weights", help="mobilenet's weights, for a machine that cannot download them")
    add("--run", help="folder of the runs; default runs/paper, demo, corpus, compare or unseen")
    add("--seeds", type=positive, help="all but demo: other weights, choice of labels and corpus folds; 3, wild 5")
    add("--limit", type=positive, help="at most this many videos per generator: a small run")
    args = parser.parse_args(argv)
    args.name = "-".join(args.name)
    if args.name not in (*ENTRIES, *OTHERS) and not args.list:
        parser.error(f"{args.name}: no such experiment; --list names them" if args.name else "name one or pass --list")
    args.seeds = args.seeds or (ENTRIES[args.name].seeds if args.name in ENTRIES else 3)
    if args.folds == 1:
        parser.error("--folds takes 2 or more")
    if args.features and args.name in ("corpus", "mobilenet-layers", "options", "readme"):
        parser.error(f"{args.name} takes no --features")
    if args.test_features and args.name != "table-5":
        parser.error("--test-features is for table-5")
    if args.videos and not (args.features and args.name in ("table-s2", "report")):
        parser.error("--videos is for table-s2 and report with --features")
    return args


LIST_NOTES = """
A table or figure needs nothing on the zoo; --features needs a folder that 01 made, --data corpus and equalized a folder
of real clips. Minutes: three seeds with JAX (table-s2: TensorFlow) on one core, beside other work, once other entries
have made the runs they share; with TensorFlow about twice. The paper's scale: GenVideo, 2.3 million videos, and
SigLIP-So400m/14, 31 TB of tokens.
"""


def print_list():
    for name, entry in ENTRIES.items():
        print(f"{name:18} {entry.what}\n{'':18} zoo: {entry.minutes} min; at the paper's scale: {entry.paper}")
    print(LIST_NOTES)
    print("\n".join(f"{name:18} {' '.join(entry.__doc__.split())}" for name, entry in OTHERS.items()))


def main(argv=None):
    args = get_args(argv)
    if args.list:
        return print_list()
    return paper_entry(args) if args.name in ENTRIES else OTHERS[args.name](args)


if __name__ == "__main__":
    run_script(main)
