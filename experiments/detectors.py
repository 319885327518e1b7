"""Three published detectors that SAGA is compared with (Table S-2), trained on the same videos, splits and classes.

    NPR     how neighbouring pixels relate       Tan et al., CVPR 2024        one frame
    F3Net   the spectrum, whole and by windows   Qian et al., ECCV 2020       one frame
    TALL    four frames as one thumbnail         Xu et al., ICCV 2023         four frames

`detect` is the stage: it reads the first second of each video, trains a detector and writes gen.json and
gen_embeddings.npz into a run folder. A detector is small, for a few minutes on one core, or `full`, the paper's.
DEVIATION: no detector starts from ImageNet's weights, as F3Net and TALL do in their papers, and all train in batches
of 32 with a cosine decay to 0: the data and not the recipe shall differ from SAGA's.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import keras, keras_hub, ops
from tokens.dataset import read_json, replace_whole, write_json
from tokens.videos import Video, centre_square, equalize
from training.callbacks import Interruption, index_digest, versions
from training.evaluation import softmax

layers = keras.layers
FRAMES, FPS, BATCH_SIZE, THUMBNAIL = 8, 8, 32, 4

# ---------------------------------------------------------------- NPR (Tan et al., CVPR 2024)


class NeighbouringPixels(layers.Layer):
    """x - up(down(x)) by nearest neighbours, times 2/3: each 2x2 block (B, H, W, 3) less its top left."""

    def call(self, images):
        _, height, width, _ = images.shape
        corners = images[:, ::2, ::2]
        repeated = ops.repeat(ops.repeat(corners, 2, axis=1), 2, axis=2)[:, :height, :width]
        return (images - repeated) * (2 / 3)


def npr(size, classes, full):
    """ResNet-50 up to its second stage, with a first convolution of 3x3, on the residue of neighbouring pixels.

    DEVIATION: the small one is a quarter as wide. Strided layers pad as Keras does, at the bottom and right first.
    """
    width = 64 if full else 16
    images = keras.Input((size, size, 3))
    x = NeighbouringPixels()(layers.Rescaling(1 / 127.5, -1)(images))
    x = layers.ReLU()(convolution(x, width, 3, strides=2))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for filters, blocks, stride in ((width, 3, 1), (2 * width, 4, 2)):
        for block in range(blocks):
            x = bottleneck(x, filters, stride if block == 0 else 1)
    return keras.Model(images, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def convolution(x, filters, side, strides=1):
    x = layers.Conv2D(filters, side, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def bottleneck(x, filters, strides):
    """1x1, 3x3 and 1x1 convolutions to 4 x filters, beside a shortcut."""
    shortcut = x if x.shape[-1] == 4 * filters else convolution(x, 4 * filters, 1, strides)
    x = layers.ReLU()(convolution(x, filters, 1))
    x = layers.ReLU()(convolution(x, filters, 3, strides))
    return layers.ReLU()(shortcut + convolution(x, 4 * filters, 1))


# ---------------------------------------------------------------- F3Net (Qian et al., ECCV 2020)

WINDOW, STRIDE, BANDS = 10, 2, 6
XCEPTION = [[32, 64], [128] * 2, [256] * 2, [728] * 2, *[[728] * 3] * 8, [728, 1024], [1536, 2048]]
SMALL_XCEPTION = [[8, 16], [32] * 2, [64] * 2, [128, 128]]


def dct_matrix(size):
    """The orthonormal DCT-II (size, size): its rows are the cosines, the slowest first."""
    frequency, place = np.mgrid[:size, :size]
    cosines = np.cos(np.pi * frequency * (place + 0.5) / size) * np.sqrt(2 / size)
    cosines[0] /= np.sqrt(2)
    return cosines.astype("float32")


def diagonals(size):
    """How fast each coefficient of a DCT waves, across plus down: (size, size)."""
    return np.add.outer(np.arange(size), np.arange(size))


def squash(x):
    return 2 * ops.sigmoid(x) - 1


class FrequencyDecomposition(layers.Layer):
    """FAD (Sec. 3.1): an image's low, middle, high and all frequencies, (B, S, S, 3) -> (B, S, S, 12)."""

    def build(self, shape):
        size = shape[1]
        waves = diagonals(size)
        low, middle = waves <= size / 16, waves <= size / 8
        self.base = np.stack([low, middle & ~low, ~middle, np.ones_like(low)]).astype("float32")  # (4, S, S)
        self.learned = self.add_weight(shape=self.base.shape, initializer="zeros", name="learned")
        self.dct = dct_matrix(size)

    def call(self, images):
        spectrum = ops.einsum("uh,bhwc,vw->bcuv", self.dct, images, self.dct)
        filtered = spectrum[:, None] * (self.base + squash(self.learned))[:, None]  # (B, 4, 3, S, S)
        bands = ops.einsum("uh,bkcuv,vw->bhwkc", self.dct, filtered, self.dct)
        return ops.reshape(bands, (-1, *images.shape[1:3], 12))


