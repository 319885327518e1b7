"""01: the right frames of every kind of file, under the right name, label and split."""

import csv
import importlib
import math
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import scipy.fft

from common import load_generators
from tokens import videos
from tokens.dataset import assign_splits, group_hash, read_index, read_json, replace_whole, write_index
from tokens.encoders import GRID, SCALE, SHIFT, build_encoder, encode_videos
from tokens.videos import Video, equalize, list_videos, sample_frames

extract_features = importlib.import_module("01_extract_features")
CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
CODECS = {"avi": ("mpeg4", "yuv420p"), "webm": ("libvpx-vp9", "yuv420p"), "gif": ("gif", "rgb8")}
CODECS |= dict.fromkeys(("mp4", "mov", "mkv"), ("libx264", "yuv420p"))


def numbered(number, size=(64, 32)):
    """A frame whose eight black or white squares of 16 pixels are the bits of its number."""
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
    return np.repeat(cv2.resize(bits, size, interpolation=cv2.INTER_NEAREST)[..., None], 3, axis=2)


def number_of(frame):
    bits = cv2.resize(frame, (4, 2), interpolation=cv2.INTER_AREA)[..., 0] > 127
    return sum(1 << bit for bit, on in enumerate(bits.ravel()) if on)


def write_clip(path, count=24, fps=24, milliseconds=None, frames=None):
    """A clip of numbered frames, or of the given ones, at a constant rate or at the given times."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pixels = CODECS[path.suffix[1:].lower()]
    frames = frames or [numbered(i) for i in range(count)]
    with av.open(str(path), "w", format={"mkv": "matroska"}.get(path.suffix[1:].lower())) as output:
        stream = output.add_stream(codec, rate=fps, options={"crf": "10", "deadline": "realtime", "cpu-used": "8"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def sampled(path, fps=8):
    return [number_of(frame) for _, frame in sample_frames(path, fps)]


def extract(*arguments):
    return extract_features.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize(
    "kind, fps, count",
    [("mp4", 24, 48), ("mp4", 30, 47), ("mp4", 6, 9), ("mp4", 50, 90), ("mp4", 8, 8), ("mp4", 12, 1), ("mkv", 30, 50)]
    + [("mov", 24, 30), ("avi", 25, 40), ("webm", 24, 30), ("gif", 10, 25), ("gif", 20, 31)],
)
def test_sampling_takes_the_frame_on_screen(tmp_path, kind, fps, count):
    expected = [k * fps // 8 for k in range(math.ceil(Fraction(count * 8, fps)))] if count > 1 else [0]
    path = write_clip(tmp_path / f"clip.{kind}", count, fps)
    assert sampled(path) == expected
    with Video(path) as video:
        assert (video.container, video.size) == (kind, "64x32")
        assert video.fps == pytest.approx(fps, rel=0.01) and video.length == pytest.approx(count / fps, abs=0.02)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_sampling_follows_variable_frame_times(tmp_path, kind):
    starts = [40, 60, 80, 300, 310, 420, 900, 910, 930, 1500, 1520, 1540]
    path = write_clip(tmp_path / f"clip.{kind}", 12, 25, milliseconds=starts)
    with Video(path) as video:
        length = video.length
    times = [(start - 40) / 1000 for start in starts]
    expected = [max(i for i in range(12) if times[i] <= k / 8) for k in range(math.ceil(length * 8 - 1e-3))]
    assert len(expected) >= 12 and sampled(path) == expected


def test_animated_webp_is_sampled_by_its_durations(tmp_path):
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(numbered(i), cv2.COLOR_RGB2BGRA) for i in range(6)]
    animation.durations = np.array([300, 100, 50, 400, 25, 250], np.int32)
    assert cv2.imwriteanimation(str(tmp_path / "clip.webp"), animation)
    starts = np.cumsum([0, 300, 100, 50, 400, 25])
    assert sampled(tmp_path / "clip.webp") == [np.flatnonzero(starts <= k * 125)[-1] for k in range(9)]


def test_large_frames_are_sampled_like_small_ones(tmp_path):
    path = write_clip(tmp_path / "large.mp4", frames=[numbered(i, (1024, 512)) for i in range(36)], fps=30)
    assert sampled(path) == [k * 30 // 8 for k in range(10)]


SEEKABLE = {
    "closed": ("mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=0"}),
    "open": ("mkv", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}),
    "hevc": ("mp4", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
    "vp9": ("webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
}


@pytest.mark.parametrize("kind", SEEKABLE)
def test_frames_chosen_from_a_video_are_others_than_those_of_the_whole(tmp_path, kind, monkeypatch):
    """Only the key frames' runs that hold a chosen frame are decoded, also where pictures refer across a key frame."""
    suffix, codec, options = SEEKABLE[kind]
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i in range(200):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        output.mux(stream.encode())
    whole = dict(sample_frames(path))
    decoded, decode = [], videos.decode

    def counted(packets, context, needed=None):
        for frame in decode(packets, context, needed):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(videos, "decode", counted)
    for hold in (videos.HELD_BYTES, 0):
        monkeypatch.setattr(videos, "HELD_BYTES", hold)
        for chosen in ([30], [2, 3, 33, 65], [0, 31, 32], [66]):
            decoded.clear()
            with Video(path) as video:
                found = dict(video.sample(8, chosen))
            assert list(found) == [k / 8 for k in chosen]
            for seconds, frame in found.items():
                assert np.array_equal(frame, whole[seconds]) and number_of(frame) == round(24 * seconds)
            assert len(decoded) < 26 * len(chosen)


