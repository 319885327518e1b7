"""SAGA's figures by name, each on the data at hand and with numbers for what the paper shows as pictures.

reads   a features folder (corpora.py); trains what is not up to date (stages.py)
writes  results/<entry>.png, of seed 0; results/<entry>.json and .md: numbers, mean +- std over seeds, beside chance

An entry is `measure(args, data) -> results`, `render(results) -> lines` of Markdown, and `draw(args, data, results,
path)`. T-Sigs are 04's; where folds are pooled, each map is taken less the mean map that its own fold's model gives to
training clips, since models of different folds attend differently.
"""

import importlib
import shutil

import numpy as np
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from common import LEVELS, class_names
from experiments.probes import mean_tokens
from experiments.stages import ONE_ALL, ONE_FEW, STAGE_ONE, TWO_FEW, markdown, stage, train_arm
from experiments.tables import (
    GENVIDEO_TRAIN,
    OVERALL,
    arm_results,
    by_class,
    caption,
    described,
    generators_of,
    mean_std,
    overall_cells,
    paper_values,
)
from tokens.dataset import read_index
from training.evaluation import PAPER_TABLES, drawable, paper_lines, plt, save_figure, score_names, tsne_panel
from training.signatures import halves, measure, permuted_halves

# ---------------------------------------------------------------- Fig. 1(a), 6, S-3: T-Sigs

REPEATS = 50  # halvings of each class's groups
SHOWN = (1, 5, 20)  # clips per signature, as far as two classes have them


def tsig_runs(args, data, arm, level, seed, only=()):
    """(run folder, 04's metrics, its arrays) of an arm's runs, one per fold; nothing where mining collapsed."""
    runs = train_arm(args, data, arm, level, seed, only)
    if None in runs:
        return []
    flags = ["--features", data.features, "--level", level, "--seed", seed, "--repeats", REPEATS]
    flags += ["--limit", args.limit] if args.limit else []
    if len(data.folds) > 1:  # a fold has few clips of a class; they are measured together with the others'
        flags += ["--splits", "train,test,unseen", "--strata", "none", "--no-controls"]
    found = []
    for run in runs:
        metrics = stage("04_tsigs", *flags, "--run", run)
        with np.load(run / f"{level}_tsigs.npz", allow_pickle=False) as arrays:
            found.append((run, metrics, {key: arrays[key] for key in arrays}))
    return found


def arm_of(level):
    return STAGE_ONE if level == "bin" else TWO_FEW


def halves_of(maps, names, groups, seed, draw_sides=halves, shift=0):
    """04's identification and correlations on some clips: maps (V, L, L), names (V,), groups (V,)."""
    labels, groups = (np.unique(values, return_inverse=True)[1] for values in (names, groups))
    if labels.max() == 0:
        return []
    return measure(maps, np.broadcast_to(shift, maps.shape[1:]), labels, groups, draw_sides, REPEATS, seed)


def signature_tables(runs, seed):
    """{condition: rows by clips per signature} of one run, or of the folds' clips together."""
    if len(runs) == 1:
        return runs[0][1]["tables"]
    tested = [(arrays, arrays["split"] == "test") for _, _, arrays in runs]
    maps = np.concatenate([arrays["maps"][own] - arrays["grand_mean"] for arrays, own in tested])
    names, groups = (np.concatenate([arrays[key][own] for arrays, own in tested]) for key in ("class", "group"))
    return {
        "trained": halves_of(maps, names, groups, seed),
        "labels permuted": halves_of(maps, names, groups, seed, permuted_halves),
    }


def measure_signatures(args, data):
    levels = {}
    for level in LEVELS:
        runs = [tsig_runs(args, data, arm_of(level), level, seed) for seed in range(args.seeds)]
        levels[level] = [signature_tables(own, seed) for seed, own in enumerate(runs) if own]
    return described(data, levels=levels)


CONDITIONS = ("trained", "frames shuffled", "untrained", "labels permuted")


def signature_row(tables, clips, conditions):
    """How often signatures of so many clips are found, by condition, and their correlations: cells of a table."""
    found = {
        name: [row for table in tables for row in table.get(name, []) if row["clips"] == clips] for name in conditions
    }
    first = found[conditions[0]]
    if not first:
        return None
    classes, chance = (np.mean([row[key] for row in first]) for key in ("classes", "chance"))
    cells = [f"{clips}", f"{classes:.0f}", f"{100 * chance:.0f}"]
    cells += [mean_std([row["accuracy"] for row in rows]) for rows in found.values()]
    return [*cells, *(f"{np.mean([row[key] for row in first]):.2f}" for key in ("within", "between")), f"{len(tables)}"]


