"""The numbered scripts as functions, for experiments that run several of them."""

import contextlib
import importlib
from pathlib import Path

from features import read_index, write_json
from training import choose_videos

# Rates and steps for thousands of windows; the paper's 1e-5, halved every 1,000 steps, are for millions.
SMALL_DATA = "--batch-size 32 --learning-rate 3e-4 --decay-steps 0"


def stage(name, *arguments):
    """Run a numbered script's main with these arguments."""
    return importlib.import_module(name).main([str(argument) for argument in arguments])


def train(level, *arguments):
    """Stage 1 or 2 at a level; (metrics, the videos it chose)."""
    name = "02_pretrain_binary" if level == "bin" else "03_attribute"
    arguments = [str(argument) for argument in arguments] + ([] if level == "bin" else ["--level", level])
    metrics = stage(name, *arguments)
    args = importlib.import_module(name).get_args(arguments)
    with contextlib.redirect_stdout(None):  # said by the stage already
        return metrics, choose_videos(read_index(args.features), level, args)


def results_folder(args):
    """Where an experiment writes: results, or a folder in it for a small run."""
    folder = Path(f"results/limit-{args.limit}" if args.limit else "results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_results(args, name, results, lines):
    """Write <name>.json and, the lines of its table, <name>.md; print the table."""
    folder = results_folder(args)
    write_json(folder / f"{name}.json", results)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
