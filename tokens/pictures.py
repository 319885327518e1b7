"""Pictures as they are shown: turned and mirrored as the file says, with square pixels, transparent parts black.

    for rgb in read_pictures("still.png", "png"): ...       RGB uint8 (H, W, 3); several of an animated WebP

Frames of videos go through `to_rgb`, stills and WebP through Pillow.
"""

import contextlib
import functools
import io
import os
import re
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from basics.running import InputError, reason

STILL_SUFFIXES = {"png", "jpg", "jpeg", "bmp", "tif", "tiff"}
MAGIC = {
    **{b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"BM": "bmp"},
    **{b"II*\0": "tiff", b"MM\0*": "tiff", b"RIFF": "webp"},
}
# What a file may cost, whatever its header claims:
MOST_PIXELS = 1 << 26  # of a frame, as stored and as shown: 8192 x 8192
MOST_DRAWN = 1 << 33  # pixels of all frames of an animation
MOST_UNFOLDED, MOST_PER_BYTE = 1 << 31, 1 << 18  # pixels of all frames, and per byte of the file: no video has both
SHORTEST_DELAY, NO_DELAY = 0.01, 0.1  # seconds: browsers show an animation's frame without a delay so long

warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a file is said in its one line


def check_drawn(width, height, count=1, size=0, animated=False):
    """Raise InputError where `count` frames in a file of `size` bytes take more memory or time than a file may."""
    drawn = count * width * height
    if width * height > MOST_PIXELS:
        frame = f"{width:.0f}x{height:.0f}"
        raise InputError(f"frames of {frame} are more than {MOST_PIXELS >> 20} million pixels; scale them down")
    if (animated and drawn > MOST_DRAWN) or (drawn > MOST_UNFOLDED and drawn > MOST_PER_BYTE * size and count > 1):
        raise InputError(f"{count} frames of {width}x{height} in {size} bytes are too many; make it an mp4 of fewer")


def read_head(path):
    """The first bytes of a file, its size in bytes, and whether it is a png, jpg, bmp, tiff or webp: the kind or None.

    An animated PNG is none: FFmpeg reads it. Raises InputError where the file is empty, no regular file, or claims what
    cannot be.
    """
    if not os.path.isfile(path) and os.path.exists(path):
        raise InputError("not a regular file")
    with open(path, "rb") as file:
        head, size = file.read(64), os.fstat(file.fileno()).st_size
        if not head:
            raise InputError("empty file")
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            check_index(file, size)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind == "webp" and head[8:12] != b"WEBP":
        kind = None  # RIFF is AVI's as well
    if kind == "png":
        with open_image(path, kind) as image:
            kind = None if image.is_animated else kind
    return head, size, kind


def check_index(file, size):
    """Raise InputError where an mp4 claims more samples than it has bytes: FFmpeg makes room for all that are claimed.

    Only one size for all samples (`stsz` in ISO/IEC 14496-12, 8.7.3) can claim so in a few bytes.
    """
    place, name = 0, b""
    while place < size and name != b"moov":
        file.seek(place)
        length, name, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length or size
        place += max(length, 8)
    file.seek(max(0, place - length))
    index = file.read(min(length, size)) if name == b"moov" else b""
    for one_size, count in re.findall(rb"stsz.{4}(.{4})(.{4})", index, re.DOTALL):
        if any(one_size) and int.from_bytes(count, "big") > size:
            raise InputError(
                "its index claims more frames than the file has bytes; copy it anew from where it came from"
            )


# ---------------------------------------------------------------- frames of videos


class Picture:
    """A frame of PyAV, or an RGB array, that is converted when it is asked for: `rgb`, uint8 (H, W, 3)."""

    def __init__(self, frame, *how):
        self.frame, self.how = frame, how

    @functools.cached_property
    def rgb(self):
        return to_rgb(self.frame, *self.how) if self.how else self.frame


def to_rgb(frame, aspect, reformatter):
    """RGB uint8 (H, W, 3) of PyAV's frame whose pixels are `aspect` times as wide as high."""
    alpha = any(component.is_alpha for component in frame.format.components)
    wanted = {"format": "rgba" if alpha else "rgb24", "threads": 1}
    if aspect != 1:
        wanted |= {"width": max(1, round(frame.width * aspect)), "interpolation": "BICUBIC"}
    image = reformatter.reformat(frame, **wanted).to_ndarray()
    image = over_black(image) if alpha else image
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return image if matrix is None else turned(image, *np.frombuffer(matrix, "<i4").reshape(3, 3)[:2, :2].ravel())


def pixel_aspect(stream) -> float:
    """Width of a pixel by its height; 1 where it is not said, or absurd."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 8 <= aspect <= 8 else 1.0


def turned(image, a, b, c, d):
    """The image with its points (x, y) at (a x + c y, b x + d y), to the nearest of the eight turns and mirrors."""
    if abs(int(a)) + abs(int(d)) < abs(int(b)) + abs(int(c)):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def over_black(rgba):
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    return (rgba[..., :3].astype(np.uint16) * alpha // 255).astype(np.uint8)


# ---------------------------------------------------------------- stills and animated WebP


@contextlib.contextmanager
def open_image(path, kind):
    """Pillow's image of a file of this kind alone; whatever is wrong with it is an InputError."""
    try:
        with Image.open(path, formats=("JPEG", "MPO") if kind == "jpg" else (kind,)) as image:
            check_drawn(*image.size)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"a frame has more than {MOST_PIXELS >> 20} million pixels; scale it down") from error
    except Exception as error:  # Pillow raises whatever it meets in a damaged file
        raise InputError(f"not a readable {kind} image ({reason(error)})") from error


def read_pictures(path, kind: str, count=1):
    """Yield RGB uint8 (H, W, 3) of the first `count` pictures of a file, up to the first that is damaged.

    Raises InputError when the first one is.
    """
    with open_image(path, kind) as image:
        for number in range(count):
            try:
                image.seek(number)
                image.load()
            except Exception:
                if not number:
                    raise
                return
            yield rgb_of(ImageOps.exif_transpose(image))


def rgb_of(image):
    """RGB uint8 (H, W, 3) of Pillow's image of 8, 16 or 32 bits."""
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def read_delays(path, kind):
    """A file for read_pictures, seconds on screen of each frame of an animated WebP, and whether that breaks off.

    Pillow tells the times too late, and reads no WebP that breaks off: it comes as a BytesIO of its whole frames.
    """
    if kind != "webp":
        return path, [], False
    data, place, delays = Path(path).read_bytes(), 12, []
    while place + 8 <= len(data):
        end = place + 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        if end > len(data):
            break
        if data[place : place + 4] == b"ANMF":
            delays.append(int.from_bytes(data[place + 20 : place + 23], "little") / 1000)
        place = end + end % 2
    delays = [delay if delay > SHORTEST_DELAY else NO_DELAY for delay in delays]
    if not delays or 8 + int.from_bytes(data[4:8], "little") <= len(data):
        return path, delays, False
    return io.BytesIO(data[:4] + (place - 8).to_bytes(4, "little") + data[8:place]), delays, True
