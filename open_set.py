"""Open question 1 of SAGA: are generators that a model never saw known as new, and do they land on their kin?

reads   30 simulated clips per generator; or a corpus, or features of one's own, with generators outside the table
writes  runs/unseen/; results/unseen-scores.*, AUROC and FPR by score and generator; results/unseen-landing.*, how
        often a left-out generator is called by its SD version or team, beside the other left-out ones (zoo alone)

`unseen_generators` is an entry of reproduce.py and takes its arguments; the scores are those of unknown.py.
"""

from pathlib import Path

import numpy as np

from common import keras, level_value, load_generators
from comparisons import TRAINING
from corpora import choose_data, extract_zoo
from features import read_index, read_json
from figures import tsig_runs
from stages import TWO_FEW, markdown, stage, train_arm, write_results
from tables import caption, described
from unknown import (
    SCORES,
    Clips,
    LeftOut,
    auroc,
    combine,
    fit_scores,
    fpr_at_tpr,
    group_bootstrap,
    head_logits,
    lands_on,
)

LEFT_OUT = ("DynamiCrafter", "ModelScope", "Latte", "HotShot", "Pika", "Sora")
KIN_LEVELS = ("sd", "team")


def unseen_generators(args):
    """Which scores tell generators never trained on from seen ones at GEN-L, and where they land at SD-L and TEAM-L:
    six of the zoo's left out, 30 clips per class, two minutes a seed; of other data the generators outside the table,
    scores alone."""
    if args.data != "zoo" or args.features:
        return outside_the_table(args)
    features, known = extract_zoo(args, "--pool 2"), load_generators()
    trained = ",".join(name for name in known if name not in (*LEFT_OUT, "Real"))
    scores, landed, models = [], [], []
    for seed in range(args.seeds):
        run = Path(args.run or "runs/unseen") / features.name / f"seed{seed}"
        place = ["--features", features, "--run", run, "--seed", seed]
        for level in ("gen", *KIN_LEVELS):
            flags = ["--level", level, "--init", "scratch", "--loss", "ce", "--train-generators", trained]
            metrics = stage("03_attribute", *place, *TRAINING.split(), *flags)
            kept = ("level", "videos", "accuracy", "macro_accuracy", "majority", "uniform")
            models.append({"seed": seed} | {key: metrics[key] for key in kept})
        flags = ["--splits", "train,test,unseen", "--strata", "none", "--no-controls", "--repeats", 1]
        stage("04_tsigs", *place, *flags)
        scores.append(scores_of(run, LEFT_OUT))
        landed += [row | {"seed": seed} for level in KIN_LEVELS for row in landing(run, level, known)]
    rows = [score_row(name, [seed[name] for seed in scores]) for name in scores[0]]
    write_results(args, "unseen-scores", {"models": models, "scores": rows}, score_table(rows))
    write_results(args, "unseen-landing", landed, landing_table(landed))
    return {"models": models, "scores": rows, "landing": landed}


def outside_the_table(args):
    """Scores of the paper's own setting at GEN-L, on clips of generators outside the table; folds count as seeds."""
    (data,) = choose_data(args)
    table, present = load_generators(), {row["generator"] for row in read_index(data.features)}
    outside = sorted(present - set(table))
    if len(outside) < 2:
        raise ValueError(f"{data.features} has clips of {len(outside)} generators outside the table; it takes two")
    scores = []
    for seed in range(args.seeds):
        if tsig_runs(args, data, TWO_FEW, "gen", seed):
            scores += [scores_of(run, outside) for run in train_arm(args, data, TWO_FEW, "gen", seed)]
    if not scores:
        raise ValueError(f"{data.features}: mining collapsed for all seeds, so there is nothing to score")
    rows = [score_row(name, [fold[name] for fold in scores]) for name in scores[0]]
    results = described(data, scores=rows)
    what = "Generators outside the table told from seen ones by a model of GEN-L (two stages, few labels, CE+HNM)"
    lines = [caption(results, what, " AUROC (95%), mean over folds and seeds; chance 0.50, FPR 0.95."), ""]
    write_results(args, "unseen-scores", results, lines + score_table(rows), data)
    return results


