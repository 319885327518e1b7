"""A trained run, carried: the models of up to five levels with all that attribute_video.py says beside them.

    run = load_run("runs/zoo")              a folder, a zip, or a handle: hf://user/name, kaggle://user/name/keras/one
    export_run("runs/zoo", "zoo.zip")       a zip, or a folder where the name has no .zip

A run needs one level or more, <level>.keras and <level>.json of 02 or 03, all on features made in one way. What
`attribute_video.py --calibrate` adds, calibration.json and calibration.npz, may be missing.
"""

import contextlib
import hashlib
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.artifacts import open_zip, read_arrays, read_json, write_atomically
from basics.running import InputError
from common import build_saga, load_saga
from report.scores import SCORES, Clips
from report.text import template
from tokens.dataset import other_tokens
from tokens.generators import LEVELS, level_name
from tokens.pretrained import build_encoder, one_line
from training.evaluation import batch_outputs

CALIBRATION, CLIPS, CARD = "calibration.json", "calibration.npz", "README.md"
FILES = (*(f"{level}{ending}" for level in LEVELS for ending in (".keras", ".json")), CALIBRATION, CLIPS, CARD)
# Five models are five graphs; TensorFlow takes that for one that is traced again and again.
logging.getLogger("tensorflow").setLevel(logging.ERROR)
MEASURED = ("videos", "accuracy", "accuracy_interval", "macro_accuracy", "macro_interval", "majority", "uniform")
TRAINING_CLIPS = (*Clips._fields, "video")
WINDOWS_OF_CLIPS = ("window_embedding", "window_clip", "window_time")
BATCH_WINDOWS = 64  # at most, and fewer where they have many tokens:
BATCH_TOKENS = 1 << 15  # with SigLIP's 5,832 a window, 1 GB of attention scores


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
        levels = [level for level in LEVELS if (folder / f"{level}.keras").exists()]
        if not levels:
            raise InputError(f"{run}: no <level>.keras in it; train one by 02 and 03, or name another --run")
        metrics = {level: read_json(folder / f"{level}.json", (*MEASURED, "recipe", "clips")) for level in levels}
        calibration, clips = load_calibration(run, folder, levels) if calibrated else (None, None)
        models = {level: load_level(folder, level, dtype) for level in levels}
    (first, model), *others = models.items()
    for level, other in others:
        if keys := other_tokens(model.config["features"], other.config["features"]):
            raise InputError(
                f"{run}: {first}.keras and {level}.keras were trained on different features ({', '.join(keys)}); train"
                " all levels of a run on one features folder"
            )
    return Run(str(run), models, metrics, calibration, clips, fit_novelty(calibration, clips))


def load_level(folder, level, dtype):
    model = load_saga(folder / f"{level}.keras", level)
    if dtype in (None, model.dtype_policy.name):
        return model
    other = build_saga(**model.config, dtype=dtype)
    other.set_weights(model.get_weights())
    return other


def load_calibration(run, folder, levels):
    """calibration.json and the arrays beside it; (None, None) where the run has none."""
    if not (folder / CALIBRATION).exists():
        return None, None
    calibration = read_json(folder / CALIBRATION, ("models", "levels", "taxonomy", "unknown", "trained_on", "nearest"))
    again = f"run attribute_video.py --calibrate --run {run} again"
    if calibration["models"] != {level: fingerprint(folder / f"{level}.keras") for level in levels}:
        raise InputError(f"{run}/{CALIBRATION} was made for other models than are there now; {again}")
    keys = (*TRAINING_CLIPS, *WINDOWS_OF_CLIPS, "signature_classes", "signatures")
    return calibration, read_arrays(folder / CLIPS, keys, again, aligned=TRAINING_CLIPS)


def fit_novelty(calibration, clips):
    """The score of unknown generators that a threshold was chosen for; None where there is no threshold."""
    if not calibration or calibration["unknown"]["threshold"] is None:
        return None
    field, fit = SCORES[calibration["unknown"]["score"]]
    train = clips_with_maps({key: clips[key] for key in TRAINING_CLIPS})
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
    elif zipfile.is_zipfile(run):
        with tempfile.TemporaryDirectory() as folder:
            unpack(run, Path(folder))
            yield Path(folder)
    elif Path(run).is_dir():
        yield Path(run)
    elif Path(run).exists():
        raise InputError(f"{run}: neither a folder nor a zip file")
    else:
        raise InputError(f"{run}: no such folder, zip or handle; `python reproduce.py demo` makes runs/demo")


def unpack(path, folder):
    """Unpack the files of a run, wherever in the zip they lie; nothing else is written."""
    with open_zip(path, "export the run again") as archive:
        for member in archive.infolist():
            if (name := Path(member.filename).name) in FILES:
                with archive.open(member) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)


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
            f"{handle} cannot be downloaded ({one_line(error)}); fetch its files into a folder and pass --run FOLDER"
        ) from error
    raise InputError(f"{handle}: handles begin with hf:// or kaggle://")


def export_run(run, path):
    """Write a calibrated run and its model card to a zip, or to a folder where `path` has no .zip.

    Raises InputError when the run is not calibrated, or when the folder holds other files.
    """
    loaded, path = load_run(run), Path(path)
    if not loaded.calibration:
        raise InputError(f"{run} is not calibrated; run attribute_video.py --calibrate --run {run} first")
    # the README.md with the front matter that Hugging Face reads
    card = template("card.md", level_name).render(run=loaded, limits=LIMITS)
    with opened(run) as folder:
        names = [name for name in FILES if (folder / name).exists() and name != CARD]
        if path.suffix == ".zip":

            def write(temporary):
                with zipfile.ZipFile(temporary, "w") as archive:  # models and arrays hardly shrink
                    for name in names:
                        archive.write(folder / name, name)
                    archive.writestr(CARD, card)

            return write_atomically(path, write)
        if path.exists() and any(file.name not in FILES for file in path.iterdir()):
            raise InputError(f"{path} holds other files; export into a new folder or a .zip")
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(folder / name, path / name)
        (path / CARD).write_text(card, encoding="utf-8")


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
