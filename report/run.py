"""A trained run, carried: the models of up to five levels with all that attribute_video.py says beside them.

    run = load_run("runs/zoo")              a folder, a zip, or a handle: hf://user/name, kaggle://user/name/keras/one
    export_run("runs/zoo", "zoo.zip")       a zip, or a folder where the name has no .zip

A run needs one level or more, <level>.keras and <level>.json of 02 or 03, all on features made in one way. What
`attribute_video.py --calibrate` adds, calibration.json and calibration.npz, may be missing.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import open_zip, read_arrays, read_json, reading, write_atomically
from basics.checks import Between, check
from basics.output import temporary_folder
from basics.running import InputError, reason
from common import build_saga, load_saga
from report.scores import SCORES, Clips
from report.text import template
from tokens.dataset import FEATURES, other_tokens
from tokens.generators import LEVELS, level_name, stage_of
from tokens.pretrained import build_encoder
from training.evaluation import batch_outputs

CALIBRATION, CLIPS, CARD = "calibration.json", "calibration.npz", "README.md"
FILES = (*(f"{level}{ending}" for level in LEVELS for ending in (".keras", ".json")), CALIBRATION, CLIPS, CARD)
# Five models are five graphs; TensorFlow takes that for one that is traced again and again.
logging.getLogger("tensorflow").setLevel(logging.ERROR)
TRAINING_CLIPS = (*Clips._fields, "video")
WINDOWS_OF_CLIPS = ("window_embedding", "window_clip", "window_time")
BATCH_WINDOWS = 64  # at most, and fewer where they have many tokens:
BATCH_TOKENS = 1 << 15  # with SigLIP's 5,832 a window, 1 GB of attention scores
MOST_OF_FILE = {".keras": 1 << 30, ".npz": 1 << 30, ".json": 1 << 28}  # bytes that a zip may unpack to,
MOST_OF_RUN = 1 << 31  # all of it,
MOST_SHRUNK = 200  # and how many times as much as it takes

# ---------------------------------------------------------------- what the files of a run hold, in the words of `check`

COUNT, SHARE, RANGE = range(1 << 40), Between(-1e-6, 1 + 1e-6), [Between(0, 1e9)] * 2
INTERVAL = [SHARE, SHARE]
MEASURED = {"videos": COUNT, "accuracy": SHARE, "accuracy_interval": INTERVAL}
MEASURED |= {"macro_accuracy": SHARE, "macro_interval": INTERVAL, "majority": SHARE, "uniform": SHARE}
METRICS = MEASURED | {"classes": [str], "recipe": {"paths": {"features": str, "generators": str}}, "clips": object}
TEXT = (str, None)
READ_BY = {"encoder": str, "fps": Between(1e-3, 1e3), "pool": range(1, 1 << 10), "equalize": (None, range(2, 1 << 13))}
ERRORS = {"ece": {"value": float}}
LEVEL = {"temperature": (Between(1e-2, 1e2), None), "before": ERRORS, "after": ERRORS}
AGREEMENT = dict.fromkeys(("clips", "differ", "own_right", "generator_right"), COUNT)
AGREEMENT |= {"trust": ({"own", "generator"}, None)}
REJECTED = {"clips": COUNT, "rejected": COUNT, "interval": (INTERVAL, None)}
UNKNOWN = {"score": set(SCORES), "rate": SHARE, "threshold": (Between(-1e9, 1e9), None), "val_clips": COUNT}
UNKNOWN |= {"test": (REJECTED, None), "unseen": {str: REJECTED}}
UNKNOWN |= {"auroc": {str: {"value": SHARE, "interval": (INTERVAL, None)}}}
TRAINED_ON = {"videos": COUNT, "fewest": COUNT, "fewest_class": str, "container": [str], "codec": [str]}
TRAINED_ON |= dict.fromkeys(("width", "height", "fps", "length"), RANGE)
NEAREST = {"split": {"val", "test"}, "median": Between(0, 1e9)}
MOST_VALUE = 1e9  # of arrays, whose squares stay finite


def calibration_of(models) -> dict:
    """What calibration.json holds for a run of these models."""
    levels = {level: LEVEL for level in models}
    if "gen" not in models:
        taxonomy = None
    else:
        levels |= {level: LEVEL | {"agreement": (AGREEMENT, None)} for level in models if level != "gen"}
        names = models["gen"].config["class_names"]
        taxonomy = {name: dict.fromkeys(models, str if name == "Real" else TEXT) for name in names}
    known = {"models": {str: str}, "levels": levels, "taxonomy": taxonomy}
    return known | {"unknown": UNKNOWN, "trained_on": TRAINED_ON, "nearest": NEAREST}


def clips_of(config) -> dict:
    """What calibration.npz holds for a finest level of this config, in the words of `check_array`."""
    dim, classes, frames = (config[key] for key in ("dim", "num_classes", "frames"))
    holds = {"embedding": f"f V {dim}", "probabilities": f"p V {classes}", "logits": f"f V {classes}"}
    holds |= {"maps": f"n V {frames} {frames}", "label": "U V", "video": "U V"}
    holds |= {"window_embedding": f"f W {dim}", "window_clip": "i W", "window_time": "f W"}
    return holds | {"signature_classes": "U K", "signatures": f"f K {frames} {frames}"}


# ---------------------------------------------------------------- loading


class Run(NamedTuple):
    name: str
    models: dict  # SAGA by level, in the order of LEVELS
    metrics: dict[str, dict]  # <level>.json by level
    calibration: dict | None  # calibration.json
    clips: dict | None  # arrays of calibration.npz
    novelty: Callable | None  # score(Clips) -> (V,): higher is likelier by an unknown generator

    @property
    def finest(self):
        return list(self.models)[-1]

    @property
    def features(self):
        return self.models[self.finest].config["features"]

    def batch(self):
        """Windows per call of the models."""
        return max(1, min(BATCH_WINDOWS, BATCH_TOKENS // (self.features["frames"] * self.features["tokens"])))


def load_run(run, dtype=None, calibrated=True) -> Run:
    """A run by folder, zip or handle, its models in `dtype` or as they were trained; with its calibration, or without.

    Raises InputError naming the file when there is no level, when levels do not go together, or one is damaged.
    """
    with opened(run) as folder:
        for name in FILES:
            if os.path.lexists(folder / name) and not (folder / name).is_file():
                raise InputError(f"{folder / name}: not a regular file; copy the run again")
        levels = [level for level in LEVELS if (folder / f"{level}.keras").exists()]
        if not levels:
            raise InputError(f"{run}: no <level>.keras in it; train one by 02 and 03, or name another --run")
        metrics = {level: read_json(folder / f"{level}.json", METRICS) for level in levels}
        models = {level: load_level(folder, level, dtype) for level in levels}
        (first, model), *others = models.items()
        for level, other in others:
            if keys := other_tokens(model.config["features"], other.config["features"]):
                raise InputError(
                    f"{run}: {first}.keras and {level}.keras were trained on different features ({', '.join(keys)});"
                    " train all levels of a run on one features folder"
                )
        calibration, clips = load_calibration(run, folder, models) if calibrated else (None, None)
    return Run(str(run), models, metrics, calibration, clips, fit_novelty(run, calibration, clips))


def load_level(folder, level, dtype):
    path = folder / f"{level}.keras"
    model = load_saga(path, level)
    with reading(path, "not as it was written", f"run {stage_of(level)} again"):
        sizes = {key: range(size := model.config[key], size + 1) for key in ("frames", "tokens", "dim")}
        check(model.config["features"], FEATURES | READ_BY | sizes, "features")
    if dtype in (None, model.dtype_policy.name):
        return model
    other = build_saga(**model.config, dtype=dtype)
    other.set_weights(model.get_weights())
    return other


def load_calibration(run, folder, models):
    """calibration.json and the arrays beside it; (None, None) where the run has none."""
    if not (folder / CALIBRATION).exists():
        return None, None
    again = f"run attribute_video.py --calibrate --run {run} again"
    calibration = read_json(folder / CALIBRATION, {"models": {str: str}}, again)
    if calibration["models"] != {level: fingerprint(folder / f"{level}.keras") for level in models}:
        raise InputError(f"{run}/{CALIBRATION} was made for other models than are there now; {again}")
    calibration = read_json(folder / CALIBRATION, calibration_of(models), again)
    holds = clips_of(list(models.values())[-1].config)
    clips = read_arrays(folder / CLIPS, tuple(holds), again, holds=holds)
    with reading(folder / CLIPS, "damaged", again):
        count, numbers = len(clips["label"]), clips["window_clip"]
        if not len(numbers) or not 0 <= numbers.min() <= numbers.max() < count:
            raise ValueError(f"window_clip is empty, or beyond the {count} clips")
        for key, values in clips.items():
            if values.dtype.kind == "f" and float(np.fmax.reduce(np.abs(values), axis=None, initial=0)) > MOST_VALUE:
                raise ValueError(f"{key}: values above {MOST_VALUE:g}")
    return calibration, clips


def fit_novelty(run, calibration, clips):
    """The score of unknown generators that a threshold was chosen for; None where there is no threshold."""
    if not calibration or calibration["unknown"]["threshold"] is None:
        return None
    field, fit = SCORES[calibration["unknown"]["score"]]
    train = clips_with_maps({key: clips[key] for key in TRAINING_CLIPS})
    with reading(f"{run}/{CLIPS}", "damaged", f"run attribute_video.py --calibrate --run {run} again"):
        if not len(train["label"]):
            raise ValueError("no clip has a map")
        score = fit(train[field], train["label"])
    return lambda new: score(getattr(new, field))


def clips_with_maps(arrays) -> dict:
    """The arrays (V, ...) over those clips that have a window without padding, and so a map (L, L)."""
    finite = np.isfinite(arrays["maps"]).all(axis=(1, 2))
    return {key: values[finite] for key, values in arrays.items()}


def fingerprint(path) -> str:
    """A name for the content of a .keras file, from the checksums that its zip directory holds."""
    with open_zip(path, "train it again") as archive:
        sums = sorted((member.filename, member.CRC) for member in archive.infolist())
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def load_encoder(features: dict, encoder=None, weights=None, dtype=None):
    """The encoder that features were made with, by their recipe.

    `encoder`, `weights` and `dtype` replace a preset's name or folder, MobileNet's file, and the encoder's dtype.
    Raises InputError when the weights are other ones than the recipe's.
    """
    name = encoder or features.get("preset") or features["encoder"]
    dtype = dtype or features.get("encoder_dtype")
    made = build_encoder(name, features["pool"], features.get("layer"), weights, dtype)
    expected, loaded = features.get("weights_sha256"), made.recipe.get("weights_sha256")
    if expected != loaded or (made.tokens, made.dim) != (features["tokens"], features["dim"]):
        raise InputError(f"{name}: not the encoder, or not the weights, that this run's features were made with")
    return made


def window_outputs(model, windows, batch) -> dict:
    """logits (S, C), embedding (S, D) and attention (S, L, L), the mean over heads, of windows' tokens (S, L, T, D)."""
    parts = []
    for _, outputs in batch_outputs(model, windows, batch, compiled=False):
        parts.append(outputs | {"attention": outputs["attention"].mean(axis=1)})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# ---------------------------------------------------------------- where a run is


