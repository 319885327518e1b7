"""The right frames of every kind of video file, at the right time, in the right colours."""

import math
import struct
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from small import CODECS, number_of, numbered, write_clip

from basics.running import InputError
from tokens import videos
from tokens.videos import Video, sample_frames
from tokens.writing import equalize


def sampled(path, fps=8):
    return [number_of(frame) for _, frame in sample_frames(path, fps)]


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
def test_chosen_frames_are_those_of_the_whole_video(tmp_path, kind, monkeypatch):
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


def test_a_picture_larger_than_memory_is_refused(tmp_path):
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5B", 13, b"IHDR", 60000, 60000, 1, 0, 0, 0, 0)
    header += struct.pack(">I", zlib.crc32(header[12:]))
    (tmp_path / "bomb.png").write_bytes(header + struct.pack(">I4s", 0, b"IEND"))
    with pytest.raises(InputError, match="million pixels"):
        Video(tmp_path / "bomb.png")
    animation = cv2.Animation()
    animation.frames, animation.durations = [np.zeros((64, 64, 4), np.uint8) + np.uint8(i) for i in range(9)], [99] * 9
    cv2.imwriteanimation(str(tmp_path / "many.webp"), animation)
    assert len(Video(tmp_path / "many.webp").times) == 9
    data = (tmp_path / "many.webp").read_bytes()
    place = data.index(b"VP8X") + 12  # the canvas: 16384 x 8192, nine times
    canvas = (16383).to_bytes(3, "little") + (8191).to_bytes(3, "little")
    (tmp_path / "many.webp").write_bytes(data[:place] + canvas + data[place + 6 :])
    with pytest.raises(InputError, match="9 frames of 16384x8192 do not fit"):
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


def test_an_equalized_clip_shows_the_middle_of_its_frames():
    frame = np.full((40, 80, 3), (255, 0, 0), np.uint8)
    frame[:, :15] = frame[:, 65:] = (0, 0, 255)
    with Video(equalize(enumerate([frame] * 9), 64, 8, 8)) as video:
        shown = [image for _, image in video.sample(8)]
        assert (video.size, video.length) == ("64x64", 1.0)
    assert len(shown) == 8 and np.abs(shown[7].mean((0, 1)) - (255, 0, 0)).max() < 12