def signature_header(*found):
    return ["n", "classes", "chance", *found, "within", "between", "seeds"]


def render_signatures(results):
    rows = []
    for level, tables in results["levels"].items():
        cells = [signature_row(tables, clips, CONDITIONS) for clips in SHOWN]
        rows += [[f"{level.upper()}-L", *own] for own in cells if own]
    header = ["level", *signature_header("found", *CONDITIONS[1:])]
    what = "T-Sigs of n clips of one half of a class's groups, found among all classes' of the other half"
    return [caption(results, what), "", *markdown(header, rows), "", WITHIN]


WITHIN = (
    "Found: nearest to its own class. Within and between: correlation of two signatures of one class, of two classes,"
    " less the mean map of other clips."
)


def draw_signatures(args, data, results, path):
    module, grid = importlib.import_module("04_tsigs"), []
    for level in LEVELS:
        runs = tsig_runs(args, data, arm_of(level), level, seed=0)
        if runs:
            grid += module.wrap(f"{level.upper()}-L", [*mean_maps([arrays for _, _, arrays in runs]).values()])
    module.draw(grid, f"T-Sigs per level, {data.name}", path)


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


def ten_generators(data):
    return ("--train-generators", ",".join(generators_of(data, lambda generator: generator.name in GENVIDEO_TRAIN)))


def measure_unseen_signatures(args, data):
    """GEN-L of GenVideo's ten train generators: are signatures found among seen, unseen and all classes?"""
    kinds = {"seen": [], "unseen": [], "all": []}
    for seed in range(args.seeds):
        for _, _, arrays in tsig_runs(args, data, TWO_FEW, "gen", seed, ten_generators(data)):
            seen = np.isin(arrays["class"], arrays["classes"][arrays["seen"]])
            for kind, chosen in {"seen": seen, "unseen": ~seen, "all": np.full(len(seen), True)}.items():
                own = (arrays[key][chosen] for key in ("maps", "class", "group"))
                kinds[kind].append({"trained": halves_of(*own, seed, shift=arrays["grand_mean"])})
    return described(data, kinds=kinds)


def render_unseen_signatures(results):
    rows = []
    for kind, tables in results["kinds"].items():
        cells = [signature_row(tables, clips, ("trained",)) for clips in SHOWN]
        rows += [[kind, *own] for own in cells if own]
    what = "T-Sigs of generators that the model trained on and of others, found among classes of their own kind or all"
    return [caption(results, what), "", *markdown(["classes", *signature_header("found")], rows), "", WITHIN]


def draw_unseen_signatures(args, data, results, path):
    copy_figure(tsig_runs(args, data, TWO_FEW, "gen", 0, ten_generators(data)), "unseen", path)


def copy_figure(runs, what, path):
    """04's own figure of the one run, where mining did not collapse."""
    for run, _, _ in runs:
        shutil.copyfile(run / f"gen_tsigs_{what}.png", path)


# Fig. S-3


def measure_content(args, data):
    """Are signatures of one content found among those of another?"""
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
    what = f"T-Sigs at GEN-L found among signatures of another content (strata: {results['strata']}) or of any"
    return [caption(results, what), "", *markdown(["found among", *signature_header("found")], rows), "", WITHIN]


def draw_content(args, data, results, path):
    copy_figure(tsig_runs(args, data, TWO_FEW, "gen", seed=0), "strata", path)


# ---------------------------------------------------------------- Fig. 1(b), 4, 5: t-SNE

LEVEL_PANELS = {  # panel: arm, level, colour, whether trained on GenVideo's ten train generators alone
    "(a) TASK-L": (TWO_FEW, "task", "class", False),
    "(b) TASK-L": (TWO_FEW, "task", "generator", False),
    "(c) BIN-L": (STAGE_ONE, "bin", "generator", False),
    "(d) BIN-L, ten train generators": (STAGE_ONE, "bin", "generator", True),
    "(e) SD-L": (TWO_FEW, "sd", "class", False),
    "(f) SD-L": (TWO_FEW, "sd", "generator", False),
    "(g) TEAM-L": (TWO_FEW, "team", "class", False),
    "(h) TEAM-L": (TWO_FEW, "team", "generator", False),
}
GENERATOR_PANELS = {"GEN-L": (TWO_FEW, "gen", "generator", False)}
LOSS_PANELS = {loss: (f"2-stage few {loss}", "gen", "generator", False) for loss in ("CE", "CE+semi-HNM", "CE+HNM")}
UNSEEN_CLIPS = 15  # of each generator that a panel's model never saw


