"""Three published detectors that SAGA is compared with (Table S-2), as models.

    NPR     how neighbouring pixels relate       Tan et al., CVPR 2024        one frame
    F3Net   the spectrum, whole and by windows   Qian et al., ECCV 2020       one frame
    TALL    four frames as one thumbnail         Xu et al., ICCV 2023         four frames

DETECTORS["NPR"].build(128, classes=20, full=False)      a Keras model; `full` is the paper's, else for a few minutes

DEVIATION: no detector starts from ImageNet's weights, as F3Net and TALL do in their papers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.fft

from common import keras, keras_hub, ops

layers = keras.layers

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
    return scipy.fft.dct(np.eye(size), norm="ortho", axis=0).astype("float32")


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
    wider = [after[-1] != before[-1] for before, after in zip(filters[:-2], filters[1:-1], strict=True)]
    pooling = [False, *wider, False]
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


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