@contextlib.contextmanager
def opened(run):
    """The folder of a run, unpacked or downloaded where need be."""
    if "://" in str(run):
        yield download(str(run))
    elif Path(run).is_file() and zipfile.is_zipfile(run):
        with temporary_folder() as folder:
            unpack(run, folder)
            try:
                yield folder
            except InputError as error:  # of a file that the user knows as a member of the zip
                raise InputError(str(error).replace(str(folder), str(run))) from error
    elif Path(run).is_dir():
        yield Path(run)
    elif Path(run).exists():
        raise InputError(f"{run}: neither a folder nor a zip file")
    else:
        raise InputError(f"{run}: no such folder, zip or handle; `python reproduce.py demo` makes runs/demo")


def unpack(path, folder):
    """Unpack the files of a run, wherever in the zip they lie; nothing else is written, and its README.md is not read.

    Raises InputError before anything is unpacked where a file is there twice, encrypted or a link, or where what it
    claims is beyond MOST_OF_FILE, MOST_OF_RUN or MOST_SHRUNK.
    """
    again = "export the run again"
    with open_zip(path, again) as archive:
        members = {}
        for member in archive.infolist():
            name = Path(member.filename).name
            if name not in FILES or name == CARD or member.is_dir():
                continue
            if name in members:
                raise ValueError(f"{name} is there twice")
            if member.flag_bits & 1 or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{name} is encrypted or a link")
            if member.file_size > min(MOST_OF_FILE[Path(name).suffix], MOST_SHRUNK * (member.compress_size + 1)):
                raise ValueError(f"{name} claims {member.file_size} bytes")
            members[name] = member
        if (size := sum(member.file_size for member in members.values())) > MOST_OF_RUN:
            raise ValueError(f"it claims {size} bytes")

        def write(temporary, source):
            with open(temporary, "wb") as target:
                shutil.copyfileobj(source, target)

        for name, member in members.items():
            with archive.open(member) as source:
                write_atomically(folder / name, functools.partial(write, source=source))