def embedded(args, data, panel, seed):
    """Held-out clips of a panel's model: embedding (V, D), names by its colour (V,), paths (V,). None: collapsed."""
    arm, level, colour, ten = panel
    (run,) = train_arm(args, data, arm, level, seed, ten_generators(data) if ten else ())
    if run is None:
        return None
    with np.load(run / f"{level}_embeddings.npz", allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in ("embedding", "class", "generator", "video", "split")}
    chosen = np.flatnonzero(found["split"] == "test").tolist()
    random = np.random.default_rng(seed)
    for name in np.unique(found["generator"]) if ten else ():
        own = np.flatnonzero((found["split"] == "unseen") & (found["generator"] == name))
        chosen += random.permutation(own)[:UNSEEN_CLIPS].tolist()
    return found["embedding"][chosen], found[colour][chosen], found["video"][chosen]


def neighbours(vectors, names):
    """What clips are called by their five nearest others (V, D): score_names of it."""
    called = cross_val_predict(KNeighborsClassifier(min(5, len(names) - 1)), vectors, names, cv=LeaveOneOut())
    return score_names(names, called)


def measure_embedding(args, data, panels):
    """How often a held-out clip's five nearest neighbours in the embedding, and in the frozen tokens, are its kind."""
    rows, found = {row["path"]: row | {"features": data.features} for row in read_index(data.features)}, {}
    for name, panel in panels.items():
        found[name] = {"colour": panel[2], "embedding": [], "tokens": []}
        for seed in range(args.seeds):
            if own := embedded(args, data, panel, seed):
                embedding, names, videos = own
                found[name]["embedding"].append(neighbours(embedding, names))
                found[name]["tokens"].append(neighbours(mean_tokens([rows[video] for video in videos]), names))
    return described(data, panels=found)


def render_embedding(results):
    rows = []
    for name, panel in results["panels"].items():
        if not panel["embedding"]:
            rows.append([name, panel["colour"], *["-"] * 5, "0"])
            continue
        cells = [mean_std([seed[key] for seed in panel[where]]) for where in ("embedding", "tokens") for key in SHARES]
        first = panel["embedding"][0]
        cells += [f"{100 * first['majority']:.0f} / {100 * first['uniform']:.0f}", f"{first['videos']}"]
        rows.append([name, panel["colour"], *cells, f"{len(panel['embedding'])}"])
    header = ["trained at", "told apart", "embedding micro", "macro", "frozen tokens micro", "macro"]
    what = "Held-out clips named by their five nearest neighbours"
    return [caption(results, what), "", *markdown([*header, "chance micro / macro", "clips", "seeds"], rows)]


SHARES = ("micro", "macro")


def draw_embedding(args, data, results, path, panels):
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7.5 * columns, 6 * lines), squeeze=False, layout="constrained")
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=True):
        heading = f"{name}, by {panel[2]}"
        own = embedded(args, data, panel, 0)
        if own and drawable(own[0]):
            tsne_panel(axis, *own[:2], heading)
        else:
            axis.set(title=f"{heading}: nothing to show", xticks=[], yticks=[])
    figure.suptitle(f"t-SNE of held-out clips, {data.name}")
    save_figure(figure, path)


# ---------------------------------------------------------------- Fig. 1(c): five levels

RADAR = {  # series: arm at the attribution levels, at BIN-L; the paper's setting in Tables 2, 3, 6 and in Table 7
    "1-stage, few labels": (ONE_FEW, "1-stage few", "1-stage 0.5%"),
    "1-stage, all labels": (ONE_ALL, STAGE_ONE, "1-stage 100%"),
    "2-stage, few labels": (TWO_FEW, STAGE_ONE, "2-stage 0.5%"),
}


def measure_levels(args, data):
    series = {}
    for name, (arm, first, _) in RADAR.items():
        series[name] = {level: arm_results(args, data, first if level == "bin" else arm, level) for level in LEVELS}
    return described(data, series=series)


def paper_overall(setting):
    """The paper's Overall by level; at BIN-L it has stage 1 with all labels alone."""
    all_labels = float(next(line["value"] for line in paper_lines("4 BIN-L")))
    values = {"bin": None if setting == "1-stage 0.5%" else all_labels}
    for level, table in PAPER_TABLES.items():
        values[level] = paper_values(table, f"{setting} CE+HNM" if level == "gen" else setting)["Overall"]
    return values


