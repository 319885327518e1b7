"""Open question 1 of SAGA, on generators that a model was not trained on: are they detected as new, are they predicted
as their SD version or team, and are they named correctly once a few of their clips are enrolled?

reads   30 simulated clips per generator; or a corpus, or features of one's own, with generators outside the table
writes  runs/unseen/; results/unseen-scores.*, AUROC and FPR by score and generator; results/unseen-landing.*, how
        often a left-out generator is predicted as its SD version or team, and how often the other left-out ones are
        (zoo alone)

`unseen_generators` takes reproduce.py's arguments; the scores are those of report/scores.py. The last section is an
entry as figures.py has them: results by the number of clips that are enrolled of a new generator.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from basics.artifacts import read_arrays
from basics.figures import plt, save_figure
from basics.running import InputError
from common import load_saga
from experiments.datasets import ZOO, choose_data, extract_zoo, make_data
from experiments.results import BUILT_IN, settings_line, write_results
from experiments.stages import ALL_CE, TWO_FEW, clips_of, markdown, runs_folder, stage, train, train_arm
from experiments.tables import caption, described, generators_of, mean_std
from experiments.tsigs import tsig_runs
from report.scores import NAMINGS, SCORES, Clips, auroc, fit_scores, fpr_at_tpr, group_bootstrap, head_logits, lands_on
from tokens.dataset import mean_tokens, read_index, usable
from tokens.generators import COLUMNS, level_name, load_generators
from training.evaluation import score_names

LEFT_OUT = ("DynamiCrafter", "ModelScope", "Latte", "HotShot", "Pika", "Sora")
KIN_LEVELS = ("sd", "team")
BOOTSTRAPS = 300
TRAINING = {"preset": "small", "best": "last", "weight_decay": 0.05, "init": "scratch", "loss": "ce"}


def unseen_generators(args):
    """Scores and predictions of six left-out generators of the zoo; of other data scores of those outside the table."""
    if args.data != "zoo" or args.features:
        return outside_the_table(args)
    features, known = extract_zoo(args, "--pool 2"), load_generators()
    settings = TRAINING | {"train_generators": [name for name in known if name not in (*LEFT_OUT, "Real")]}
    scores, landed, models = [], [], []
    for seed in range(args.seeds):
        run = runs_folder(args, "runs/unseen") / features.name / f"seed{seed}"
        for level in ("gen", *KIN_LEVELS):
            metrics = train(level, features, run, settings | {"seed": seed}, args.overwrite)
            kept = ("level", "videos", "accuracy", "macro_accuracy", "majority", "uniform")
            models.append({"seed": seed} | {key: metrics[key] for key in kept})
        flags = ["--splits", "train,test,unseen", "--repeats", 1]
        stage("04_tsigs", "--features", features, "--run", run, "--seed", seed, *flags, overwrite=args.overwrite)
        scores.append(scores_of(run, LEFT_OUT))
        landed += [row | {"seed": seed} for level in KIN_LEVELS for row in landing(run, level, known)]
    rows = [score_row(name, [seed[name] for seed in scores]) for name in scores[0]]
    data = [make_data(args, BUILT_IN, features, None, ZOO, None)]
    results = {"models": models, "scores": rows}
    write_results(args, "unseen-scores", results, lambda own: [*score_table(rows), "", settings_line(own)], data)
    results = {"rows": landed}
    write_results(args, "unseen-landing", results, lambda own: [*landing_table(landed), "", settings_line(own)], data)
    return {"models": models, "scores": rows, "landing": landed}


def outside_the_table(args):
    """Scores of the paper's own setting at GEN-L, on clips of generators outside the table; folds count as seeds."""
    (data,) = choose_data(args)
    outside, scores = names_outside(data), []
    for seed in range(args.seeds):
        if tsig_runs(args, data, TWO_FEW, "gen", seed):
            scores += [scores_of(run, outside) for run in train_arm(args, data, TWO_FEW, "gen", seed)]
    if not scores:
        raise InputError(f"{data.features}: mining collapsed for all seeds, so there is nothing to score")
    rows = [score_row(name, [fold[name] for fold in scores]) for name in scores[0]]
    results = described(data, scores=rows)
    what = (
        "Scores of generators outside the table against seen ones, by a model of GEN-L (two stages, few labels, CE+HNM)"
    )
    lines = [caption(results, what, " AUROC (95%), mean over folds and seeds; chance 0.50, FPR 0.95."), ""]
    lines += [*score_table(rows), ""]
    return write_results(args, "unseen-scores", results, lambda own: [*lines, settings_line(own)], [data])


def names_outside(data):
    """The generators of some features that are outside the table, and so never trained on: two or more."""
    outside = sorted({row.generator for row in read_index(data.features)} - set(load_generators()))
    if len(outside) < 2:
        raise InputError(f"{data.features} has clips of {len(outside)} generators outside the table; it takes two")
    return outside


