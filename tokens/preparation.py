"""Frames as a pretrained model wants them: cropped or stretched, resized with antialiasing, shifted and scaled.

prepare = Preparation(378, [1 / 127.5] * 3, [-1.0] * 3, crop=False, interpolation="bicubic")
pixels = prepare(frame)                                RGB uint8 (H, W, 3) -> float32 (378, 378, 3)
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tokens.writing import central_square


class Preparation(NamedTuple):
    """How a frame becomes a model's input: KerasHub's image converter with antialias on, in NumPy.

    Before the scale the two agree within 0.02 of the 255 grey levels, on noise of any size, but for the converter's
    rounding of an integer frame.
    """

    size: int
    scale: list[float]  # per channel: frame * scale + offset
    offset: list[float]
    crop: bool  # to the largest central square, or else stretch the frame to a square
    interpolation: str

    def __call__(self, frame):
        """Float32 (size, size, 3) of an RGB uint8 frame (H, W, 3)."""
        if self.crop:
            frame = central_square(frame)
        resized = np.clip(resize(frame, self.size, self.interpolation), 0, 255)  # bicubic overshoots
        return resized * np.float32(self.scale) + np.float32(self.offset)


def resize(frame, size: int, interpolation="bicubic"):
    """A frame (H, W, 3) resized to float32 (size, size, 3), antialiased when it shrinks. OpenCV and SciPy do not."""
    height, width = frame.shape[:2]
    rows = resize_matrix(height, size, interpolation) @ frame.reshape(height, -1).astype(np.float32)
    columns = rows.reshape(size, width, 3).swapaxes(0, 1).reshape(width, -1)
    return (resize_matrix(width, size, interpolation) @ columns).reshape(size, size, 3).swapaxes(0, 1)


@functools.lru_cache(maxsize=256)
def resize_matrix(size: int, target: int, interpolation: str) -> csr_array:
    """Weights (target, size) of one axis: a kernel at half-pixel centres, as wide as the pixels that it averages."""
    centres = (np.arange(target) + 0.5) * size / target - 0.5
    distance = np.abs(np.arange(size) - centres[:, None]) / max(size / target, 1)
    weights = KERNELS[interpolation](distance)
    return csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def triangle(distance):
    return np.maximum(1 - distance, 0)


def cubic(distance):
    """Keys' kernel with a = -1/2 (IEEE TASSP 1981)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


KERNELS = {"bicubic": cubic, "bilinear": triangle}
