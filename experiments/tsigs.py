"""SAGA's Fig. 1(a), 6 and S-3: T-Sigs by level, of unseen generators, by content, and how often one finds its class.

reads   a features folder (datasets.py); trains what is not up to date (stages.py), and runs 04 on it
writes  results/<entry>.png, of seed 0; results/<entry>.json and .md: numbers, mean +- std over seeds, beside chance

T-Sigs and their controls are 04's. Where folds are pooled, its maps are measured together, each less the mean map that
its own fold's model gives to training clips, since models of different folds attend differently.
"""

import shutil

import numpy as np

from basics.artifacts import read_arrays
from basics.figures import draw_maps, wrap_panels
from experiments.stages import STAGE_ONE, TWO_FEW, markdown, stage, train_arm
from experiments.tables import caption, described, mean_std, ten_generators
from tokens.dataset import read_index
from tokens.generators import LEVELS, level_name
from training.signatures import identify, permuted_halves, split_groups_in_halves

# ---------------------------------------------------------------- signatures of an arm

REPEATS = 50  # halvings of each class's groups
SHOWN = (1, 5, 20)  # clips per signature, as far as two classes have them


def tsig_runs(args, data, arm, level, seed, only=None):
    """(run folder, 04's metrics, its arrays) of an arm's runs, one per fold; nothing where mining collapsed."""
    runs = train_arm(args, data, arm, level, seed, only)
    if None in runs:
        return []
    flags = ["--features", data.features, "--level", level, "--seed", seed, "--repeats", REPEATS, "--controls"]
    flags += ["--limit", args.limit] if args.limit else []
    if len(data.folds) > 1:  # a fold has few clips of a class; they are measured together with the others'
        flags += ["--splits", "train,test,unseen"]
    elif not any(row.stratum for row in read_index(data.features)):
        flags += ["--strata", "kmeans"]
    metrics = [stage("04_tsigs", *flags, "--run", run, overwrite=args.overwrite) for run in runs]
    return [(run, own, read_arrays(run / f"{level}_tsigs.npz")) for run, own in zip(runs, metrics, strict=True)]


def arm_of(level):
    return STAGE_ONE if level == "bin" else TWO_FEW


def measure_halves(maps, names, groups, seed, draw_sides=split_groups_in_halves, shift=0):
    """04's table of some clips: maps (V, L, L), whose grand mean is `shift` (L, L), names and groups (V,)."""
    labels, groups = (np.unique(values, return_inverse=True)[1] for values in (names, groups))
    if labels.max() == 0:
        return []
    return identify(maps, np.broadcast_to(shift, maps.shape[1:]), labels, groups, draw_sides, REPEATS, seed)


def signature_tables(runs, seed):
    """{condition: rows by clips per signature} of one run, or of the folds' clips together."""
    if len(runs) == 1:
        return runs[0][1]["tables"]
    tested = [(arrays, arrays["split"] == "test") for _, _, arrays in runs]
    names, groups = (np.concatenate([arrays[key][test] for arrays, test in tested]) for key in ("class", "group"))

    def pooled(key):
        return np.concatenate([arrays[f"{key}maps"][test] - arrays[f"{key}grand_mean"] for arrays, test in tested])

    keys = {"trained": "", "frames shuffled": "frames_shuffled_", "untrained": "untrained_"}
    tables = {condition: measure_halves(pooled(key), names, groups, seed) for condition, key in keys.items()}
    return tables | {"labels permuted": measure_halves(pooled(""), names, groups, seed, permuted_halves)}


def measure_signatures(args, data):
    levels = {}
    for level in LEVELS:
        runs = [tsig_runs(args, data, arm_of(level), level, seed) for seed in range(args.seeds)]
        levels[level] = [signature_tables(own, seed) for seed, own in enumerate(runs) if own]
    return described(data, levels=levels)


SHOWN_CONDITIONS = ("trained", "frames shuffled", "untrained", "labels permuted")


def signature_row(tables, clips, conditions):
    """The accuracy of signatures of so many clips by condition, and their correlations: cells of a table."""
    by_condition = {
        name: [row for table in tables for row in table.get(name, []) if row["clips"] == clips] for name in conditions
    }
    first = by_condition[conditions[0]]
    if not first:
        return None
    classes, chance = (np.mean([row[key] for row in first]) for key in ("classes", "chance"))
    cells = [f"{clips}", f"{classes:.0f}", f"{100 * chance:.0f}"]
    cells += [mean_std([row["accuracy"] for row in rows]) for rows in by_condition.values()]
    return [*cells, *(f"{np.mean([row[key] for row in first]):.2f}" for key in ("within", "between")), f"{len(tables)}"]