class LeftOut(NamedTuple):
    """A score of the clips of a model that one generator was left out of."""

    seen: np.ndarray  # (V,), test clips of the generators it trained on
    unseen: np.ndarray  # (U,), clips of the generator left out, all its test clips among them
    seen_group: np.ndarray  # (V,), of the index
    unseen_group: np.ndarray  # (U,)


def scores_of(run, left_out_names):
    """{score: {generator left out: LeftOut}} of a run at GEN-L with its T-Sigs."""
    arrays, signatures = read_arrays(run / "gen_embeddings.npz"), read_arrays(run / "gen_tsigs.npz")
    number = {video: i for i, video in enumerate(arrays["video"].tolist())}
    rows = [number[video] for video in signatures["video"].tolist()]  # clips with a window without padding
    values = {key: arrays[key][rows] for key in ("embedding", "probabilities", "generator", "class", "split")}
    values |= {key: signatures[key] for key in ("maps", "group")}
    head = load_saga(run / "gen.keras", "gen").classifier
    values["logits"] = head_logits(values["embedding"], *head.get_weights())

    def clips(chosen):
        fields = {key: values[key][chosen] for key in ("embedding", "probabilities", "logits", "maps")}
        return Clips(**fields, label=values["class"][chosen])

    score = fit_scores(clips(values["split"] == "train"))
    test = values["split"] == "test"
    seen, scores = score(clips(test)), {key: {} for key in SCORES}
    for name in left_out_names:
        left_out = (values["split"] == "unseen") & (values["generator"] == name)
        unseen = score(clips(left_out))
        for key in SCORES:
            scores[key][name] = LeftOut(seen[key], unseen[key], values["group"][test], values["group"][left_out])
    return scores


def score_row(name, seeds):
    """AUROC, its 95% interval and FPR at 95% TPR of one score by generator, each by seed."""
    row = {"score": name, "generators": {}}
    for generator, first in seeds[0].items():
        pairs = [(seed[generator].seen, seed[generator].unseen) for seed in seeds]
        intervals = [group_bootstrap(*seed[generator], repeats=BOOTSTRAPS)["auroc"] for seed in seeds]
        row["generators"][generator] = {
            "seen": len(first.seen),
            "unseen": len(first.unseen),
            "auroc": [float(auroc(*pair)) for pair in pairs],
            "fpr_at_tpr": [float(fpr_at_tpr(*pair)) for pair in pairs],
            "interval": intervals,
        }
    return row


def score_table(rows):
    cells = []
    for row in rows:
        entries = row["generators"].values()
        means = [f"{np.mean([entry[key] for entry in entries]):.2f}" for key in ("auroc", "fpr_at_tpr")]
        ends = [np.mean(entry["interval"], axis=0) for entry in entries]
        pairs = zip(entries, ends, strict=True)
        each = [f"{np.mean(entry['auroc']):.2f} ({low:.2f}-{high:.2f})" for entry, (low, high) in pairs]
        cells.append([row["score"], *means, *each])
    return markdown(["score", "mean AUROC", "mean FPR at 95% TPR", *rows[0]["generators"]], cells)


def landing(run, level, known):
    """lands_on of each left-out generator whose SD version or team is a class of the model."""
    clips, classes = clips_of(run, level, "unseen")
    generators, probabilities, classes, rows = clips["generator"], clips["probabilities"], classes.tolist(), []
    kind = {name: getattr(known[name], COLUMNS[level]) for name in LEFT_OUT}
    for name in LEFT_OUT:
        if kind[name] in classes:
            others = np.isin(generators, [other for other in LEFT_OUT if kind[other] != kind[name]])
            counts = lands_on(probabilities[generators == name], probabilities[others], classes, kind[name])
            rows.append({"level": level, "generator": name, "kin": kind[name]} | counts)
    return rows


def landing_table(landed):
    """A row per level and generator; fractions by seed, whose intervals are in results/unseen-landing.json."""
    by_generator = {}
    for row in landed:
        by_generator.setdefault((row["level"], row["generator"]), []).append(row)
    cells = []
    for (level, name), rows in by_generator.items():
        fraction, chance = (", ".join(f"{row[key]:.2f}" for row in rows) for key in ("share", "chance"))
        counts = [f"{rows[0][key]}" for key in ("share_videos", "chance_videos")]
        cells.append([level_name(level), name, rows[0]["kin"], counts[0], fraction, counts[1], chance])
    header = ["level", "left out", "its class", "its clips", "predicted as its class, by seed", "others' clips"]
    return markdown([*header, "predicted so, by seed"], cells)


# ---------------------------------------------------------------- enrolling: new generators by a few of their clips

