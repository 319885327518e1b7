"""Files through the encoder and all levels of a run: decoded once, on threads, and batched across files.

    for number, file in look(expand(["clips/"]), run, encoder): file.info, file.windows, file.outputs

What of it is said to the reader, answer.py decides.
"""

import itertools
import os
import queue
import sys
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np

from basics.artifacts import file_digest
from basics.running import InputError
from report.run import window_outputs
from tokens.encoders import encode_frames
from tokens.listing import is_shown, suffix_of
from tokens.videos import STILL_SUFFIXES, VIDEO_SUFFIXES, Video
from tokens.writing import TooShortError, equalize

STRIP = 8  # frames shown of a file
FILES_TOGETHER = 64  # that are decoded ahead of each other and share batches

# ---------------------------------------------------------------- which files


def expand(paths):
    """Files, and of each folder the videos and images below it; a folder without any stays, to be reported."""
    for path in map(os.fspath, paths):
        found = []
        for folder, _, names in os.walk(path) if os.path.isdir(path) else ():
            found += [os.path.join(folder, name) for name in names if is_media(name)]
        yield from sorted(found) or [path]


def file_name(path):
    """A path as text that can be written anywhere; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_media(name):
    return is_shown(name) and suffix_of(name) in VIDEO_SUFFIXES | STILL_SUFFIXES


def batches(given, answered=(), limit=None):
    """Lists of paths that are answered together, of arguments or of lines of standard input as they come: `limit` in
    all, without those `answered` already.
    """
    count = 0
    for batch in lines() if given == ["-"] else several(expand(given)):
        batch = [path for path in batch if file_name(path) not in answered][: limit and limit - count]
        count += len(batch)
        yield batch
        if count == limit:
            return


def several(paths):
    while batch := list(itertools.islice(paths, FILES_TOGETHER)):
        yield batch


def lines():
    """The lines of standard input that are there, one or more at a time; the next ones are read meanwhile."""
    waiting = queue.Queue(FILES_TOGETHER)
    threading.Thread(target=feed, args=(waiting,), daemon=True).start()
    while (line := waiting.get()) is not None:
        batch = [line]
        while len(batch) < FILES_TOGETHER and not waiting.empty():
            if (line := waiting.get()) is None:
                yield list(expand(batch))
                return
            batch.append(line)
        yield list(expand(batch))


def feed(waiting):
    """Put the lines of standard input into a queue, then None."""
    try:
        for line in sys.stdin.buffer if sys.stdin else ():
            if path := os.fsdecode(line).rstrip("\r\n"):
                waiting.put(path)
    finally:
        waiting.put(None)


# ---------------------------------------------------------------- reading: on threads, one call per file


def read_file(path, run, encoder, max_windows, images):
    """Yield the messages of a file: "info", then per window "window" and "frames". Raises with the reason it cannot."""
    if os.path.isdir(path):
        raise InputError("a folder without videos or images")
    frames, fps, size = (run.features[key] for key in ("frames", "fps", "equalize"))
    with Video(path) as video:
        count = len(video.numbers(fps))
        windows = -(-count // frames)
        chosen = spread_evenly(windows, max_windows)
        numbers = [k for window in chosen for k in range(window * frames, min((window + 1) * frames, count))]
        shown = {numbers[i] for i in spread_evenly(len(numbers), STRIP)} if images else ()
        info = {"container": video.container, "codec": video.codec, "size": video.size, "fps": round(video.fps, 3)}
        info |= {"seconds": round(video.length, 3), "sha256": file_digest(path), "c2pa": c2pa_state(path)}
        yield "info", info | {"windows": windows, "samples": len(numbers)}
        samples = video.sample(fps, numbers)
        for window in chosen:
            seen = []
            part = watched(itertools.islice(samples, min(frames, count - window * frames)), seen, shown, fps)
            if size:
                prepared = equalized_frames(part, size, fps, frames, encoder, first=window == chosen[0])
            else:
                prepared = [encoder.prepare(frame) for _, frame in part]
            if not prepared:
                return
            yield "window", {"seen": seen, "frames": len(prepared)}
            yield "frames", prepared


def spread_evenly(count, most):
    """At most `most` of the numbers 0 to count - 1: the middles of as many equal parts."""
    most = min(count, most or count)
    return (2 * np.arange(most) + 1) * count // (2 * most)


def equalized_frames(part, size, fps, frames, encoder, first):
    """A window made equal as 01 --equalize makes clips; a last one that is too short is left out."""
    try:
        with Video(equalize(part, size, fps, frames)) as video:
            return [encoder.prepare(frame) for _, frame in video.sample(fps)]
    except TooShortError:
        if first:
            raise
        return []


def watched(samples, seen, shown, fps):
    """Pass samples on; note of each its time, contrast and change in grey levels, and a JPEG of those to be shown."""
    before = None
    for seconds, frame in samples:
        small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype("float32")
        change = 0.0 if before is None else float(np.abs(grey - before).mean())
        picture = thumbnail(frame) if round(seconds * fps) in shown else None
        seen.append((float(seconds), float(grey.std()), change, picture))
        before = grey
        yield seconds, frame


def thumbnail(frame, height=120):
    width = min(max(1, round(frame.shape[1] * height / frame.shape[0])), 4 * height)
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def c2pa_state(path):
    """Whether a C2PA manifest is in the file; no network is asked for one that lies elsewhere, none is validated."""
    try:
        import c2pa
    except ImportError:
        return "not checked: c2pa-python is not installed"
    try:
        offline = c2pa.Context.from_dict({"verify": {"remote_manifest_fetch": False}})
        with c2pa.Reader(path, context=offline):
            return "present, not validated"
    except c2pa.C2paError.ManifestNotFound:
        return "absent"
    except c2pa.C2paError as error:
        return f"not checked: {' '.join(str(error).split())}"


# ---------------------------------------------------------------- windows of many files through all levels


@dataclass
class File:
    """What is known so far of a file."""

    info: dict = field(default_factory=dict)
    windows: list = field(default_factory=list)  # {"seen": what `watched` notes, "frames": how many are encoded}
    tokens: list = field(default_factory=list)  # (T, D) of the frames so far of a window that is not full
    filled: int = 0  # windows whose tokens are there
    outputs: list = field(default_factory=list)  # {level: window_outputs} of each of them
    ended: bool = False
    error: Exception | None = None


def classify(waiting, run):
    """Add the outputs of all levels for windows (file, tokens (L, T, D)) that wait to their files; then none waits."""
    tokens = np.stack([window for _, window in waiting])
    outputs = {level: window_outputs(model, tokens, run.batch()) for level, model in run.models.items()}
    for i, (file, _) in enumerate(waiting):
        file.outputs.append({level: {key: own[i] for key, own in found.items()} for level, found in outputs.items()})
    waiting.clear()


def look(paths, run, encoder, max_windows=None, images=False, batch_size=64, threads=None):
    """Yield (number, File) of all paths once their windows went through all levels, in order of completion."""
    files, waiting, frames = {}, [], run.features["frames"]

    def done():
        for number in [number for number, file in files.items() if file.ended and len(file.outputs) == file.filled]:
            yield number, files.pop(number)

    def read(number):
        return read_file(paths[number], run, encoder, max_windows, images)

    for number, kind, content in encode_frames(read, len(paths), encoder, batch_size, threads):
        file = files.setdefault(number, File())
        if kind == "info":
            file.info = content
        elif kind == "window":
            file.windows.append(content)
        elif kind == "tokens":
            file.tokens.append(content)
            if len(file.tokens) == file.windows[file.filled]["frames"]:
                padding = file.tokens[-1:] * (frames - len(file.tokens))
                waiting.append((file, np.stack(file.tokens + padding)))
                file.tokens, file.filled = [], file.filled + 1
        else:
            file.ended, file.error = True, content
        if len(waiting) == run.batch():
            classify(waiting, run)
        yield from done()
    if waiting:
        classify(waiting, run)
    yield from done()
