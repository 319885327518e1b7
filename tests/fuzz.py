# ruff: noqa: E402
"""Damaged and edited files of every kind, read by what reads them.

    python tests/fuzz.py --seconds 120 --seed 0
    python tests/fuzz.py --seed 0 --case 17          one case again, its file kept

Each case damages one file of a corpus that is made here and is the same for the same seed. It may end in an answer or
in one line that names the file: never in a traceback, in more than a minute or in more than 4 GiB. All other files of
the case are answered, and a good run loads afterwards.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stdout, suppress
from fractions import Fraction
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import av
import cv2
from damage import damaged
from small import moving, numbered, untrained_run, write_clip
from stages import stage

from basics.running import InputError
from common import load_saga
from report.answer import attribute
from report.calibrate import calibrate
from report.run import export_run, load_encoder, load_run
from tokens.dataset import Windows, features_recipe, mean_tokens, read_index, usable, write_index
from tokens.generators import TABLE, load_generators
from tokens.images import read_images
from tokens.listing import list_videos

SECONDS, MEMORY, FILE = 60, 4 << 30, 2 << 30  # that a case may take, hold and write, in seconds and bytes
KINDS = ("media", "features", "media", "run", "media", "table", "media", "zip", "media", "list")

# ---------------------------------------------------------------- the corpus

H264 = {"container": "mp4", "codec": "libx264"}
MEDIA = {"plain.mp4": H264, "parts.mp4": H264 | {"movflags": "frag_keyframe+empty_moov"}}
MEDIA |= {"edited.mp4": H264 | {"movflags": "faststart"}, "a.mkv": H264 | {"container": "matroska"}}
FORMATS = "mov:mov:mpeg4 webm:webm:libvpx-vp9 avi:avi:mpeg4 gif:gif:gif webp:webp:libwebp_anim png:apng:apng"
for each in f"{FORMATS} ts:mpegts:mpeg2video mpg:mpeg:mpeg1video wmv:asf:wmv2 flv:flv:flv".split():
    MEDIA["a." + each.split(":")[0]] = dict(zip(("container", "codec"), each.split(":")[1:], strict=True))
PIXELS = {"gif": "rgb8", "apng": "rgb24"}


def write_media(path, container, codec, **options):
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=24, options={"threads": "1", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, PIXELS.get(codec, "yuv420p")
        for i in range(16):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = i + 6, Fraction(1, 24)  # what begins late has an edit list
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def make_corpus(folder):
    """clips/, which are not damaged, and what is: media/, features/, run/, zip/, table/ and list/."""
    for kind in ("media", "zip", "table"):
        (folder / kind).mkdir()
    for name, how in MEDIA.items():
        write_media(folder / "media" / name, **how)
    for ending in ("png", "jpg", "tiff", "bmp", "webp"):
        cv2.imwrite(str(folder / "media" / f"still.{ending}"), numbered(5))
    names = [f"{name}/{i}.mp4" for name in ("Real", "SVD", "Pika") for i in range(4)]
    for seed, name in enumerate(names):
        write_clip(folder / "clips" / name, fps=8, frames=moving(16, seed=seed))
    stage("01_extract_features", "--videos", folder / "clips", "--features", folder / "features", "--pool", 4)
    splits = ("train", "train", "val", "test")
    rows = [row._replace(split=splits[int(Path(row.path).stem)]) for row in read_index(folder / "features")]
    write_index(folder / "features" / "index-1-of-1.csv", rows)
    for level in ("bin", "gen"):
        untrained_run(folder / "features", folder / "run", level)
    calibrate(folder / "run", folder / "features")
    export_run(folder / "run", folder / "zip" / "run.zip")
    shutil.copy(TABLE, folder / "table" / "generators.csv")
    lines = [f"{name},{name[:-6]},{name},,train\n" for name in names]
    shutil.copytree(folder / "clips", folder / "list")
    (folder / "list" / "videos.csv").write_text("path,generator,group,stratum,split\n" + "".join(lines))


# ---------------------------------------------------------------- what reads them, in a process of its own


class Reader:
    """Reads what a case has damaged, by a method for each kind. Raises InputError, or what else goes wrong."""

    def __init__(self, corpus):
        self.corpus, self.good, self.loaded = corpus, corpus / "clips" / "Real" / "0.mp4", load_run(corpus / "run")
        self.encoder = load_encoder(self.loaded.features)

    def media(self, folder, file):
        errors = [report["error"] for report in attribute([file, self.good], self.loaded, self.encoder)]
        assert errors[0] != "" and errors[1] is None, errors
        shutil.copytree(self.good.parent, folder / "videos" / "Real")
        (folder / "videos" / "SVD").mkdir()
        os.link(file, folder / "videos" / "SVD" / file.name)
        with suppress(InputError):  # more than a tenth of the videos cannot be read
            stage("01_extract_features", "--videos", folder / "videos", "--features", folder / "f", "--pool", 4)
        rows = read_index(folder / "f")
        assert all(bool(row.windows) != bool(row.error) for row in rows), rows
        assert sum(row.windows > 0 for row in rows if row.generator == "Real") == 4, rows

    def features(self, folder, file):
        rows, recipe = usable(read_index(folder), folder), features_recipe(folder)
        Windows(rows)[:]
        mean_tokens(rows)
        read_images(folder, 2)
        if recipe["frames"] * recipe["tokens"] * recipe["dim"] < 1 << 20:
            untrained_run(folder, folder.with_name("new"))

    def run(self, folder, file):
        try:
            report = attribute([self.good], file if file.suffix == ".zip" else folder, self.encoder)[0]
            json.dumps(report, allow_nan=False)
        except InputError:
            load_saga(self.corpus / "run" / "gen.keras", "gen")  # a good one loads all the same
            raise

    zip = run

    def table(self, folder, file):
        load_generators(file)

    def list(self, folder, file):
        list_videos(str(file), load_generators())


def work(pipe, corpus):
    """Read (kind, folder, file) from the pipe and answer each with None, or with what went wrong."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    reader = Reader(corpus)
    pipe.send(None)
    while True:
        kind, folder, file = pipe.recv()
        try:
            getattr(reader, kind)(folder, file)
            wrong = None
        except InputError as error:
            wrong = None if "\n" not in str(error) and str(folder) in str(error) else f"unclear: {error!r}"
        except BaseException:
            wrong = traceback.format_exc()
        pipe.send(wrong)


