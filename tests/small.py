"""Small things that many tests want: a features folder, a run with weights as they are drawn, frames, video files."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from stages import module

from basics.artifacts import file_digest, make_recipe, write_arrays, write_json
from tokens.dataset import Row, features_file, features_recipe, index_digest, read_index, write_features, write_index
from tokens.generators import TABLE, load_generators
from tokens.split import choose_videos

RECIPE = {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12, "simulated": True}
SMALL = ["--epochs", "2", "--batch-size", "64", "--learning-rate", "1e-2", "--temporal-blocks", "2"]  # of 02 and 03

# ---------------------------------------------------------------- features


def split_of(i):
    return "test" if i < 5 else "val" if i < 7 else "train"


def write_folder(
    folder, generators, clips=20, windows=lambda i: 1 + i % 3, split=split_of, seed=0, recipe=RECIPE, **more
):
    """A features folder: `clips` of each generator with windows(i) windows each, whose tokens carry a mark of their
    generator. `more` are columns of the index, values or functions of (generator, i).
    """
    random, rows = np.random.default_rng(seed), []
    frames, tokens, dim = (recipe[key] for key in ("frames", "tokens", "dim"))
    for mark, generator in enumerate(generators):
        for i in range(clips):
            count, path = windows(i), f"{generator}/{i}.mp4"
            values = random.normal(size=(count, frames, tokens, dim)) + 3 * (np.arange(dim) == mark)
            write_features(features_file(folder, path), values, np.zeros((count, frames)), np.ones((count, frames)))
            row = Row(path, generator, group=path, split=split(i), windows=count, source=path)
            row = row._replace(fps="8", size="64x64", length=str(count), container="mp4", codec="h264")
            changes = {key: own(generator, i) if callable(own) else own for key, own in more.items()}
            rows.append(row._replace(**changes))
    write_index(Path(folder) / "index-1-of-1.csv", rows)
    write_json(Path(folder) / "recipe.json", recipe)
    return Path(folder)


# ---------------------------------------------------------------- a run


def untrained_run(features, folder, level="gen", seed=0, classifier=1, **choice):
    """What 02 or 03 leaves behind, from weights as they are drawn: fitting them would take longer than all that is
    tested. `classifier` scales its weights; `choice` is of choose_videos.
    """
    from common import build_saga, keras  # here, since some tests do without Keras
    from training.callbacks import save_model
    from training.evaluation import evaluate

    rows, made_by = read_index(features), features_recipe(features)
    given = {"features": str(features), "run": str(folder), "generators": str(TABLE), "test_features": None}
    given |= {"init": "scratch", "temporal_blocks": 2, "seed": seed}
    made_from = {"level": level, "features": made_by, "index_sha256": index_digest(rows)}
    paths = ("features", "run", "generators", "test_features", "init")
    recipe = make_recipe(given, paths, **made_from, table_sha256=file_digest(TABLE))
    videos = choose_videos(rows, level, features, load_generators(), seed=seed, **choice)
    keras.utils.set_random_seed(seed)
    sizes = [made_by[key] for key in ("frames", "tokens", "dim")]
    described = dict(class_names=videos.classes, features=made_by)
    model = build_saga(len(videos.classes), *sizes, temporal_blocks=2, **described)
    for weight in model.classifier.weights:
        weight.assign(classifier * weight)
    metrics, arrays = evaluate(model, videos, level, 16)
    save_model(model, Path(folder) / f"{level}.keras", recipe)
    write_arrays(Path(folder) / f"{level}_embeddings.npz", arrays | {"recipe": recipe})
    write_json(Path(folder) / f"{level}.json", metrics | {"recipe": recipe | {"seconds": 0.0}})
    return Path(folder)


def stage_two_losses(*flags):
    """What 03 compiles for these flags: losses by output and their weights."""
    stage_two = module("03_attribute")
    args = stage_two.get_args(flags)
    return stage_two.stage_two_loss(args.loss, args.ce_weight, args.margin, args.positives, args.normalize)


# ---------------------------------------------------------------- videos

CODECS = {"avi": ("mpeg4", "yuv420p"), "webm": ("libvpx-vp9", "yuv420p"), "gif": ("gif", "rgb8")}
CODECS |= dict.fromkeys(("mp4", "mov", "mkv"), ("libx264", "yuv420p"))


def numbered(number, size=(64, 32)):
    """A frame whose eight black or white squares of 16 pixels are the bits of its number."""
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
    return np.repeat(cv2.resize(bits, size, interpolation=cv2.INTER_NEAREST)[..., None], 3, axis=2)


def number_of(frame):
    bits = cv2.resize(frame, (4, 2), interpolation=cv2.INTER_AREA)[..., 0] > 127
    return sum(1 << bit for bit, on in enumerate(bits.ravel()) if on)


def moving(count, size=64, seed=0):
    """Frames of a textured square that moves."""
    image = np.random.default_rng(seed).integers(0, 255, (size, 4 * size, 3), np.uint8)
    image = cv2.GaussianBlur(image, (5, 5), 0)
    return [np.ascontiguousarray(image[:, i : i + size]) for i in range(count)]


def write_clip(path, count=24, fps=24, milliseconds=None, frames=None):
    """A video file of numbered frames, or of the given ones, at a constant rate or at the given times."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pixels = CODECS[path.suffix[1:].lower()]
    frames = frames or [numbered(i) for i in range(count)]
    with av.open(str(path), "w", format={"mkv": "matroska"}.get(path.suffix[1:].lower())) as output:
        stream = output.add_stream(codec, rate=fps, options={"crf": "10", "deadline": "realtime", "cpu-used": "8"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path
