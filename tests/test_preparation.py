"""Frames as the pretrained models want them, against KerasHub's image converters and Pillow."""

import numpy as np
import pytest
from PIL import Image

from basics.running import InputError
from common import keras, keras_hub
from tokens.preparation import Preparation
from tokens.pretrained import preparation

LAYERS = keras_hub.layers
CONVERTERS = {"siglip": LAYERS.SigLIPImageConverter, "clip": LAYERS.CLIPImageConverter}
SHAPES = [(90, 160), (37, 92), (301, 200), (57, 56), (378, 379), (224, 224), (400, 1), (1, 50), (1, 1)]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(height, width, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (height, width, 3), np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "family, scale, offset", [("siglip", 1 / 127.5, -1.0), ("clip", [0.0146, 0.015, 0.0142], None)]
)
def test_prepared_pixels_are_those_of_kerashubs_converter(family, scale, offset, interpolation):
    crop = family == "clip"
    options = dict(scale=scale, offset=offset, crop_to_aspect_ratio=crop, interpolation=interpolation, antialias=True)
    for size in (378, 56):
        prepare = preparation(CONVERTERS[family](image_size=(size, size), **options), size)
        converter = CONVERTERS[family](image_size=(size, size), **options | {"scale": None, "offset": None})
        for shape in SHAPES:
            frame = noise(*shape)
            exact, rounded = (keras.ops.convert_to_numpy(converter(one)) for one in (np.float32(frame), frame))
            ours = (prepare(frame) - np.float32(prepare.offset)) / np.float32(prepare.scale)
            assert np.abs(ours - exact.clip(0, 255)).max() < 0.02, (size, shape)
            assert np.abs(ours - rounded).max() < 0.52, (size, shape)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [True, False])
def test_resized_pixels_are_pillows(crop, interpolation):
    for size in (378, 56):
        prepare = Preparation(size, [1.0] * 3, [0.0] * 3, crop, interpolation)
        for height, width in SHAPES:
            frame = noise(height, width, 64, 192)  # Pillow clips what overshoots
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = Image.fromarray(frame).crop((left, top, left + side, top + side) if crop else None)
            theirs = np.asarray(image.resize((size, size), RESAMPLING[interpolation]), np.float32)
            assert np.abs(prepare(frame) - theirs).max() < 1.5, (size, height, width)


def test_a_converter_without_scale_and_offset_keeps_grey_levels():
    prepare = preparation(LAYERS.DINOV2ImageConverter(image_size=(8, 8)), 8)
    np.testing.assert_allclose(prepare(np.full((8, 8, 3), 77, np.uint8)), 77, rtol=1e-6)


def test_a_converter_that_pads_is_refused():
    padding = LAYERS.CLIPImageConverter(image_size=(8, 8), crop_to_aspect_ratio=False, pad_to_aspect_ratio=True)
    with pytest.raises(InputError, match="pads"):
        preparation(padding, 8)
