"""SAGA's Fig. 1(b), 4, 5 (t-SNE), 1(c) (five levels) and S-2 (generators by loss), each with numbers beside it.

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/<entry>.png, of seed 0; results/<entry>.json and .md: numbers, mean +- std over seeds, beside chance

An entry is `measure(args, data) -> results`, `render(results) -> lines` of Markdown, and `draw(args, data, results,
path)`.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from basics.artifacts import read_arrays
from basics.figures import plt, save_figure
from experiments.paper import paper_overall, paper_setting, paper_values
from experiments.stages import ONE_ALL, ONE_FEW, STAGE_ONE, TWO_FEW, Arm, markdown, train_arm
from experiments.tables import (
    OVERALL,
    arm_results,
    by_class,
    caption,
    described,
    mean_std,
    overall_cells,
    ten_generators,
)
from tokens.dataset import mean_tokens, read_index, usable
from tokens.generators import LEVELS, class_names, level_name
from training.evaluation import score_names
from training.plots import drawable, tsne, tsne_panel

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
LOSS_PANELS = {loss: (Arm(2, "few", loss), "gen", "generator", False) for loss in ("CE", "CE+semi-HNM", "CE+HNM")}
PANELS = {"generator": GENERATOR_PANELS, "level": LEVEL_PANELS, "loss": LOSS_PANELS}
UNSEEN_CLIPS = 15  # of each generator that a panel's model was not trained on


def embedded(args, data, panel, seed):
    """Held-out clips of a panel's model: embedding (V, D), names by its colour (V,), paths (V,). None: collapsed."""
    arm, level, colour, ten = panel
    (run,) = train_arm(args, data, arm, level, seed, ten_generators(data) if ten else None)
    if run is None:
        return None
    arrays = read_arrays(run / f"{level}_embeddings.npz", ("embedding", "class", "generator", "video", "split"))
    chosen = np.flatnonzero(arrays["split"] == "test").tolist()
    random = np.random.default_rng(seed)
    for name in np.unique(arrays["generator"]) if ten else ():
        unseen = np.flatnonzero((arrays["split"] == "unseen") & (arrays["generator"] == name))
        chosen += random.permutation(unseen)[:UNSEEN_CLIPS].tolist()
    return arrays["embedding"][chosen], arrays[colour][chosen], arrays["video"][chosen]


def neighbours(vectors, names):
    """score_names of clips whose predicted name is that of most of their five nearest other vectors (V, D)."""
    kinds, kind = np.unique(names, return_inverse=True)
    others = NearestNeighbors(n_neighbors=min(5, len(names) - 1)).fit(vectors).kneighbors(return_distance=False)
    return score_names(names, [kinds[np.bincount(own).argmax()] for own in kind[others]])


def measure_embedding(args, data, panels):
    """By panel, `neighbours` of held-out clips in the embedding and in the frozen tokens by seed; and how many seeds
    collapsed.
    """
    rows, panel_results = {row.path: row for row in usable(read_index(data.features), data.features)}, {}
    for name, panel in PANELS[panels].items():
        found = {"embedding": [], "tokens": []}
        for seed in range(args.seeds):
            if clips := embedded(args, data, panel, seed):
                embedding, names, videos = clips
                tokens = mean_tokens([rows[video] for video in videos])
                for key, vectors in (("embedding", embedding), ("tokens", tokens)):
                    found[key].append({"seed": seed} | neighbours(vectors, names))
        panel_results[name] = {"colour": panel[2], "collapsed": args.seeds - len(found["embedding"])} | found
    return described(data, panels=panel_results)


def neighbours_by_loss(args, data):
    """Of Fig. 5, `neighbours` in the embedding by loss, in the form of `scored`."""
    panels = measure_embedding(args, data, "loss")["panels"]
    return {loss: {"seeds": own["embedding"], "collapsed": own["collapsed"]} for loss, own in panels.items()}


