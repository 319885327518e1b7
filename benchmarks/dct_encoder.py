"""Clips per second of the dct encoder, decoding apart, beside SciPy's dctn on the same blocks.

    python benchmarks/dct_encoder.py

A clip is 16 frames of 128 x 128. SciPy computes the luma coefficients alone, without any statistics: a lower bound on
what the same features would cost with it.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from scipy.fft import dctn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tokens.encoders import build_encoder  # noqa: E402  (the repository's root is on the path first)

CLIPS, FRAMES, SIZE = 200, 16, 128


def ours(clip):
    encoder = build_encoder("dct")
    return encoder.encode([encoder.prepare(frame) for frame in clip])


def scipy_blocks(clip):
    for frame in clip:
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)[..., 0].astype(np.float32)
        dctn(luma.reshape(SIZE // 8, 8, SIZE // 8, 8), axes=(1, 3), norm="ortho")


def clips_per_second(work, threads):
    clip = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [clip] * threads))  # warm
        started = time.perf_counter()
        list(pool.map(work, [clip] * CLIPS))
        return CLIPS / (time.perf_counter() - started)


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores; median of five")
    for threads in (1, 2):
        rates = [[clips_per_second(work, threads) for _ in range(5)] for work in (ours, scipy_blocks)]
        mine, theirs = (float(np.median(rate)) for rate in rates)
        print(f"{threads} threads: dct {mine:.0f} clips/s, SciPy {theirs:.0f}, ratio {mine / theirs:.2f}")
