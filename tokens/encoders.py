"""The frozen encoders, and videos through them: decoded ahead on threads, encoded in batches across videos.

    encoder = BlockDCT()
    for number, video in encode_videos(["a.mp4", "b.gif"], encoder): video.tokens     (S, L, T, D)

An encoder is any object with `name`, `tokens` (T), `dim` (D), `recipe` (a dict: what else its tokens depend on),
`prepare(frame)`, which makes an array of an RGB uint8 frame (H, W, 3) on the threads that decode, and `encode(list of
prepared frames)` -> (N, T, D), in the main thread. The block DCT is here, the pretrained ones
and the choice by name are in pretrained.py.
"""

import functools
import itertools
import math
import os
import queue
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import scipy.fft

from basics.running import InputError
from tokens.dataset import make_windows
from tokens.videos import Video
from tokens.writing import equalize

# ---------------------------------------------------------------- block-DCT statistics

BLOCK, GRID = 8, 4
SMALLEST = BLOCK * GRID  # frames are padded to this height and width: a block in each region
STRIP_PIXELS = 1 << 20  # work on strips of about so many pixels: memory stays bounded for frames of any size


class BlockDCT:
    """Log statistics of the 8 x 8 block DCT in 4 x 4 regions of a frame at its own resolution: T = 16, D = 144.

    After the frequency statistics of F3-Net (Qian et al., ECCV 2020) and Frank et al. (ICML 2020): generators leave
    their mark in the spectrum and in the grid of their decoders. Per region, c being the coefficients of its blocks:

          0- 62  luma   log1p(mean |c|) of the 63 AC coefficients
         63- 64  luma   mean and standard deviation of DC
         65-127  luma   mean c / (mean |c| + 1) of the AC coefficients: what is locked to the block grid has a sign
        128-135  Cb at half resolution: mean and standard deviation of DC, log1p(mean |c|) of 6 bands of AC
        136-143  Cr, likewise

    Each group is shifted and scaled by constants to about zero mean and unit variance on camera and generated clips.
    """

    name, dim = "dct", 144

    def __init__(self, pool: int = 1):
        self.pool, self.recipe = pool, {}
        self.tokens = pooled_tokens(GRID, pool)

    def prepare(self, frame):
        return (block_statistics(frame) - SHIFT) / SCALE  # (T, D)

    def encode(self, prepared):
        return pool_tokens(np.stack(prepared), self.pool)  # (N, T, D)


