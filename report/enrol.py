"""Add a generator that a run was not trained on by a handful of its clips, without training: their embeddings are kept
beside those of the training clips, and a clip gets the name of the nearest class. attribute_video.py's --enrol.

reads   the clips, runs/<run>/<level>.keras, <level>.json, <level>_embeddings.npz of the finest level (03)
writes  runs/<run>/<level>_enrolled.npz  embedding (V, D), generator and video (V,) of all generators enrolled so far
"""

from pathlib import Path

import numpy as np

from basics.artifacts import file_digest, make_recipe, read_arrays, write_arrays
from basics.running import InputError, printable, reason
from report.look import file_name, look
from report.scores import NAMINGS
from tokens.generators import load_generators, resolve_generator, spelling_key, stage_of
from training.callbacks import variance_fraction
from training.evaluation import score_names

RUN_KEYS = ("embedding", "class", "generator", "split")
ENROLLED = ("embedding", "generator", "video")


def enrol(name, paths, run, encoder, method="mean", **options) -> dict:
    """Add the clips of a new generator to the folder of a Run, in place of what it holds of the same generator.

    Options are those of look. Returns how the clips, each with itself left out, and the run's test clips are named.
    A clip that cannot be read is printed and left out. Raises InputError when none can be read, when the run
    was trained on the generator or has collapsed, or when what it holds is damaged.
    """
    folder = Path(run.name)
    if not folder.is_dir():
        raise InputError(f"{folder}: enrolling wants the folder that 03 wrote")
    model_file, again = folder / f"{run.finest}.keras", f"run {stage_of(run.finest)} again"
    if run.finest == "bin":
        raise InputError(f"{folder} tells real from fake alone; train an attribution level by 03_attribute.py")
    width, embeddings = run.models[run.finest].config["dim"], folder / f"{run.finest}_embeddings.npz"
    clips_of_run = read_arrays(embeddings, RUN_KEYS, again, holds={"embedding": f"f V {width}"})
    if not {"train", "test"} <= set(clips_of_run["split"].tolist()):
        raise InputError(f"{embeddings}: no clips of training, or none of test; {again}")
    if variance_fraction(clips_of_run["embedding"]) < 1e-4:
        raise InputError(f"{model_file}: all embeddings are one point, the model has collapsed; {again}")
    name = resolve_generator(name, load_generators(run.metrics[run.finest]["recipe"]["paths"]["generators"])) or name
    trained = clips_of_run["generator"][np.isin(clips_of_run["split"], ("train", "val"))].tolist()
    if spelling_key(name) in map(spelling_key, {*trained, *run.models[run.finest].config["class_names"]}):
        raise InputError(f"{name}: the model in {folder} was trained on it; it needs no enrolling")
    path = folder / f"{run.finest}_enrolled.npz"
    older, recipe = load_enrolled(path, model_file, width)
    name = {spelling_key(other): other for other in older["generator"].tolist()}.get(spelling_key(name), name)

    run = run._replace(models={run.finest: run.models[run.finest]})
    added, digests = embed(paths, run, encoder, **options)
    added["generator"] = np.full(len(added["video"]), name)
    kept = older["generator"] != name
    enrolled = {key: np.concatenate([older[key][kept], added[key]]) for key in ENROLLED}
    given = {"run": str(folder), "method": method}
    made = make_recipe(given, ("run",), packages=("keras",), features=run.features, clips_sha256=digests)
    recipe = recipe | {"generators": recipe["generators"] | {name: made}}
    write_arrays(path, enrolled | {"recipe": recipe})
    print(printable(f"{clips_text(len(digests))} of {name} enrolled in {path}"))
    result = {"level": run.finest, "name": name, "unread": len(paths) - len(digests)}
    return result | measure_enrolled(clips_of_run, enrolled, name, method)


