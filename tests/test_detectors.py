"""The published detectors: what they make of pixels, their sizes, the frames they read, training and the stage."""

import numpy as np
import pytest
import scipy.fft
from small import numbered, write_clip

from basics.artifacts import read_json
from basics.running import InputError
from common import keras, ops
from experiments import detecting, detectors, stages
from experiments.detectors import DETECTORS, FrequencyDecomposition, FrequencyStatistics, NeighbouringPixels
from tokens.dataset import Row
from tokens.split import Split
from training.evaluation import score_names

RANDOM = np.random.default_rng(0)


def numpy_of(x):
    return ops.convert_to_numpy(x)


# ---------------------------------------------------------------- what the detectors make of pixels


@pytest.mark.parametrize("size", [6, 7])
def test_a_pixel_is_compared_with_its_blocks_top_left(size):
    images = RANDOM.standard_normal((2, size, size, 3)).astype("float32")
    expected = np.empty_like(images)
    for y in range(size):
        for x in range(size):
            expected[:, y, x] = (images[:, y, x] - images[:, y - y % 2, x - x % 2]) * 2 / 3
    np.testing.assert_allclose(numpy_of(NeighbouringPixels()(images)), expected, atol=1e-6)


def test_the_bands_of_fad_are_those_of_the_dct():
    size = 32
    images = RANDOM.standard_normal((2, size, size, 3)).astype("float32")
    bands = numpy_of(FrequencyDecomposition()(images)).reshape(2, size, size, 4, 3)
    np.testing.assert_allclose(bands[..., :3, :].sum(axis=3), images, atol=1e-4)
    np.testing.assert_allclose(bands[..., 3, :], images, atol=1e-4)
    for band, (first, last) in enumerate([(0, 2), (3, 4), (5, 62)]):
        spectrum = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")
        for u in range(size):
            for v in range(size):
                if not first <= u + v <= last:
                    spectrum[:, u, v] = 0
        expected = scipy.fft.idctn(spectrum, axes=(1, 2), norm="ortho")
        np.testing.assert_allclose(bands[..., band, :], expected, atol=1e-4, err_msg=f"band {band}")


def test_a_learned_filter_of_fad_changes_its_coefficient():
    layer, images = FrequencyDecomposition(), RANDOM.standard_normal((1, 32, 32, 3)).astype("float32")
    layer.build(images.shape)
    learned = np.zeros((4, 32, 32))
    learned[0, 20, 9] = 1.5
    layer.learned.assign(learned)
    low = numpy_of(layer(images))[..., :3]
    spectrum, before = (scipy.fft.dctn(x, axes=(1, 2), norm="ortho") for x in (low, images))
    np.testing.assert_allclose(spectrum[0, 20, 9], before[0, 20, 9] * np.tanh(0.75), atol=1e-4)
    np.testing.assert_allclose(spectrum[0, 20, 10], 0, atol=1e-4)


def test_lfs_is_the_log_of_each_windows_bands():
    images = RANDOM.standard_normal((2, 14, 14, 3)).astype("float32")
    found = numpy_of(FrequencyStatistics()(images))
    padded = np.zeros((2, 22, 22))
    padded[:, 4:18, 4:18] = images.mean(axis=-1)
    assert found.shape == (2, 7, 7, 6)
    for n, i, j in np.ndindex(2, 7, 7):
        spectrum = np.abs(scipy.fft.dctn(padded[n, 2 * i : 2 * i + 10, 2 * j : 2 * j + 10], norm="ortho"))
        sums = np.zeros(6)
        for u, v in np.ndindex(10, 10):
            sums[min(int((u + v) / 19 * 6), 5)] += spectrum[u, v]
        np.testing.assert_allclose(found[n, i, j], np.log10(sums), atol=1e-3)


def test_299_pixels_give_the_papers_149_windows():
    assert FrequencyStatistics()(keras.Input((299, 299, 3))).shape == (None, 149, 149, 6)


def test_a_mix_block_is_the_identity_at_first_and_attends_later():
    streams = [RANDOM.standard_normal((2, 3, 4, 8)).astype("float32") for _ in range(2)]
    block = detectors.MixBlock()
    for stream, mixed in zip(streams, block(streams), strict=True):
        np.testing.assert_array_equal(stream, numpy_of(mixed))
    block.gain.assign([1, 0])
    mixed = numpy_of(block(streams)[0])
    made = (block.query(streams[0]), block.key(streams[1]), block.values[1](streams[1]))
    query, key, value = (numpy_of(x).reshape(2, 12, -1) for x in made)
    for n, i in np.ndindex(2, 12):
        weights = np.exp(key[n] @ query[n, i] / np.sqrt(2))
        expected = streams[0].reshape(2, 12, 8)[n, i] + weights / weights.sum() @ value[n]
        np.testing.assert_allclose(mixed.reshape(2, 12, 8)[n, i], expected, atol=1e-4)


