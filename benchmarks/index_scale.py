"""An index of 1,000 to 100,000 small videos: CPU seconds, memory of what every later stage does before its first step.

    python benchmarks/index_scale.py [--videos 1000 10000 100000]

Features are invented: one window of tiny tokens a video, hard links to a few files, in the layout and index of 01. Each
step is timed in CPU seconds, which other work on the machine does not change, in one process per size; "held" reads all
tokens into memory as 02 does where they fit, "mapped" opens no file before a batch asks for it. Memory is what the
process has grown by (VmRSS); its peak includes Python and Keras. Writes results/index_scale.json and .md.
"""

import argparse
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GENERATORS = ("Real", "SVD", "Pika", "SEINE", "Latte", "Lavie", "Sora", "HotShot", "SD", "Gen2")
LINKS = 1000  # hard links to one file; some file systems allow few


def write_folder(folder, videos):
    """A features folder of that many videos, its files linked to a few of one window (1, 8, 2, 12)."""
    from tokens.dataset import INDEX_FIELDS, write_features, write_index, write_json

    random, rows = np.random.default_rng(0), []
    for i in range(videos):
        path = folder / GENERATORS[i % len(GENERATORS)] / f"{i // 1000:03}" / f"{i:06}.mp4.npz"
        if i % LINKS == 0:
            write_features(path, random.normal(size=(1, 8, 2, 12)), np.zeros((1, 8)), np.ones((1, 8)))
            source = path
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
        name = str(path.relative_to(folder).with_suffix(""))
        video = folder / "videos" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        if i % LINKS == 0:
            video.touch()
            first = video
        else:
            os.link(first, video)
        facts = dict(path=name, generator=GENERATORS[i % len(GENERATORS)], group=name, source=name, windows=1)
        facts |= dict(fps="24.000", size="128x128", length="1.000", container="mp4", codec="h264")
        rows.append(dict.fromkeys(INDEX_FIELDS, "") | facts)
    write_index(folder / "index-1-of-1.csv", rows)
    write_json(folder / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12})


def resident():
    """MB that this process has in memory."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def steps(folder):
    """Seconds and MB of each step, in this process."""
    from common import WindowBatches, load_generators
    from tokens.dataset import Windows, add_to_index, read_index, set_splits
    from tokens.split import choose_videos
    from tokens.videos import list_videos
    from training.callbacks import add_training_arguments, index_digest

    extract = importlib.import_module("01_extract_features")

    found, kept = {}, {}

    def timed(name, work):
        before, started = resident(), time.process_time()
        kept[name] = work()
        found[name] = {"seconds": time.process_time() - started, "MB": resident() - before}
        return kept[name]

    started = time.process_time()
    listed = timed("01: list the videos", lambda: list_videos(f"{folder}/videos", load_generators()))[0]
    rows = timed("read the index", lambda: read_index(folder))
    old = {row["path"]: row for row in rows}
    timed("01: find all done", lambda: sum(extract.is_done(row, old, folder) for row in listed))
    timed("split", lambda: set_splits(rows, {}))
    timed("add a row to the index", lambda: add_to_index(Path(folder) / "index-1-of-1.csv", rows[:1]))
    timed("digest of the index", lambda: index_digest(rows))
    parser = argparse.ArgumentParser()
    add_training_arguments(parser, labels_per_class="all")
    args = parser.parse_args(["--features", str(folder)])
    chosen = timed("choose videos", lambda: choose_videos(rows, "gen", args))
    args.labels_per_class = 50
    timed("choose 50 a class", lambda: choose_videos(rows, "gen", args))
    for name, memory in (("mapped", 0), ("held", 2 << 30)):
        windows = timed(f"windows, {name}", functools.partial(Windows, chosen.train, memory))
        labels = np.array([row["label"] for row in chosen.train])[windows.video]
        for batching in ("natural", "pk"):
            batches = WindowBatches(windows, labels, 64, 0, batching)
            timed(f"first batch, {name}, {batching}", functools.partial(batches.__getitem__, 0))
            timed(f"second batch, {name}, {batching}", functools.partial(batches.__getitem__, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {"all, and the peak of the process": {"seconds": time.process_time() - started, "MB": peak}}


def measure(videos):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), videos)
        command = [sys.executable, __file__, "--steps", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def render(results) -> list[str]:
    """The table's lines: a row per step, seconds and MB by size."""
    sizes = list(results["videos"])
    heads = [f"{int(size):,} videos: CPU s" for size in sizes] + [f"{int(size):,}: MB" for size in sizes]
    lines = ["| step | " + " | ".join(heads) + " |", "|" + " --- |" * (1 + len(heads))]
    for name in results["videos"][sizes[0]]:
        entries = [results["videos"][size][name] for size in sizes]
        cells = [f"{entry['seconds']:.3f}" for entry in entries] + [f"{max(entry['MB'], 0):.0f}" for entry in entries]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--steps", metavar="DIR", help="time one folder, in this process alone")
    args = parser.parse_args()
    if args.steps:
        print(json.dumps(steps(args.steps)))
        return
    from tokens.dataset import write_json

    results = {"cores": os.cpu_count(), "videos": {str(videos): measure(videos) for videos in args.videos}}
    write_json(ROOT / "results" / "index_scale.json", results)
    lines = render(results)
    (ROOT / "results" / "index_scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