def scores_of(run, left_out_names):
    """{score: {generator left out: LeftOut of that score}} of a run at GEN-L with its T-Sigs."""
    with np.load(run / "gen_embeddings.npz") as arrays, np.load(run / "gen_tsigs.npz") as signatures:
        number = {video: i for i, video in enumerate(arrays["video"].tolist())}
        place = [number[video] for video in signatures["video"].tolist()]  # clips with a window without padding
        found = {key: arrays[key][place] for key in ("embedding", "probabilities", "generator", "class", "split")}
        found |= {key: signatures[key] for key in ("maps", "group")}
    head = keras.saving.load_model(run / "gen.keras", compile=False).classifier
    found["logits"] = head_logits(found["embedding"], *head.get_weights())

    def clips(chosen):
        arrays = {key: found[key][chosen] for key in ("embedding", "probabilities", "logits", "maps")}
        return Clips(**arrays, label=found["class"][chosen])

    score = fit_scores(clips(found["split"] == "train"))
    test = found["split"] == "test"
    seen, left_out = score(clips(test)), {}
    for name in left_out_names:
        own = (found["split"] == "unseen") & (found["generator"] == name)
        unseen = score(clips(own))
        sides = (np.stack([side[key] for key in SCORES], axis=1) for side in (seen, unseen))
        left_out[name] = LeftOut(*sides, found["group"][test], found["group"][own])
    single = {
        key: {name: one._replace(seen=one.seen[:, i], unseen=one.unseen[:, i]) for name, one in left_out.items()}
        for i, key in enumerate(SCORES)
    }
    return single | {"all, combined": combine(left_out)}


def score_row(name, seeds):
    """AUROC, its 95% interval and FPR at 95% TPR of one score by generator, each the mean over seeds."""
    row = {"score": name, "seeds": len(seeds), "generators": {}}
    for generator, first in seeds[0].items():
        pairs = [(seed[generator].seen, seed[generator].unseen) for seed in seeds]
        intervals = [group_bootstrap(*seed[generator], repeats=300)["auroc"] for seed in seeds]
        row["generators"][generator] = {
            "seen": len(first.seen),
            "unseen": len(first.unseen),
            "auroc": float(np.mean([auroc(*pair) for pair in pairs])),
            "fpr_at_tpr": float(np.mean([fpr_at_tpr(*pair) for pair in pairs])),
            "interval": np.mean(intervals, axis=0).tolist(),
        }
    return row


def score_table(rows):
    cells = []
    for row in rows:
        entries = row["generators"].values()
        means = [f"{np.mean([entry[key] for entry in entries]):.2f}" for key in ("auroc", "fpr_at_tpr")]
        each = [f"{entry['auroc']:.2f} ({entry['interval'][0]:.2f}-{entry['interval'][1]:.2f})" for entry in entries]
        cells.append([row["score"], *means, *each])
    return markdown(["score", "mean AUROC", "mean FPR at 95% TPR", *rows[0]["generators"]], cells)


def landing(run, level, known):
    """Where left-out generators land whose SD version or team others have that were trained on."""
    classes, rows = read_json(run / f"{level}.json")["classes"], []
    with np.load(run / f"{level}_embeddings.npz") as arrays:
        unseen = arrays["split"] == "unseen"
        generators, probabilities = arrays["generator"][unseen], arrays["probabilities"][unseen]
    kind = {name: level_value(level, known[name]) for name in LEFT_OUT}
    for name in LEFT_OUT:
        if kind[name] in classes:
            others = np.isin(generators, [other for other in LEFT_OUT if kind[other] != kind[name]])
            found = lands_on(probabilities[generators == name], probabilities[others], classes, kind[name])
            rows.append({"level": level, "generator": name, "kin": kind[name]} | found)
    return rows


def landing_table(landed):
    """A row per level and generator; shares by seed, of which results/unseen-landing.json has the intervals."""
    by_generator = {}
    for row in landed:
        by_generator.setdefault((row["level"], row["generator"]), []).append(row)
    cells = []
    for (level, name), rows in by_generator.items():
        share, chance = (", ".join(f"{row[key]:.2f}" for row in rows) for key in ("share", "chance"))
        counts = [f"{rows[0][key]}" for key in ("share_videos", "chance_videos")]
        cells.append([f"{level.upper()}-L", name, rows[0]["kin"], counts[0], share, counts[1], chance])
    header = [
        "level",
        "left out",
        "its kin",
        "its clips",
        "called its kin by seed",
        "others' clips",
        "called so by seed",
    ]
    return markdown(header, cells)
