"""Every table, figure and question that reproduce.py knows by name.

run_entry(args)      one of ENTRIES or OTHERS, with reproduce.py's arguments

reads   entries.csv, a row per entry: what it shows and takes, and by which functions; a features folder (datasets.py)
writes  results/<entry>.json, .md and, for figures, .png

Functions are imported when an entry runs, so that the list of entries takes no time.
"""

from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from basics.artifacts import read_csv
from basics.running import InputError
from experiments.datasets import choose_data
from experiments.results import results_folder, settings_line, write_results
from experiments.stages import USED


class Entry(NamedTuple):
    """A row of entries.csv. Of `code` "tables.level" are tables.measure_level(args, data, **given), which gives numbers
    alone, render_level(results), their Markdown, and draw_level(args, data, results, path, **given) of what is drawn.
    All that is in wild.py is rendered by its render(results, what).
    """

    name: str
    what: str
    code: str
    given: dict
    minutes: int  # on the zoo, two cores, JAX, with the runs that the entries above it have made
    seeds: int
    drawn: bool  # whether there is a figure
    folds: bool  # whether grouped folds can be pooled
    several: bool  # whether it compares several features folders
    paper: str  # what it takes at the paper's scale, beside GenVideo's features

    def function(self, verb):
        module, noun = self.code.split(".")
        name = verb if (module, verb) == ("wild", "render") else f"{verb}_{noun}"
        return resolve_name(f"experiments.{module}:{name}")

    def measure(self, args, data):
        return self.function("measure")(args, data, **self.given)

    def render(self, results):
        lines = self.function("render")(results, *([self.what] if self.code.startswith("wild.") else []))
        return [*lines, "", settings_line(results)]

    def draw(self, args, data, results, path):
        self.function("draw")(args, data, results, path, **self.given)


def read_entries():
    entries = {}
    for row in read_csv(Path(__file__).with_name("entries.csv"), Entry._fields):
        given = dict(pair.split("=") for pair in row["given"].split())
        numbers = {key: int(row[key]) for key in ("minutes", "seeds")}
        flags = {key: bool(row[key]) for key in ("drawn", "folds", "several")}
        entries[row["name"]] = Entry(**row | numbers | flags | {"given": given})
    return entries


ENTRIES = read_entries()
OTHERS = {  # name: what it does, and the function of reproduce.py's arguments
    "demo": (
        "Simulate, extract, pretrain, attribute: 5 minutes on two cores, no data needed. It fills data/zoo,"
        " features/zoo and runs/zoo/bin.keras, where the stages look for them; all five levels are in runs/demo.",
        "experiments.demo:demo",
    ),
    "steps": (
        "The five stages one after the other on a small zoo, with the keys and shapes of what each leaves: 3 minutes.",
        "experiments.steps:steps",
    ),
    "unseen-generators": (
        "Which scores tell generators never trained on from seen ones at GEN-L, and where they land at SD-L and TEAM-L:"
        " six of the zoo's left out, 30 clips per class, two minutes a seed; of other data the generators outside the"
        " table, scores alone.",
        "experiments.unseen:unseen_generators",
    ),
    "compare": (
        "Two runs or more on the same test clips, `compare RUN RUN [...]`: accuracies with 95% intervals by bootstrap"
        " over groups, by class, McNemar's exact test with Holm's correction.",
        "experiments.compare_runs:compare",
    ),
    "paper": ("Every table, figure and question above these, one after the other; runs are shared.", None),
    "readme": (
        "Render results/ again and make the tables in README.md and docs/ from them.",
        "experiments.readme:write_readme",
    ),
}


def run_entry(args):
    """Measure, write and draw one of ENTRIES on the chosen data, or run one of OTHERS."""
    USED.clear()
    if args.name in OTHERS:
        return resolve_name(OTHERS[args.name][1])(args)
    entry, data = ENTRIES[args.name], choose_data(args)
    if len(data) > 1 and not entry.several:
        raise InputError(f"{args.name} takes one folder of --features; table-s3, encoder-transfer compare several")
    if len(data[0].folds) > 1 and not entry.folds:
        raise InputError(
            f"{args.name} wants the recorded split, not grouped folds: give a --features folder without --folds"
        )
    results = entry.measure(args, data if entry.several else data[0])
    results = write_results(args, args.name, results, entry.render, data)
    if entry.drawn and not args.verify:
        path = results_folder(args, data) / f"{args.name}.png"
        entry.draw(args, data[0], results, path)
        print(f"figure: {path}")
    return results
