"""Read video files: their facts, and their frames by the time on screen.

for seconds, frame in sample_frames("clip.mp4", fps=8): ...     RGB uint8 (H, W, 3), one at a time
"""

import io
import itertools
import math
import os
import stat
import warnings
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from basics.running import InputError

VIDEO_SUFFIXES = {"mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "gif", "webp", "mpg", "mpeg", "ts", "wmv", "flv"}
STILL_SUFFIXES = {"png", "jpg", "jpeg", "bmp", "tif", "tiff"}
STILL_MAGIC = {
    **{b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"BM": "bmp"},
    **{b"II*\0": "tiff", b"MM\0*": "tiff", b"RIFF": "webp"},
}
LONGEST_GAP = 60.0  # seconds; timestamps further apart are damage, and the frames are spread evenly instead
HELD_BYTES = 32 << 20  # packets of files up to this size are kept between the two passes
MANY_PIXELS = 512 * 512  # larger frames decode faster on several threads each, smaller ones on one
MOST_PIXELS = 1 << 27  # 16384 x 8192: a frame of 400 MB
MOST_BYTES = 1 << 31  # of all frames of an animated webp, which OpenCV decodes at once
SEEKABLE = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"}  # key frames are marked, and decoding can begin at one


class Video:
    """A video or still, opened: `fps`, `size` "WxH", `length` in seconds, `container`, `codec`, and frames on demand.

    `times` (frames,) are seconds on screen from the first frame, read from the packets without decoding. Raises
    ValueError or OSError with the reason when the file cannot be read.
    """

    def __init__(self, source):
        self.source, self.stills, self.input = source, None, None
        if isinstance(source, io.BytesIO):
            self.open_stream(b"", hold=True)
        else:
            status = Path(source).stat()
            if not stat.S_ISREG(status.st_mode):
                raise InputError("not a regular file")
            if not status.st_size:
                raise InputError("empty file")
            with open(source, "rb") as file:
                head = file.read(64)
            kind = next((kind for magic, kind in STILL_MAGIC.items() if head.startswith(magic)), None)
            if kind and (kind != "webp" or head[8:12] == b"WEBP"):
                self.open_still(kind)
            else:
                self.open_stream(head, hold=status.st_size <= HELD_BYTES)
        self.fps = len(self.times) / self.length if self.length else 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.input is not None:
            self.input.close()

    def open_still(self, kind):
        self.stills, starts, self.length = read_stills(self.source, kind)
        self.times, self.container, self.codec = np.array(starts), kind, kind
        height, width = self.stills[0].shape[:2]
        self.size = f"{width}x{height}"

    def open_stream(self, head, hold):
        stream = self.open_input()
        self.container = container_name(self.input, head)
        self.size, self.codec = f"{stream.width}x{stream.height}", stream.codec_context.codec.canonical_name
        check_pixels(stream.width, stream.height)
        packets = read_packets(self.input, stream)
        self.packets = list(packets) if hold else None
        stamps = [(p.pts, p.dts, p.duration, p.is_keyframe) for p in (self.packets if hold else packets) if is_frame(p)]
        if not stamps:
            raise InputError("no video frames in the file")
        # AVI stores no presentation times, and those that FFmpeg guesses can be out of order.
        self.times, self.length, self.marks = timeline(stamps, stream, stored=self.container != "avi")
        self.runs = key_frame_runs(stamps) if self.marks is not None and self.codec in SEEKABLE else None
        self.stream = stream
        if not hold:
            self.input.close()

    def open_input(self):
        self.input = open_container(self.source)
        stream = self.input.streams.best("video")
        if stream is None:
            raise InputError("no video stream")
        return stream

    def facts(self) -> dict[str, str]:
        """The columns of the index about the file: fps, size, length, container, codec."""
        facts = {"fps": f"{self.fps:.3f}", "size": self.size, "length": f"{self.length:.3f}"}
        return facts | {"container": self.container, "codec": self.codec}

    def numbers(self, fps):
        """Number of the frame on screen at each k / fps: the last one that has begun. One frame gives one sample."""
        count = max(1, math.ceil(self.length * fps - 1e-3)) if len(self.times) > 1 else 1
        return np.searchsorted(self.times, np.arange(count) / fps + 1e-4, side="right") - 1

    def sample(self, fps, chosen=None):
        """Yield (k / fps, RGB uint8 (H, W, 3)) of the frame on screen at each k / fps; a damaged end is left out.

        `chosen` are some k, ascending: the parts of the video between them are not decoded.
        """
        wanted = self.numbers(fps)
        chosen = np.arange(len(wanted)) if chosen is None else np.asarray(chosen)
        wanted = wanted[chosen]
        shown, converted, place, reformatter = None, None, 0, VideoReformatter()
        for present in self.frames(wanted):
            shown = shown or present
            while place < len(wanted) and wanted[place] <= present[0]:
                # A frame that failed to decode leaves the one before it on screen.
                number, frame = present if wanted[place] == present[0] else shown
                if number != converted:
                    converted, rgb = number, to_rgb(frame, reformatter)
                yield chosen[place] / fps, rgb
                place += 1
            if place == len(wanted):
                return
            shown = present
        if shown is None:
            raise NothingShownError("no frame could be decoded")

    def frames(self, wanted):
        """Yield (number, decoded frame) in order of display; frames that nothing needs may be left out."""
        if self.stills is not None:
            yield from enumerate(self.stills)
            return
        packets, self.packets = self.packets, None  # good for one pass
        stream = self.stream if packets else self.open_input()
        context = stream.codec_context
        context.thread_type = "AUTO" if stream.width * stream.height > MANY_PIXELS else "NONE"
        context.options = {"max_pixels": str(MOST_PIXELS)}  # a stream may grow on its way
        packets = packets or read_packets(self.input, stream)
        marks = set() if self.marks is None else {self.marks[number] for number in wanted}
        runs = needed_runs(packets, self.runs, marks) if self.runs else [packets]
        needed = marks if self.marks is not None and context.name == "h264" else None
        position = -1
        for frame in itertools.chain.from_iterable(decode(run, context, needed) for run in runs):
            stamped = self.marks is not None and frame.pts is not None
            now = int(np.searchsorted(self.marks, frame.pts, side="right")) - 1 if stamped else position + 1
            if now > position:
                position = now
                yield position, frame


def sample_frames(path, fps: float = 8):
    """Yield (seconds, RGB uint8 (H, W, 3)) at fps frames per second by timestamp, one frame at a time."""
    with Video(path) as video:
        yield from video.sample(fps)


def open_container(source):
    if isinstance(source, io.BytesIO):
        return av.open(source)
    options = {"protocol_whitelist": "file"}  # a playlist that is named like a video must not reach for the network
    return av.open(os.path.abspath(source), metadata_errors="replace", options=options)


def read_stills(path, kind):
    """Frames, their start times and the length in seconds of a still or an animated webp."""
    check_still(path)
    data = np.fromfile(path, np.uint8)  # OpenCV cannot open every name that a file system allows
    if kind == "webp":
        decoded, animation = cv2.imdecodeanimation(data)
        frames = [from_opencv(frame) for frame in animation.frames] if decoded else []
        ends = np.cumsum(np.clip(animation.durations, 1, 1000 * LONGEST_GAP)) / 1000 if len(frames) > 1 else [0.0]
        if frames:
            return frames, [0.0, *ends[:-1]], float(ends[-1])
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if image is not None and (image.ndim == 2 or image.shape[2] == 3):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)  # turned as the camera was held, which UNCHANGED is not
    if image is None:
        raise InputError(f"not a readable {kind} image")
    return [from_opencv(image)], [0.0], 0.0


