"""Files through the encoder and all levels of a run, decoded once, on threads, and batched across files; clips of
features through its finest level; and which of these clips are nearest to a file.

    for number, file in look(expand(["clips/"]), run, encoder): file.info, file.windows, file.outputs
"""

import itertools
import os
import queue
import sys
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import softmax
from tqdm import tqdm

from basics.artifacts import file_digest, read_arrays
from basics.running import InputError
from report.run import WINDOWS_OF_CLIPS, window_outputs
from tokens.dataset import Windows, features_file, read_valid
from tokens.encoders import encode_clips
from tokens.listing import is_shown, suffix_of
from tokens.pictures import STILL_SUFFIXES
from tokens.videos import VIDEO_SUFFIXES, Video
from tokens.writing import TooShortError, equalize

STRIP = 8  # frames shown of a file
FILES_TOGETHER = 64  # that are decoded ahead of each other and share batches

# ---------------------------------------------------------------- which files


def expand(paths):
    """Files, and of each folder the videos and images below it; a folder without any stays, to be reported."""
    for path in map(os.fspath, paths):
        files = []
        for folder, _, names in os.walk(path) if os.path.isdir(path) else ():
            files += [os.path.join(folder, name) for name in names if is_media(name)]
        yield from sorted(files) or [path]


def file_name(path):
    """A path as text that can be written anywhere; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_media(name):
    return is_shown(name) and suffix_of(name) in VIDEO_SUFFIXES | STILL_SUFFIXES


def batches(given, answered=(), max_files=None):
    """Lists of paths that are answered together, of arguments or of lines of standard input as they come: `max_files`
    in all, without those `answered` already.
    """
    paths, count = expand(given), 0
    parts = read_lines() if given == ["-"] else iter(lambda: list(itertools.islice(paths, FILES_TOGETHER)), [])
    for part in parts:
        part = [path for path in expand(part) if file_name(path) not in answered][: max_files and max_files - count]
        count += len(part)
        yield part
        if count == max_files:
            return


def read_lines():
    """Lists of the lines of standard input that are there, one or more; the next ones are read meanwhile."""
    lines, more = queue.Queue(FILES_TOGETHER), True

    def feed():
        try:
            for line in sys.stdin.buffer if sys.stdin else ():
                lines.put(os.fsdecode(line).rstrip("\r\n"))
        finally:
            lines.put(None)

    threading.Thread(target=feed, daemon=True).start()
    while more:
        part = [lines.get()]
        while part[-1] is not None and len(part) < FILES_TOGETHER and not lines.empty():
            part.append(lines.get())
        more = part[-1] is not None
        yield list(filter(None, part))


# ---------------------------------------------------------------- reading: on threads, one call per file


def read_file(path, file, run, encoder, max_windows, images):
    """Set the info of a File, and yield each of its windows with the prepared frames, None at the end.

    Raises with the reason why it cannot be read.
    """
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
        file.info = info | {"windows": windows, "samples": len(numbers)}
        samples = video.sample(fps, numbers)
        for window in chosen:
            seen = []
            part = watched(itertools.islice(samples, min(frames, count - window * frames)), seen, shown, fps)
            if size:
                prepared = equalized_frames(part, size, fps, frames, encoder, first=window == chosen[0])
            else:
                prepared = [encoder.prepare(frame) for _, frame in part]
            if not prepared:
                break
            yield {"seen": seen, "frames": len(prepared)}, prepared
    yield None, []


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
        picture = jpeg_thumbnail(frame) if round(seconds * fps) in shown else None
        seen.append((float(seconds), float(grey.std()), change, picture))
        before = grey
        yield seconds, frame


def jpeg_thumbnail(frame, height=120):
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
    """What was read of a file, and its models' outputs, so far."""

    info: dict = field(default_factory=dict)
    windows: list = field(default_factory=list)  # encoded: {"seen": what `watched` notes, "frames": how many}
    outputs: list = field(default_factory=list)  # {level: window_outputs} of those that went through the models
    error: Exception | None = None


def classify(waiting, run):
    """Add the outputs of all levels for windows (file, tokens (L, T, D)) that wait to their files; then none waits."""
    tokens = np.stack([window for _, window in waiting])
    outputs = {level: window_outputs(model, tokens, run.batch()) for level, model in run.models.items()}
    for i, (file, _) in enumerate(waiting):
        file.outputs.append({level: {key: each[i] for key, each in part.items()} for level, part in outputs.items()})
    waiting.clear()