def signature_header(*accuracies):
    return ["n", "classes", "chance", *accuracies, "within", "between", "seeds"]


def render_signatures(results):
    rows = []
    for level, tables in results["levels"].items():
        cells = [signature_row(tables, clips, SHOWN_CONDITIONS) for clips in SHOWN]
        rows += [[level_name(level), *own] for own in cells if own]
    header = ["level", *signature_header("accuracy", *SHOWN_CONDITIONS[1:])]
    what = "T-Sigs of n clips of one half of a class's groups, matched with all classes' of the other half"
    return [caption(results, what), "", *markdown(header, rows), "", WITHIN]


WITHIN = (
    "Accuracy: the nearest signature is of the same class. Within and between: correlation of two signatures of one"
    " class, of two classes, less the mean map of other clips."
)


def draw_signatures(args, data, results, path):
    grid = []
    for level in LEVELS:
        runs = tsig_runs(args, data, arm_of(level), level, seed=0)
        if runs:
            grid += wrap_panels(level_name(level), [*mean_maps([arrays for _, _, arrays in runs]).values()])
    draw_maps(grid, f"T-Sigs per level, {data.name}", path)


def mean_maps(runs):
    """{class: (label, mean map (L, L))} of the held-out clips of several runs' arrays, by the model's classes."""
    held_out = [~np.isin(arrays["split"], ("train", "unseen")) for arrays in runs]
    maps, names = (
        np.concatenate([arrays[key][own] for arrays, own in zip(runs, held_out, strict=True)])
        for key in ("maps", "class")
    )
    order = dict.fromkeys(name for arrays in runs for name in arrays["classes"].tolist())
    clips = {name: maps[names == name] for name in order if name in names}
    return {name: (f"{name}\nclips: {len(own)}", own.mean(axis=0)) for name, own in clips.items()}


# Fig. 1(a)


def measure_unseen_signatures(args, data):
    """GEN-L of GenVideo's ten train generators: signatures matched among seen, unseen and all classes."""
    kinds = {"seen": [], "unseen": [], "all": []}
    for seed in range(args.seeds):
        for _, _, arrays in tsig_runs(args, data, TWO_FEW, "gen", seed, ten_generators(data)):
            seen = np.isin(arrays["class"], arrays["classes"][arrays["seen"]])
            for kind, chosen in {"seen": seen, "unseen": ~seen, "all": np.full(len(seen), True)}.items():
                own = (arrays[key][chosen] for key in ("maps", "class", "group"))
                kinds[kind].append({"trained": measure_halves(*own, seed, shift=arrays["grand_mean"])})
    return described(data, kinds=kinds)


def render_unseen_signatures(results):
    rows = []
    for kind, tables in results["kinds"].items():
        cells = [signature_row(tables, clips, ("trained",)) for clips in SHOWN]
        rows += [[kind, *own] for own in cells if own]
    what = (
        "T-Sigs of generators that the model trained on and of others, matched among classes of their own kind or all"
    )
    return [caption(results, what), "", *markdown(["classes", *signature_header("accuracy")], rows), "", WITHIN]


def draw_unseen_signatures(args, data, results, path):
    copy_figure(tsig_runs(args, data, TWO_FEW, "gen", 0, ten_generators(data)), "unseen", path)


def copy_figure(runs, what, path):
    """04's own figure of the one run, where mining did not collapse."""
    for run, _, _ in runs:
        shutil.copyfile(run / f"gen_tsigs_{what}.png", path)


# Fig. S-3


def measure_content(args, data):
    """Signatures of one content, matched with those of another."""
    runs = [run for seed in range(args.seeds) for run in tsig_runs(args, data, TWO_FEW, "gen", seed)]
    source = runs[0][1]["strata"]["source"] if runs else None
    kept = [{key: metrics["tables"].get(key, []) for key in ("trained", "across strata")} for _, metrics, _ in runs]
    return described(data, strata=source, tables=kept)


def render_content(results):
    tables, rows = results["tables"], []
    for condition in ("across strata", "trained"):
        cells = [signature_row(tables, clips, (condition,)) for clips in SHOWN]
        what = "of another content" if condition == "across strata" else "of any content"
        rows += [[what, *own] for own in cells if own]
    what = f"T-Sigs at GEN-L matched with signatures of another content (strata: {results['strata']}) or of any"
    return [caption(results, what), "", *markdown(["matched with", *signature_header("accuracy")], rows), "", WITHIN]


def draw_content(args, data, results, path):
    copy_figure(tsig_runs(args, data, TWO_FEW, "gen", seed=0), "strata", path)