def check_still(path):
    """Raise InputError when an image would take too much memory, which OpenCV only knows once it has it."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            check_pixels(*image.size)
            frames = getattr(image, "n_frames", 1) if image.format == "WEBP" else 1
            needed = 4 * frames * image.width * image.height
    except Image.DecompressionBombError as error:
        raise InputError(f"a frame has more than {MOST_PIXELS >> 20} million pixels; scale it down") from error
    except (UnidentifiedImageError, OSError, SyntaxError):
        return  # OpenCV says what is wrong with it
    if needed > MOST_BYTES:
        raise InputError(f"{frames} frames of {image.width}x{image.height} do not fit in memory; make it an mp4")


def check_pixels(width, height):
    if width * height > MOST_PIXELS:
        raise InputError(
            f"frames of {width}x{height} are more than {MOST_PIXELS >> 20} million pixels; scale them down"
        )


def from_opencv(image):
    """RGB uint8 (H, W, 3) of OpenCV's grey, BGR or BGRA image of 8 or 16 bits; transparent parts become black."""
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return over_black(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def over_black(rgba):
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    return (rgba[..., :3].astype(np.uint16) * alpha // 255).astype(np.uint8)


def to_rgb(frame, reformatter):
    """RGB uint8 (H, W, 3) of a decoded frame, turned as its display matrix says, or of a still as it is."""
    if isinstance(frame, np.ndarray):
        return frame
    alpha = any(component.is_alpha for component in frame.format.components)
    image = reformatter.reformat(frame, format="rgba" if alpha else "rgb24", threads=1).to_ndarray()
    image = over_black(image) if alpha else image
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def container_name(container, head) -> str:
    """The container by its content: FFmpeg has one reader for mp4 and mov, and one for mkv and webm."""
    names = container.format.name.split(",")
    if "mov" in names:
        return "mov" if container.metadata.get("major_brand", "qt").startswith("qt") else "mp4"
    if "matroska" in names:
        return "webm" if b"webm" in head else "mkv"
    return names[0]


def read_packets(container, stream):
    """The stream's packets up to the end or the first damage."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def is_frame(packet) -> bool:
    return packet.size > 0 and not packet.is_discard


def key_frame_runs(stamps):
    """{pts: numbers of the runs that its frame is decoded from}; a run is a key frame's packet and those that follow.

    A frame shown before the key frame that it is stored behind may also refer to the run before.
    """
    runs, number, key = {}, -1, 0
    for pts, _, _, is_key in stamps:
        if is_key or number < 0:
            number, key = number + 1, pts
        runs[pts] = {number} if pts >= key or not number else {number - 1, number}
    return runs


def needed_runs(packets, runs, marks):
    """Yield consecutive packets, one iterator after the other, without the runs that none of the pts `marks` needs."""
    needed, number = set().union(*(runs[mark] for mark in marks)), -1

    def is_needed(packet):
        nonlocal number
        number += is_frame(packet) and (packet.is_keyframe or number < 0)
        return number in needed

    return (run for wanted, run in itertools.groupby(packets, is_needed) if wanted)


def timeline(stamps, stream, stored):
    """Times (frames,) from the first frame, length in seconds, and the frames' pts (None: count frames instead).

    Presentation times where all packets have one and they are `stored`, else decoding times, else the average rate.
    """
    for which in (0, 1) if stored else (1,):
        ticks = [stamp[which] for stamp in stamps]
        if None in ticks or len(set(ticks)) < 0.9 * len(ticks):
            continue
        marks = np.sort(np.array(ticks, np.int64))
        times = (marks - marks[0]) * float(stream.time_base)
        gaps = np.diff(times)
        if len(gaps) and gaps.max() > LONGEST_GAP:
            continue
        last = float(stamps[int(np.argmax(ticks))][2] or 0) * float(stream.time_base)
        if not 0 < last <= LONGEST_GAP:
            last = float(np.median(gaps)) if len(gaps) else 0.0
        return times, float(times[-1]) + last, marks if which == 0 else None
    rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    return np.arange(len(stamps)) / rate, len(stamps) / rate, None


def decode(packets, context, needed=None):
    """Yield decoded frames; a damaged packet is left out.

    With `needed` pts, H.264 frames that no other frame refers to are skipped unless needed.
    """
    for packet in itertools.chain((packet for packet in packets if packet.size), [None]):
        if needed is not None and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
        try:
            yield from context.decode(packet)
        except av.error.FFmpegError:
            continue
    context.flush_buffers()  # another run may follow


def reason(error):
    """One line on why a video could not be read."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


class NothingShownError(InputError):
    """No frame of what was asked for could be decoded."""
