"""Add generators that a model was never trained on to its run, from a handful of clips and without training: their
embeddings are kept beside those of the training clips, and a clip is named by its nearest class.

reads   features/<set>/ of the new clips (01_extract_features.py), runs/<run>/<level>.keras, <level>_embeddings.npz (03)
writes  runs/<run>/<level>_enrolled.npz  embedding (V, D), generator and video (V,) of all generators enrolled so far

    python enrol.py --run runs/zoo --level gen --features features/new --enrol Kling,Luma --clips 10

Clips of the splits train and val are enrolled; those of test are kept out and named, and so are the run's own test
clips, without and with the new classes. A generator enrolled again is replaced. Seconds for a few hundred clips.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from common import HERE, git_commit, load_generators, positive, resolve_generator, run_script
from report.scores import NAMINGS
from tokens.dataset import Windows, differing, read_arrays, read_index, replace_whole
from tokens.split import features_recipe, first_per, usable
from training.callbacks import file_digest, index_digest, load_saga, names, spread, versions
from training.evaluation import predict, score_names
from training.signatures import run_files, stage_of

OWN = ("embedding", "class", "generator", "split")
COLUMNS = {"generator": "generator", "video": "path"}  # of the enrolled clips, by column of the index
ENROLLED = ("embedding", *COLUMNS)


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--run", default="runs/zoo", help="folder of the trained model, and for what is written")
    add("--level", choices=("task", "sd", "team", "gen"), default="gen", help="attribution level of the model")
    add("--features", default="features/zoo", help="folder of the new clips, written by 01_extract_features.py")
    add("--generators", default=str(HERE / "generators.csv"), help="the generator table, for aliases")
    add("--enrol", type=names, required=True, help="A,B,...: generators to add, each a class of its own")
    add(
        "--method",
        choices=tuple(NAMINGS),
        default="mean",
        help="nearest class: by mean, for one to five clips; mahalanobis, from ten on; by five neighbours",
    )
    add("--clips", type=positive, help="enrol at most this many clips per generator")
    add("--limit", type=positive, help="at most this many videos per generator and split: a small run")
    add("--batch-size", type=positive, default=64, help="windows per step")
    add("--seed", type=int, default=0, help="seed of the choice of --clips")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the run and the new clips


def load_run(args):
    """The model and the arrays OWN of its clips. Raises ValueError when clips of --features cannot join them."""
    model_file, embeddings_file = run_files(args)
    again = f"run {stage_of(args.level)} again"
    model, own = load_saga(model_file, stage_of(args.level)), read_arrays(embeddings_file, OWN, again)
    ours, theirs = features_recipe(args.features), model.config["features"]
    if differ := differing(ours, theirs, besides=("simulated", "preset")):
        raise ValueError(
            f"{args.features} holds other features than {model_file} was trained on ({', '.join(differ)}); run 01"
            " on the new clips as for those"
        )
    if spread(own["embedding"]) < 1e-4:
        raise ValueError(f"{embeddings_file}: all embeddings are one point, the model has collapsed; {again}")
    return model, own


def clips_of(args, own, classes):
    """Index rows to enrol and held-out rows of each new generator: {name: (rows, rows)}."""
    rows = usable(read_index(args.features), args.features)
    rows = first_per(rows, ("generator", "split"), args.limit, args.seed) if args.limit else rows
    table = load_generators(args.generators)
    trained = set(own["generator"][np.isin(own["split"], ("train", "val"))].tolist())
    chosen = {}
    for name in (resolve_generator(asked, table) or asked for asked in args.enrol):
        if name in trained | set(classes):
            raise ValueError(f"{name}: the model in {args.run} was trained on it; it needs no enrolling")
        given = [row for row in rows if row["generator"] == name and row["split"] != "test"]
        held_out = [row for row in rows if row["generator"] == name and row["split"] == "test"]
        if not given:
            there = ", ".join(sorted({row["generator"] for row in rows if row["split"] != "test"}))
            raise ValueError(f"{args.features}: no clip of {name} outside the test split; there are clips of: {there}")
        chosen[name] = first_per(given, ("generator",), args.clips or len(given), args.seed), held_out
    return chosen


def embed(model, rows, batch_size):
    """Embeddings (V, D) of videos, each the mean over its windows."""
    if not rows:
        return np.zeros((0, model.config["dim"]), "float32")
    return predict(model, Windows(rows), batch_size)[0].astype("float32")


# ---------------------------------------------------------------- enrolled clips on disk


def load_enrolled(path, model_file, width):
    """The arrays ENROLLED of the clips enrolled so far, of length 0 when there are none yet, and their recipe."""
    digest, remedy = file_digest(model_file), "delete it and enrol again"
    if not path.exists():
        empty = {"embedding": np.zeros((0, width), "float32")} | dict.fromkeys(COLUMNS, np.zeros(0, "U1"))
        return empty, {"model_sha256": digest, "generators": {}}
    arrays = read_arrays(path, ENROLLED, remedy)
    recipe = json.loads(str(arrays.pop("recipe")))
    if recipe.get("model_sha256") != digest:
        raise ValueError(f"{path} is of another model than {model_file}; {remedy}")
    return arrays, recipe


def replace_generators(arrays, added):
    """Enrolled arrays with those added in place of what they hold of the same generators."""
    kept = ~np.isin(arrays["generator"], added["generator"])
    return {key: np.concatenate([arrays[key][kept], added[key]]) for key in ENROLLED}


# ---------------------------------------------------------------- numbers


def measure(own, enrolled, held_out, method):
    """How held-out clips {generator: (V, D)} and the run's own test clips are named, without and with the enrolled.

    `own` are the arrays OWN of the run, `enrolled` those of all enrolled clips. Accuracies as score_names has them.
    """
    train, test = own["split"] == "train", own["split"] == "test"
    embedding, labels = own["embedding"][train], own["class"][train]
    joined = np.concatenate([labels, enrolled["generator"]])
    before = NAMINGS[method](embedding, labels)
    after = NAMINGS[method](np.concatenate([embedding, enrolled["embedding"]]), joined)
    classes, found = len(np.unique(joined)), {}
    for name, clips in held_out.items():
        entry = {"clips": int((enrolled["generator"] == name).sum()), "held_out": len(clips)}
        found[name] = entry | {"found": int((after(clips) == name).sum()) if len(clips) else None}
    known = {
        side: score_names(own["class"][test], naming(own["embedding"][test]))
        for side, naming in (("before", before), ("after", after))
    }
    return {"method": method, "classes": classes, "chance": 1 / classes, "enrolled": found, "known": known}


def print_report(result):
    print(f"\nof {result['classes']} classes, by {result['method']}; chance {result['chance']:.2f}:")
    for name, entry in result["enrolled"].items():
        share = "no clip of split test, so nothing can be measured"
        if count := entry["held_out"]:
            share = f"{entry['found']} of {count} held-out clips given its name, {entry['found'] / count:.2f}"
        print(f"{name}, {entry['clips']} clips enrolled: {share}")
    before, after = result["known"].values()
    print(f"the run's own {after['videos']} test clips, without -> with the enrolled classes: ", end="")
    print(", ".join(f"{key} {before[key]:.2f} -> {after[key]:.2f}" for key in ("micro", "macro")), end="")
    print(f" (chance {after['majority']:.2f}, {result['chance']:.2f})")


def main(argv=None):
    args = get_args(argv)
    path, model_file = (Path(args.run) / f"{args.level}{ending}" for ending in ("_enrolled.npz", ".keras"))

    # ---------------------------------------------------------------- load
    model, own = load_run(args)
    chosen = clips_of(args, own, model.config["class_names"])
    older, recipe = load_enrolled(path, model_file, model.config["dim"])

    # ---------------------------------------------------------------- enrol
    enrols = [row for side, _ in chosen.values() for row in side]
    added = {key: np.array([row[column] for row in enrols]) for key, column in COLUMNS.items()}
    enrolled = replace_generators(older, added | {"embedding": embed(model, enrols, args.batch_size)})
    made = {"features": features_recipe(args.features), "index_sha256": index_digest(read_index(args.features))}
    made |= {"arguments": vars(args), "versions": versions(), "git": git_commit()}
    recipe["generators"] |= dict.fromkeys(chosen, made)
    arrays = enrolled | {"recipe": json.dumps(recipe)}
    replace_whole(path, lambda file: np.savez(file, **arrays), suffix=".npz")
    print(f"{len(enrols)} clips of {', '.join(chosen)} enrolled in {path}")

    # ---------------------------------------------------------------- measure
    held_out = {name: embed(model, side, args.batch_size) for name, (_, side) in chosen.items()}
    result = {"level": args.level} | measure(own, enrolled, held_out, args.method)
    print_report(result)
    return result


if __name__ == "__main__":
    run_script(main)
