"""The dct encoder against a loop over blocks, and encoding of many videos at once."""

import cv2
import numpy as np
import pytest
import scipy.fft
from small import number_of, write_clip

from basics.running import InputError
from tokens.encoders import GRID, SCALE, SHIFT, encode_videos
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
    "frame", [np.zeros((1, 1, 3)), np.full((3, 500, 3), 255), np.indices((64, 64, 3)).sum(0) % 2 * 255]
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


# ---------------------------------------------------------------- many videos


class NumberEncoder:
    """Tokens are the frame's number; remembers the batches it was given."""

    name, tokens, dim = "number", 1, 1

    def __init__(self):
        self.batches = []

    def prepare(self, frame):
        return number_of(frame)

    def encode(self, batch):
        self.batches.append(len(batch))
        return np.array(batch, np.float32).reshape(-1, 1, 1)


def test_batches_across_videos_return_to_their_own_video(tmp_path):
    files = [write_clip(tmp_path / f"{i}.mp4", count, 8) for i, count in enumerate((3, 70, 1, 8, 17))]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    encoder = NumberEncoder()
    results = dict(encode_videos([*files, tmp_path / "bad.mp4"], encoder, batch_size=10, threads=2))
    assert isinstance(results[5], Exception) and set(encoder.batches[:-1]) == {10}
    for i, count in enumerate((3, 70, 1, 8, 17)):
        video = results[i]
        places = np.arange(-(-count // 8) * 8).reshape(-1, 8)
        np.testing.assert_array_equal(video.tokens[..., 0, 0], np.minimum(places, count - 1))  # last frame repeated
        np.testing.assert_array_equal(video.valid, places < count)
        np.testing.assert_array_equal(video.times, np.minimum(places, count - 1) / 8)


def test_a_video_that_fails_half_way_leaves_the_others_whole(tmp_path):
    class Failing(NumberEncoder):
        def prepare(self, frame):
            if number_of(frame) == 45:
                raise ValueError("frame 45")
            return super().prepare(frame)

    files = [write_clip(tmp_path / f"{i}.mp4", count, 8) for i, count in enumerate((20, 70, 20))]
    results = dict(encode_videos(files, Failing(), batch_size=10, threads=1))
    assert str(results[1]) == "frame 45"
    for i in (0, 2):
        assert results[i].tokens.ravel()[:20].tolist() == list(range(20))


def test_long_videos_are_gathered_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tokens.encoders.LARGE", 10)
    path = write_clip(tmp_path / "long.mp4", 20, 8)
    [(_, video)] = encode_videos([path], NumberEncoder(), spill=tmp_path)
    assert isinstance(video.tokens, np.memmap) and video.tokens.ravel()[:20].tolist() == list(range(20))
    assert list(tmp_path.iterdir()) == [path]
