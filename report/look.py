"""Files through the encoder and all levels of a run, decoded once, on threads, and batched across files; clips of
features through its finest level; and which of these clips are nearest to a file.

    for number, file in look(expand(["clips/"]), run, encoder): file.info, file.windows, file.outputs
"""

import contextlib
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

from basics.artifacts import file_digest
from basics.running import InputError
from report.run import WINDOWS_OF_CLIPS, window_outputs
from tokens.dataset import Windows, read_per_frame
from tokens.encoders import encode_clips, once
from tokens.listing import is_shown, suffix_of
from tokens.pictures import STILL_SUFFIXES
from tokens.videos import VIDEO_SUFFIXES, Video
from tokens.writing import TooShortError, equalize

STRIP = 8  # frames shown of a file
FILES_TOGETHER = 64  # that are decoded ahead of each other and share batches
MOST_WINDOWS = 4 * 3600  # of a file, unless their number is chosen: four hours in windows of a second

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


def batches(given, answered=None, max_files=None):
    """Lists of paths that are answered together and of their SHA-256 digests, None where not known yet; of arguments,
    or of lines of standard input as they come: `max_files` in all. `answered` counts by digest the files left out.
    """
    paths, count = expand(given), 0
    parts = read_lines() if given == ["-"] else iter(lambda: list(itertools.islice(paths, FILES_TOGETHER)), [])
    for part in parts:
        files = [(path, None) for path in expand(part)]
        if answered is not None:
            files = [(path, digest) for path, _ in files if not answered_before(digest := digest_of(path), answered)]
        files = files[: max_files and max_files - count]
        count += len(files)
        yield [path for path, _ in files], [digest for _, digest in files]
        if count == max_files:
            return


def answered_before(digest, answered):
    """Whether a file of these bytes is among the `answered` ones, which then are one fewer."""
    before = answered[digest] > 0
    answered[digest] -= before
    return before


def digest_of(path):
    """The SHA-256 of a file's bytes; None of what is no file, or cannot be read, as its report will say."""
    with contextlib.suppress(InputError):
        return file_digest(path) if os.path.isfile(path) else None


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


def read_file(path, file, run, encoder, digest, max_windows, images):
    """Set the info of a File, and yield each of its windows with the prepared frames, None at the end.

    `digest` is the SHA-256 of its bytes where that is known. Raises with the reason why it cannot be read.
    """
    if os.path.isdir(path):
        raise InputError("a folder without videos or images")
    frames, fps, size = (run.features[key] for key in ("frames", "fps", "equalize"))
    opened = file_state(path)
    with Video(path) as video:
        count = len(video.numbers(fps))
        windows = -(-count // frames)
        if windows > MOST_WINDOWS and not max_windows:
            raise InputError(f"{windows} windows, more than {MOST_WINDOWS}; choose how many by --max-windows")
        chosen = spread_evenly(windows, max_windows)
        numbers = [k for window in chosen for k in range(window * frames, min((window + 1) * frames, count))]
        shown = {numbers[i] for i in spread_evenly(len(numbers), STRIP)} if images else ()
        info = {"container": video.container, "codec": video.codec, "size": video.size, "fps": round(video.fps, 3)}
        info |= {"seconds": round(video.length, 3), "sha256": digest or file_digest(path), "c2pa": c2pa_state(path)}
        file.info = info | {"windows": windows, "samples": len(numbers)}
        samples, prepare, grey_of = video.sample(fps, numbers), once(encoder.prepare), once(small_grey)
        for window in chosen:
            seen = []
            part = itertools.islice(samples, min(frames, count - window * frames))
            part = watched(part, seen, shown, fps, grey_of)
            if size:
                prepared = equalized_frames(part, size, fps, frames, prepare, first=window == chosen[0])
            else:
                prepared = [prepare(frame) for _, frame in part]
            if not prepared:
                break
            yield {"seen": seen, "frames": len(prepared)}, prepared
        next(samples, None)  # at their end it is known how far the file could be read
        if video.damage:
            file.info["damage"] = video.damage
    if file_state(path) != opened:
        raise InputError("it changed while it was read")
    yield None, []


def file_state(path):
    """What changes when somebody writes to a file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def spread_evenly(count, most):
    """At most `most` of the numbers 0 to count - 1: the middles of as many equal parts."""
    most = min(count, most or count)
    return (2 * np.arange(most) + 1) * count // (2 * most)


def equalized_frames(part, size, fps, frames, prepare, first):
    """A window made equal as 01 --equalize makes clips; a last one that is too short is left out."""
    try:
        with Video(equalize(part, size, fps, frames)) as video:
            return [prepare(frame) for _, frame in video.sample(fps)]
    except TooShortError:
        if first:
            raise
        return []


def watched(samples, seen, shown, fps, grey_of):
    """Pass samples on; note of each its time, contrast and change in grey levels, and a JPEG of those to be shown."""
    before = None
    for seconds, frame in samples:
        grey = grey_of(frame)
        change = 0.0 if before is None else float(np.abs(grey - before).mean())
        picture = jpeg_thumbnail(frame) if round(seconds * fps) in shown else None
        seen.append((float(seconds), float(grey.std()), change, picture))
        before = grey
        yield seconds, frame


def small_grey(frame):
    small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype("float32")


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
    except Exception as error:  # another's library, and whatever a file holds
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
    distinct, places = [], []  # a picture that stays on screen goes through the models once
    for _, window in waiting:
        if not distinct or not np.array_equal(window, distinct[-1]):
            distinct.append(window)
        places.append(len(distinct) - 1)
    tokens = np.stack(distinct)
    outputs = {level: window_outputs(model, tokens, run.batch()) for level, model in run.models.items()}
    for i, (file, _) in zip(places, waiting, strict=True):
        file.outputs.append({level: {key: each[i] for key, each in part.items()} for level, part in outputs.items()})
        if not all(np.isfinite(each).all() for part in file.outputs[-1].values() for each in part.values()):
            file.error = InputError("the run's models give numbers that are not finite")
    waiting.clear()


def look(paths, run, encoder, digests=None, max_windows=None, images=False, encoder_batch=64, threads=None):
    """Yield (number, File) of all paths once their windows went through all levels, in order of completion;
    `encoder_batch` frames go through the encoder at a time. `digests` are what is known of the files' SHA-256.
    """
    digests = digests or [None] * len(paths)
    files, ended, waiting, frames = {i: File() for i in range(len(paths))}, [], [], run.features["frames"]

    def read(number):
        return read_file(paths[number], files[number], run, encoder, digests[number], max_windows, images)

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
            file.error = file.error or part
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
                clips.append(clip_values(clip_outputs, read_per_frame(row, "valid").all(axis=1)))
                some = spread_evenly(row.windows, WINDOWS)
                times = read_per_frame(row, "times")
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
        if i and np.array_equal(vector, embedding[i - 1]):
            continue
        here = cdist(vector[None], clips["window_embedding"])[0]
        given[here < distances] = i
        distances = np.minimum(distances, here)
    pairs = {}  # clip: its nearest pair of windows
    for window in np.argsort(distances):
        pairs.setdefault(int(clips["window_clip"][window]), (float(distances[window]), int(window), int(given[window])))
        if len(pairs) == count:
            break
    return [(distance, clip, *windows) for clip, (distance, *windows) in pairs.items()]