def block_statistics(frame):
    """Raw statistics (T, D) of an RGB frame (H, W, 3)."""
    frame = pad_to_smallest(frame)
    height, width = (size // BLOCK * BLOCK for size in frame.shape[:2])
    step = max(1, STRIP_PIXELS // width // (2 * BLOCK)) * 2 * BLOCK  # whole blocks of luma and of halved chroma
    means = [[], [], []]  # luma, Cb, Cr: (block rows, 4, 129) of each strip
    for top in range(0, height, step):
        strip = cv2.cvtColor(frame[top : min(top + step, height), :width], cv2.COLOR_RGB2YCrCb)
        half = cv2.resize(strip, (width // 2, len(strip) // 2), interpolation=cv2.INTER_AREA)
        for part, plane in zip(means, (strip[..., 0], half[..., 2], half[..., 1]), strict=True):
            if len(plane) >= BLOCK:
                part.append(column_means(plane))
    (mean, absolute, deviation), *chroma = (region_means(np.concatenate(part)) for part in means)
    ac = absolute[:, 1:]
    groups = [np.log1p(ac), mean[:, :1], deviation, mean[:, 1:] / (ac + 1)]
    for mean, absolute, deviation in chroma:
        groups += [mean[:, :1], deviation, np.log1p(absolute @ BANDS)]
    return np.concatenate(groups, axis=1)


def column_means(plane):
    """Means (block rows, 4, 129) over each quarter of a plane's columns of its blocks' c, |c| and DC squared."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    blocks = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
    pixels = blocks.reshape(rows, columns, BLOCK * BLOCK).astype(np.float32) - 128
    values = np.empty((rows, columns, 2 * BLOCK * BLOCK + 1), np.float32)
    c = values[..., : BLOCK * BLOCK]
    for left in range(0, columns, 64):  # products this small stay on their own thread: others decode on the rest
        np.matmul(pixels[:, left : left + 64], BLOCK_DCT.T, out=c[:, left : left + 64])
    np.abs(c, out=values[..., BLOCK * BLOCK : -1])
    np.square(c[..., 0], out=values[..., -1])
    return region_matrix(columns) @ values


def region_means(rows):
    """Means (T, 64) of c and |c| and the standard deviation (T, 1) of DC, from column means (block rows, 4, 129)."""
    means = region_matrix(len(rows)) @ rows.reshape(len(rows), -1)
    mean, absolute, square = np.split(means.reshape(GRID * GRID, -1), [BLOCK * BLOCK, 2 * BLOCK * BLOCK], axis=1)
    return mean, absolute, np.sqrt(np.maximum(square - mean[:, :1] ** 2, 0))


@functools.lru_cache(maxsize=64)
def region_matrix(blocks: int):
    """(4, blocks): averages over a row's or column's quarters; with fewer than 4 blocks, neighbours share one."""
    starts = np.arange(GRID + 1) * blocks // GRID
    ends = np.maximum(starts[1:], starts[:-1] + 1)
    number = np.arange(blocks)
    member = (number >= starts[:-1, None]) & (number < ends[:, None])
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)


def pad_to_smallest(frame):
    below, right = (max(0, SMALLEST - size) for size in frame.shape[:2])
    return cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else frame


def band_matrix():
    """(64, 6): averages coefficients (u, v) of u + v = 1-2, 3-4, 5-6, 7-8, 9-10 and 11-14."""
    diagonal = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).ravel()
    member = np.minimum((diagonal + 1) // 2, 6)[:, None] == np.arange(1, 7)
    return (member / member.sum(axis=0)).astype(np.float32)


COSINES = scipy.fft.dct(np.eye(BLOCK), norm="ortho", axis=0)
BLOCK_DCT = np.kron(COSINES, COSINES).astype(np.float32)  # (64, 64), of a block's row-major pixels
BANDS = band_matrix()


def group_constants():
    """Shift and scale (2, D) of the statistics, rounded from those of 328 camera and generated clips.

    The spectrum falls with the diagonal u + v, and so do the constants of the log energies.
    """
    diagonal = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).ravel()[1:]
    energy = 0.6 + 2.65 * np.exp((1 - diagonal) / 3.5)
    chroma = [(0, 140), (60, 60), (1.8, 0.9), (1.0, 0.65), (0.65, 0.5), (0.48, 0.4), (0.38, 0.33), (0.33, 0.33)]
    luma = [*zip(energy, 0.5 + 0.2 * energy, strict=True), (-170, 400), (280, 160), *[(0, 0.15)] * 63]
    return np.array(luma + chroma + chroma, np.float32).T


SHIFT, SCALE = group_constants()


# ---------------------------------------------------------------- fewer tokens


def pooled_tokens(grid: int, pool: int) -> int:
    """Tokens left of a grid x grid after average pooling pool x pool."""
    if pool < 1 or grid % pool:
        divisors = ", ".join(str(k) for k in range(1, grid + 1) if grid % k == 0)
        raise InputError(f"--pool {pool} does not divide the {grid} x {grid} token grid; choose one of {divisors}")
    return (grid // pool) ** 2


def pool_tokens(tokens, pool: int):
    """Average tokens (N, T, D) of a square grid over pool x pool neighbours."""
    if pool == 1:
        return tokens
    count, side, dim = len(tokens), math.isqrt(tokens.shape[1]), tokens.shape[2]
    grid = tokens.reshape(count, side // pool, pool, side // pool, pool, dim)
    return grid.mean(axis=(2, 4)).reshape(count, -1, dim)


DTYPES = ("float32", "bfloat16", "mixed_bfloat16", "float16", "mixed_float16")


# ---------------------------------------------------------------- videos through an encoder

CHUNK = 32  # frames that a thread hands over at a time
LARGE = 1 << 28  # bytes of tokens above which a video's are gathered on disk, not in memory


class Encoded(NamedTuple):
    tokens: np.ndarray  # (S, L, T, D) float16
    times: np.ndarray  # (S, L) seconds
    valid: np.ndarray  # (S, L): False where the last frame is repeated as padding
    info: dict[str, str]  # fps, size, length, container, codec
    damaged: bool  # the end could not be decoded


class Gathered:
    """A video's tokens as they come back from the encoder: in memory, or in a file that is already deleted."""

    def __init__(self, info, count, frames, encoder, spill):
        shape = (-(-count // frames) * frames, encoder.tokens, encoder.dim)  # padding included
        self.info, self.count, self.frames, self.filled, self.times = info, count, frames, 0, []
        if 2 * math.prod(shape) <= LARGE:
            self.tokens = np.empty(shape, np.float16)
        else:
            with tempfile.TemporaryFile(dir=spill) as file:
                self.tokens = np.memmap(file, np.float16, "w+", shape=shape)

    def add(self, tokens):
        self.tokens[self.filled] = tokens
        self.filled += 1

    def encoded(self):
        windows = make_windows(self.tokens, self.times, self.frames)
        return Encoded(*windows, self.info, damaged=len(self.times) < self.count)


def encode_videos(files, encoder, fps=8, frames=8, size=None, batch_size=64, threads=None, spill=None):
    """Yield (number of the file, Encoded or the exception that it raised), in order of completion.

    With `size` every clip is first equalized. Tokens of long videos are gathered in the folder `spill`.
    """
    gathered = {}

    def read(number):
        return prepare_video(files[number], encoder, fps, frames, size)

    for number, kind, content in encode_frames(read, len(files), encoder, batch_size, threads):
        if kind == "info":
            gathered[number] = Gathered(*content, frames, encoder, spill)
        elif kind == "times":
            gathered[number].times += content
        elif kind == "tokens":
            gathered[number].add(content)
        elif kind == "end":
            yield number, gathered.pop(number).encoded()
        else:
            gathered.pop(number, None)
            yield number, content


def encode_frames(read, count, encoder, batch_size=64, threads=None):
    """Yield the messages (number, kind, content) of read(0) to read(count - 1), which run on threads; instead of
    "frames", prepared ones, come "tokens" (T, D), one frame at a time in order, encoded in batches across files.

    Of each number the last message is "end", once all its tokens came, or "error" with an exception.
    """
    waiting, ended = [], []  # (number, prepared frame); numbers whose last frames wait

    def encode(size):
        batch, waiting[:] = waiting[:size], waiting[size:]
        tokens = encoder.encode([frame for _, frame in batch])  # (N, T, D)
        for (number, _), one in zip(batch, tokens, strict=True):
            yield number, "tokens", one

    for number, kind, content in read_ahead(read, count, threads or os.cpu_count()):
        if kind == "frames":
            waiting += [(number, frame) for frame in content]
        elif kind == "end":
            ended.append(number)
        else:
            if kind == "error":
                waiting[:] = [item for item in waiting if item[0] != number]
            yield number, kind, content
        while len(waiting) >= batch_size:
            yield from encode(batch_size)
        for done in [number for number in ended if all(number != other for other, _ in waiting)]:
            ended.remove(done)
            yield done, "end", None
    if waiting:
        yield from encode(len(waiting))
    yield from ((number, "end", None) for number in ended)


def prepare_video(file, encoder, fps, frames, size):
    """Yield a video's messages: "info" with the number of samples, "times" and "frames" in chunks."""
    if size:
        with Video(file) as video:
            file = equalize(video.sample(fps), size, fps, frames)
    with Video(file) as video:
        yield "info", (video.facts(), len(video.numbers(fps)))
        samples = video.sample(fps)
        while chunk := list(itertools.islice(samples, CHUNK)):
            yield "times", [seconds for seconds, _ in chunk]
            yield "frames", [encoder.prepare(frame) for _, frame in chunk]


class StoppedError(Exception):
    """The main thread has ended, and so does one that reads."""


def read_ahead(read, count, threads):
    """Yield (number, *message) of the messages that read(0) to read(count - 1) yield on threads, then (number, "end").

    The queue is bounded: the threads wait for the encoder, however long a video is. An exception becomes the message
    "error": whatever is wrong with one file, the others go on.
    """
    messages, stop = queue.Queue(2 * threads), threading.Event()

    def put(*message):
        while not stop.is_set():
            try:
                return messages.put(message, timeout=0.5)
            except queue.Full:
                continue
        raise StoppedError

    def work(number):
        try:
            for message in read(number):
                put(number, *message)
            put(number, "end", None)
        except StoppedError:
            return
        except Exception as error:
            put(number, "error", error)

    pool, upcoming = ThreadPoolExecutor(threads), iter(range(count))
    try:
        for number in itertools.islice(upcoming, 2 * threads):
            pool.submit(work, number)
        for _ in range(count):
            kind = None
            while kind not in ("end", "error"):
                yield (message := messages.get())
                kind = message[1]
            if (number := next(upcoming, None)) is not None:
                pool.submit(work, number)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
