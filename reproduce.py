"""Experiments by name: each runs the stages it needs, goes on where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py corpus --corpus ../shared/corpus

demo               simulate the zoo, extract, pretrain, attribute at four levels; one table; results in runs/demo
corpus             a folder of real clips with clips.csv (path,label,repo,notes): five-fold grouped cross-validation of
                   all five levels, as the clips are and equalized, beside a metadata-only and a linear probe
mobilenet-layers   three layers of MobileNet on the corpus at GEN-L: linear probe, and SAGA in one stage
options            what --pool, --dtype and --encoder-dtype change, in tokens and at GEN-L
unseen-generators  which scores tell generators left out of training from seen ones, and which kin they are taken for

All but the first write results/*.json and .md; results/corpus.* keeps the rows of other encoders.
"""

import argparse
import time
from pathlib import Path

from baselines import linear_probe
from common import positive, run_script
from comparisons import ENCODERS, corpus, mobilenet_layers, options
from evaluation import score
from open_set import unseen_generators
from stages import SMALL_DATA, stage, train


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=tuple(ENTRIES), help="the experiment")
    parser.add_argument("--list", action="store_true", help="print the experiments")
    parser.add_argument("--corpus", default="../shared/corpus", help="folder of real clips: clips/ and clips.csv")
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="dct", help="corpus: the frozen encoder")
    parser.add_argument("--encoder-weights", help="mobilenet's weights, for a machine that cannot download them")
    parser.add_argument("--features", help="folder of the features, or the start of its name; default features/<data>")
    parser.add_argument("--run", help="folder of the runs; default runs/demo, corpus, compare or unseen")
    parser.add_argument("--seeds", type=positive, default=1, help="all but demo: other weights and corpus folds")
    parser.add_argument("--limit", type=positive, help="at most this many videos per generator: a small run")
    args = parser.parse_args(argv)
    if not args.name and not args.list:
        parser.error("name an experiment or pass --list")
    return args


DEMO_LEVELS = {  # on few clips the paper's margin of 1 and lambda of 0.5 can pull all embeddings to one point
    "bin": "--epochs 5",
    "task": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 300 --epochs 5",
    "sd": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 5",
    "team": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 8",
    "gen": "--normalize --margin 0.2 --ce-weight 0.8 --labels-per-class 100 --epochs 11",
}


def demo(args):
    """Simulate, extract, pretrain, attribute: 10 minutes on two cores, no data needed; results in runs/demo."""
    name = f"demo-{args.limit}" if args.limit else "demo"
    run, features = args.run or f"runs/{name}", args.features or f"features/{name}"
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


ENTRIES = {
    "demo": demo,
    "corpus": corpus,
    "mobilenet-layers": mobilenet_layers,
    "options": options,
    "unseen-generators": unseen_generators,
}


def main(argv=None):
    args = get_args(argv)
    if args.list:
        print("\n".join(f"{name:18} {' '.join(entry.__doc__.split())}" for name, entry in ENTRIES.items()))
        return None
    return ENTRIES[args.name](args)


if __name__ == "__main__":
    run_script(main)
