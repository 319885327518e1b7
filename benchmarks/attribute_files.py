"""attribute_video.py on many files: one process against a process per file; and at full size, seconds by length.

    python benchmarks/attribute_files.py --run runs/demo data/zoo/SVD       needs a run; files per second, their ratio
    python benchmarks/attribute_files.py --full                             needs 12 GB of memory and 5 GB of disk

At full size the encoder is a SigLIP-So400m and the levels are five transformers of 95.64M parameters, all with random
weights, which cost the time and memory of trained ones. Clips are noise that moves, 640 x 360, of 1, 2 and 4
seconds; the paper says about a minute per video on one CPU (Sec. S-2). Seconds are of the whole command, and of
attribute() in a process that has loaded everything.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CHANCE = dict(accuracy=0, accuracy_interval=[0, 1], macro_accuracy=0, macro_interval=[0, 1], majority=1, uniform=1)
SECONDS = (1, 2, 4)
ALONE = 5  # files that are given a process each


def measured(command):
    """Seconds and peak memory (GiB) of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def report(*arguments):
    return measured([sys.executable, ROOT / "attribute_video.py", *arguments])


def many_files(run, folder):
    from attribute_video import expand

    files = list(expand([folder]))
    together, memory = report(*files, "--run", run)
    apart = [report(file, "--run", run) for file in files[:ALONE]]
    one = sum(seconds for seconds, _ in apart) / len(apart)
    print(
        f"one process: {len(files)} files in {together:.1f} s, {len(files) / together:.2f} a second, {memory:.1f} GiB"
    )
    print(
        f"a process per file ({len(apart)} of them): {1 / one:.2f} files a second, {max(m for _, m in apart):.1f} GiB"
    )
    print(f"ratio: {len(files) / together * one:.1f}")


# ---------------------------------------------------------------- full size


def write_clip(path, seconds, fps=24):
    noise = np.random.default_rng(0).integers(0, 255, (360, 1280, 3), np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(seconds * fps):
            image = np.ascontiguousarray(noise[:, 2 * i % 640 :][:, :640])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def write_run(folder):
    """Five random transformers of the paper's size on tokens of the random encoder in folder/preset."""
    from common import LEVELS, build_saga, class_names
    from tokens.dataset import write_json
    from tokens.encoders import build_encoder

    encoder = build_encoder(str(folder / "preset"))
    features = {"encoder": encoder.name, "tokens": encoder.tokens, "dim": encoder.dim, "frames": 8, "fps": 8, "pool": 1}
    features = features | encoder.recipe | {"equalize": None, "simulated": True}
    (folder / "run").mkdir()
    for level in LEVELS:
        names = class_names(level)
        build_saga(len(names), class_names=names, features=features).save(folder / "run" / f"{level}.keras")
        metrics = CHANCE | {"classes": names, "videos": 0, "recipe": {}}
        write_json(folder / "run" / f"{level}.json", metrics)


def warm(folder, dtype):
    """Seconds of attribute() by length in a process that has loaded everything."""
    from attribute_video import attribute
    from report.run import load_encoder, load_run

    run = load_run(folder / "run", None if dtype == "float32" else dtype)
    encoder = load_encoder(run.features, dtype=dtype)
    attribute(folder / "1.mp4", run, encoder)
    found = {}
    for seconds in SECONDS:
        started = time.perf_counter()
        attribute(folder / f"{seconds}.mp4", run, encoder)
        found[seconds] = time.perf_counter() - started
    print(json.dumps(found))


def full_size(folder):
    for seconds in SECONDS:
        write_clip(folder / f"{seconds}.mp4", seconds)
    measured([sys.executable, ROOT / "benchmarks" / "siglip_full.py", folder / "preset"])
    measured([sys.executable, __file__, "--write", folder])
    print(f"{os.cpu_count()} cores, Keras on {os.environ.get('KERAS_BACKEND', 'tensorflow')}")
    print("| dtype | " + " | ".join(f"{s} s" for s in SECONDS) + " | 1 s, whole command | peak GiB |")
    print("|---" * (len(SECONDS) + 3) + "|")
    for dtype in ("float32", "mixed_bfloat16"):
        done = subprocess.run([sys.executable, __file__, "--warm", dtype, folder], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        flags = ["--run", folder / "run", "--encoder-dtype", dtype, "--dtype", dtype]
        seconds, memory = report(folder / "1.mp4", *flags)
        cells = [dtype, *(f"{value:.0f}" for value in found.values()), f"{seconds:.0f}", f"{memory:.1f}"]
        print(f"| {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="files to report on")
    parser.add_argument("--run", default="runs/demo", help="the run that they are given")
    parser.add_argument("--full", action="store_true", help="measure a random model of the paper's size by length")
    parser.add_argument("--write", action="store_true", help="write that model, in this process alone")
    parser.add_argument("--warm", metavar="DTYPE", help="measure it in this process alone")
    args = parser.parse_args()
    if args.write:
        write_run(args.folder)
    elif args.warm:
        warm(args.folder, args.warm)
    elif args.full:
        with tempfile.TemporaryDirectory() as folder:
            full_size(Path(folder))
    else:
        many_files(args.run, args.folder)


if __name__ == "__main__":
    main()