def test_picture_larger_than_memory_is_opened(tmp_path):
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5B", 13, b"IHDR", 60000, 60000, 1, 0, 0, 0, 0)
    header += struct.pack(">I", zlib.crc32(header[12:]))
    (tmp_path / "bomb.png").write_bytes(header + struct.pack(">I4s", 0, b"IEND"))
    with pytest.raises(ValueError, match="million pixels"):
        Video(tmp_path / "bomb.png")
    animation = cv2.Animation()
    animation.frames, animation.durations = [np.zeros((64, 64, 4), np.uint8) + np.uint8(i) for i in range(9)], [99] * 9
    cv2.imwriteanimation(str(tmp_path / "many.webp"), animation)
    assert len(Video(tmp_path / "many.webp").times) == 9
    data = (tmp_path / "many.webp").read_bytes()
    place = data.index(b"VP8X") + 12  # the canvas: 16384 x 8192, nine times
    canvas = (16383).to_bytes(3, "little") + (8191).to_bytes(3, "little")
    (tmp_path / "many.webp").write_bytes(data[:place] + canvas + data[place + 6 :])
    with pytest.raises(ValueError, match="9 frames of 16384x8192 do not fit"):
        Video(tmp_path / "many.webp")


def test_rotation_is_upright_as_opencv_shows_it(tmp_path):
    scene = np.zeros((32, 64, 3), np.uint8)
    scene[:16, :16] = (255, 0, 0)  # a red corner
    path = write_clip(tmp_path / "clip.mp4", frames=[scene] * 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    for turned in ((0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)):
        a, b, c, d = (value << 16 for value in turned)
        data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        ours = next(sample_frames(path))[1]
        capture = cv2.VideoCapture(str(path))
        theirs = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
        assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).mean() < 4


@pytest.mark.parametrize("kind", ["mp4", "mov", "avi", "mkv", "webm", "gif", "png", "jpg", "webp", "bmp"])
def test_red_stays_red(tmp_path, kind):
    red = np.full((64, 64, 3), (220, 30, 60), np.uint8)
    path = tmp_path / f"red.{kind}"
    write_clip(path, frames=[red] * 2) if kind in CODECS else cv2.imwrite(str(path), red[..., ::-1])
    frames = list(sample_frames(path))
    assert len(frames) == 1 and np.abs(frames[0][1].mean((0, 1)) - (220, 30, 60)).max() < 25


