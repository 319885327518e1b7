"""Constrained fine-tuning on 10,000 to a million wild vectors of 768: seconds, vectors per second, peak memory; beside
scikit-learn's logistic regression, once, on the labelled and wild vectors together.

    python benchmarks/wild_scale.py [--wild 10000 100000 1000000]

Vectors are random, in a file, as 05 keeps them: 600 of the target and 600 of known generators are labelled. Memory is
what the system cannot take back (RssAnon); the file's pages, which it can, are left out. Every row is a process.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tokens.wild import Images, Roles, prepare  # noqa: E402  (the repository's root is on the path first)

method = importlib.import_module("05_wild_constrained")
WIDTH, LABELLED, L2, TAU = 768, 600, 0.01, 2.0


def vectors_file(folder, wild):
    """A file of float32 vectors: target, known, wild. The target is 1 deviation away along 20 of the axes."""
    random, path = np.random.default_rng(0), Path(folder) / "vectors"
    with open(path, "wb") as file:
        for start in range(0, 2 * LABELLED + wild, 1 << 14):
            count = min(1 << 14, 2 * LABELLED + wild - start)
            block = random.normal(size=(count, WIDTH)).astype(np.float32)
            block[: max(LABELLED - start, 0), :20] += 1
            file.write(block.tobytes())
    return np.memmap(path, np.float32, "r", shape=(2 * LABELLED + wild, WIDTH))


def constrained(vectors):
    """05's fine-tuning; how often it went through the wild vectors."""
    names = np.repeat(["target", "known", "wild"], [LABELLED, LABELLED, len(vectors) - 2 * LABELLED])
    images = Images(vectors, names, names, names, names, {})
    places = np.arange(len(vectors))
    labelled, wild = places[: 2 * LABELLED], places[2 * LABELLED :]
    problem = prepare(images, Roles(labelled, labelled[::5], wild, {}), "target")
    passes, read = [], problem.wild.__class__.__iter__

    def counted(batches):
        passes.append(1)
        return read(batches)

    problem.wild.__class__.__iter__ = counted
    thetas, facts = method.train(problem, TAU, L2)
    print(f"labelled {facts['constrained']['labelled_loss']:.4f} of {facts['allowed']:.4f}", file=sys.stderr)
    return len(passes)


def pooled(vectors):
    """scikit-learn on everything at once; its iterations."""
    labels = np.arange(len(vectors)) < LABELLED
    return int(LogisticRegression(C=1 / (L2 * len(vectors)), max_iter=200).fit(vectors, labels).n_iter_[0])


def measure(way, wild):
    """One row, in a process of its own that is watched from here: passes, seconds, peak MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--way", way, "--wild", str(wild), "--folder", folder]
        process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")))
            except (OSError, TypeError):
                pass
            time.sleep(0.05)
        passes, seconds = process.stdout.read().split()
    return int(passes), float(seconds), peak / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wild", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--way", choices=("constrained", "pooled"), help="run one alone, in this process")
    parser.add_argument("--folder", help="where --way keeps its vectors")
    args = parser.parse_args()
    if args.way:
        vectors = vectors_file(args.folder, args.wild[0])
        started = time.time()
        passes = {"constrained": constrained, "pooled": pooled}[args.way](vectors)
        print(passes, time.time() - started)
        return
    print("| wild vectors | way | passes | seconds | vectors per second | peak MB | seconds / scikit-learn's |")
    print("|---|---|---|---|---|---|---|")
    for wild in args.wild:
        rows = {way: measure(way, wild) for way in ("constrained", "pooled")}
        for way, (passes, seconds, peak) in rows.items():
            ratio = seconds / rows["pooled"][1]
            rate = wild * passes / seconds
            print(f"| {wild:,} | {way} | {passes} | {seconds:.1f} | {rate:,.0f} | {peak:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
