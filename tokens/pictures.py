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
from av.sidedata.sidedata import Type
from PIL import Image, ImageOps

from basics.running import InputError, reason

STILL_SUFFIXES = {"png", "jpg", "jpeg", "bmp", "tif", "tiff"}
MAGIC = {
    **{b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"BM": "bmp"},
    **{b"II*\0": "tiff", b"MM\0*": "tiff", b"RIFF": "webp"},
}
ASF_HEADER, ASF_FILE = map(bytes.fromhex, ("3026b2758e66cf11a6d900aa0062ce6c", "a1dcab8c47a9cf118ee400c00c205365"))
# What a file may cost, whatever its header claims:
MOST_PIXELS = 1 << 26  # of a frame, as stored and as shown: 8192 x 8192
MOST_DRAWN = 1 << 33  # pixels of all frames of an animation
MOST_UNFOLDED, MOST_PER_BYTE = 1 << 31, 1 << 18  # pixels of all frames, and per byte of the file: no video has both
MOST_BYTES = 1 << 30  # of a picture or an animation, which are held
MOST_INDEX, MOST_BOXES = 1 << 28, 1 << 20  # bytes of an mp4's index, and boxes beside it
SHORTEST_DELAY, NO_DELAY = 0.01, 0.1  # seconds: browsers show an animation's frame without a delay so long

Type._missing_ = classmethod(lambda kinds, number: kinds.PANSCAN)  # PyAV raises for kinds that it lacks, such as EXIF
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
    """The first bytes of a file, its size in bytes, whether it breaks off by what it says of its own size, and whether
    it is a png, jpg, bmp, tiff or webp: the kind or None.

    An animated PNG is none: FFmpeg reads it. Raises InputError where the file is empty, no regular file, or claims what
    cannot be.
    """
    if not os.path.isfile(path) and os.path.exists(path):
        raise InputError("not a regular file")
    with open(path, "rb") as file:
        head, size = file.read(64), os.fstat(file.fileno()).st_size
        if not head:
            raise InputError("empty file")
        cut = said_size(file, head, size) > size
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind == "webp" and head[8:12] != b"WEBP":
        kind = None  # RIFF is AVI's as well
    if (kind or head.startswith(b"GIF")) and size > MOST_BYTES:
        raise InputError(f"a picture or animation of more than {MOST_BYTES >> 30} GiB; make it an mp4")
    if kind == "png":
        with open_image(path, kind) as image:
            kind = None if image.is_animated else kind
    return head, size, cut, kind


def said_size(file, head, size) -> int:
    """The bytes that a video of `size` bytes has by its own headers; 0 where they do not say."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return check_boxes(file, size)
    if head.startswith(b"RIFF") and head[4:8] != b"\xff" * 4:
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(ASF_HEADER):
        file.seek(0)
        start = file.read(1 << 16)
        place = start.find(ASF_FILE) + 40
        return int.from_bytes(start[place : place + 8], "little") if place >= 40 else 0
    return 0


def check_boxes(file, size) -> int:
    """Where the last box of an mp4 with media or an index ends, in bytes.

    Raises InputError where it claims more samples than it has bytes, or has a huge index: FFmpeg makes room for all
    that is claimed. Only one size for all samples (`stsz` in ISO/IEC 14496-12, 8.7.3) can claim so in a few bytes.
    """
    place, end = 0, 0
    for _ in range(MOST_BOXES):
        file.seek(place)
        length, name, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length or size - place
        if name == b"moov":
            if min(length, size - place) > MOST_INDEX:
                raise InputError(f"its index has more than {MOST_INDEX >> 20} MiB; cut it into shorter files")
            file.seek(place)
            for one_size, count in re.findall(rb"stsz.{4}(.{4})(.{4})", file.read(length), re.DOTALL):
                if any(one_size) and int.from_bytes(count, "big") > size:
                    raise InputError(
                        "its index claims more frames than the file has bytes; copy it anew from where it came from"
                    )
        place += max(length, 8)
        if name in (b"moov", b"moof", b"mdat"):
            end = place
        if place >= size:
            return end
    raise InputError(f"more than {MOST_BOXES} boxes; copy it anew from where it came from")


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
    formats = ("JPEG", "MPO") if kind == "jpg" else (kind,)
    try:
        with contextlib.ExitStack() as stack:
            if not isinstance(path, io.BytesIO):  # Pillow maps a path into memory, and turns what it maps wrongly
                path = stack.enter_context(open(path, "rb"))
            image = stack.enter_context(Image.open(path, formats=formats))
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
    """RGB uint8 (H, W, 3) of Pillow's image of 8, 16 or 32 bits. Raises InputError for floating point."""
    if image.mode == "F":
        raise InputError("a picture of floating-point numbers, whose white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def animated(delays):
    """When each frame of an animation begins (frames,), and its length, in seconds; without frames of a still."""
    delays = [delay if delay > SHORTEST_DELAY else NO_DELAY for delay in delays]
    return np.cumsum([0.0, *delays[:-1]]), float(sum(delays))


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
    if not delays or 8 + int.from_bytes(data[4:8], "little") <= len(data):
        return path, delays, False
    return io.BytesIO(data[:4] + (place - 8).to_bytes(4, "little") + data[8:place]), delays, True