def test_a_thumbnail_has_frames_in_order_and_one_mask():
    frames = np.full((4, 8, 8, 3), 50, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    image = detecting.frame_grid(frames)
    assert [image[y, x, 0] for y in (0, 8) for x in (0, 8)] == [50, 51, 52, 53]
    assert image.shape == (16, 16, 3) and (image[8:, 8:] == 53).all()
    places = set()
    for seed in range(20):
        masked = detecting.mask_square(frames, np.random.default_rng(seed)) == 0
        assert (masked == masked[:1]).all() and masked[0, ..., 0].sum() == 4
        places.add(masked[0, ..., 0].tobytes())
    assert len(places) > 5 and frames.min() == 50


def test_images_for_test_are_all_frames_in_order():
    frames = np.broadcast_to(np.arange(16, dtype=np.uint8).reshape(2, 8, 1, 1, 1), (2, 8, 4, 4, 3))
    assert detecting.test_images(frames, "image")[:, 0, 0, 0].tolist() == list(range(16))
    corners = detecting.test_images(frames, "video")[:, ::4, ::4, 0].reshape(4, 4)
    assert corners.tolist() == np.arange(16).reshape(4, 4).tolist()


# ---------------------------------------------------------------- the papers' sizes


def full_model(name, classes=20):
    keras.utils.clear_session()
    return detectors.parameters(DETECTORS[name].build(DETECTORS[name].full.size, classes, True))


def test_the_full_npr_is_the_cut_resnet50():
    def conv(side, before, after):
        return side**2 * before * after + 2 * after

    count, before = conv(3, 3, 64), 64
    for filters, blocks in ((64, 3), (128, 4)):
        count += conv(1, before, 4 * filters)
        for _ in range(blocks):
            count += conv(1, before, filters) + conv(3, filters, filters) + conv(1, filters, 4 * filters)
            before = 4 * filters
    assert round((count + 513) / 1e6, 2) == 1.44  # one logit, as in the paper
    assert full_model("NPR") == count + 20 * 513


def test_the_full_f3net_is_two_xceptions():
    expected = 2 * detectors.parameters(keras.applications.Xception(include_top=False, weights=None))
    expected += (12 - 3) * 9 * 32 + (6 - 3) * 9 * 32  # the first convolutions' channels
    expected += 4 * 299**2 + 2 * 12 + 600  # FAD's filters and normalization, LFS's filters
    for width in (728, 1024):
        expected += 2 * (width + 1) * width // 4 + 2 * (width + 1) * width + 2
    assert full_model("F3Net") == expected + 20 * 4097


@pytest.mark.slow
def test_the_full_tall_is_swin_b():
    assert full_model("TALL") == 86_743_224 + 20 * 1025  # published 87,768,224, less its head of 1000 classes


# ---------------------------------------------------------------- frames


def row(path, label=0):
    return Row(path, "ab"[label], group=path, source=path, windows=1, label=label)


def test_frames_are_the_first_second_and_the_last_is_repeated(tmp_path):
    write_clip(tmp_path / "long.mp4", 48)
    write_clip(tmp_path / "short.mp4", 12)
    frames = detecting.read_clips([row("long.mp4"), row("short.mp4")], tmp_path, 32)
    assert frames.shape == (2, 8, 32, 32, 3) and frames.dtype == np.uint8
    for clip, numbers in zip(frames, ([0, 3, 6, 9, 12, 15, 18, 21], [0, 3, 6, 9, 9, 9, 9, 9]), strict=True):
        for frame, number in zip(clip, numbers, strict=True):
            expected = numbered(number)[:, 16:48]  # the centre square of 64 x 32
            assert np.abs(frame.astype(int) - expected).mean() < 12, number
    with pytest.raises(InputError, match=r"short.mp4: shorter than 1 s.*run 01 again"):
        detecting.read_clips([row("short.mp4")], tmp_path, 32, equalize=32)
    equalized = detecting.read_clips([row("long.mp4")], tmp_path, 32, equalize=64)
    assert 0 < np.abs(equalized[0].astype(int) - frames[0]).mean() < 25


def test_an_unreadable_video_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    for name in ("broken.mp4", "gone.mp4"):
        with pytest.raises(InputError, match=f"{name}: .*restore the video"):
            detecting.read_clips([row(name)], tmp_path, 32)


def test_a_cut_frame_keeps_its_pixels():
    frame = RANDOM.integers(0, 255, (10, 7, 3), np.uint8)
    assert (detecting.centre_cut(frame, 4) == frame[3:7, 1:5]).all()
    padded = detecting.centre_cut(frame, 9)
    assert (padded[:, 1:8] == frame[0:9]).all() and (padded[:, 0] == padded[:, 1]).all()


# ---------------------------------------------------------------- training and the stage


def colours(count=16, size=16):
    """Clips (V, 8, S, S, 3) of noise, the red of every other one brighter and rougher, and their rows."""
    frames = np.random.default_rng(count).integers(0, 90, (count, 8, size, size, 3))
    frames[1::2, ..., 0] *= 2
    return frames.astype(np.uint8), [row(f"{i}.mp4", i % 2) for i in range(count)]


def small(monkeypatch, name):
    """The detector at a size that trains in seconds."""
    monkeypatch.setattr(detectors, "SMALL_SWIN", dict(embed_dim=8, depths=(2,), num_heads=(2,), window_size=4))
    monkeypatch.setattr(detectors, "SMALL_XCEPTION", [[8, 8], [12, 12], [16, 16], [24, 24]])
    setting = DETECTORS[name].small._replace(size=16, learning_rate=3e-3)
    monkeypatch.setitem(DETECTORS, name, DETECTORS[name]._replace(small=setting))


def plain(monkeypatch, learning_rate=1e-2):
    """A detector of videos called plain, quick to build."""

    def build(size, classes, full):
        images = keras.Input((2 * size, 2 * size, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(images))
        return keras.Model(images, keras.layers.Dense(classes)(pooled))

    setting = DETECTORS["TALL"].small._replace(size=16, learning_rate=learning_rate)
    monkeypatch.setitem(DETECTORS, "plain", DETECTORS["TALL"]._replace(build=build, small=setting))


def train(name, seed, steps=80):
    (frames_train, rows), (frames_test, test_rows) = colours(), colours(10)
    videos = Split(("a", "b"), rows[:12], rows[12:], test_rows, [], {})
    return detecting.train_detector(name, videos, frames_train, frames_test, seed, steps)


@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.parametrize("name", DETECTORS)
def test_an_easy_difference_is_learned(monkeypatch, name):
    small(monkeypatch, name)
    probabilities, facts = train(name, seed=0)
    assert probabilities.argmax(axis=1).tolist() == [0, 1] * 5
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert facts["steps"] == 80 and facts["batch_size"] == 32 and facts["parameters"] > 100


def test_a_seed_repeats_a_training(monkeypatch):
    plain(monkeypatch)
    first, second, other = (train("plain", seed, steps=3)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4


def test_an_infinite_loss_raises(monkeypatch):
    plain(monkeypatch, learning_rate=float("inf"))
    with pytest.raises(InputError, match="plain: the loss is not finite"):
        train("plain", seed=0, steps=3)


def test_the_stage_trains_once_and_refuses_other_settings(monkeypatch, tmp_path, capsys):
    plain(monkeypatch)
    frames, rows = colours(8)
    for clip, one in zip(frames, rows, strict=True):
        write_clip(tmp_path / one.path, frames=list(clip), fps=8)
    videos = Split(("a", "b"), rows[:4], rows[4:6], rows[6:], [], {})
    run = tmp_path / "run"
    assert detecting.detect("plain", "gen", videos, tmp_path, run, seed=0, steps=2) == run
    labels, predicted = stages.tested(run, "gen")
    assert labels.tolist() == ["a", "b"] and score_names(labels, predicted)["videos"] == 2
    made = (run / "gen.json").stat().st_mtime_ns
    detecting.detect("plain", "gen", videos, tmp_path, run, seed=0, steps=2)
    assert "gen.json is up to date" in capsys.readouterr().out and (run / "gen.json").stat().st_mtime_ns == made
    assert set(read_json(run / "gen.json")) >= {"classes", "parameters", "seconds", "recipe"}
    for seed, chosen, key in ((1, videos, "seed"), (0, videos._replace(val=[]), "videos_sha256")):
        wanted = rf"gen.json was made with other settings \({key}\); choose another --run, or --overwrite it"
        with pytest.raises(InputError, match=wanted):
            detecting.detect("plain", "gen", chosen, tmp_path, run, seed=seed, steps=2)
    name, code = "experiments/detecting.py:train_detector", read_json(run / "gen.json")["recipe"]["code"]
    assert {name, "tokens/videos.py:Video"} <= code.keys()
    monkeypatch.setattr(detecting, "code_of", lambda *starts: code | {name: "edited"})
    with pytest.raises(InputError, match=rf"gen.json was made by other code \({name}\); .*--overwrite"):
        detecting.detect("plain", "gen", videos, tmp_path, run, seed=0, steps=2)
    detecting.detect("plain", "gen", videos, tmp_path, run, seed=1, steps=2, overwrite=True)
    assert read_json(run / "gen.json")["recipe"]["seed"] == 1
