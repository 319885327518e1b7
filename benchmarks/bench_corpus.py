"""Stage 01 on real clips (`dct`, 8 frames per second, all clips), against frames in jpg files, as DeMamba keeps them.

Theirs is one ffmpeg per clip into jpg files, then a loop that reads them back and encodes them by the same encoder into
the same kind of file. Each is a process of its own; seconds are of the work, without the imports.
Disk is what lies there at the end, and theirs has both the jpg files and the features.
"""

import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from measuring import SideError, compared, run_side, side, skipped

TINY_CLIPS = 1  # of each generator


def cases(args):
    return [("", partial(measure, Path(args.corpus), TINY_CLIPS if args.tiny else None))]


def measure(corpus, per_generator):
    if not (corpus / "clips.csv").exists():
        return [skipped("stage 01 on real clips", f"no clips.csv in {corpus}; name the folder of clips by --corpus")]
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "corpus.csv"
        side(__file__, "write_csv", corpus=corpus.resolve(), path=csv)
        limit = ["--limit", per_generator] if per_generator else []
        ours = attempt(side, __file__, "stage_01", videos=csv, features=Path(folder) / "ours", flags=limit)
        if not shutil.which("ffmpeg"):
            theirs = SideError("there is no ffmpeg here")
        else:
            theirs = attempt(
                side, __file__, "through_jpg", csv=csv, folder=Path(folder) / "theirs", per_generator=per_generator
            )
        count = "" if isinstance(ours, SideError) else f"{ours['clips']} "
        what, against = f"stage 01 on {count}real clips", "ffmpeg to jpg, then load"
        note = "" if SideError in map(type, (ours, theirs)) else f"clips that theirs could read: {theirs['clips']}"
        return [
            compared(what, against, ours, theirs, "clips/s", "rate", higher=True, note=note),
            compared(f"{what}: disk written", against, ours, theirs, "MB", "disk"),
        ]


def attempt(measure_one, *arguments, **options):
    try:
        return measure_one(*arguments, **options)
    except SideError as error:
        return error


def megabytes(folder):
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6


# ---------------------------------------------------------------- the sides


def write_csv(corpus, path):
    from experiments.datasets import corpus_csv

    corpus_csv(corpus, Path(path))
    return {}


def stage_01(videos, features, flags):
    """Stage 01 of this repository, for bench_growth.py too."""
    from experiments.stages import stage

    counts = stage("01_extract_features", "--videos", videos, "--features", features, *flags)
    return {"clips": counts["videos"], "rate": counts["clips_per_second"], "disk": megabytes(features)}


def through_jpg(csv, folder, per_generator):
    import cv2

    from tokens.dataset import write_features
    from tokens.encoders import BlockDCT
    from tokens.generators import load_generators
    from tokens.listing import list_videos

    encoder, started, clips = BlockDCT(), time.time(), 0
    for number, row in enumerate(list_videos(csv, load_generators(), per_generator)[0]):
        frames = Path(folder) / "jpg" / str(number)
        frames.mkdir(parents=True)
        command = ["ffmpeg", "-v", "error", "-i", row.file, "-vf", "fps=8", "-q:v", "2", f"{frames}/%05d.jpg"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        images = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in sorted(frames.glob("*.jpg"))]
        if images:
            tokens = encoder.encode([encoder.prepare(image) for image in images])
            places = np.arange(-(-len(tokens) // 8) * 8).reshape(-1, 8)
            held = np.minimum(places, len(tokens) - 1)  # the last frame is repeated as padding
            write_features(Path(folder) / f"{number}.npz", tokens[held], held / 8, places == held)
            clips += 1
    return {"clips": clips, "rate": clips / (time.time() - started), "disk": megabytes(folder)}


if __name__ == "__main__":
    run_side(globals())