class FrequencyStatistics(layers.Layer):
    """LFS (Sec. 3.2): how much of each of 6 bands is in each 10x10 window, (B, S, S, 3) -> (B, S', S', 6)."""

    def build(self, shape):
        waves = np.outer(dct_matrix(WINDOW), dct_matrix(WINDOW)).reshape(WINDOW, WINDOW, WINDOW, WINDOW)  # u, y, v, x
        self.dct = waves.transpose(1, 3, 0, 2).reshape(WINDOW, WINDOW, 1, WINDOW**2)
        band = diagonals(WINDOW).ravel() * BANDS // (2 * WINDOW - 1)
        self.base = np.eye(BANDS, dtype="float32")[band]  # (100, 6)
        self.learned = self.add_weight(shape=self.base.shape, initializer="zeros", name="learned")

    def call(self, images):
        grey = ops.mean(images, axis=-1, keepdims=True)
        grey = ops.pad(grey, [(0, 0), (4, 4), (4, 4), (0, 0)])  # 299 pixels give 149 windows, as in the paper
        spectrum = ops.abs(ops.conv(grey, self.dct, STRIDE))  # (B, S', S', 100)
        return ops.log10(spectrum @ ops.abs(self.base + squash(self.learned)) + 1e-6)


class MixBlock(layers.Layer):
    """Cross attention between two streams (B, H, W, D) (Sec. 3.3): each is given what the other has where they agree.

    DEVIATION: the attention is scaled by the root of its width, as in transformers, and what it adds starts at 0.
    """

    def build(self, shapes):
        width = shapes[0][-1]
        self.query, self.key = (layers.Conv2D(width // 4, 1) for _ in range(2))
        self.values = [layers.Conv2D(width, 1) for _ in range(2)]
        for layer in (self.query, self.key, *self.values):
            layer.build(shapes[0])
        self.gain = self.add_weight(shape=(2,), initializer="zeros", name="gain")

    def call(self, streams):
        shape = ops.shape(streams[0])

        def flat(x):
            return ops.reshape(x, (shape[0], shape[1] * shape[2], x.shape[-1]))

        query, key = flat(self.query(streams[0])), flat(self.key(streams[1]))
        scores = query @ ops.swapaxes(key, 1, 2) / query.shape[-1] ** 0.5  # (B, HW, HW)
        values = [flat(value(stream)) for value, stream in zip(self.values, streams, strict=True)]
        first = ops.softmax(scores) @ values[1]
        second = ops.softmax(ops.swapaxes(scores, 1, 2)) @ values[0]
        added = [self.gain[i] * ops.reshape(x, shape) for i, x in enumerate((first, second))]
        return [stream + more for stream, more in zip(streams, added, strict=True)]


def f3net(size, classes, full):
    """Two streams of Xception, on FAD and on LFS, that MixBlocks join.

    DEVIATION: the small Xception is four narrow blocks and has one MixBlock, after the third. FAD's bands are
    normalized: the fine ones are a hundred times fainter, which weights that are not ImageNet's cannot know.
    """
    filters, mixed = (XCEPTION, (8, 13)) if full else (SMALL_XCEPTION, (3,))
    images = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    frequencies, statistics = FrequencyDecomposition()(x), FrequencyStatistics()(x)
    frequencies = layers.BatchNormalization(momentum=0.9)(frequencies)
    # LFS has halved the image already, so it takes the place of the first convolution.
    statistics = layers.ReLU()(convolution(statistics, filters[0][0], 3))
    streams, joints = [frequencies, statistics], [f"block{block}_residual_add" for block in mixed]
    networks = [xception(filters, stream.shape[-1]) for stream in (frequencies, statistics)]
    starts = [None, "block1_conv1_act"]
    for joint in [*joints, None]:
        streams = [part(*stage)(x) for *stage, x in zip(networks, starts, [joint] * 2, streams, strict=True)]
        streams = MixBlock()(streams) if joint else streams
        starts = [joint] * 2
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(stream) for stream in streams])
    return keras.Model(images, layers.Dense(classes)(pooled))


