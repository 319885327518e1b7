"""The right frames of every kind of video file, at the right time, in the right colours."""

import contextlib
import math
import os
import re
import struct
import time
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from small import CODECS, moving, number_of, numbered, write_clip

from basics.running import InputError
from tokens import pictures, videos
from tokens.videos import Video, probe, sample_frames
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


def test_a_picture_larger_than_memory_is_refused(tmp_path):
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5B", 13, b"IHDR", 60000, 60000, 1, 0, 0, 0, 0)
    header += struct.pack(">I", zlib.crc32(header[12:]))
    (tmp_path / "bomb.png").write_bytes(header + struct.pack(">I4s", 0, b"IEND"))
    with pytest.raises(InputError, match="million pixels"):
        Video(tmp_path / "bomb.png")


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


# ---------------------------------------------------------------- what a player shows


def write_stream(path, count=96, rate=24, codec="libx264", options=None, container=None, audio=0, images=None):
    """Numbered frames through FFmpeg's muxers with these options; `audio` seconds of silence beside them."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        images = images or [numbered(i % 256) for i in range(count)]
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=48000) if audio else None
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
        for i in range(int(audio * 48000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts, frame.time_base = 48000, 1024 * i, Fraction(1, 48000)
            output.mux(sound.encode(frame))
    return path


def plain(path):
    """[(seconds from the first frame, number)] of the frames that PyAV decodes, in order."""
    frames = []
    with av.open(str(path)) as file:
        for packet in file.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    frames.append((float(frame.time), number_of(frame.to_ndarray(format="rgb24"))))
    return [(seconds - frames[0][0], number) for seconds, number in frames]


def on_screen(shown, length):
    """What is on screen at each k / 8 of `shown` [(seconds, what)]."""
    at = [max(i for i, (begun, _) in enumerate(shown) if begun <= k / 8 + 1e-4) for k in range(math.ceil(8 * length))]
    return [shown[i][1] for i in at]


@pytest.mark.parametrize("keys", [250, 48])
def test_an_edit_inside_a_group_of_pictures_begins_where_it_says(tmp_path, keys):
    """As phones trim: what is stored before frame 30 is decoded and not shown."""
    path = write_stream(tmp_path / "a.mp4", options={"x264-params": f"keyint={keys}:scenecut=0", "bf": "2"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 16
    media = struct.unpack(">i", data[place : place + 4])[0]
    data[place : place + 4] = struct.pack(">i", media + 30 * 512)  # ticks of 1 / 12288 s
    path.write_bytes(data)
    assert sampled(path) == [30 + 3 * k for k in range(22)]
    assert [number_of(frame) for _, frame in sample_frames(path, 8, [10, 11])] == [60, 63]
    with Video(path) as video:
        assert video.length == pytest.approx(2.75) and video.damage is None


@pytest.mark.parametrize("frames", [0, 3], ids=["without B-frames", "with B-frames"])
def test_two_edits_follow_each_other(tmp_path, frames):
    """Decoding times go back where the second one begins: that is no new clock."""
    path = write_stream(tmp_path / "a.mov", options={"x264-params": "keyint=24:scenecut=0", "bf": str(frames)})
    data = path.read_bytes()
    place = data.index(b"edts") - 4
    rate, media = struct.pack(">I", 1 << 16), struct.unpack(">i", data[place + 28 : place + 32])[0]
    edits = b"".join(struct.pack(">Ii", 1000, media + 512 * frame) + rate for frame in (0, 48))
    old, new = data[place : place + 36], struct.pack(">I4sI4sII", 48, b"edts", 40, b"elst", 0, 2) + edits
    for name in (b"moov", b"trak"):  # which lie around it, behind the frames
        start = data.index(name) - 4
        size = struct.unpack(">I", data[start : start + 4])[0] + len(new) - len(old)
        data = data[:start] + struct.pack(">I", size) + data[start + 4 :]
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    assert sampled(path) == [3 * k for k in range(8)] + [48 + 3 * k for k in range(8)]
    assert [number_of(frame) for _, frame in sample_frames(path, 8, [1, 9])] == [3, 51]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("options", [{"bf": "0"}, {"x264-params": "open-gop=1:keyint=24:bframes=3"}], ids=str)
@pytest.mark.parametrize("begin", [0, 37, 48])
def test_packets_copied_from_anywhere_show_what_can_be_decoded(tmp_path, kind, options, begin):
    """As `-c copy` cuts, and as recorders that begin between two key frames."""
    given = write_stream(tmp_path / "given.mkv", options=options | {"g": "24"})
    path = tmp_path / f"cut.{kind}"
    with av.open(str(given)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][begin:]:
            packet.stream = stream
            target.mux(packet)
    shown = plain(path)
    if not shown:  # the stream's headers were left out with its first frames
        with pytest.raises(InputError, match="no frame"):
            probe(path)
        return
    with Video(path) as video:
        assert [number_of(frame) for _, frame in video.sample(8)] == on_screen(shown, video.length)
        assert video.length == pytest.approx(shown[-1][0] + 1 / 24, abs=0.002)


REFRESHED = {
    "gradual": ("libx264", {"x264-params": "intra-refresh=1:keyint=40:bframes=0"}),
    "open": ("libx264", {"x264-params": "open-gop=1:keyint=40:bframes=3"}),
    "hevc": ("libx265", {"x265-params": "open-gop=1:keyint=40:bframes=3:log-level=none"}),
    "vp9": ("libvpx-vp9", {"g": "40", "deadline": "realtime", "cpu-used": "8"}),
}


@pytest.mark.parametrize("kind", REFRESHED)
def test_chosen_frames_of_a_long_video_are_those_of_the_whole(tmp_path, kind, monkeypatch):
    """Decoding begins early enough that pictures are whole, also where key frames do not decode alone."""
    codec, options = REFRESHED[kind]
    images = [np.roll(moving(1, 64)[0], 2 * i, axis=1) for i in range(1000)]
    path = write_stream(tmp_path / "a.mkv", codec=codec, options=options, images=images)
    whole, decoded = dict(sample_frames(path)), []
    monkeypatch.setattr(videos, "Picture", lambda *how: decoded.append(how[0].pts) or pictures.Picture(*how))
    for hold in (videos.HELD_BYTES, 0):
        monkeypatch.setattr(videos, "HELD_BYTES", hold)
        for chosen in ([0, 300], [160, 161, 329], [333]):
            decoded.clear()
            found = dict(sample_frames(path, 8, chosen))
            assert list(found) == [k / 8 for k in chosen]
            assert all(np.array_equal(frame, whole[seconds]) for seconds, frame in found.items())
            assert len(decoded) < 120 * len(chosen) < 1000


EIGHT = {  # shown (x, y) of a stored point: (a x + c y, b x + d y); the orientation tag of a camera for the same
    **{1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)},
    **{5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)},
}
CORNERS = {(-1, -1): (255, 0, 0), (1, -1): (0, 255, 0), (-1, 1): (0, 0, 255), (1, 1): (0, 0, 0)}


def scene():
    image = np.zeros((64, 128, 3), np.uint8)
    for (x, y), colour in CORNERS.items():
        image[32 * (y > 0) :, 64 * (x > 0) :] = colour
    return image


@pytest.mark.parametrize(
    "kind", ["mp4", "jpg", "png", "webp", "tiff", "alpha.png", "alpha.webp", "moving.png", "ink.tiff"]
)
@pytest.mark.parametrize("tag", EIGHT)
def test_all_eight_ways_to_hold_a_camera(tmp_path, kind, tag):
    a, b, c, d = EIGHT[tag]
    path = tmp_path / f"a.{kind}"
    if kind == "mp4":
        data = bytearray(write_clip(path, frames=[scene()] * 3).read_bytes())
        place = data.index(b"tkhd") + 44
        matrix = [value << 16 for value in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]
        data[place : place + 36] = struct.pack(">9i", *matrix)
        path.write_bytes(data)
    else:
        image = Image.fromarray(scene()).convert({"alpha": "RGBA", "ink": "CMYK"}.get(kind.split(".")[0], "RGB"))
        exif = image.getexif()
        exif[0x0112] = tag
        moving = {"save_all": True, "append_images": [Image.fromarray(255 - scene())]} if "moving" in kind else {}
        image.save(path, exif=exif, **({"lossless": True} if "webp" in kind else moving))
    frame = next(sample_frames(path))[1]
    height, width = frame.shape[:2]
    assert probe(path)["size"] == f"{width}x{height}" == ("128x64" if tag < 5 else "64x128")
    for (x, y), colour in CORNERS.items():
        shown = (a * x + c * y, b * x + d * y)
        pixel = frame[height * (2 + shown[1]) // 4, width * (2 + shown[0]) // 4].astype(int)
        assert np.abs(pixel - colour).max() < 60, (tag, shown)


@pytest.mark.parametrize("aspect, size", [(Fraction(2, 1), "192x128"), (Fraction(1, 2), "48x128"), (None, "96x128")])
def test_pixels_are_made_square(tmp_path, aspect, size):
    width, height = map(int, size.split("x"))
    shown = cv2.circle(np.zeros((height, width, 3), np.uint8), (width // 2, 64), 20, (255, 255, 255), -1)
    stored = cv2.resize(shown, (96, 128), interpolation=cv2.INTER_AREA)
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect or Fraction(1, 1)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        output.mux(stream.encode())
    frame = next(sample_frames(tmp_path / "a.mp4"))[1]
    down, across = (np.ptp(places) for places in np.nonzero(frame.mean(axis=2) > 128))
    assert probe(tmp_path / "a.mp4")["size"] == size and abs(int(down) - int(across)) <= 3


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_pause_of_minutes_is_kept(tmp_path, kind):
    starts = [*range(0, 2000, 40), *range(100_000, 102_000, 40)]
    path = write_clip(tmp_path / f"a.{kind}", 100, 25, milliseconds=starts)
    shown = [(start / 1000, i) for i, start in enumerate(starts)]
    samples = list(sample_frames(path))
    assert [number_of(frame) for _, frame in samples] == on_screen(shown, 102)
    assert len({id(frame) for _, frame in samples[20:800]}) == 1  # encoded once


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
@pytest.mark.parametrize("delays", [[0], [1], [100], [20, 300, 50, 125], [10, 0, 120]], ids=str)
def test_animations_play_once_at_the_pace_of_browsers(tmp_path, kind, delays):
    images, path = [Image.fromarray(numbered(i)) for i in range(12)], tmp_path / f"a.{kind}"
    given = [delays[i % len(delays)] for i in range(12)]
    lossless = {"lossless": True} if kind == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=given, loop=0, **lossless)
    if kind == "gif":
        given = [delay // 10 * 10 for delay in given]
    seconds = [(delay if delay > 10 else 100) / 1000 for delay in given]
    shown = list(zip(np.cumsum([0, *seconds[:-1]]), range(12), strict=True))
    assert sampled(path) == on_screen(shown, round(sum(seconds), 3))
    assert float(probe(path)["length"]) == pytest.approx(sum(seconds), abs=0.002)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "webm", "animated.png", "animated.webp", "gif", "mov"])
def test_transparent_parts_are_black(tmp_path, kind):
    rgba = np.zeros((64, 64, 4), np.uint8) + np.uint8([200, 200, 200, 255])
    rgba[:, :32, 3] = 0
    path, still = tmp_path / f"a.{kind}", Image.fromarray(rgba)
    if kind in ("webm", "mov"):
        codec, pixels = ("libvpx-vp9", "yuva420p") if kind == "webm" else ("qtrle", "argb")
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=8, options={"auto-alt-ref": "0"} if kind == "webm" else {})
            stream.width = stream.height = 64
            stream.pix_fmt = pixels
            if kind == "webm":
                stream.metadata["alpha_mode"] = "1"
            for _ in range(4):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixels)))
            output.mux(stream.encode())
    elif "." in kind or kind == "gif":
        second = Image.fromarray(np.roll(rgba, 5, axis=0) // 2 * 2)
        still.save(path, save_all=True, append_images=[second], duration=200)
    else:
        still.save(path)
    frame = next(sample_frames(path))[1]
    assert frame[:, :28].max() <= 2 and frame[:, 36:].min() >= 190


def test_a_clock_that_starts_anew_goes_on(tmp_path):
    """Two recordings in one stream: times, and even the size of the picture, begin again."""
    for name, size in (("a", (64, 32)), ("b", (128, 64))):
        write_stream(tmp_path / f"{name}.ts", images=[numbered(i + 24 * (name == "b"), size) for i in range(24)])
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert sampled(tmp_path / "c.ts") == [3 * k for k in range(16)]


# ---------------------------------------------------------------- damage and bounds

BROKEN = {
    "mp4": dict(container={"movflags": "faststart"}, audio=4),
    "mov": dict(container={"movflags": "faststart"}),
    "mkv": dict(audio=4),
    "webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "b": "4M"}),
    "avi": dict(codec="mpeg4", options={"b": "4M"}),
    "flv": dict(codec="flv"),
    "wmv": dict(codec="wmv2", options={"b": "4M"}),
}


@pytest.mark.parametrize("kind", [*BROKEN, "gif", "webp", "png"])
def test_a_file_that_breaks_off_says_up_to_where_it_was_read(tmp_path, kind):
    path, images = tmp_path / f"a.{kind}", moving(96, 96)
    if kind in BROKEN:
        write_stream(path, **{"images": images, "options": {"crf": "10", "g": "12"}} | BROKEN[kind])
    else:
        first, *others = map(Image.fromarray, images)
        first.save(path, save_all=True, append_images=others, duration=40)
    whole = list(sample_frames(path))
    with Video(path) as video:
        assert len(list(video.sample(8))) == len(whole) and video.damage is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with Video(path) as video:
        left = list(video.sample(8))
        read = re.fullmatch(r"damaged, read up to (\d\.\d) s", video.damage)
    assert 0.3 * len(whole) < len(left) < 0.85 * len(whole)
    assert float(read[1]) == pytest.approx(len(left) / 8, abs=0.3)
    assert all(np.array_equal(frame, whole[i][1]) for i, (_, frame) in enumerate(left[:-2]))


@pytest.mark.parametrize("kind", ["avi", "mp4"])
def test_a_break_between_two_packets_is_noticed(tmp_path, kind):
    """AVI and fragmented mp4: what is left looks whole, but headers say more bytes."""
    path, parts = tmp_path / f"a.{kind}", {"movflags": "frag_keyframe+empty_moov"} if kind == "mp4" else {}
    write_stream(path, codec="libx264" if kind == "mp4" else "mpeg4", options={"g": "24", "bf": "0"}, container=parts)
    with av.open(str(path)) as file:
        cut = [packet.pos for packet in file.demux(video=0) if packet.size][60]
    with Video(path) as video:
        assert len(list(video.sample(8))) == 32 and video.damage is None
    path.write_bytes(path.read_bytes()[:cut])
    with Video(path) as video:
        assert [number_of(frame) for _, frame in video.sample(8)] == [3 * k for k in range(20)]
        assert video.damage == "damaged, read up to 2.5 s"


def test_a_still_without_a_known_white_is_not_read(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="floating-point"):
        probe(tmp_path / "a.tiff")


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tiff"])
def test_half_a_still_is_not_read(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(moving(1, 96)[0]).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"not a readable {kind} image"):
        probe(path)


def test_ffmpeg_opens_only_the_formats_that_are_listed(tmp_path):
    write_clip(tmp_path / "inner.mkv", 9)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile inner.mkv\n")
    (tmp_path / "play.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ninner.mkv\n#EXT-X-ENDLIST\n")
    cv2.imwrite(str(tmp_path / "seq1.jpg"), scene())
    (tmp_path / "seq%d.jpg").write_text("no picture")
    for name in ("list.mp4", "play.mp4", "seq%d.jpg"):
        with pytest.raises(InputError, match="not a video|not a readable"):
            probe(tmp_path / name)


def gif(width, height, frames, delay):
    """A GIF whose frames are one pixel of a canvas."""
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    block = b"\x21\xf9\x04\x00" + struct.pack("<H", delay) + b"\x00\x00" + image
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + block * frames + b";"


def test_what_a_header_claims_is_bounded(tmp_path):
    path = tmp_path / "a.gif"
    for data, why in {
        gif(16000, 8000, 3, 10): "no frame of at most 64 million pixels",
        gif(8000, 8000, 200, 10): "200 frames of 8000x8000 in .* bytes are too many",
        gif(64, 64, 300, 65535): "frames a second for .* s cannot be",
    }.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=why):
            probe(path)
    path.write_bytes(gif(64, 64, 30, 5900))
    samples = list(sample_frames(path))
    assert len(samples) == 30 * 59 * 8 and len({id(frame) for _, frame in samples}) <= 30
    slow = write_clip(tmp_path / "a.avi", 20, 25)
    data = bytearray(slow.read_bytes())
    place = data.index(b"strh") + 8 + 20  # scale and rate of the stream: 1 / 3600 frames a second
    data[place : place + 8] = struct.pack("<II", 3600, 1)
    slow.write_bytes(data)
    with pytest.raises(InputError, match="frames a second for"):
        probe(slow)
    index = write_clip(tmp_path / "a.mp4", 20, 25)
    data = bytearray(index.read_bytes())
    place = data.index(b"stsz") + 8  # one size for all, and how many
    data[place : place + 8] = struct.pack(">II", 1, 80_000_000)
    index.write_bytes(data)
    with pytest.raises(InputError, match="more frames than the file has bytes"):
        probe(index)


def test_what_is_held_or_searched_is_bounded(tmp_path, monkeypatch):
    """Files that are mostly holes: they cost nobody who sends them anything."""
    start = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    webp = b"RIFF" + struct.pack("<I", 0xFFFFFF00) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10)
    holes = {
        "its index has more than 256 MiB": (start + struct.pack(">I4sQ", 1, b"moov", 20 << 30), 20 << 30),
        "more than 1048576 boxes": (start + struct.pack(">I4s", 8, b"free") * (1 << 20), 1 << 30),
        "a picture or animation of more than": (webp, 20 << 30),
        "picture or animation of more than 1 GiB": (gif(64, 64, 3, 10)[:-1], 2 << 30),
    }
    path = tmp_path / "a.mp4"
    for why, (data, size) in holes.items():
        path.write_bytes(data)
        os.truncate(path, size)
        with pytest.raises(InputError, match=why):
            probe(path)
    monkeypatch.setattr(videos, "STUCK_SECONDS", 0.3)
    write_clip(path := tmp_path / "a.mkv", 48)
    os.truncate(path, 40 << 30)
    begun = time.monotonic()
    with Video(path) as video:
        assert [number_of(frame) for _, frame in video.sample(8)] == [3 * k for k in range(16)]
        assert video.damage == "damaged, read up to 2.0 s" and time.monotonic() - begun < 5
