"""What an entry leaves in results/: its numbers, how they were made, and its table with the settings below.

writes  results/<entry>.json, .md

"provenance" in a .json holds the command, the commit, what computed ("made_with"), a digest of the data, and of all
models ("trained") their settings and, by seed and fold, their labelled clips and steps. Of seed 0 it has a character
for each test clip, the class that it was given. "measured" holds what another measurement may change. --verify
(verify.py) compares the rest.
"""

import datetime
import hashlib
import platform
from pathlib import Path

import numpy as np

from basics.artifacts import git_commit, write_json
from experiments.stages import LOSS_FLAGS, USED, clips_of, environment
from training.presets import PRESETS

BUILT_IN = "zoo-dct"  # the data set whose results are in results/ itself


def results_folder(args, data):
    """Where an experiment writes: args.results, or a folder in it by the names of the data, --full and --limit."""
    parts, name = ["full"] * args.full + ([f"limit-{args.limit}"] if args.limit else []), data_name(data)
    folder = Path(args.results, *parts, *[name] * (name != BUILT_IN))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_name(data):
    return "+".join(own.name for own in data)


def write_results(args, name, results, render, data):
    """Write <name>.json, results on these data sets with their provenance, and <name>.md, the lines that
    `render(results)` makes of them; print these. Returns what was written.
    """
    measured = {"date": f"{datetime.date.today()}", "machine": platform.platform()}
    results = {"provenance": provenance(args, data), "measured": measured} | results
    folder, lines = results_folder(args, data), render(results)
    write_json(folder / f"{name}.json", results)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return results


# ---------------------------------------------------------------- how numbers were made


MODEL = {"settings": dict, "start?": str, "runs": {str: {"answers?": str, "videos?": int, "correct?": int}}}
PROVENANCE = {"command": str, "commit": object, "made_with": dict, "data": {str: str}, "trained": {str: MODEL}}


def provenance(args, data):
    """How the entry's numbers were made: of all models that it has used since it began (stages.USED)."""
    trained = {}
    for (run, what), facts in USED.items():
        run = Path(run)
        shared = {"settings": facts["settings"]}
        if facts["start"]:
            shared["start"] = Path(facts["start"]).parent.parent.name or facts["start"]
        own = trained.setdefault(f"{run.parent.name}/{what}", shared | {"runs": {}})
        own["runs"][run.name] = {key: facts[key] for key in ("train", "val", "steps") if key in facts}
        if facts["seed"] == 0 and "level" in facts["settings"]:
            own["runs"][run.name] |= answers(run, facts["settings"]["level"])
    digests = {own.name: hashlib.sha256(own.digest.encode()).hexdigest()[:16] for own in data}
    made = {"command": args.command, "commit": git_commit(), "made_with": environment(), "data": digests}
    return made | {"trained": trained}


def answers(run, level):
    """Of a run's test clips how many there are and how many are named correctly; and the classes that they were given,
    a character each, in the order of the index.
    """
    clips, classes = clips_of(run, level)
    given = clips["probabilities"].argmax(axis=1)
    correct = int(np.sum(classes[given] == clips["class"]))
    return {"videos": len(given), "correct": correct, "answers": "".join(chr(ord("0") + number) for number in given)}


# ---------------------------------------------------------------- settings below a table

LOSSES = {flag: name.removeprefix("CE+") for name, flag in LOSS_FLAGS.items()}


def settings_line(results) -> str:
    """How the models of a table were trained, in one line; "or" stands where they differ."""
    made, sentences = results["provenance"], []
    kinds = {"Trained": (training_words, "02", "03"), "Stage 05": (wild_words, "05")}
    for heading, (words, *scripts) in kinds.items():
        used = [own["settings"] for name, own in made["trained"].items() if name.split("/")[1][:2] in scripts]
        if heading == "Trained" and all(map(by_preset, used)):
            heading = "Trained with `--preset small`"
        parts = [" or ".join(dict.fromkeys(part)) for part in zip(*map(words, used), strict=True)]
        sentences += [f"{heading}: {'; '.join(parts)}."] if parts else []
    return " ".join([*sentences, f"Backend {made['made_with']['backend']}, {made['made_with']['cores']} cores."])


def by_preset(settings):
    """Whether a model has the preset's rate, schedule, batches, depth and head."""
    shared = PRESETS["small"].keys() - {"steps", "normalize", "margin", "ce_weight"}
    return all(settings[key] == PRESETS["small"][key] for key in shared)


def training_words(settings):
    """Settings of 02 or 03: rate, batches, length, depth, loss, head, and which weights are kept."""
    rate = f"rate {settings['learning_rate']:g}"
    rate += {"halving": f" halving in {settings['decay_steps']} steps", "cosine": " falling along a cosine"}.get(
        settings["schedule"], ""
    )
    rate += f" after {settings['warmup_steps']} steps of warm-up" if settings["warmup_steps"] else ""
    length = f"{settings['steps']} steps" if settings["steps"] else f"{settings['epochs']} epochs"
    loss, weight = settings.get("loss", "ce"), settings.get("ce_weight")
    if loss == "ce":
        loss = "CE"
    else:
        where = "normalised" if settings["normalize"] else "raw"
        positives = "" if settings["positives"] == "all" else f", {settings['positives']} positives"
        loss = f"{weight:g} CE + {1 - weight:g} {LOSSES[loss]} (margin {settings['margin']:g}, {where}{positives})"
    head = {"linear": "the head as trained", "means": "class means as the head"}[settings["head"]]
    kept = {"val": "the epoch best on val kept", "last": "the last step kept"}[settings["best"]]
    batches = f"{settings['batching']} batches of {settings['batch_size']}"
    depth = f"{settings['temporal_blocks']} temporal blocks, dropout {settings['dropout']:g}"
    return [rate, batches, length, depth, loss, head, kept]


def wild_words(settings):
    """Settings of 05: how far the labelled loss may rise, and the images of each role."""
    named = any("=" in name for name in settings["wild"])  # with counts of their own
    roles = ("target", "known") if named else ("target", "known", "wild")
    counts = ", ".join(f"{settings[f'{role}_count']} {role}" for role in roles)
    own = ", wild ones as the table says" if named else ""
    return [f"tau {settings['tau']:g}", f"{counts} images a generator{own}, {settings['images_per_clip']} of a clip"]