def render_embedding(results):
    rows = []
    for name, panel in results["panels"].items():
        seeds = f"{len(panel['embedding'])}" + (f" ({panel['collapsed']} collapsed)" if panel["collapsed"] else "")
        if not panel["embedding"]:
            rows.append([name, panel["colour"], *["-"] * 6, seeds])
            continue
        cells = [
            mean_std([seed[key] for seed in panel[where]]) for where in ("embedding", "tokens") for key in ACCURACIES
        ]
        first = panel["embedding"][0]
        cells += [f"{100 * first['majority']:.0f} / {100 * first['uniform']:.0f}", f"{first['videos']}"]
        rows.append([name, panel["colour"], *cells, seeds])
    header = ["trained at", "named", "embedding micro", "macro", "frozen tokens micro", "macro"]
    what = "Held-out clips named by their five nearest neighbours"
    return [caption(results, what), "", *markdown([*header, "chance micro / macro", "clips", "seeds"], rows)]


ACCURACIES = ("micro", "macro")


def draw_embedding(args, data, results, path, panels):
    panels = PANELS[panels]
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7.5 * columns, 6 * lines), squeeze=False, layout="constrained")
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=True):
        heading = f"{name}, by {panel[2]}"
        own = embedded(args, data, panel, 0)
        if own and drawable(own[0]):
            tsne_panel(axis, tsne(own[0]), own[1], heading)
        else:
            axis.set(title=f"{heading}: nothing to show", xticks=[], yticks=[])
    figure.suptitle(f"t-SNE of held-out clips, {data.name}")
    save_figure(figure, path)


# ---------------------------------------------------------------- Fig. 1(c): five levels

RADAR = {  # series: arm at the attribution levels, at BIN-L
    "1-stage, few labels": (ONE_FEW, Arm(1, "few")),
    "1-stage, all labels": (ONE_ALL, STAGE_ONE),
    "2-stage, few labels": (TWO_FEW, STAGE_ONE),
}


def measure_levels(args, data):
    series = {}
    for name, (arm, first) in RADAR.items():
        series[name] = {level: arm_results(args, data, first if level == "bin" else arm, level) for level in LEVELS}
    return described(data, series=series)


def render_levels(results):
    rows = []
    for name, levels in results["series"].items():
        theirs = paper_overall(RADAR[name][0])
        for level, result in levels.items():
            paper = "-" if theirs[level] is None else f"{theirs[level]:.2f}"
            rows.append([level_name(level), name, *overall_cells(result), paper])
    rows.sort(key=lambda row: [level_name(level) for level in LEVELS].index(row[0]))
    header = ["level", "setting", *OVERALL, "the paper's Overall"]
    return [caption(results, "Five levels, CE+HNM at all but BIN-L"), "", *markdown(header, rows)]


def draw_levels(args, data, results, path):
    angles = np.linspace(0, 2 * np.pi, len(LEVELS), endpoint=False).tolist()
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.5), subplot_kw={"projection": "polar"}, layout="constrained")
    for name, levels in results["series"].items():
        scored = {level: result["seeds"] for level, result in levels.items()}
        ours = [
            [100 * np.mean([seed[key] for seed in seeds]) if seeds else np.nan for seeds in scored.values()]
            for key in ACCURACIES
        ]
        theirs = np.array([paper_overall(RADAR[name][0])[level] for level in LEVELS], float)
        for axis, values in zip(axes, [*ours, theirs], strict=True):
            axis.plot([*angles, angles[0]], [*values, values[0]], label=name)
    if all(scored.values()):
        for axis, key in zip(axes, ("majority", "uniform"), strict=False):
            values = [100 * seeds[0][key] for seeds in scored.values()]
            axis.plot([*angles, angles[0]], [*values, values[0]], "k:", label="chance")
    heads = (f"{data.name}, micro", f"{data.name}, macro", "the paper's, GenVideo")
    for axis, heading in zip(axes, heads, strict=True):
        axis.set_xticks(angles, [level_name(level) for level in LEVELS])
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
    tested = {name for result in results["arms"].values() for seed in result["seeds"] for name in seed["per_class"]}
    return [name for name in class_names("gen") if name in tested]


def render_by_loss(results):
    overall = paper_values("S-6 loss GEN-L", "overall")
    rows = [[loss, *overall_cells(result), f"{overall[loss]:.2f}"] for loss, result in results["arms"].items()]
    lines = [caption(results, "GEN-L, two stages, by loss"), ""]
    lines += [*markdown(["loss", *OVERALL, "the paper's"], rows), ""]
    lines += ["By generator; in brackets the paper's of Table 7, which has no CE+semi-HNM:", ""]
    theirs = {loss: paper_values("7 GEN-L", paper_setting(LOSS_ARMS[loss], "gen")) for loss in results["arms"]}
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
