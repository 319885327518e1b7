"""Write videos: the one writer of H.264, and --equalize, after which metadata does not reveal the generator."""

import io
import itertools
from fractions import Fraction

import av
import cv2

from basics.running import InputError


def write_mp4(target, frames, fps, **options):
    """Write frames to an mp4 file or BytesIO: RGB uint8 (H, W, 3), or planes of YUV 4:2:0 (3 H / 2, W), sides even.

    `options` are those of x264, such as crf; with threads="1" the bytes never vary.
    """
    with av.open(target, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24" if frame.ndim == 3 else "yuv420p")
            if not number:
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


class TooShortError(InputError):
    """A clip that --equalize leaves out."""

    REASON = "shorter than "


def equalize(samples, size: int, fps: float, frames: int):
    """A clip as an mp4 (BytesIO, H.264) of one size, rate and length, from samples (seconds, RGB frame (H, W, 3)).

    The centre square of the first `frames` samples is scaled to size x size. Raises TooShortError when there are fewer.
    """
    squares = [centre_square(frame, size) for _, frame in itertools.islice(samples, frames)]
    if len(squares) < frames:
        # not padded: repeated frames would reveal the length
        raise TooShortError(f"{TooShortError.REASON}{frames / fps:g} s; cannot be equalized")
    file = io.BytesIO()
    write_mp4(file, squares, fps, crf="23", threads="1")
    file.seek(0)
    return file


def centre_square(frame, size: int):
    """The central square of a frame (H, W, 3), scaled to (size, size, 3)."""
    square = central_square(frame)
    shrinks = size <= len(square)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def central_square(frame):
    """The largest central square (N, N, 3) of a frame (H, W, 3)."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frame[top : top + side, left : left + side]
