"""Experiments by name: each runs the stages it needs, resumes where it was interrupted, and prints its table.

    python reproduce.py --list
    python reproduce.py demo
    python reproduce.py table-7
    python reproduce.py table-7 --features features/mine --seeds 1
    python reproduce.py table-7 --data equalized --corpus ../shared/corpus

table-N, figure-N  the paper's tables and figures, on the simulated zoo without further arguments
ablation-WHAT, ... further questions about SAGA, in the same form; `--list` has them all
demo               simulate the zoo, extract, pretrain, attribute at four levels; one table; all in runs/demo
steps              the five stages on a small zoo, with the keys and shapes of what each leaves
compare RUN RUN    two runs or more on the same test clips: accuracies, exact McNemar's test with Holm's correction
paper              every table, figure and question, one after the other, each in its own process; with --dry-run
                   --features DIR the commands of the papers' tables at full size, with hours and terabytes
readme             make the tables in README.md and docs/ from results/

All others write results/<name>.json and .md, figures a .png too; results on other data are in subfolders. `--verify`
measures seed 0 of a result again, from scratch, and says whether it is what it was.
"""

import argparse
import shlex
import subprocess
import sys
from pkgutil import resolve_name

from basics.running import InputError, positive, run_script
from experiments.datasets import ENCODER_FLAGS, OWN_DATA, SIMULATED
from experiments.registry import ENTRIES, OTHERS, run_entry
from experiments.verify import verify
from tokens.generators import LEVELS


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("name", nargs="*", metavar="NAME", help="the experiment; --list names them. compare RUN RUN ...: run folders")
    add("--verify", action="store_true", help="measure seed 0 of NAME's results, or of all, from scratch and compare")
    add("--list", action="store_true", help="print the experiments, what each needs and how long it takes")
    add(
        "--data",
        choices=(*SIMULATED, "corpus", "equalized"),
        help="tables, figures: simulated clips, the same with marks twice as strong or more of them, or real clips;"
        " default: zoo, of figure-s1 large",
    )
    add(
        "--features",
        nargs="+",
        metavar="DIR",
        help="tables, figures: features of your own, instead of --data; demo: where",
    )
    add("--test-features", metavar="DIR", help="table-5: features of another data set, made in the same way")
    add("--videos", metavar="DIR", help="table-5, table-s2, report: the clips that --features were made of")
    add("--folds", type=positive, help="grouped cross-validation instead of the recorded split; of --data corpus: 5")
    add("--few", type=positive, help="labels per class where the paper has 500; default 15, of real clips 5")
    add("--full", action="store_true", help="tables, figures: the paper's batch size, rate, epochs, margin, 500 labels")
    add("--corpus", default="../shared/corpus", help="folder of real clips: clips/ and clips.csv")
    add("--encoder", choices=tuple(ENCODER_FLAGS), default="dct", help="the frozen encoder of --data")
    add("--encoder-weights", help="mobilenet's weights, for a machine that cannot download them")
    add("--run", help="folder of the runs; default runs/paper, demo, report or unseen; with --verify a temporary one")
    add("--results", help="folder of the results; default: results, of demo its run")
    add("--seeds", type=positive, help="all but demo: other weights, choice of labels and corpus folds; 3, wild 5")
    add("--level", choices=LEVELS, help="compare: at this level alone; default: at every level that all the runs have")
    add("--overwrite", action="store_true", help="train and extract again what is there; paper: in each entry")
    add("--dry-run", action="store_true", help="paper: print the commands at full size, and what they take")
    add("--limit", type=positive, help="at most this many clips per generator: a small run")
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "reproduce.py", *(sys.argv[1:] if argv is None else argv)])
    args.runs = args.name[1:] if args.name[:1] == ["compare"] else []
    args.name = "-".join(args.name[:1] if args.runs else args.name)
    if args.name not in (*ENTRIES, *OTHERS) and (args.name or not (args.list or args.verify)):
        parser.error(f"{args.name}: no such experiment; --list names them" if args.name else "name one or pass --list")
    args.data = args.data or OWN_DATA.get(args.name, "zoo")
    args.results = args.results or (None if args.name == "demo" and not args.verify else "results")
    args.seeds = args.seeds or (ENTRIES[args.name].seeds if args.name in ENTRIES else 3)
    if args.name == "compare" and len(args.runs) < 2:
        parser.error("compare takes two run folders or more, such as runs/zoo runs/one-stage")
    if args.level and args.name != "compare":
        parser.error("--level is for compare")
    if args.folds == 1:
        parser.error("--folds takes 2 or more")
    if args.features and args.name == "readme":
        parser.error("readme takes no --features")
    if args.dry_run and not (args.name == "paper" and len(args.features or ()) == 1):
        parser.error("--dry-run is for paper with one folder of --features")
    if args.test_features and args.name != "table-5":
        parser.error("--test-features is for table-5")
    if args.videos and not (args.features and args.name in ("table-5", "table-s2", "report")):
        parser.error("--videos is for table-5, table-s2 and report with --features")
    return args


LIST_NOTES = """
A table or figure needs nothing on the zoo; --features needs a folder that 01 made, --data corpus and equalized a folder
of real clips. Minutes: estimates for two cores and JAX, when the entries above have made shared runs. Interrupted, one
goes on with the same command. Pieces of loss-grid: --seeds 1, --seeds 2, --seeds 3, then without. The paper's scale:
GenVideo, 2.3 million videos, and SigLIP-So400m/14, 31 TB of tokens.
"""


def print_list():
    for name, entry in ENTRIES.items():
        print(f"{name:18} {entry.what}\n{'':18} zoo: {entry.minutes} min; at the paper's scale: {entry.paper}")
    print(f"\nall of these: {sum(entry.minutes for entry in ENTRIES.values())} min")
    print(LIST_NOTES)
    print("\n".join(f"{name:18} {what}" for name, (what, _) in OTHERS.items()))


def run_all(flags):
    """Every entry with these flags, in a process of its own, which gives its memory back."""
    for name in ENTRIES:
        if subprocess.run([sys.executable, __file__, name, *flags], check=False).returncode:
            raise InputError(f"{name} could not be done, see above; the same command goes on with it")


def main(argv=None):
    args = get_args(argv)
    if args.list:
        return print_list()
    if args.dry_run:
        return resolve_name("experiments.full_size:print_full_size")(args)
    if args.verify:
        return verify(args, get_args)
    if args.name == "paper":
        flags = list(sys.argv[1:] if argv is None else argv)
        flags.remove("paper")
        return run_all(flags)
    return run_entry(args)


if __name__ == "__main__":
    run_script(main)
