"""What made this file? A report at up to five levels for any video or image: real or fake, generation task, Stable
Diffusion version, team, generator, with calibrated probabilities, or "unknown generator", or "too little evidence".

reads   files, folders of them, or - for a list on standard input; runs/<run>/<level>.keras and .json (02, 03),
        calibration.json and .npz (--calibrate); a run may be a folder, a zip or a hf://, kaggle:// handle
writes  a report to standard output; --json (report.schema.json, a line per file), --html, --csv

    python attribute_video.py --calibrate --run runs/zoo --features features/zoo      once per run
    python attribute_video.py clip.mp4 --run runs/zoo --html report.html
    find evidence -name '*.mp4' | python attribute_video.py - --json reports.jsonl

The run says which encoder, frame rate and windows; all levels share one decoding and one pass of the encoder. Exit
status 1 when a file could not be read; all others are answered. Seconds per clip on two cores with `dct`.
"""

import argparse
import hashlib
import itertools
import os
import queue
import sys
import threading
from contextlib import ExitStack
from functools import partial

import cv2
import numpy as np
from tqdm import tqdm

from common import positive, run_script
from report.answer import file_name, make_report
from report.calibrate import calibrate, print_calibration, spread_evenly
from report.run import Run, export_run, load_encoder, load_run, window_outputs
from report.scores import SCORES
from report.text import answered, open_csv, open_html, open_json, text_report
from tokens.encoders import DTYPES, encode_frames
from tokens.videos import STILL_SUFFIXES, VIDEO_SUFFIXES, TooShortError, Video, equalize, is_shown, suffix_of

STRIP = 8  # frames shown of a file
FILES_TOGETHER = 64  # that are decoded ahead of each other and share batches


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="videos, images, folders, or - for a list on standard input")
    add("--run", default="runs/zoo", help="folder, zip or handle of a trained run")
    add("--json", metavar="PATH", help="write a JSON object per line and file; - is standard output, without the text")
    add("--resume", action="store_true", help="leave out the files that --json PATH answers already, and add to it")
    add("--html", metavar="PATH", help="write one page that needs nothing else")
    add("--csv", metavar="PATH", help="write a row per file")
    add("--max-windows", type=positive, help="look at no more windows of a file than this, spread evenly")
    add("--dtype", choices=("float32", "mixed_bfloat16"), help="what the transformers compute in; default: the run's")
    add("--encoder", help="the encoder's preset or folder, where it is not where the run has it")
    add("--encoder-weights", metavar="FILE", help="mobilenet: weights for a machine that cannot download them")
    add("--encoder-dtype", choices=DTYPES, help="what a pretrained encoder computes in; default: the run's")
    add("--batch-size", type=positive, default=64, help="frames per call of the encoder")
    add("--threads", type=positive, default=os.cpu_count(), help="files decoded at once")
    add("--export", metavar="PATH", help="write the calibrated run with a model card to a .zip or folder, and end")
    add("--calibrate", action="store_true", help="measure how sure the run may be, on its val and test clips, and end")
    add("--features", default="features/zoo", help="--calibrate: the features that the run was trained on")
    add("--false-rejection", type=rate, default=0.05, help="--calibrate: share of known clips called unknown")
    add("--score", choices=tuple(SCORES), default="Mahalanobis", help="--calibrate: what tells unknown generators")
    add("--limit", type=positive, help="no more files than this; --calibrate: clips per generator and split, or 200")
    add("--seed", type=int, default=0, help="--calibrate: seed of the choice of those clips")
    args = parser.parse_args(argv)
    if args.calibrate or args.export:
        if args.files or args.json or args.html or args.csv:
            parser.error("--calibrate and --export take a run, no files and no reports")
    elif not args.files:
        parser.error("name a file, a folder, or - for a list on standard input")
    for flag in ("features", "false_rejection", "score", "seed"):
        if getattr(args, flag) != parser.get_default(flag) and not args.calibrate:
            parser.error(f"--{flag.replace('_', '-')} belongs to --calibrate, which keeps it in the run")
    if args.resume and (args.json in (None, "-") or args.csv or args.html):
        parser.error("--resume goes on with the file of --json, and with no other")
    return args


