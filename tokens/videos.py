"""Read video files by one rule: decode in order; at k / fps seconds take the frame that is on screen then.

    probe("clip.mp4")                                       {"fps", "size" as shown, "length", "container", "codec"}
    for seconds, frame in sample_frames("clip.mp4", fps=8): ...     RGB uint8 (H, W, 3), one at a time

docs/files.md says what is read how, and what is not.
"""

import bisect
import io
import itertools
import math
import os
import time
from contextlib import AbstractContextManager, suppress

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from basics.running import InputError, reason
from tokens.pictures import MOST_PIXELS, Picture, check_cost, pixel_aspect, read_delays, read_head, read_pictures, timed

VIDEO_SUFFIXES = {"mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "gif", "webp", "mpg", "mpeg", "ts", "wmv", "flv"}
FORMATS = "mov,matroska,avi,gif,apng,mpegts,mpeg,mpegvideo,asf,flv"  # that FFmpeg may take a file for
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MOST_PIXELS)}
OPTIONS |= {"default_fps": "10", "max_fps": "99"}  # of an APNG: frames without a delay stay 0.1 s, as in browsers

# What one file may cost, whatever its header claims; tokens/pictures.py bounds a frame:
MOST_FRAMES = 1 << 22  # 39 hours at 30 frames a second
SLOWEST, FASTEST = 1 / 600, 1000.0  # frames a second, on average
LONGEST_PAUSE, LONGEST = 3600.0, 24 * 3600.0  # seconds that a frame may stay on screen, and of a video
STUCK_SECONDS = 8.0  # of looking for the next packet, after which a file counts as broken off
DAMAGED_SECONDS = 30.0  # of decoding, after which a video ends if most of its packets are damaged

CLOCK_STEP = 0.1  # seconds by which the clock of a stream may go back before it counts as a new clock
MISSING = 0.5  # seconds without a frame at the end, from which on a video counts as damaged
HELD_BYTES = 32 << 20  # packets of files up to this size are kept between the two passes
MANY_PIXELS = 512 * 512  # larger frames decode faster on several threads each, smaller ones on one
SEEKABLE = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"}  # key frames are marked, and decoding can begin at one
WORTH_SKIPPING = 300  # packets that no chosen frame needs


def probe(path) -> dict[str, str]:
    """The facts of a video or still: fps, size "WxH" as shown, length in seconds, container, codec.

    Raises InputError or OSError with the reason when the file cannot be read.
    """
    with Video(path) as video:
        return video.facts()


def sample_frames(path, fps: float = 8, chosen=None):
    """Yield (k / fps, RGB uint8 (H, W, 3)) as Video.sample. Raises as probe."""
    with Video(path) as video:
        yield from video.sample(fps, chosen)