def embed(paths, run, encoder, **options):
    """{"embedding" (V, D), the mean over windows; "video" (V,)} of the files that can be read, and their digests."""
    read = {}
    for number, file in look(paths, run, encoder, **options):
        if file.error is None and file.outputs:
            embedding = np.mean([window[run.finest]["embedding"] for window in file.outputs], axis=0)
            read[number] = embedding, file_name(paths[number]), file.info["sha256"]
        else:
            why = reason(file.error or InputError("no frame could be decoded"))
            print(printable(f"{file_name(paths[number])}: not enrolled: {why}"))
    if not read:
        raise InputError(
            f"{', '.join(paths[:3]) or 'standard input'}: no clip that can be read, so nothing is enrolled"
        )
    embedding, video, digests = zip(*(read[number] for number in sorted(read)), strict=True)
    return {"embedding": np.array(embedding, "float32"), "video": np.array(video)}, list(digests)


def load_enrolled(path, model_file, width):
    """The arrays ENROLLED of the clips enrolled so far, of length 0 when there are none yet, and their recipe."""
    digest, remedy = file_digest(model_file), "delete it and enrol again"
    if not path.exists():
        empty = {"embedding": np.zeros((0, width), "float32")} | dict.fromkeys(ENROLLED[1:], np.zeros(0, "U1"))
        return empty, {"model_sha256": digest, "generators": {}}
    holds = {"embedding": f"f V {width}", "recipe": {"model_sha256": str, "generators": {str: dict}}}
    arrays = read_arrays(path, (*ENROLLED, "recipe"), remedy, holds=holds)
    recipe = arrays.pop("recipe")
    if recipe["model_sha256"] != digest:
        raise InputError(f"{path} is of another model than {model_file}; {remedy}")
    return arrays, recipe


def measure_enrolled(clips_of_run, enrolled, name, method) -> dict:
    """How the enrolled clips of a generator are named, each with itself left out; and how the run's test clips are
    named, without and with all that is enrolled.

    `clips_of_run` are the arrays RUN_KEYS of the run: embedding (V, D), class, generator, split (V,). `enrolled` are
    the arrays ENROLLED. Accuracies as in score_names; "found" counts the enrolled clips that get their name.
    """
    train, test = clips_of_run["split"] == "train", clips_of_run["split"] == "test"
    embedding = np.concatenate([clips_of_run["embedding"][train], enrolled["embedding"]])
    labels = np.concatenate([clips_of_run["class"][train], enrolled["generator"]])
    clips, naming, correct = np.flatnonzero(labels == name), NAMINGS[method], None
    if len(clips) > 1:
        rests = [np.arange(len(labels)) != i for i in clips]
        predicted = [naming(embedding[rest], labels[rest])(embedding[~rest])[0] for rest in rests]
        correct = predicted.count(name)
    before = naming(clips_of_run["embedding"][train], clips_of_run["class"][train])
    after = naming(embedding, labels)
    known = {
        side: score_names(clips_of_run["class"][test], predict(clips_of_run["embedding"][test]))
        for side, predict in (("before", before), ("after", after))
    }
    classes = len(np.unique(labels))
    result = {"method": method, "classes": classes, "chance": 1 / classes, "clips": len(clips), "found": correct}
    return result | {"known": known}


def print_enrolled(result):
    print(f"\nof {result['classes']} classes, by {result['method']}; chance {result['chance']:.2f}:")
    clips, correct = result["clips"], result["found"]
    accuracy = "too few to leave one out, so nothing can be measured"
    if correct is not None:
        accuracy = f"{correct} of {clips} are named correctly, each with itself left out, {correct / clips:.2f}"
    print(printable(f"{result['name']}, {clips_text(clips)} enrolled: {accuracy}"))
    before, after = result["known"].values()
    print(f"the run's {after['videos']} test clips, without -> with the enrolled classes: ", end="")
    print(", ".join(f"{key} {before[key]:.2f} -> {after[key]:.2f}" for key in ("micro", "macro")), end="")
    print(f" (chance {after['majority']:.2f}, {result['chance']:.2f})")


def clips_text(count):
    return f"{count} clip{'s' * (count != 1)}"