ENROL_ARMS = (TWO_FEW, ALL_CE)
GIVEN = (1, 2, 5, 10, 20, 50)  # given of a new generator, as far as it has them outside the test split
DRAWS = 10  # of those clips, per seed
BY_GENERATOR = 10  # clips given, of the table by generator
JOINING = {"one": "one new generator joins", "all": "all new generators join at once"}


def measure_enrol(args, data):
    """Per way to train, space, naming and number of clips given, by seed and as means over DRAWS: the fraction of
    held-out clips of new generators that are named correctly ("found"), and the macro accuracy of the known ones' test
    clips before and after.
    """
    if len(data.folds) > 1:
        raise InputError("enrolling needs the recorded split; leave out --folds and --data")
    new, only = new_generators(data)
    rows = usable(read_index(data.features), data.features)
    tokens = dict(zip((row.path for row in rows), mean_tokens(rows), strict=True))
    held_out = {row.path for row in rows if row.split == "test"}
    entries, collapsed, clips = {}, {}, {}
    for arm in ENROL_ARMS:
        runs = [train_arm(args, data, arm, "gen", seed, only)[0] for seed in range(args.seeds)]
        collapsed[str(arm)] = runs.count(None)
        for seed, run in enumerate(runs):
            if run:
                names, roles, spaces = enrolling_clips(run, tokens, held_out)
                for key, entry in enrol_all(names, roles, spaces, new, seed).items():
                    entries.setdefault((str(arm), *key), []).append({"seed": seed} | entry)
                known = {"classes": np.unique(names[roles == "train"]).size, "known": (roles == "test").sum()}
                clips = {key: int(value) for key, value in known.items()}
                clips |= {"new": {name: int(((roles == "held out") & (names == name)).sum()) for name in new}}
    keys = ("arm", "space", "naming", "joining", "given")
    table = [dict(zip(keys, key, strict=True)) | {"seeds": seeds} for key, seeds in entries.items()]
    return described(data, clips=clips, collapsed=collapsed, rows=table)


def new_generators(data):
    """Who is left out of training, those of LEFT_OUT or else the generators outside the table, and settings for it."""
    new = generators_of(data, lambda generator: generator.name in LEFT_OUT)
    trained = generators_of(data, lambda generator: generator.name not in LEFT_OUT)
    if not trained:
        raise InputError(f"{data.features} has clips of no generator to train on; it takes one beside {', '.join(new)}")
    only = {"train_generators": trained} if new else {}
    splits = {}
    for row in read_index(data.features):
        splits.setdefault(row.generator, set()).add("given" if row.split != "test" else "held out")
    return [name for name in new or names_outside(data) if len(splits[name]) == 2], only


def enrolling_clips(run, tokens, held_out):
    """Of a run's clips the generator (V,), the role (V,): train, val, test, and of new generators given or held out,
    and what a naming may look at, {space: (V, D)}.
    """
    keys = ("embedding", "generator", "split", "video")
    embedding, names, split, videos = read_arrays(run / "gen_embeddings.npz", keys).values()
    videos = videos.tolist()
    new = np.where([video in held_out for video in videos], "held out", "given")
    spaces = {"SAGA": np.float64(embedding), "mean token": np.stack([tokens[video] for video in videos])}
    return names, np.where(split == "unseen", new, split), spaces


def enrol_all(names, roles, spaces, new, seed):
    """{(space, naming, joining, given): {"before", "kept", "found": {generator: fraction}}}, means over DRAWS."""
    results = {}
    for space, naming in product(spaces, NAMINGS):
        clips = (spaces[space], names, roles, NAMINGS[naming])
        before, _ = accuracy_enrolled(*clips, [])
        for joining, given in product(JOINING, GIVEN):
            draws = []
            for group, draw in product([[name] for name in new] if joining == "one" else [new], range(DRAWS)):
                draws.append(accuracy_enrolled(*clips, group, given, np.random.default_rng((seed, draw))))
            named = {name: float(np.mean([own[name] for _, own in draws if name in own])) for name in new}
            entry = {"before": before, "kept": float(np.mean([kept for kept, _ in draws])), "found": named}
            results[space, naming, joining, given] = entry
    return results


def accuracy_enrolled(vectors, names, roles, naming, joining, given=0, random=None):
    """The macro accuracy of the known test clips, and {joining generator: fraction of its held-out clips that are named
    correctly}, once `given` of its other clips, drawn at random, are enrolled. Vectors (V, D), names (V,), roles (V,).
    """
    pools = [np.flatnonzero((roles == "given") & (names == name)) for name in joining]
    enrolled = np.concatenate([np.flatnonzero(roles == "train"), *(random.permutation(pool)[:given] for pool in pools)])
    predict, test = naming(vectors[enrolled], names[enrolled]), roles == "test"
    correct = {name: np.mean(predict(vectors[(roles == "held out") & (names == name)]) == name) for name in joining}
    return score_names(names[test], predict(vectors[test]))["macro"], correct


