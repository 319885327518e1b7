"""Open question 1 of SAGA: are generators that a model never saw known as new, and do they land on their kin?

The function `unseen_generators` is an entry of reproduce.py and takes its arguments; unknown.py has the scores.
"""

from pathlib import Path

import numpy as np

from common import keras, level_value, load_generators
from comparisons import TRAINING, extract_zoo, table
from features import read_json
from stages import stage, train, write_results
from unknown import SCORES, Clips, LeftOut, auroc, combine, fit_scores, fpr_at_tpr, group_bootstrap, lands_on

LEFT_OUT = ("DynamiCrafter", "ModelScope", "Latte", "HotShot", "Pika", "Sora")
KIN_LEVELS = ("sd", "team")


def unseen_generators(args):
    """Six of the zoo's generators left out: which scores tell them from seen ones at GEN-L, where they land at SD-L and
    TEAM-L; 30 simulated clips per class, five minutes a seed."""
    features, known = extract_zoo(args, "--pool 2"), load_generators()
    trained = ",".join(name for name in known if name not in (*LEFT_OUT, "Real"))
    told, landed = [], []
    for seed in range(args.seeds):
        place = ["--features", features, "--run", Path(args.run or "runs/unseen") / f"seed{seed}", "--seed", seed]
        for level in ("gen", *KIN_LEVELS):
            train(level, *place, *TRAINING.split(), "--init", "scratch", "--loss", "ce", "--train-generators", trained)
        flags = ["--splits", "train,test,unseen", "--strata", "none", "--no-controls", "--repeats", 1]
        stage("04_tsigs", *place, *flags)
        told.append(scores_of(place[3]))
        landed += [row | {"seed": seed} for level in KIN_LEVELS for row in landing(place[3], level, known)]
    rows = [score_row(name, [seed[name] for seed in told]) for name in told[0]]
    write_results("unseen-scores", rows, score_table(rows))
    write_results("unseen-landing", landed, landing_table(landed))
    return {"scores": rows, "landing": landed}


def scores_of(run):
    """{score: {generator left out: LeftOut of that score}} of a run at GEN-L with its T-Sigs."""
    with np.load(run / "gen_embeddings.npz") as arrays, np.load(run / "gen_tsigs.npz") as signatures:
        number = {video: i for i, video in enumerate(arrays["video"].tolist())}
        place = [number[video] for video in signatures["video"].tolist()]  # clips with a window without padding
        found = {key: arrays[key][place] for key in ("embedding", "probabilities", "generator", "class", "split")}
        found |= {key: signatures[key] for key in ("maps", "group")}
    head = keras.saving.load_model(run / "gen.keras", compile=False).classifier
    found["logits"] = keras.ops.convert_to_numpy(head(found["embedding"]))

    def clips(chosen):
        arrays = {key: found[key][chosen] for key in ("embedding", "probabilities", "logits", "maps")}
        return Clips(**arrays, label=found["class"][chosen])

    score = fit_scores(clips(found["split"] == "train"))
    test = found["split"] == "test"
    seen, every = score(clips(test)), {}
    for name in LEFT_OUT:
        own = (found["split"] == "unseen") & (found["generator"] == name)
        unseen = score(clips(own))
        sides = (np.stack([side[key] for key in SCORES], axis=1) for side in (seen, unseen))
        every[name] = LeftOut(*sides, found["group"][test], found["group"][own])
    single = {
        key: {name: one._replace(seen=one.seen[:, i], unseen=one.unseen[:, i]) for name, one in every.items()}
        for i, key in enumerate(SCORES)
    }
    return single | {"all, combined": combine(every)}


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
    return table(["score", "mean AUROC", "mean FPR at 95% TPR", *LEFT_OUT], cells)


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
    cells = {}
    for row in landed:
        start = [f"{row['level'].upper()}-L", row["generator"], row["kin"], f"{row['share_videos']}"]
        shares = cells.setdefault((row["level"], row["generator"]), [*start, [], f"{row['chance_videos']}", []])
        shares[4].append(f"{row['share']:.2f}")
        shares[6].append(f"{row['chance']:.2f}")
    rows = [[", ".join(cell) if isinstance(cell, list) else cell for cell in row] for row in cells.values()]
    header = [
        "level",
        "left out",
        "its kin",
        "its clips",
        "called its kin, by seed",
        "others' clips",
        "called so, by seed",
    ]
    return table(header, rows)