class Video(AbstractContextManager):
    """A video or still, opened: `fps`, `size` "WxH" as shown, `length` in seconds, `container`, `codec`, and frames.

    `times` (frames,) are seconds from the first frame. `damage` is None, or says up to where a file that breaks off is
    read; it is final once `sample` has ended. Raises InputError or OSError with the reason when it cannot be read.
    """

    def __init__(self, source):
        self.file, self.input, self.damage, self.marks = source, None, None, None
        if isinstance(source, io.BytesIO):
            head, self.bytes, self.cut, kind = b"", source.getbuffer().nbytes, False, None
        else:
            self.file = os.path.abspath(source)
            head, self.bytes, self.cut, kind = read_head(self.file)
        try:
            self.open_picture(kind) if kind else self.open_stream(head)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, av.error.FFmpegError):
                raise InputError(f"not a video that can be read ({reason(error)})") from error
            raise

    def __exit__(self, *_):
        if self.input is not None:
            self.input.close()

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

        `chosen` are some k, ascending. A picture that stays on screen is the same array each time. Sample a video once.
        """
        numbers = self.numbers(fps)
        chosen = np.arange(len(numbers)) if chosen is None else np.asarray(chosen, int)
        wanted, place, before, position = numbers[chosen], 0, self.first, -1
        if self.marks is not None:
            self.plan(wanted)
        for present in itertools.chain([self.first], self.pictures):
            pts = None if self.marks is None else present.frame.pts
            now = position + 1 if pts is None else int(np.searchsorted(self.marks, pts, "right")) - 1
            if now <= position:
                continue
            while place < len(wanted) and wanted[place] <= now:
                # A frame that failed to decode leaves the one before it on screen.
                yield chosen[place] / fps, (present if wanted[place] == now else before).rgb
                place += 1
            if place == len(wanted):
                return
            before, position = present, now
        end = self.times[position + 1] if position + 1 < len(self.times) else self.length
        if self.length - end > MISSING:
            self.damage = f"damaged, read up to {end:.1f} s"
        else:
            yield from ((k / fps, before.rgb) for k in chosen[place:])

    def plan(self, wanted):
        """Tell the decoder which frames must not be left out, and which packets no wanted frame needs.

        Decoding begins one key frame earlier than the last: pictures that are refreshed gradually are whole some time
        after one, and a frame stored behind one but shown before it refers to what came earlier.
        """
        marks, last = self.marks[np.unique(wanted)].tolist(), 0
        self.needed = set(marks)
        for here in (self.places[pts] for pts in marks if self.codec in SEEKABLE):
            before = bisect.bisect(self.keys, here)
            begin = self.keys[before - 2] if before > 1 else 0
            if begin - last > WORTH_SKIPPING:
                self.skips.append((last + 1, begin))
            last = max(last, here)

    def open_picture(self, kind):
        source, delays, self.breaks_off = read_delays(self.file, kind)
        self.times, self.length = timed(delays)
        self.container = self.codec = kind
        self.begin(map(Picture, read_pictures(source, kind, max(1, len(delays)))))

    def open_stream(self, head):
        stream = self.open_input()
        self.container, self.codec = container_name(self.input, head), stream.codec_context.codec.canonical_name
        held, stamps, hold = [], [], self.bytes <= HELD_BYTES or isinstance(self.file, io.BytesIO)
        for packet in self.packets(stream):
            stamps.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
            held += [packet] if hold else []
            if len(stamps) > MOST_FRAMES:
                raise InputError(f"more than {MOST_FRAMES >> 20} million frames; cut it into shorter files")
        shown = [stamp for stamp in stamps if not stamp[4]]
        if not shown:
            raise InputError("no video frames in the file")
        self.times, self.length, self.marks = timeline(shown, stream, stored=self.container != "avi")
        if self.container == "gif":
            self.times, self.length = timed(stamp[2] * float(stream.time_base) for stamp in shown)
        if not hold:
            self.input.close()
            stream = self.open_input()
            held = itertools.islice(self.packets(stream), len(stamps))
        self.needed, self.skips = None, []
        self.places = {stamp[0]: place for place, stamp in enumerate(stamps) if not stamp[4]}
        self.keys = [place for place, stamp in enumerate(stamps) if stamp[3]]
        self.begin(self.decode(stream, held))

    def begin(self, shown):
        """Decode the first picture: where time begins and the size as shown are known from then on."""
        self.pictures, self.first = shown, next(shown, None)
        if self.first is None:
            raise InputError(f"no frame of at most {MOST_PIXELS >> 20} million pixels could be decoded")
        if self.marks is not None and self.first.frame.pts is not None:  # what comes before is never on screen
            begun = max(0, int(np.searchsorted(self.marks, self.first.frame.pts, "right")) - 1)
            self.marks, self.length = self.marks[begun:], self.length - self.times[begun]
            self.times = self.times[begun:] - self.times[begun]
        count, (height, width) = len(self.times), self.first.rgb.shape[:2]
        self.size, self.fps = f"{width}x{height}", count / self.length if self.length else 0.0
        if self.length > LONGEST or (count > 1 and not SLOWEST <= self.fps <= FASTEST):
            raise InputError(f"{self.fps:.3g} frames a second for {self.length:.3g} s cannot be; its header is wrong")
        check_cost(width, height, count, self.bytes, animated=self.container in ("gif", "apng", "webp"))
        if self.breaks_off:
            self.damage = f"damaged, read up to {self.length:.1f} s"

    def open_input(self):
        self.input = av.open(self.file, metadata_errors="replace", options=OPTIONS, timeout=STUCK_SECONDS)
        stream = self.input.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise InputError("no video stream" if stream is None else "its codec is not known")
        check_cost(stream.codec_context.width * pixel_aspect(stream), stream.codec_context.height)
        return stream

    def packets(self, stream):
        """Yield the stream's packets up to the end or the first damage; where the clock starts anew, it goes on."""
        shift, last, usual, end, broken = 0, None, 0, 0.0, False
        ticks = {each.index: float(each.time_base or 0) for each in self.input.streams}  # seconds
        try:
            for packet in demux(self.input):
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * ticks.get(packet.stream_index, 0))
                if packet.stream_index != stream.index or not packet.size:
                    continue
                if packet.dts is not None and self.container not in ("avi", "mp4", "mov"):  # they have one clock
                    step = usual if last is None else packet.dts + shift - last
                    if not -CLOCK_STEP <= step * ticks[stream.index] <= LONGEST_PAUSE:
                        shift, step = shift + usual - step, usual
                    last, usual = packet.dts + shift, step or usual
                    if shift:
                        packet.dts, packet.pts = last, None if packet.pts is None else packet.pts + shift
                broken = packet.is_corrupt
                yield packet
        except av.error.FFmpegError:
            broken = True
        self.breaks_off = self.cut or broken or ends_early(self.input, stream, self.container, self.bytes, end)

    def decode(self, stream, packets):
        """Yield pictures in order of display, without packets of `skips` and H.264 frames that nothing needs."""
        context, aspect, reformatter = decoder_of(stream), pixel_aspect(stream), VideoReformatter()
        damaged, seconds, skip_to = 0, 0.0, 0
        for place, packet in enumerate(itertools.chain(packets, [None])):
            if packet is not None and place < skip_to:
                continue
            if self.skips and self.skips[0][0] <= place < self.skips[0][1]:
                skip_to, packet = self.skips.pop(0)[1], None  # the decoder hands out what it holds
            if self.needed is not None and packet is not None and context.name == "h264":
                context.skip_frame = "DEFAULT" if packet.pts in self.needed else "NONREF"
            begun = time.perf_counter()
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError:
                frames, damaged = [], damaged + 1
            if packet is None:
                context.flush_buffers()
            seconds += time.perf_counter() - begun
            for frame in frames:
                damaged += frame.is_corrupt
                yield Picture(frame, aspect, reformatter)
            if seconds > DAMAGED_SECONDS and 2 * damaged > place:
                return


