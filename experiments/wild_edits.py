"""The test images of a features folder, edited: re-encoded, resized, blurred, with noise; and vectors attacked.

    images = edited_images(args, data, "JPEG 50", per_clip=4)

writes  data/wild-edits/<set>/<edit>/, stills; features/wild-edits/<set>/, by stage 01
"""

import re
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from basics.running import InputError
from experiments.datasets import extract
from simulate_videos import named_random
from tokens.dataset import features_recipe, read_index, usable
from tokens.images import chosen_frames, read_images
from tokens.videos import Video

EDITS = {  # name: edit(RGB uint8 (H, W, 3), random) -> the same
    "as they are": lambda image, random: image,
    "JPEG 90": lambda image, random: jpeg(image, 90),
    "JPEG 50": lambda image, random: jpeg(image, 50),
    "half size and back": lambda image, random: cv2.resize(cv2.resize(image, None, fx=0.5, fy=0.5), image.shape[1::-1]),
    "blur, 1 px": lambda image, random: cv2.GaussianBlur(image, (0, 0), 1),
    "noise, 5 levels": lambda image, random: np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8),
}
ATTACKS = (0.5, 1.0, 2.0)  # how far a vector is moved, in standard deviations of the labelled images


def jpeg(image, quality):
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]  # OpenCV's order is BGR
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]


def edited_images(args, data, edit, per_clip):
    """The images of split test, edited: written as stills, and read by 01 as the features were."""
    recipe, name = features_recipe(data.features), "-".join(re.findall(r"\w+", edit))
    if recipe.get("equalize"):
        raise InputError(f"{data.features} was made by --equalize; wild-edits wants features of the clips as they are")
    rows = [row for row in usable(read_index(data.features), data.features) if row.split == "test"]
    folder, clips = Path("data/wild-edits") / data.place / name, {}
    for row in tqdm(rows, f"editing, {edit}", unit="clip"):
        random = named_random(edit, row.path)
        wanted = chosen_frames(row, per_clip, recipe["frames"])
        with Video(data.videos / row.source) as video:
            for number, (_, image) in enumerate(islice(video.sample(recipe["fps"]), wanted[-1] + 1)):
                if number in wanted:
                    place = folder / row.generator / f"{clip_name(row)}-{number}.png"
                    clips[f"{row.generator}/{place.name}"] = row.path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(place), EDITS[edit](image, random)[..., ::-1])
    settings = {key: recipe[key] for key in ("encoder", "layer", "pool", "fps", "frames") if recipe.get(key)}
    flags = " ".join(f"--{key} {value}" for key, value in settings.items())
    features = extract(args, folder, Path("features/wild-edits") / data.place / name, flags)
    images = read_images(features)
    return images._replace(path=np.array([clips[path] for path in images.path.tolist()]))


def clip_name(row):
    return "-".join(re.findall(r"\w+", row.path))


def attacked(scores, target, distance):
    """{generator: scores (n,)} when vectors have moved: the target's are lower by `distance`, all others' higher.

    The attack is projected gradient descent on the classifier's input; with a linear head its every step goes the same
    way, so one step to the edge of the ball is its end. `distance` is the ball's radius times the norm of the weights.
    """
    return {name: own + (-distance if name == target else distance) for name, own in scores.items()}
