"""The dct encoder against a loop over blocks, encoders by name, and encoding of many clips at once."""

import threading
import time
from contextlib import closing

import cv2
import numpy as np
import pytest
import scipy.fft
from small import write_clip
from stages import stage

from basics.running import InputError
from tokens.encoders import ENCODERS, GRID, SCALE, SHIFT, encode_clips, once
from tokens.pretrained import build_encoder

# ---------------------------------------------------------------- the dct encoder

BANDS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 14)]


def dct_by_loops(frame):
    """The statistics of one region as BlockDCT's docstring says, block by block in float64: (16, 144)."""
    height, width = (size // 8 * 8 for size in frame.shape[:2])
    ycc = cv2.cvtColor(np.ascontiguousarray(frame[:height, :width]), cv2.COLOR_RGB2YCrCb)
    half = cv2.resize(ycc, (width // 2, height // 2), interpolation=cv2.INTER_AREA)

    def regions(plane):
        rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
        for i in range(GRID):
            for j in range(GRID):
                own_rows = range(i * rows // GRID, max((i + 1) * rows // GRID, i * rows // GRID + 1))
                own_columns = range(j * columns // GRID, max((j + 1) * columns // GRID, j * columns // GRID + 1))
                blocks = [plane[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] for y in own_rows for x in own_columns]
                yield np.array([scipy.fft.dctn(b.astype(float) - 128, norm="ortho") for b in blocks]).reshape(-1, 64)

    tokens = []
    for luma, cb, cr in zip(*map(regions, (ycc[..., 0], half[..., 2], half[..., 1])), strict=True):
        size, mean = np.abs(luma).mean(0)[1:], luma.mean(0)
        values = [*np.log1p(size), mean[0], luma[:, 0].std(), *(mean[1:] / (size + 1))]
        for plane in (cb, cr):
            size = np.abs(plane).mean(0).reshape(8, 8)
            bands = [[size[u, v] for u in range(8) for v in range(8) if low <= u + v <= high] for low, high in BANDS]
            values += [plane[:, 0].mean(), plane[:, 0].std(), *(np.log1p(np.mean(band)) for band in bands)]
        tokens.append(values)
    return np.array(tokens)


@pytest.mark.parametrize("shape", [(75, 107), (32, 32), (200, 41)])
def test_dct_tokens_equal_a_loop_over_blocks(shape):
    frame = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8), shape[::-1])
    encoder = build_encoder("dct")
    tokens = encoder.encode([encoder.prepare(frame)])[0]
    assert tokens.shape == (encoder.tokens, encoder.dim) == (16, 144)
    np.testing.assert_allclose(tokens * SCALE + SHIFT, dct_by_loops(frame), atol=0.03, rtol=1e-3)


def test_dct_in_strips_equals_dct_at_once(monkeypatch):
    frame = np.random.default_rng(0).integers(0, 256, (152, 96, 3), np.uint8)
    whole = build_encoder("dct").prepare(frame)
    monkeypatch.setattr("tokens.encoders.STRIP_PIXELS", 2000)
    np.testing.assert_allclose(build_encoder("dct").prepare(frame), whole, atol=2e-3)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((1, 1, 3)), np.full((3, 500, 3), 255), np.indices((64, 64, 3)).sum(0) % 2 * 255]
    + [np.full((1, 20000, 3), 255), np.zeros((20000, 1, 3)), np.zeros((7, 9, 3))],
)
def test_dct_is_finite_in_half_precision(frame):
    tokens = build_encoder("dct").prepare(frame.astype(np.uint8))
    assert np.isfinite(tokens.astype(np.float16)).all() and np.abs(tokens).max() < 50


def test_pooling_averages_neighbouring_tokens():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    full, pooled = build_encoder("dct"), build_encoder("dct", pool=2)
    tokens = full.encode([full.prepare(frame)])[0].reshape(4, 4, -1)
    expected = [tokens[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(pooled.encode([pooled.prepare(frame)])[0], expected, rtol=1e-5, atol=1e-6)
    for wrong in (3, 0):
        with pytest.raises(InputError, match="choose one of 1, 2, 4"):
            build_encoder("dct", pool=wrong)
    with pytest.raises(InputError, match="dct"):
        build_encoder("nothing")


# ---------------------------------------------------------------- an encoder of one's own


class Mean:
    """The mean colour of a frame: T = 1, D = 3."""

    name, tokens, dim, recipe = "mean", 1, 3, {}

    def prepare(self, frame):
        return frame.mean(axis=(0, 1))[None] / 255

    def encode(self, prepared):
        return np.stack(prepared)


def test_an_own_encoder_is_chosen_by_the_name_that_it_is_added_under(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "mean", Mean)
    for i in range(2):
        frames = [np.full((32, 32, 3), 200 * i, np.uint8)] * 12
        write_clip(tmp_path / "videos" / ("Real", "SVD")[i] / "a.mp4", fps=8, frames=frames)
    place = ["--encoder", "mean", "--videos", tmp_path / "videos", "--features", tmp_path / "f"]
    assert stage("01_extract_features", *place)["windows"] == 4
    for i, name in enumerate(("Real", "SVD")):
        with np.load(tmp_path / "f" / name / "a.mp4.npz") as arrays:
            np.testing.assert_allclose(arrays["tokens"], np.full((2, 8, 1, 3), 200 * i / 255), atol=0.02)
    for flags, named in (
        (["--pool", "2"], "--pool"),
        (["--layer", "x", "--encoder-dtype", "float16"], "--encoder-dtype, "),
    ):
        with pytest.raises(InputError, match=f"{named}.*not for the encoder mean"):
            stage("01_extract_features", *place, *flags)


# ---------------------------------------------------------------- many clips


class Double:
    """Tokens are twice the prepared number; remembers the batches it was given."""

    def __init__(self):
        self.batches = []

    def encode(self, batch):
        self.batches.append(len(batch))
        return 2 * np.array(batch, np.float32).reshape(-1, 1, 1)


def numbers(clip):
    """A clip is how many frames it has: its parts are of 3 frames, each called by its first, with "end" at the end."""
    for start in range(0, clip, 3):
        yield start, list(range(start, min(start + 3, clip)))
    yield "end", []


def test_batches_across_clips_return_to_their_own_clip_in_order():
    encoder, found = Double(), {}
    for clip, part, tokens in encode_clips([3, 70, 1, 0, 17], numbers, encoder, batch=10, threads=3):
        found.setdefault(clip, []).append((part, [int(token) for token in np.ravel(tokens)]))
    assert set(encoder.batches[:-1]) == {10} and sum(encoder.batches) == 91
    for clip in (3, 70, 1, 0, 17):
        expected = [(start, [2 * i for i in range(start, min(start + 3, clip))]) for start in range(0, clip, 3)]
        assert found[clip] == [*expected, ("end", [])]


def test_a_clip_that_fails_half_way_leaves_the_others_whole():
    def read(clip):
        for part, frames in numbers(clip):
            if (clip, part) == (70, 45):
                raise ValueError("frame 45")
            yield part, frames

    found = {}
    for clip, part, tokens in encode_clips([20, 70, 21], read, Double(), batch=10, threads=2):
        found.setdefault(clip, []).append((part, len(tokens)))
    assert [sum(count for _, count in found[clip]) for clip in (20, 70, 21)] == [20, 45, 21]
    assert found[20][-1] == found[21][-1] == ("end", 0) and str(found[70][-1][0]) == "frame 45"


def test_no_more_frames_are_decoded_than_the_encoder_can_take():
    made = []

    def endless(clip):
        while True:
            made.append(clip)
            yield None, [np.zeros(1)]

    before = threading.active_count()
    with closing(encode_clips(range(100), endless, Double(), batch=4, threads=3)) as clips:
        for _ in range(5):
            next(clips)
            time.sleep(0.1)
            assert len(made) <= 8 + 2 * 3 + 3  # taken, in the queue, in a thread's hands
    assert threading.active_count() == before


def test_frames_that_are_one_object_are_prepared_and_encoded_once():
    stills = [np.full((1, 1), i, np.float32) for i in range(3)]
    shown = [stills[number] for number in (0, 0, 0, 1, 2, 2, 1, 1)]  # one more time after another: anew

    def read(clip):
        prepare = once(lambda frame: prepared.append(clip) or frame + clip)
        for start in range(0, len(shown), 2):
            yield start, [prepare(frame) for frame in shown[start : start + 2]]
        yield "end", []

    prepared, encoder, found = [], Double(), {10: [], 20: []}
    for clip, _, tokens in encode_clips(found, read, encoder, batch=3, threads=2):
        found[clip] += [float(token) for token in np.ravel(tokens)]
    assert found == {clip: [2.0 * (clip + number) for number in (0, 0, 0, 1, 2, 2, 1, 1)] for clip in found}
    assert sorted(prepared) == [10] * 4 + [20] * 4 and sum(encoder.batches) == 8


def test_an_encoder_that_fails_ends_the_threads():
    class Failing(Double):
        def encode(self, batch):
            raise RuntimeError("no memory")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        list(encode_clips([70] * 20, numbers, Failing(), batch=4, threads=3))
    assert threading.active_count() == before