def demux(container):
    """Yield packets of all streams but of those that begin late, which PyAV does not know."""
    while True:
        with suppress(IndexError):
            return (yield from container.demux())


def container_name(container, head) -> str:
    """The container by its content: FFmpeg has one reader for mp4 and mov, and one for mkv and webm."""
    names, brand = container.format.name.split(","), container.metadata.get("major_brand", "qt")
    if names[0] == "matroska":
        return "webm" if b"webm" in head else "mkv"
    return names[0] if names[0] != "mov" else "mov" if brand.startswith("qt") else "mp4"


def ends_early(container, stream, kind, size, end) -> bool:
    """Whether a file of `size` bytes, whose last packet ends at `end` seconds, promised more than is there."""
    if kind == "gif":
        with open(container.name, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b";"  # its trailer
    if kind in ("mp4", "mov"):
        return any(entry.pos + entry.size > size for entry in stream.index_entries[-8:])
    promised = (container.duration or 0) / av.time_base  # of MPEG streams estimated from what is there
    return promised - end > MISSING and not kind.startswith("mpeg")


def decoder_of(stream):
    """The decoder of a stream, on several threads where its frames are large."""
    context, size = stream.codec_context, stream.codec_context.width * stream.codec_context.height
    alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
    if alpha and context.name in ("vp8", "vp9"):  # FFmpeg's own decoders leave the alpha channel out
        context = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[context.name], "r")
    context.thread_type = "AUTO" if size > MANY_PIXELS else "NONE"
    context.options = {"max_pixels": str(MOST_PIXELS)}  # a stream may grow on its way
    return context


def timeline(stamps, stream, stored):
    """Times (frames,) from the first frame, length in seconds, and the frames' pts (None: count frames instead).

    Presentation times where all packets have one and they are `stored` (AVI has none, and those that FFmpeg guesses can
    be out of order), else decoding times, else the average rate.
    """
    for which in (0, 1) if stored else (1,):
        ticks = [stamp[which] for stamp in stamps]
        if None in ticks or len(set(ticks)) < 0.9 * len(ticks):
            continue
        marks = np.sort(np.array(ticks, np.int64))
        times = (marks - marks[0]) * float(stream.time_base)
        if stored and which == 0 and np.diff(times).max(initial=0) > LONGEST_PAUSE:
            continue
        last = float(stamps[int(np.argmax(ticks))][2]) * float(stream.time_base)
        if not 0 < last <= LONGEST_PAUSE:
            last = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return times, float(times[-1]) + last, marks if which == 0 else None
    rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    return np.arange(len(stamps)) / rate, len(stamps) / rate, None