def test_grey_alpha_and_deep_stills_become_rgb(tmp_path):
    grey = np.full((20, 30), 77, np.uint8)
    clear = np.dstack([np.full((20, 30, 3), 200, np.uint8), np.where(np.arange(30) < 15, 0, 255)[None].repeat(20, 0)])
    for name, image, left, right in (
        ("grey.png", grey, 77, 77),
        ("alpha.png", clear.astype(np.uint8), 0, 200),
        ("deep.png", grey.astype(np.uint16) * 257, 77, 77),
        ("deep_alpha.png", clear.astype(np.uint16) * 257, 0, 200),
    ):
        cv2.imwrite(str(tmp_path / name), image)
        [(_, frame)] = sample_frames(tmp_path / name)
        assert frame.shape == (20, 30, 3) and frame.dtype == np.uint8
        assert (frame[:, 0] == left).all() and (frame[:, -1] == right).all()


# ---------------------------------------------------------------- the dct encoder


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


BANDS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 14)]


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
        with pytest.raises(ValueError, match="choose one of 1, 2, 4"):
            build_encoder("dct", pool=wrong)
    with pytest.raises(ValueError, match="dct"):
        build_encoder("nothing")


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


# ---------------------------------------------------------------- which videos


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(root):
    rows, ignored = list_videos(root, load_generators())
    return {row["source"]: (row["path"], row["generator"]) for row in rows}, +ignored


def test_layouts_give_generator_and_index_path(tmp_path):
    expected = {
        "Lavie/a.mp4": ("Lavie/a.mp4", "Lavie"),
        "Morph/deep/a.MP4": ("MorphStudio/Morph/deep/a.MP4", "MorphStudio"),
        "MorphStudio/deep/a.MP4": ("MorphStudio/deep/a.MP4", "MorphStudio"),
        "Real/k400/x.webm": ("Real/k400/x.webm", "Real"),
        "FAKE/show_1/x.gif": ("Show_1/show_1/x.gif", "Show_1"),
        "val/Fake/Brand new/x.mov": ("Brand new/x.mov", "Brand new"),
        "DVF/Sora/0_real/x.mp4": ("Real/Sora/x.mp4", "Real"),
        "DVF/Sora/1_fake/x.mp4": ("Sora/x.mp4", "Sora"),
        "Unknown one/x.mkv": ("Unknown one/x.mkv", "Unknown one"),
        'SVD/it\'s "a", b\nc 視頻.mp4': ('SVD/it\'s "a", b\nc 視頻.mp4', "SVD"),
        "Stills/a.PNG": ("Stills/a.PNG", "Stills"),
        "Stills/b.jpeg": ("Stills/b.jpeg", "Stills"),
        "Gen2/moving.webp": ("Gen2/gen-2/moving.webp", "Gen2"),
    }
    expected["gen-2/moving.webp"] = expected.pop("Gen2/moving.webp")
    touch(tmp_path, *expected)
    junk = [
        "__MACOSX/Lavie/._a.mp4",
        "Lavie/._a.mp4",
        ".cache/x.mp4",
        "Lavie/.DS_Store",
        "Lavie/Thumbs.db",
        "Lavie/d.ini",
    ]
    touch(tmp_path, *junk, "Lavie/stray.jpg", "root.mp4", "val/Fake/nobody.mp4", "Lavie/notes.txt")
    os.mkfifo(tmp_path / "Lavie" / "pipe.mp4")
    found, ignored = listed(tmp_path)
    assert found == expected
    assert ignored == {
        **{
            "hidden or system": 4,
            "*.db": 1,
            "*.ini": 1,
            "*.txt": 1,
            "stills beside videos": 1,
            "not a regular file": 1,
        },
        "not in a generator's folder (put it in one, or name its generator in a CSV)": 2,
    }