def rate(text):
    if not 0 < (number := float(text)) < 1:
        raise ValueError(text)
    return number


# ---------------------------------------------------------------- reading: on threads, one call per file


def read_file(path, run, encoder, max_windows, images):
    """Yield the messages of a file: "info", then per window "window" and "frames". Raises with the reason it cannot."""
    if os.path.isdir(path):
        raise ValueError("a folder without videos or images")
    frames, fps, size = (run.features[key] for key in ("frames", "fps", "equalize"))
    with Video(path) as video:
        count = len(video.numbers(fps))
        windows = -(-count // frames)
        chosen = spread_evenly(windows, max_windows)
        numbers = [k for window in chosen for k in range(window * frames, min((window + 1) * frames, count))]
        shown = {numbers[i] for i in spread_evenly(len(numbers), STRIP)} if images else ()
        info = {"container": video.container, "codec": video.codec, "size": video.size, "fps": round(video.fps, 3)}
        info |= {"seconds": round(video.length, 3), "sha256": digest(path), "c2pa": c2pa_state(path)}
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


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def expand(paths):
    """Files, and of each folder the videos and images below it; a folder without any stays, to be reported."""
    for path in map(os.fspath, paths):
        found = []
        for folder, _, names in os.walk(path) if os.path.isdir(path) else ():
            found += [os.path.join(folder, name) for name in names if is_media(name)]
        yield from sorted(found) or [path]


def is_media(name):
    return is_shown(name) and suffix_of(name) in VIDEO_SUFFIXES | STILL_SUFFIXES


# ---------------------------------------------------------------- windows of many files through all levels


class File:
    """What is known so far of a file: info, windows {"seen": what `watched` notes, "frames": how many were encoded},
    tokens that wait for their window, outputs by window and level.
    """

    def __init__(self):
        self.info, self.windows, self.tokens, self.error = {}, [], [], None
        self.outputs, self.filled, self.ended = [], 0, False

    def take(self):
        """The tokens (L, T, D) of the next window once all its frames are there, else None."""
        if self.filled == len(self.windows) or len(self.tokens) < self.windows[self.filled]["frames"]:
            return None
        count = self.windows[self.filled]["frames"]
        window, self.tokens, self.filled = self.tokens[:count], self.tokens[count:], self.filled + 1
        return window


def classify(waiting, run):
    """Add the outputs of all levels for windows (file, tokens (L, T, D)) that wait to their files; then none waits."""
    tokens = np.stack([window for _, window in waiting])
    outputs = {level: window_outputs(model, tokens, run.batch()) for level, model in run.models.items()}
    for i, (file, _) in enumerate(waiting):
        file.outputs.append({level: {key: own[i] for key, own in found.items()} for level, found in outputs.items()})
    waiting.clear()


def look(paths, run, encoder, max_windows, images, batch_size, threads):
    """Yield (number, File) of all paths once their windows went through all levels, in order of completion."""
    files, waiting, frames = {}, [], run.features["frames"]

    def read(number):
        return read_file(paths[number], run, encoder, max_windows, images)

    def done():
        held = {id(file) for file, _ in waiting}
        return [number for number, file in files.items() if file.ended and id(file) not in held]

    for number, kind, content in encode_frames(read, len(paths), encoder, batch_size, threads):
        file = files.setdefault(number, File())
        if kind == "info":
            file.info = content
        elif kind == "window":
            file.windows.append(content)
        elif kind == "tokens":
            file.tokens.append(content)
            if window := file.take():
                waiting.append((file, np.stack(window + window[-1:] * (frames - len(window)))))
        else:
            file.ended, file.error = True, content
        if len(waiting) == run.batch():
            classify(waiting, run)
        elif not file.ended:
            continue
        yield from ((number, files.pop(number)) for number in done())
    if waiting:
        classify(waiting, run)
    yield from ((number, files.pop(number)) for number in done())


def attribute(
    paths,
    run="runs/zoo",
    encoder=None,
    max_windows=None,
    images=False,
    batch_size=64,
    threads=None,
) -> list[dict]:
    """A report per file, as report.schema.json describes it, in the order of `paths`; of a folder, of each file in it.

    `run` and `encoder` may be what load_run and load_encoder give, so that a process loads them once. With `images`
    explanation.frames hold JPEGs for a page. A file that cannot be read is reported with its "error".
    """
    run = run if isinstance(run, Run) else load_run(run)
    encoder = encoder or load_encoder(run.features)
    paths = list(expand([paths] if isinstance(paths, str | os.PathLike) else paths))
    reports = [None] * len(paths)
    bar = tqdm(total=len(paths), unit="file", dynamic_ncols=True, disable=len(paths) < 2, leave=False)
    with bar:
        for number, file in look(paths, run, encoder, max_windows, images, batch_size, threads):
            reports[number] = make_report(paths[number], file, run)
            bar.update()
    return reports


# ---------------------------------------------------------------- the command


def batches(given):
    """Lists of paths that are answered together: arguments, or lines of standard input as they come."""
    paths = iter(expand(given)) if given != ["-"] else None
    if paths:
        while part := list(itertools.islice(paths, FILES_TOGETHER)):
            yield part
        return
    lines = queue.Queue(FILES_TOGETHER)
    threading.Thread(target=feed, args=(lines,), daemon=True).start()
    while (path := lines.get()) is not None:
        part = [path]
        while len(part) < FILES_TOGETHER and not lines.empty():
            if (path := lines.get()) is None:
                lines.put(None)
                break
            part.append(path)
        yield list(expand(part))


def feed(lines):
    """Put the lines of standard input into a queue, then None."""
    try:
        for line in sys.stdin.buffer if sys.stdin else ():
            if path := os.fsdecode(line).rstrip("\r\n"):
                lines.put(path)
    finally:
        lines.put(None)


def main(argv=None):
    args = get_args(argv)

    # ---------------------------------------------------------------- about the run
    if args.calibrate:
        limit = args.limit or 200
        print_calibration(calibrate(args.run, args.features, args.false_rejection, args.score, limit, args.seed))
    if args.export:
        export_run(args.run, args.export)
        print(f"{args.export}: the run, and a model card to be completed")
    if args.calibrate or args.export:
        return None

    # ---------------------------------------------------------------- load
    run = load_run(args.run, args.dtype)
    encoder = load_encoder(run.features, args.encoder, args.encoder_weights, args.encoder_dtype)
    options = {"max_windows": args.max_windows, "images": bool(args.html)}
    options |= {"batch_size": args.batch_size, "threads": args.threads}

    # ---------------------------------------------------------------- answer
    files = failed = 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know the letters of a file's name
    there = answered(args.json) if args.resume else set()
    with ExitStack() as stack:
        openers = ((args.json, partial(open_json, add=args.resume)), (args.csv, open_csv), (args.html, open_html))
        outputs = [stack.enter_context(opener(path)) for path, opener in openers if path]
        for paths in batches(args.files):
            paths = [path for path in paths if file_name(path) not in there]
            paths = paths[: args.limit - files] if args.limit else paths
            for report in attribute(paths, run, encoder, **options):
                files, failed = files + 1, failed + (report["error"] is not None)
                if args.json != "-":
                    print(text_report(report), flush=True)
                for write in outputs:
                    write(report)
            if files == args.limit:
                break
    if failed:
        raise ValueError(f"{failed} of {files} files could not be read; their lines say why")
    return files


if __name__ == "__main__":
    run_script(main, interrupted="what was answered is kept, and --resume goes on with the file of --json")