def row_key(row):
    return row["arm"], row["space"], row["naming"]


def by_seed(row, key):
    """A row's values by seed; those of "found" are means over generators."""
    return [np.mean(list(seed[key].values())) if key == "found" else seed[key] for seed in row["seeds"]]


def seeds_cell(results, row):
    collapsed = results["collapsed"][row["arm"]]
    return f"{len(row['seeds'])}" + (f" ({collapsed} collapsed)" if collapsed else "")


def enrol_chance(results, joining):
    clips = results["clips"]
    return 1 / (clips["classes"] + (1 if joining == "one" else len(clips["new"])))


def render_enrol(results):
    if not results["rows"]:
        return [caption(results, "New generators enrolled", " Mining collapsed for all seeds.")]
    clips = results["clips"]
    what = f"{len(clips['new'])} new generators enrolled by n clips (or all they have) into {clips['classes']} classes"
    lines = [caption(results, f"{what}, without training")]
    lines += ["", f"{sum(clips['new'].values())} held-out clips of new generators, {clips['known']} of known ones."]
    keys = list(dict.fromkeys(map(row_key, results["rows"])))
    for joining, what in JOINING.items():
        chance = f"chance {100 * enrol_chance(results, joining):.1f}"
        lines += ["", f"Where {what}; new: held-out clips named correctly, {chance}; known: macro accuracy:", ""]
        cells = []
        for key in keys:
            rows = {row["given"]: row for row in results["rows"] if row_key(row) == key and row["joining"] == joining}
            new = [mean_std(by_seed(rows[given], "found")) for given in GIVEN]
            known = [mean_std(by_seed(rows[GIVEN[0]], "before")), mean_std(by_seed(rows[GIVEN[-1]], "kept"))]
            cells.append([*key, *new, *known, seeds_cell(results, rows[GIVEN[0]])])
        header = ["setting", "space", "nearest by", *(f"new, n = {given}" for given in GIVEN)]
        lines += markdown([*header, "known before", f"known after, n = {GIVEN[-1]}", "seeds"], cells)
    lines += ["", f"Named correctly by generator, one joins, SAGA, n = {BY_GENERATOR}:", ""]
    cells = []
    for row in results["rows"]:
        if (row["space"], row["joining"], row["given"]) == ("SAGA", "one", BY_GENERATOR):
            each = [mean_std([seed["found"][name] for seed in row["seeds"]]) for name in clips["new"]]
            cells.append([row["arm"], row["naming"], *each])
    counts = [f"{name} ({count})" for name, count in clips["new"].items()]
    return [*lines, *markdown(["setting", "nearest by", *counts], cells)]


def draw_enrol(args, data, results, path):
    """Accuracy against clips given, one new generator joining: new clips above, known ones below, arms as columns."""
    arms = list(dict.fromkeys(row["arm"] for row in results["rows"])) or [*map(str, ENROL_ARMS)]
    figure, axes = plt.subplots(2, len(arms), figsize=(5.5 * len(arms), 8), squeeze=False, layout="constrained")
    colours, styles = {"SAGA": "C0", "mean token": "C1"}, dict(zip(NAMINGS, ("-o", "--s", ":^"), strict=True))
    chance = 100 * enrol_chance(results, "one") if results["rows"] else 0
    for column, arm in zip(axes.T, arms, strict=True):
        for axis, key in zip(column, ("found", "kept"), strict=True):
            for space, naming in product(colours, styles):
                way = (arm, space, naming)
                rows = [row for row in results["rows"] if row_key(row) == way and row["joining"] == "one"]
                values = [100 * np.array(by_seed(row, key)) for row in rows]
                means = [own.mean() for own in values]
                deviations = [own.std(ddof=1) if len(own) > 1 else 0 for own in values]
                line = dict(color=colours[space], markersize=4, capsize=2, lw=1.2, label=f"{space}, {naming}")
                axis.errorbar([row["given"] for row in rows], means, deviations, fmt=styles[naming], **line)
            axis.axhline(chance, color="k", ls=":", label="chance")
            axis.set_xscale("log")
            axis.set_xticks(GIVEN, GIVEN)
            axis.minorticks_off()
            axis.set(ylim=(0, 100), xlabel="clips given of the new generator")
        column[0].set(title=arm, ylabel="new generator: named correctly, per cent")
        column[1].set(ylabel="known ones: macro accuracy, per cent")
    axes[0, 0].legend(fontsize=8)
    what = f"GEN-L, one new generator enrolled without training, {data.name}"
    figure.suptitle(f"{what}{', simulated' * results['about']['simulated']}; bars: standard deviation over seeds")
    save_figure(figure, path)
