"""The stage that trains and tests a detector (detectors.py) on the first second of each video.

detect("NPR", "gen", videos, "data/zoo", run, seed=0)      gen.json and gen_embeddings.npz in the run folder

Detectors train on the same videos, splits and classes as SAGA. DEVIATION: all in batches of 32 with a cosine decay to
0: the data and not the recipe shall differ from SAGA's.
"""

import functools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from basics.artifacts import read_json, refuse_other, versions, write_arrays, write_json
from basics.code import code_of
from basics.running import InputError
from common import keras
from experiments.detectors import DETECTORS, parameters
from tokens.dataset import index_digest
from tokens.videos import Video
from tokens.writing import centre_square, equalize
from training.callbacks import Interruption

FRAMES, FPS, BATCH_SIZE, THUMBNAIL = 8, 8, 32, 4

# ---------------------------------------------------------------- frames


def read_clips(rows, videos_root, size, equalize=None, cut=False):
    """The first 8 frames, at 8 per second, of each row's video: uint8 (V, 8, size, size, 3); the last one repeats.

    `equalize` is the side in pixels of 01's --equalize. `cut` takes the frame's centre as it is, else it is scaled.
    """
    files = tuple(Path(videos_root) / row.source for row in rows)
    return read_files(files, size, equalize, cut)