def xception(filters, channels):
    pooling = [
        False,
        *[wide[-1] != before[-1] for before, wide in zip(filters[:-2], filters[1:-1], strict=True)],
        False,
    ]
    network = keras_hub.models.XceptionBackbone(filters, pooling, (None, None, channels))
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # as PyTorch; Keras's 0.99 still remembers the first of a few hundred steps
    return network


def part(network, start, end):
    """A network from one layer's output to another's; None is its input or its output."""
    inputs = network.get_layer(start).output if start else network.input
    return keras.Model(inputs, network.get_layer(end).output if end else network.output)


# ---------------------------------------------------------------- TALL (Xu et al., ICCV 2023)

SWIN_B = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=7)
SMALL_SWIN = dict(embed_dim=64, depths=(2, 2, 2), num_heads=(2, 4, 8), window_size=4, patch_size=8, drop_path=0)


def thumbnail(frames):
    """Four frames (4, H, W, 3) as one image (2H, 2W, 3), row by row."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (frames[:2], frames[2:])])


def mask_square(frames, random, share=0.25):
    """Frames (4, H, W, 3) with one square black, of `share` of their side, at the same place in all."""
    side = int(share * frames.shape[1])
    top, left = random.integers(0, frames.shape[1] - side + 1, 2)
    frames = frames.copy()
    frames[:, top : top + side, left : left + side] = 0
    return frames


def tall(size, classes, full):
    """A Swin Transformer on thumbnails, twice as wide and high as a frame.

    DEVIATION: the rate has no warm-up. The small one has three stages and patches of 8 pixels, and no block is dropped.
    """
    images = keras.Input((2 * size, 2 * size, 3))
    swin = keras_hub.models.SwinTransformerBackbone((2 * size, 2 * size, 3), **(SWIN_B if full else SMALL_SWIN))
    x = swin(layers.Rescaling(1 / 127.5, -1)(images))
    x = ops.mean(ops.reshape(x, (-1, np.prod(x.shape[1:-1]), x.shape[-1])), axis=1)
    return keras.Model(images, layers.Dense(classes)(x))


# ---------------------------------------------------------------- the detectors


class Setting(NamedTuple):
    """`size` is the side of a frame in pixels."""

    size: int
    optimizer: Callable
    learning_rate: float


class Detector(NamedTuple):
    """`build(size, classes, full)` makes a model of images (B, H, W, 3) that gives logits (B, C).

    `kind` "image" looks at single frames and "video" at thumbnails of four. Frames are cut to size, which keeps their
    pixels, or their centre square is scaled.
    """

    build: Callable
    kind: str
    cut: bool
    small: Setting
    full: Setting


adam, adamw = keras.optimizers.Adam, keras.optimizers.AdamW
momentum = functools.partial(keras.optimizers.SGD, momentum=0.9)
DETECTORS = {
    "NPR": Detector(npr, "image", True, Setting(128, adam, 2e-3), Setting(224, adam, 2e-4)),
    "F3Net": Detector(f3net, "image", False, Setting(128, adam, 2e-3), Setting(299, momentum, 2e-3)),
    "TALL": Detector(tall, "video", False, Setting(64, adamw, 1e-3), Setting(112, adamw, 1.5e-5)),
}

# ---------------------------------------------------------------- frames


def read_frames(rows, videos_root, size, equalize=None, cut=False):
    """The first 8 frames, at 8 per second, of each row's video: uint8 (V, 8, size, size, 3); the last one repeats.

    `equalize` is the side in pixels of 01's --equalize. `cut` takes the frame's centre as it is, else it is scaled.
    """
    files = tuple(Path(videos_root) / row["source"] for row in rows)
    return read_files(files, size, equalize, cut)


@functools.lru_cache(maxsize=2)  # training's and test's, for the next seed
def read_files(files, size, equalize, cut):
    frames = np.empty((len(files), FRAMES, size, size, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        clips = pool.map(functools.partial(read_clip, size=size, equalized=equalize, cut=cut), files)
        for i, clip in enumerate(tqdm(clips, "reading frames", len(files), unit="video")):
            frames[i] = clip
    frames.flags.writeable = False
    return frames


def read_clip(file, size, equalized, cut):
    """The first frames of a video, uint8 (8, size, size, 3)."""
    try:
        source = file
        if equalized:
            with Video(file) as video:
                source = equalize(video.sample(FPS), equalized, FPS, FRAMES)
        with Video(source) as video:
            frames = [frame for _, frame in islice(video.sample(FPS), FRAMES)]
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}; restore the video, or run 01 again to leave it out") from error
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


def training_image(clip, kind, random):
    """A random frame of a clip (8, S, S, 3), or the thumbnail of four frames in a row; every other one mirrored."""
    clip = clip[:, :, ::-1] if random.random() < 0.5 else clip
    if kind == "image":
        return clip[random.integers(FRAMES)]
    start = random.integers(FRAMES - THUMBNAIL + 1)
    return thumbnail(mask_square(clip[start : start + THUMBNAIL], random))


def test_images(frames, kind):
    """All that a model sees of clips (V, 8, S, S, 3): their frames (V * 8, S, S, 3), or two thumbnails each."""
    if kind == "image":
        return frames.reshape(-1, *frames.shape[2:])
    return np.stack([thumbnail(four) for four in frames.reshape(-1, THUMBNAIL, *frames.shape[2:])])


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
    labels = [row["label"] for row in videos.train + videos.val]
    batches = FrameBatches(frames_train, labels, detector.kind, seed, steps)
    callbacks = [Interruption(), keras.callbacks.TerminateOnNaN()]
    history = model.fit(batches, shuffle=False, callbacks=callbacks, verbose=1 if sys.stdout.isatty() else 2)
    if not np.isfinite(history.history["loss"][-1]):
        raise ValueError(f"{name}: the loss is not finite; lower its learning rate ({setting.learning_rate:g})")
    images = test_images(frames_test, detector.kind)
    probabilities = softmax(model.predict(images, batch_size=2 * BATCH_SIZE, verbose=0))
    probabilities = probabilities.reshape(len(frames_test), -1, len(videos.classes)).mean(axis=1)
    facts = {"parameters": parameters(model), "seconds": round(time.time() - started, 1)}
    return probabilities, facts | {"steps": steps, "batch_size": BATCH_SIZE}


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# ---------------------------------------------------------------- the stage


def detect(name, videos, data_root, run, seed, equalize=None, steps=300, full=False) -> Path:
    """Train and test a detector at GEN-L, unless `run` holds this very detector; stages.tested reads the run folder.

    Writes gen_embeddings.npz, arrays over the test videos: probabilities (V, C), class, generator, video and split
    (V,); and, last, gen.json.
    """
    run, detector = Path(run), DETECTORS[name]
    setting = detector.full if full else detector.small
    recipe = {"detector": name, "seed": seed, "steps": steps, "batch_size": BATCH_SIZE, "full": full}
    recipe |= {"size": setting.size, "learning_rate": setting.learning_rate, "equalize": equalize}
    recipe |= {"videos_sha256": videos_digest(videos), "versions": versions()}
    if is_done(run / "gen.json", recipe):
        return run
    frames = [
        read_frames(rows, data_root, setting.size, equalize, detector.cut)
        for rows in (videos.train + videos.val, videos.test)
    ]
    probabilities, facts = train_detector(name, videos, *frames, seed, steps, full)
    arrays = {
        "probabilities": probabilities.astype("float32"),
        "class": np.array([videos.classes[row["label"]] for row in videos.test]),
        "generator": np.array([row["generator"] for row in videos.test]),
        "video": np.array([row["path"] for row in videos.test]),
        "split": np.array(["test"] * len(videos.test)),
    }
    replace_whole(run / "gen_embeddings.npz", lambda file: np.savez(file, **arrays), suffix=".npz")
    write_json(run / "gen.json", {"level": "gen", "classes": list(videos.classes)} | facts | {"recipe": recipe})
    return run


def videos_digest(videos):
    """A digest of the videos that train and test, and of their classes."""
    roles = {"train": videos.train + videos.val, "test": videos.test}
    rows = [row | {"split": f"{role} {videos.classes[row['label']]}"} for role in roles for row in roles[role]]
    return index_digest(rows)


def is_done(path, recipe):
    """Whether a run of this recipe is finished. Raises ValueError naming what differs when another is in its place."""
    if not path.exists():
        return False
    found = read_json(path, ("recipe",))["recipe"]
    differ = sorted(key for key in recipe if key != "versions" and found.get(key) != recipe[key])
    if differ:
        raise ValueError(f"{path} has other settings ({', '.join(differ)}); choose another --run or delete it")
    print(f"{path} is up to date")
    return True