def render_levels(results):
    rows = []
    for name, levels in results["series"].items():
        theirs = paper_overall(RADAR[name][2])
        for level, result in levels.items():
            paper = "-" if theirs[level] is None else f"{theirs[level]:.2f}"
            rows.append([f"{level.upper()}-L", name, *overall_cells(result), paper])
    rows.sort(key=lambda row: [f"{level.upper()}-L" for level in LEVELS].index(row[0]))
    header = ["level", "setting", *OVERALL, "the paper's Overall"]
    return [caption(results, "Five levels, CE+HNM at all but BIN-L"), "", *markdown(header, rows)]


def draw_levels(args, data, results, path):
    angles = np.linspace(0, 2 * np.pi, len(LEVELS), endpoint=False).tolist()
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.5), subplot_kw={"projection": "polar"}, layout="constrained")
    for name, levels in results["series"].items():
        scored = {level: result["seeds"] for level, result in levels.items()}
        ours = [
            [100 * np.mean([seed[key] for seed in seeds]) if seeds else np.nan for seeds in scored.values()]
            for key in SHARES
        ]
        theirs = np.array([paper_overall(RADAR[name][2])[level] for level in LEVELS], float)
        for axis, values in zip(axes, [*ours, theirs], strict=True):
            axis.plot([*angles, angles[0]], [*values, values[0]], label=name)
    if all(scored.values()):
        for axis, key in zip(axes, ("majority", "uniform"), strict=False):
            values = [100 * seeds[0][key] for seeds in scored.values()]
            axis.plot([*angles, angles[0]], [*values, values[0]], "k:", label="chance")
    heads = (f"{data.name}, micro", f"{data.name}, macro", "the paper's, GenVideo")
    for axis, heading in zip(axes, heads, strict=True):
        axis.set_xticks(angles, [f"{level.upper()}-L" for level in LEVELS])
        axis.tick_params(axis="x", pad=12)
        axis.set_rlabel_position(36)
        axis.set(ylim=(0, 100), title=f"{heading}, per cent")
    axes[0].legend(loc="upper left", bbox_to_anchor=(-0.3, 0.1), fontsize=8)
    save_figure(figure, path)


# ---------------------------------------------------------------- Fig. S-2: generators under three losses

LOSS_ARMS = {loss: panel[0] for loss, panel in LOSS_PANELS.items()}


def measure_by_loss(args, data):
    return described(data, arms={loss: arm_results(args, data, arm, "gen") for loss, arm in LOSS_ARMS.items()})


def tested_generators(results):
    found = {name for result in results["arms"].values() for seed in result["seeds"] for name in seed["per_class"]}
    return [name for name in class_names("gen") if name in found]


def render_by_loss(results):
    overall = paper_values("S-6 loss GEN-L", "overall")
    rows = [[loss, *overall_cells(result), f"{overall[loss]:.2f}"] for loss, result in results["arms"].items()]
    lines = [caption(results, "GEN-L, two stages, by loss"), ""]
    lines += [*markdown(["loss", *OVERALL, "the paper's"], rows), ""]
    lines += ["By generator; in brackets the paper's of Table 7, which has no CE+semi-HNM:", ""]
    theirs = {loss: paper_values("7 GEN-L", f"2-stage 0.5% {loss}") for loss in results["arms"]}
    rows = []
    for name in tested_generators(results):
        cells = []
        for loss, result in results["arms"].items():
            paper = f" ({theirs[loss][name]:.2f})" if name in theirs[loss] else ""
            cells.append(mean_std(by_class(result, name)) + paper)
        rows.append([name, *cells])
    return [*lines, *markdown(["generator", *results["arms"]], rows)]


def draw_by_loss(args, data, results, path):
    names = tested_generators(results)
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    for i, (loss, result) in enumerate(results["arms"].items()):
        seeds = [by_class(result, name) for name in names]
        heights, errors = ([100 * (function(own) if own else 0) for own in seeds] for function in (np.mean, np.std))
        axes.bar(np.arange(len(names)) + 0.27 * (i - 1), heights, 0.25, yerr=errors, label=loss, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.axhline(100 / len(names), color="k", ls=":", label="chance")
    axes.set(ylabel="accuracy, per cent", ylim=(0, 115))
    axes.set_title(f"GEN-L by loss, two stages, {data.name}; lines: standard deviation over seeds")
    axes.legend(ncols=4, loc="upper left")
    save_figure(figure, path)
