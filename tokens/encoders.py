"""The frozen encoders, and clips through them: decoded ahead on threads, encoded in batches across clips.

    encoder = ENCODERS["dct"]()
    def read(file): yield "all", [encoder.prepare(frame) for _, frame in sample_frames(file)]
    for file, part, tokens in encode_clips(["a.mp4", "b.gif"], read, encoder): ...     tokens (N, T, D)

An encoder is any object with `name`, `tokens` (T), `dim` (D), `recipe` (a dict: what else its tokens depend on),
`prepare(frame)`, which makes an array of an RGB uint8 frame (H, W, 3) on the threads that decode, and `encode(list of
prepared frames)` -> (N, T, D), in the main thread. The block DCT is here; pretrained.py adds its own to ENCODERS.
"""

import functools
import itertools
import math
import os
import queue
import threading
from collections import deque

import cv2
import numpy as np
import scipy.fft

from basics.running import InputError

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
        """Standardised statistics (T, D) of an RGB uint8 frame (H, W, 3)."""
        return (block_statistics(frame) - SHIFT) / SCALE  # (T, D)

    def encode(self, prepared):
        """Tokens (N, T, D) of a list of N prepared frames."""
        tokens = np.stack(prepared)  # (N, T, D)
        return tokens if self.pool == 1 else pool_tokens(tokens, self.pool)


def block_statistics(frame):
    """Raw statistics (T, D) of an RGB frame (H, W, 3)."""
    if min(frame.shape[:2]) < SMALLEST:
        below, right = (max(0, SMALLEST - size) for size in frame.shape[:2])
        frame = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
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
    count, side, dim = len(tokens), math.isqrt(tokens.shape[1]), tokens.shape[2]
    grid = tokens.reshape(count, side // pool, pool, side // pool, pool, dim)
    return grid.mean(axis=(2, 4)).reshape(count, -1, dim)


# ---------------------------------------------------------------- the encoders by name

# name: function of the options pool, layer, weights and dtype, as far as it has them, that returns the encoder.
ENCODERS = {"dct": BlockDCT}
DTYPES = ("float32", "bfloat16", "mixed_bfloat16", "float16", "mixed_float16")


# ---------------------------------------------------------------- clips through an encoder


def once(function):
    """A function of frames that is computed once where frames that follow each other are the same object."""
    before, result = None, None

    def remembering(frame):
        nonlocal before, result
        if frame is not before:
            before, result = frame, function(frame)
        return result

    return remembering


class Frame:
    """A prepared frame and, once it went through the encoder, its tokens (T, D)."""

    def __init__(self, prepared):
        self.prepared, self.tokens = prepared, None


def encode_clips(clips, read, encoder, batch=64, threads=None):
    """Decode on threads, encode in batches: yield (clip, part, tokens (n, T, D)) for each (part, n prepared frames)
    that `read(clip)` yields.

    The parts of a clip come in order, those of several clips mixed. A part is any object by which the caller knows the
    frames; it may have none. The encoder gets `batch` frames at a time, of several clips, and a prepared frame that is
    the same object as the one before it in its clip only once. Where `read` raises, the exception is the clip's last
    part, without tokens, and the other clips continue.
    """
    waiting, upcoming = deque(), {}  # (clip, part, its Frames); the Frames that are not encoded yet, in order
    for item in itertools.chain(decode_ahead(clips, read, threads or os.cpu_count()), [None]):
        if item is not None:
            waiting.append(item)
            upcoming |= dict.fromkeys(frame for frame in item[2] if frame.tokens is None)
        while len(upcoming) >= batch or (upcoming and item is None):  # the last batch may be smaller
            now = list(itertools.islice(upcoming, batch))
            for frame, tokens in zip(now, encoder.encode([frame.prepared for frame in now]), strict=True):
                frame.tokens = tokens
                del upcoming[frame]
        while waiting and not (waiting[0][2] and waiting[0][2][-1].tokens is None):
            clip, part, frames = waiting.popleft()
            tokens = np.stack([frame.tokens for frame in frames]) if frames else []
            if frames:
                frames[-1].tokens = tokens[-1].copy()  # it may wait for its next part: not with a whole batch in memory
            yield clip, part, tokens


def decode_ahead(clips, read, threads):
    """Yield (clip, part, its Frames) in the order in which threads finish them; each thread reads one clip.

    The queue is bounded: the threads wait for the encoder, however long a clip is.
    """
    clips = list(clips)
    running = min(threads, len(clips))
    upcoming, decoded, stop = iter(clips), queue.Queue(2 * running), threading.Event()

    def work():
        try:
            for clip in upcoming:  # each thread takes the next one
                frame_of = once(Frame)
                try:
                    for part, prepared in read(clip):
                        decoded.put((clip, part, [frame_of(one) for one in prepared]))
                        if stop.is_set():
                            return
                except Exception as error:
                    decoded.put((clip, error, []))
        finally:
            decoded.put(None)  # this thread has ended

    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    try:
        while running:
            if (item := decoded.get()) is None:
                running -= 1
            else:
                yield item
    finally:
        stop.set()
        while running:  # discards what the threads still put
            running -= decoded.get() is None