def test_two_files_of_one_index_path_are_named(tmp_path):
    touch(tmp_path, "a/Real/x.mp4", "b/Real/x.mp4")
    with pytest.raises(ValueError, match=r"a/Real/x\.mp4 and .*b/Real/x\.mp4"):
        listed(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        listed(tmp_path / "nowhere")


def write_csv(path, header, *lines):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def test_csv_names_videos_groups_and_splits(tmp_path):
    header = ("path", "generator", "group", "stratum", "split")
    lines = [
        ("v/a.mp4", "Morph", "g1", "720p", "test"),
        ("../b,\n.mp4", "Nobody", "", "", ""),
        ("/c/é.mp4", "Real", "", "", ""),
    ]
    rows, _ = list_videos(write_csv(tmp_path / "set.csv", header, *lines), load_generators())
    found = {row["path"]: [row[key] for key in (*header[1:], "source")] for row in rows}
    assert found == {
        "MorphStudio/v/a.mp4": ["MorphStudio", "g1", "720p", "test", "v/a.mp4"],
        "Nobody/b,\n.mp4": ["Nobody", "Nobody/b,\n.mp4", "", "", str(tmp_path.parent / "b,\n.mp4")],
        "Real/c/é.mp4": ["Real", "Real/c/é.mp4", "", "", "/c/é.mp4"],
    }
    for wrong, message in ((("a.mp4", "", "", "", ""), "line 2"), (("a.mp4", "Real", "", "", "dev"), "'dev'")):
        with pytest.raises(ValueError, match=message):
            list_videos(write_csv(tmp_path / "wrong.csv", header, wrong), load_generators())
    with pytest.raises(ValueError, match="generator"):
        list_videos(write_csv(tmp_path / "wrong.csv", ("path",), ("a.mp4",)), load_generators())
    both = [("a.mp4", "Real", "g", "", "test"), ("b.mp4", "Real", "g", "", "train")]
    rows, _ = list_videos(write_csv(tmp_path / "both.csv", header, *both), load_generators())
    with pytest.raises(ValueError, match="group g is in"):
        extract_features.set_splits(rows, {})


# ---------------------------------------------------------------- splits


def test_splits_are_shares_of_groups_and_stay_when_videos_are_added():
    groups = [f"clip {i // 2}" for i in range(4000)]
    generators = [("Real", "Sora")[i % 4 // 2] for i in range(4000)]
    first = assign_splits(groups[:2000], generators[:2000])
    share = Counter(first.values())
    assert abs(share["test"] / 1000 - 0.2) < 0.04 and abs(share["val"] / 1000 - 0.08) < 0.03
    assert all((group_hash(group) < 0.2) == (split == "test") for group, split in first.items())
    assert first.items() <= assign_splits(groups, generators, recorded=first).items()


def test_every_generator_is_trained_on_and_tested_where_it_can_be():
    by_hash = sorted((f"clip {i}" for i in range(200)), key=group_hash)
    tested, trained = by_hash[:3], by_hash[-4:]  # by hash alone these are all test, all train
    splits = assign_splits([*tested, *trained], ["a"] * 3 + ["b"] * 3 + ["c"])
    assert [splits[group] for group in tested] == ["test", "test", "train"]
    assert [splits[group] for group in trained] == ["test", "train", "train", "train"]
    assert assign_splits(tested[:1], ["a"]) == {tested[0]: "train"}  # a single group is train only
    recorded = dict.fromkeys(trained[1:3], "train")
    later = assign_splits(trained, "bbbb", recorded)
    assert recorded.items() <= later.items() and later[trained[0]] == "test"


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Nine clips of three generators, 1 to 3 windows each."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(9):
        write_clip(root / ("Real", "Sora", "New one")[i % 3] / f"{i}.mp4", 10 + 25 * (i % 3), 24)
    return root


def test_a_recorded_split_is_kept_when_videos_are_added(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path, "--limit", 2)
    rows = read_index(tmp_path)
    recorded = {row["path"]: ("val", "test", "train")[i % 3] for i, row in enumerate(rows)}
    write_index(tmp_path / "index-1-of-1.csv", [row | {"split": recorded[row["path"]]} for row in rows])
    extract("--videos", clips, "--features", tmp_path)
    found = {row["path"]: row["split"] for row in read_index(tmp_path)}
    assert len(recorded) == 6 and len(found) == 9 and recorded.items() <= found.items()
    lines = [(clips / path, path.split("/")[0], "") for path in found]
    header = ("path", "generator", "split")
    extract("--videos", write_csv(tmp_path / "a.csv", header, *lines), "--features", tmp_path / "csv")
    given = [(path, generator, "val") for path, generator, _ in lines]
    assert (
        extract("--videos", write_csv(tmp_path / "a.csv", header, *given), "--features", tmp_path / "csv")["videos"]
        == 0
    )
    assert {row["split"] for row in read_index(tmp_path / "csv")} == {"val"}


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.npz")}


def test_features_index_and_recipe_are_as_promised(clips, tmp_path, capsys):
    counts = extract("--videos", clips, "--features", tmp_path / "f", "--pool", 2)
    assert (counts["videos"], counts["windows"], counts["failed"], counts["skipped"]) == (9, 3 + 6 + 9, 0, 0)
    rows = read_index(tmp_path / "f")
    assert [row["path"] for row in rows] == sorted(row["source"] for row in rows) and len(rows) == 9
    for row in rows:
        with np.load(tmp_path / "f" / f"{row['path']}.npz") as arrays:
            assert arrays["tokens"].shape == (row["windows"], 8, 4, 144) and arrays["tokens"].dtype == np.float16
            assert arrays["times"].shape == arrays["valid"].shape == (row["windows"], 8)
            assert arrays["valid"].sum() == math.ceil(float(row["length"]) * 8 - 1e-3)
        assert (row["fps"], row["size"], row["container"], row["error"]) == ("24.000", "64x32", "mp4", "")
    assert "unseen: New one" in (printed := capsys.readouterr().out) and "9 videos, about 18 windows" in printed

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "f").rglob("*.npz")}
    index = (tmp_path / "f" / "index-1-of-1.csv").read_bytes()
    next(iter(made)).unlink()
    again = extract("--videos", clips, "--features", tmp_path / "f", "--pool", 2)
    assert (again["videos"], again["skipped"]) == (1, 8)
    changed = [path for path, when in made.items() if path.stat().st_mtime_ns != when]
    assert changed == [next(iter(made))] and (tmp_path / "f" / "index-1-of-1.csv").read_bytes() == index
    with pytest.raises(ValueError, match="tokens 4 there, 16 now.*--overwrite"):
        extract("--videos", clips, "--features", tmp_path / "f")
    assert extract("--videos", clips, "--features", tmp_path / "f", "--overwrite", "--limit", 1)["videos"] == 3
    assert len(read_index(tmp_path / "f")) == 3


def test_index_without_a_codec_cannot_be_read(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path / "features", "--pool", 4)
    rows = read_index(tmp_path / "features")
    assert {row["codec"] for row in rows} == {"h264"}
    (path,) = (tmp_path / "features").glob("index-*.csv")
    lines = list(csv.reader(path.read_text().splitlines()))
    place = lines[0].index("codec")
    path.write_text("\n".join(",".join(line[:place] + line[place + 1 :]) for line in lines) + "\n")
    assert [row | {"codec": "h264"} for row in read_index(tmp_path / "features")] == rows
    assert extract("--videos", clips, "--features", tmp_path / "features", "--pool", 4)["skipped"] == len(rows)


def test_shards_add_up_to_the_whole(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path / "whole")
    for i in (1, 2, 3, 4):
        extract("--videos", clips, "--features", tmp_path / "parts", "--shard", f"{i}/4")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert read_index(tmp_path / "parts") == read_index(tmp_path / "whole")
    assert len(list((tmp_path / "parts").glob("index-*-of-4.csv"))) == 4
    assert extract("--videos", clips, "--features", tmp_path / "parts", "--shard", "1/2")["videos"] == 0


WORKER = """
import importlib, os, signal, sys, time
extract_features = importlib.import_module("01_extract_features")
save, saved, (dies, start) = extract_features.save, [], sys.argv[1:3]
def note(*arguments):
    if len(saved) == 2 and dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    saved.append(save(*arguments))
    return saved[-1]
extract_features.save, extract_features.INDEX_SECONDS = note, 0 if dies == "lives" else 30
while time.time() < float(start):
    pass
extract_features.main(sys.argv[3:])
"""


def worker(dies, *arguments, start=0.0):
    """01 in a process of its own that begins at a time and, if it "dies", is killed after two videos."""
    command = [sys.executable, "-c", WORKER, dies, str(start), *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)


def test_a_shard_that_was_killed_is_not_found_or_redone(clips, tmp_path, capsys):
    extract("--videos", clips, "--features", tmp_path / "whole")
    place = ["--videos", clips, "--features", tmp_path / "parts"]
    assert extract(*place, "--shard", "1/2", "--check") == {1: 5, 2: 4}
    extract(*place, "--shard", "2/2")
    assert worker("dies", *place, "--shard", "1/2").wait() == -signal.SIGKILL
    assert 0 < len(tree(tmp_path / "parts")) < 9
    capsys.readouterr()
    assert extract(*place, "--shard", "1/2", "--check") == {1: 5}
    printed = capsys.readouterr()
    assert printed.out == "1\n" and printed.err == "part 1/2: 5 of 5 videos are missing\n"
    extract(*place, "--shard", "1/2")
    assert extract(*place, "--shard", "1/2", "--check") == {}
    next((tmp_path / "parts").rglob("*.npz")).unlink()
    assert sum(extract(*place, "--shard", "1/3", "--check").values()) == 1  # however the parts were cut before
    extract(*place)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert read_index(tmp_path / "parts") == read_index(tmp_path / "whole")


def test_two_workers_on_one_shard_lose_rows(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path / "whole")
    place, start = ["--videos", clips, "--features", tmp_path / "both"], time.time() + 20
    workers = [worker("lives", *place, start=start) for _ in range(2)]
    assert [process.wait() for process in workers] == [0, 0]
    assert tree(tmp_path / "both") == tree(tmp_path / "whole")
    assert read_index(tmp_path / "both") == read_index(tmp_path / "whole")


ADDER = """
import sys
from pathlib import Path
from tokens.dataset import INDEX_FIELDS, add_to_index
for i in range(40):
    row = dict.fromkeys(INDEX_FIELDS, "") | {"path": f"{sys.argv[2]}/{i:02}", "windows": 1}
    add_to_index(Path(sys.argv[1]), [row])
"""


def test_rows_are_lost_between_reading_an_index_and_writing_it(tmp_path):
    """Four processes add to one file again and again; without a lock half of the rows are lost."""
    command = [sys.executable, "-c", ADDER, str(tmp_path / "index-1-of-1.csv")]
    adders = [subprocess.Popen([*command, name], cwd=Path(__file__).parents[1]) for name in "abcd"]
    assert [process.wait() for process in adders] == [0] * 4
    assert [row["path"] for row in read_index(tmp_path)] == [f"{name}/{i:02}" for name in "abcd" for i in range(40)]


def test_two_processes_of_one_number_write_one_file(tmp_path, monkeypatch):
    """Containers on one file system may all be process 1: what one writes must not be moved away by another."""
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def write(temporary):
        temporary.write_text("outer")
        replace_whole(tmp_path / "a", lambda inner: inner.write_text("inner"))

    replace_whole(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "outer"


def hostile(root):
    """Files that are not what they are called; returns how many of them cannot be read."""
    whole = write_clip(root / "Sora" / "whole.mp4", 48, 24).read_bytes()
    (root / "Sora" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "Sora" / "empty.mp4").write_bytes(b"")
    (root / "Sora" / "text.mp4").write_text("#EXTM3U\nhttp://localhost/x.ts\n")
    (root / "Sora" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    (root / "Sora" / "broken.webp").write_bytes(b"RIFF0000WEBP" + b"0" * 40)
    (root / "Sora" / "link.mp4").symlink_to(root / "nowhere.mp4")
    (root / "Sora" / "folder.mp4").mkdir()
    with av.open(str(root / "Sora" / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    cv2.imwrite(str(root / "Dot" / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    return 6


def test_unreadable_files_are_listed_and_do_not_stop_the_rest(tmp_path, capsys, monkeypatch):
    root, features = tmp_path / "videos", tmp_path / "f"
    (root / "Dot").mkdir(parents=True)
    bad = hostile(root)
    monkeypatch.setattr("sys.argv", ["01_extract_features.py", "--videos", str(root), "--features", str(features)])
    with pytest.raises(SystemExit) as exit_:
        extract_features.run_script(extract_features.main)
    assert f"{bad} of 8 videos could not be read" in exit_.value.code
    errors = {row["path"]: row["error"] for row in read_index(features)}
    assert errors.pop("Sora/whole.mp4") == errors.pop("Dot/dot.png") == ""
    assert len(errors) == bad and all(errors.values()) and errors["Sora/empty.mp4"] == "empty file"
    assert errors["Sora/sound.mp4"] == "no video stream" and "cut.mp4: " in capsys.readouterr().out

    write_clip(root / "Sora" / "cut.mp4")  # mended: tried again, and the others too
    for name in ("empty.mp4", "text.mp4", "link.mp4", "sound.mp4"):
        (root / "Sora" / name).unlink()
    with pytest.raises(ValueError, match="1 of 4"):
        extract("--videos", root, "--features", features)
    assert {row["path"]: row["error"] for row in read_index(features)}["Sora/cut.mp4"] == ""


def test_damage_inside_a_video_costs_only_what_it_hits(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 96, 24)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    numbers = sampled(path)
    assert numbers[:8] == [3 * k for k in range(8)] and len(numbers) <= 32


def test_absurd_timestamps_fall_back_to_the_frame_rate(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 12, 24, milliseconds=[*range(0, 440, 40), 10**9])
    assert len(sampled(path)) < 20


def test_no_space_stops_before_anything_is_written(clips, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(extract_features.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="1e\\+03 B are free|1000 B are free"):
        extract("--videos", clips, "--features", tmp_path / "f")
    assert not tree(tmp_path)


def test_an_interruption_leaves_an_index_and_the_same_command_goes_on(clips, tmp_path, monkeypatch):
    save, saved = extract_features.save, []

    def interrupted(row, *rest):
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(row["path"])
        return save(row, *rest)

    monkeypatch.setattr(extract_features, "save", interrupted)
    monkeypatch.setattr("sys.argv", ["01", "--videos", str(clips), "--features", str(tmp_path)])
    with pytest.raises(SystemExit, match="the same command goes on"):
        extract_features.run_script(extract_features.main)
    assert [row["path"] for row in read_index(tmp_path)] == sorted(saved)
    monkeypatch.setattr(extract_features, "save", save)
    assert extract("--videos", clips, "--features", tmp_path)["videos"] == 5


@pytest.mark.parametrize(
    "wrong", [["--shard", "0/3"], ["--shard", "4/3"], ["--fps", "0"], ["--equalize", "126"], ["--pool", "x"]]
)
def test_wrong_arguments_end_with_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        extract_features.get_args(wrong)
    assert exit_.value.code == 2


def test_equalized_clips_tell_nothing_by_their_metadata(tmp_path):
    root = tmp_path / "videos"
    write_clip(root / "Real" / "a.mp4", 60, 30)
    write_clip(root / "Real" / "b.gif", 40, 10)
    write_clip(root / "Sora" / "c.mkv", frames=[numbered(i, (96, 160)) for i in range(30)], fps=24)
    write_clip(root / "Sora" / "short.mp4", 12, 24)
    counts = extract("--videos", root, "--features", tmp_path / "f", "--equalize")
    assert (counts["videos"], counts["windows"], counts["failed"], counts["short"]) == (3, 3, 0, 1)
    rows = {row["path"]: row for row in read_index(tmp_path / "f")}
    assert rows.pop("Sora/short.mp4")["error"] == "shorter than 1 s; cannot be equalized"
    described = {tuple(row[key] for key in ("fps", "size", "length", "container", "windows")) for row in rows.values()}
    assert described == {("8.000", "128x128", "1.000", "mp4", 1)}
    assert extract("--videos", root, "--features", tmp_path / "f", "--equalize")["skipped"] == 4
    frames = [np.full((40, 80, 3), (255, 0, 0), np.uint8)] * 8
    with Video(equalize(enumerate(frames), 64, 8, 8)) as video:
        shown = [frame for _, frame in video.sample(8)]
    assert len(shown) == 8 and np.abs(shown[7].mean((0, 1)) - (255, 0, 0)).max() < 12


def test_a_renamed_generator_leaves_its_videos_under_the_old_name_too(tmp_path):
    clips = [write_clip(tmp_path / "v" / f"{i}.mp4") for i in range(3)]
    columns = ("path", "generator")
    table = write_csv(tmp_path / "set.csv", columns, *((clip, "SVD") for clip in clips))
    extract("--videos", table, "--features", tmp_path / "f")
    write_csv(tmp_path / "set.csv", columns, (clips[0], "Pika"), *((clip, "SVD") for clip in clips[1:]))
    assert extract("--videos", table, "--features", tmp_path / "f")["videos"] == 1
    assert sorted(row["generator"] for row in read_index(tmp_path / "f")) == ["Pika", "SVD", "SVD"]
    assert len(list((tmp_path / "f").rglob("*.npz"))) == 3


def test_a_zoo_is_not_known_as_simulated(tmp_path):
    clip = write_clip(tmp_path / "zoo" / "Sora" / "0000.mp4")
    (tmp_path / "zoo" / "recipe.json").write_text('{"simulated": true}')
    table = write_csv(tmp_path / "set.csv", ("path", "generator"), (clip, "Sora"))
    for number, given in enumerate((tmp_path / "zoo", table)):
        extract("--videos", given, "--features", tmp_path / f"f{number}")
        assert read_json(tmp_path / f"f{number}" / "recipe.json")["simulated"] is True


@pytest.mark.skipif(not CORPUS.exists(), reason="the shared corpus is not here")
def test_corpus_clips_of_every_format_are_extracted(tmp_path):
    files = [file for file in sorted(CORPUS.glob("*/*/*")) if file.stat().st_size < 400_000]
    chosen = {}
    for file in files:
        chosen.setdefault((file.suffix, len([kind for kind, _ in chosen if kind == file.suffix]) % 3), file)
    kinds = sorted({file.suffix for file in files})
    chosen = [file for kind in kinds for file in [file for file in files if file.suffix == kind][:3]]
    lines = [(file, file.parent.name) for file in chosen]
    counts = extract(
        "--videos", write_csv(tmp_path / "set.csv", ("path", "generator"), *lines), "--features", tmp_path / "f"
    )
    assert counts["videos"] == len(chosen) and counts["failed"] == 0 and len(kinds) >= 4