def look(paths, run, encoder, max_windows=None, images=False, encoder_batch=64, threads=None):
    """Yield (number, File) of all paths once their windows went through all levels, in order of completion;
    `encoder_batch` frames go through the encoder at a time.
    """
    files, ended, waiting, frames = {i: File() for i in range(len(paths))}, [], [], run.features["frames"]

    def read(number):
        return read_file(paths[number], files[number], run, encoder, max_windows, images)

    def done():
        for number in [number for number in ended if len(files[number].outputs) == len(files[number].windows)]:
            ended.remove(number)
            yield number, files.pop(number)

    for number, part, tokens in encode_clips(range(len(paths)), read, encoder, encoder_batch, threads):
        file = files[number]
        if len(tokens):
            file.windows.append(part)
            padding = np.repeat(tokens[-1:], frames - len(tokens), axis=0)
            waiting.append((file, np.concatenate([tokens, padding])))
        else:
            file.error = part
            ended.append(number)
        if len(waiting) == run.batch():
            classify(waiting, run)
        yield from done()
    if waiting:
        classify(waiting, run)
    yield from done()


# ---------------------------------------------------------------- clips of features through the finest level

WINDOWS = 16  # of a training clip, at most, that a new clip is compared with
TOGETHER = 256  # clips whose windows are in memory at a time


def clip_values(outputs, full) -> dict:
    """A clip's embedding (D,), logits (C,), probabilities (C,) and maps (L, L): means over the window_outputs of its
    windows; maps over those without padding, `full` (S,), NaN where there are none.
    """
    maps = outputs["attention"][full]
    return {
        "embedding": outputs["embedding"].mean(axis=0),
        "logits": np.float64(outputs["logits"]).mean(axis=0),
        "probabilities": softmax(np.float64(outputs["logits"]), axis=1).mean(axis=0),
        "maps": maps.mean(axis=0) if len(maps) else np.full(outputs["attention"].shape[1:], np.nan, "float32"),
    }


def look_at_clips(run, rows, what):
    """Arrays over the clips (V, ...), those of clip_values and label, video, generator, group (V,) of their rows; and
    arrays over up to WINDOWS of each clip's windows, WINDOWS_OF_CLIPS: embedding (W, D) float16, clip, time (W,).
    """
    clips, windows = [], []
    with tqdm(total=len(rows), desc=what, unit="clip", dynamic_ncols=True) as bar:
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            tokens = Windows(part)
            outputs = window_outputs(run.models[run.finest], tokens, run.batch())
            for i, row in enumerate(part):
                clip_outputs = {key: values[tokens.video == i] for key, values in outputs.items()}
                clips.append(clip_values(clip_outputs, read_valid(row).all(axis=1)))
                some = spread_evenly(row.windows, WINDOWS)
                times = read_arrays(features_file(row.features, row.path), ("times",))["times"]
                clip = np.full(len(some), start + i)
                windows.append((clip_outputs["embedding"][some].astype("float16"), clip, times[some, 0]))
            bar.update(len(part))
    arrays = {key: np.stack([clip[key] for clip in clips]) for key in clips[0]}
    named = {"label": "class_name", "video": "path", "generator": "generator", "group": "group"}
    arrays |= {key: np.array([getattr(row, column) for row in rows]) for key, column in named.items()}
    return arrays, dict(zip(WINDOWS_OF_CLIPS, map(np.concatenate, zip(*windows, strict=True)), strict=True))


def nearest(embedding, clips, count):
    """The `count` training clips nearest to windows' embeddings (S, D), each by its nearest pair of windows:
    (distance, number of the clip, number of its window, number of the window given), the nearest first.
    """
    distances = np.full(len(clips["window_clip"]), np.inf)
    given = np.zeros(len(distances), int)
    for i, vector in enumerate(embedding):
        here = cdist(vector[None], clips["window_embedding"])[0]
        given[here < distances] = i
        distances = np.minimum(distances, here)
    pairs = {}  # clip: its nearest pair of windows
    for window in np.argsort(distances):
        pairs.setdefault(int(clips["window_clip"][window]), (float(distances[window]), int(window), int(given[window])))
        if len(pairs) == count:
            break
    return [(distance, clip, *windows) for clip, (distance, *windows) in pairs.items()]