class Worker:
    """A process that reads cases, and is started anew after one that it did not survive."""

    process = None

    def read(self, corpus, *case):
        """What went wrong, or None."""
        if not self.process:
            spawn = multiprocessing.get_context("spawn")
            self.pipe, theirs = spawn.Pipe()
            self.process = spawn.Process(target=work, args=(theirs, corpus), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()  # it has loaded a good run
        self.pipe.send(case)
        end, held = time.monotonic() + SECONDS, 0
        while not self.pipe.poll(0.02):
            held = memory(self.process.pid)
            if held > MEMORY or time.monotonic() > end:
                self.stop()
                return f"holds {held >> 20} MiB" if held > MEMORY else f"takes more than {SECONDS} s"
        wrong = "it ended the process"
        with suppress(EOFError):
            wrong = self.pipe.recv()
        if wrong or memory(self.process.pid) > MEMORY // 2:  # TensorFlow keeps the graphs of models
            self.stop()
        return wrong

    def stop(self):
        self.process.kill()
        self.process.join()
        self.process = None


def memory(pid):
    """Bytes that a process holds, without those of files that it maps; 0 when it has ended."""
    found = re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


# ---------------------------------------------------------------- cases


def make_case(corpus, folder, seed, number):
    """Damage a copy in `folder`; (kind, folder of the copy, the file)."""
    rng, kind = random.Random(f"{seed} {number}"), KINDS[number % len(KINDS)]
    files = (corpus / kind).rglob("*.csv" if kind == "list" else "*.*")
    file = folder / rng.choice(sorted(path.relative_to(corpus) for path in files if path.is_file()))
    folder = folder / kind
    shutil.copytree(corpus / kind, folder)
    file.write_bytes(damaged(file.read_bytes(), file.suffix, rng))
    return kind, folder, file


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="begin no case after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    args = parser.parse_args()
    worker, done, failed, end = Worker(), Counter(), Counter(), None
    warnings.simplefilter("ignore")  # of a zip in which a name is there twice
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary)
        with redirect_stdout(None):
            make_corpus(corpus)
        for number in itertools.count() if args.case is None else [args.case]:
            kind, folder, file = make_case(corpus, corpus / "case", args.seed, number)
            wrong = worker.read(corpus, kind, folder, file)
            end = end or time.monotonic() + args.seconds  # the first case waits for the process to start
            done[kind] += 1
            if wrong:
                failed[kind] += 1
                kept = shutil.copy(file, Path(tempfile.gettempdir()) / f"fuzz-{args.seed}-{number}-{file.name}")
                print(f"{kept} (--seed {args.seed} --case {number}): {wrong}", flush=True)
            shutil.rmtree(corpus / "case")
            if time.monotonic() > end:
                break
    print(", ".join(f"{kind}: {done[kind]} cases, {failed[kind]} failed" for kind in done))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