@functools.lru_cache(maxsize=2)  # training's and test's, for the next seed
def read_files(files, size, equalize, cut):
    frames = np.empty((len(files), FRAMES, size, size, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        clips = pool.map(functools.partial(read_pixels, size=size, equalized=equalize, cut=cut), files)
        for i, clip in enumerate(tqdm(clips, "reading frames", len(files), unit="video")):
            frames[i] = clip
    frames.flags.writeable = False
    return frames


def read_pixels(file, size, equalized, cut):
    """The first frames of a video, uint8 (8, size, size, 3)."""
    try:
        source = file
        if equalized:
            with Video(file) as video:
                source = equalize(video.sample(FPS), equalized, FPS, FRAMES)
        with Video(source) as video:
            frames = [frame for _, frame in islice(video.sample(FPS), FRAMES)]
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: {error}; restore the video, or run 01 again to leave it out") from error
    fit = centre_cut if cut else centre_square
    return np.stack([fit(frame, size) for frame in frames + frames[-1:] * (FRAMES - len(frames))])


def centre_cut(frame, size):
    """The centre (size, size, 3) of a frame (H, W, 3), which is mirrored at its edges where it is smaller."""
    short = [max(size - side, 0) for side in frame.shape[:2]]
    frame = np.pad(frame, [*[(pad // 2, pad - pad // 2) for pad in short], (0, 0)], "symmetric")
    top, left = ((side - size) // 2 for side in frame.shape[:2])
    return frame[top : top + size, left : left + size]


# ---------------------------------------------------------------- training and test


class FrameBatches(keras.utils.PyDataset):
    """Batches (images (B, H, W, 3), labels (B,)) of clips (V, 8, S, S, 3) that depend only on seed and step.

    Every clip comes once before one comes again.
    """

    def __init__(self, frames, labels, kind, seed, steps):
        super().__init__()
        self.frames, self.labels, self.kind = frames, np.asarray(labels, "int32"), kind
        self.seed, self.steps = seed, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        places = np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        clips = [self.order(int(place) // len(self.labels))[place % len(self.labels)] for place in places]
        random = np.random.default_rng((self.seed, step))
        images = np.stack([training_image(self.frames[clip], self.kind, random) for clip in clips])
        return images, self.labels[clips]

    @functools.lru_cache(maxsize=2)  # noqa: B019  (lives no longer than a training)
    def order(self, epoch):
        return np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.labels))


def frame_grid(frames):
    """Four frames (4, H, W, 3) as one image (2H, 2W, 3), row by row."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (frames[:2], frames[2:])])


def mask_square(frames, random, fraction=0.25):
    """Frames (4, H, W, 3) with one square black, of `share` of their side, at the same place in all."""
    side = int(fraction * frames.shape[1])
    top, left = random.integers(0, frames.shape[1] - side + 1, 2)
    frames = frames.copy()
    frames[:, top : top + side, left : left + side] = 0
    return frames


def training_image(clip, kind, random):
    """A random frame of a clip (8, S, S, 3), or the thumbnail of four frames in a row; every other one mirrored."""
    clip = clip[:, :, ::-1] if random.random() < 0.5 else clip
    if kind == "image":
        return clip[random.integers(FRAMES)]
    start = random.integers(FRAMES - THUMBNAIL + 1)
    return frame_grid(mask_square(clip[start : start + THUMBNAIL], random))


def test_images(frames, kind):
    """All that a model sees of clips (V, 8, S, S, 3): their frames (V * 8, S, S, 3), or two thumbnails each."""
    if kind == "image":
        return frames.reshape(-1, *frames.shape[2:])
    return np.stack([frame_grid(four) for four in frames.reshape(-1, THUMBNAIL, *frames.shape[2:])])


def train_detector(name, videos, frames_train, frames_test, seed=0, steps=300, full=False):
    """Train on frames of train and val (nothing is tuned); probabilities (V, C) of test, the mean over its images.

    Also returns the model's parameters, the seconds taken, steps and batch size.
    """
    started, detector = time.time(), DETECTORS[name]
    setting = detector.full if full else detector.small
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = detector.build(setting.size, len(videos.classes), full)
    schedule = keras.optimizers.schedules.CosineDecay(setting.learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    jit = keras.backend.backend() == "jax"  # on TensorFlow's CPU it makes separable convolutions five times as slow
    model.compile(setting.optimizer(schedule), loss, jit_compile=jit)
    labels = [row.label for row in videos.train + videos.val]
    batches = FrameBatches(frames_train, labels, detector.kind, seed, steps)
    callbacks = [Interruption(), keras.callbacks.TerminateOnNaN()]
    history = model.fit(batches, shuffle=False, callbacks=callbacks, verbose=1 if sys.stdout.isatty() else 2)
    if not np.isfinite(history.history["loss"][-1]):
        raise InputError(f"{name}: the loss is not finite; lower its learning rate ({setting.learning_rate:g})")
    images = test_images(frames_test, detector.kind)
    probabilities = softmax(np.float64(model.predict(images, batch_size=2 * BATCH_SIZE, verbose=0)), axis=1)
    probabilities = probabilities.reshape(len(frames_test), -1, len(videos.classes)).mean(axis=1)
    facts = {"parameters": parameters(model), "seconds": round(time.time() - started, 1)}
    return probabilities, facts | {"steps": steps, "batch_size": BATCH_SIZE}


# ---------------------------------------------------------------- the stage


def detect(name, level, videos, data_root, run, seed, equalize=None, steps=300, full=False, overwrite=False) -> Path:
    """Train and test a detector at a level, unless `run` holds this very detector; stages.tested reads the run folder.

    Writes <level>_embeddings.npz, arrays over the test videos: probabilities (V, C), class, generator, group, video and
    split (V,); and, last, <level>.json. `overwrite` trains again what is there.
    """
    run, detector = Path(run), DETECTORS[name]
    setting = detector.full if full else detector.small
    recipe = {"detector": name, "seed": seed, "steps": steps, "batch_size": BATCH_SIZE, "full": full}
    recipe |= {"size": setting.size, "learning_rate": setting.learning_rate, "equalize": equalize}
    recipe |= {"videos_sha256": videos_digest(videos), "versions": versions("keras")}
    recipe["code"] = code_of(read_clips, train_detector, detector.build)
    if (done := run / f"{level}.json").exists() and not overwrite:
        refuse_other(done, read_json(done, ("recipe",))["recipe"], recipe, "choose another --run, or --overwrite it")
        print(f"{done} is up to date")
        return run
    frames = [
        read_clips(rows, data_root, setting.size, equalize, detector.cut)
        for rows in (videos.train + videos.val, videos.test)
    ]
    probabilities, facts = train_detector(name, videos, *frames, seed, steps, full)
    arrays = {
        "probabilities": probabilities.astype("float32"),
        "class": np.array([videos.classes[row.label] for row in videos.test]),
        "generator": np.array([row.generator for row in videos.test]),
        "group": np.array([row.group for row in videos.test]),
        "video": np.array([row.path for row in videos.test]),
        "split": np.array(["test"] * len(videos.test)),
    }
    write_arrays(run / f"{level}_embeddings.npz", arrays)
    write_json(run / f"{level}.json", {"level": level, "classes": list(videos.classes)} | facts | {"recipe": recipe})
    return run


def videos_digest(videos):
    """A digest of the videos that train and test, and of their classes."""
    roles = {"train": videos.train + videos.val, "test": videos.test}
    rows = [row._replace(split=f"{role} {videos.classes[row.label]}") for role in roles for row in roles[role]]
    return index_digest(rows)