def download(handle):
    """The local folder of a Hugging Face or Kaggle model."""
    try:
        if handle.startswith("hf://"):
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(handle.removeprefix("hf://"), allow_patterns=list(FILES)))
        if handle.startswith("kaggle://"):
            import kagglehub

            return Path(kagglehub.model_download(handle.removeprefix("kaggle://")))
    except Exception as error:  # of either client, or the network
        raise InputError(
            f"{handle} cannot be downloaded ({reason(error)}); fetch its files into a folder and pass --run FOLDER"
        ) from error
    raise InputError(f"{handle}: handles begin with hf:// or kaggle://")


def export_run(run, path):
    """Write a calibrated run and its model card to a zip, or to a folder where `path` has no .zip.

    Raises InputError when the run is not calibrated, or when what is at `path` is that run or no run.
    """
    loaded, path = load_run(run), Path(os.path.realpath(path))
    if not loaded.calibration:
        raise InputError(f"{run} is not calibrated; run attribute_video.py --calibrate --run {run} first")
    # the README.md with the front matter that Hugging Face reads
    card = template("card.md", level_name).render(run=loaded, limits=LIMITS)
    with opened(run) as folder:
        names = [name for name in FILES if (folder / name).exists() and name != CARD]
        if path.exists() and Path(run).exists() and path.samefile(run):
            raise InputError(f"{path} is the run itself; export it to another place")
        if path.suffix == ".zip":
            if path.exists() and not holds_run(path):
                raise InputError(f"{path} is there and holds no run; name another file")

            def write(temporary):
                with zipfile.ZipFile(temporary, "w") as archive:  # models and arrays hardly shrink
                    for name in names:
                        archive.write(folder / name, name)
                    archive.writestr(CARD, card)

            return write_atomically(path, write)
        if path.exists() and not (path.is_dir() and {file.name for file in path.iterdir()} <= set(FILES)):
            raise InputError(f"{path} is no folder, or holds other files; export into a new folder or a .zip")
        for name in names:
            write_atomically(path / name, functools.partial(shutil.copyfile, folder / name))
        write_atomically(path / CARD, lambda file: file.write_text(card, encoding="utf-8"))


def holds_run(path):
    """Whether a file is a zip with no other files than those of a run."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with open_zip(path, "name another file") as archive:
        return {Path(name).name for name in archive.namelist()} <= set(FILES)


LIMITS = (
    "It can name only what it was trained on. For a generator outside its classes the answer is at best unknown, and"
    " otherwise a wrong name with high confidence.",
    "Probabilities hold for clips like those that it was calibrated on. Re-encoding, resizing, cropping, subtitles or"
    " an edit can change the answer.",
    "A clip of which only a part was generated or edited gets one answer. Sound is not analysed.",
    "Real means: like the camera clips that it was trained on. It proves neither that nothing was edited, nor what the"
    " clip shows.",
    "No answer here is proof by itself. It is one indication beside source, context and metadata.",
)
