"""Ratios in one run: what this repository takes beside what a user would use instead, on this machine.

    make bench                                             all of them, 65 minutes on two cores
    .venv-bench/bin/python benchmarks/bench.py --list
    .venv-bench/bin/python benchmarks/bench.py decode mining
    .venv-bench/bin/python benchmarks/bench.py --resume    only what results/benchmarks.json lacks
    .venv-bench/bin/python benchmarks/bench.py --tiny      sizes that only show that it runs; in runs/

reads   nothing; the benchmark `corpus` a folder of real clips (--corpus)
writes  results/benchmarks.json, .md   each row with ours, theirs, their ratio and the aim; the machine, date, versions

Every side runs in a process of its own, with the same packages installed; times are medians after a warm-up, memory is
the most that the process held. The file is written after each case, and a case that is not run again keeps its rows.
"""

import argparse
import datetime
import importlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from measuring import SideError, skipped  # noqa: E402  (these folders are on the path first)

from basics.artifacts import read_json, write_atomically, write_json  # noqa: E402

BENCHMARKS = {
    "decode": "8 frames per second of 10 s of 720p30 H.264",
    "mining": "losses with mined negatives, batch 64 to 8192",
    "disk": "features from disk to device",
    "growth": "stage 01 on 1, 4 and 16 times the clips",
    "corpus": "stage 01 on real clips, against frames in jpg files",
    "tokens": "SigLIP-So400m/14 tokens of a clip",
    "step": "a training step of stage 1 at full size",
}
PACKAGES = ("tensorflow", "jax", "keras", "keras-hub", "numpy", "opencv-python-headless", "av", "torch", "transformers")
PACKAGES += ("pytorch-metric-learning", "decord")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; without a name all of them")
    add("--list", action="store_true", help="print the benchmarks and their cases")
    add("--resume", action="store_true", help="leave the cases whose rows are there")
    add("--tiny", action="store_true", help="small sizes: shows that everything runs, measures nothing")
    add("--corpus", default="../shared/corpus", help="folder of real clips: clips/ and clips.csv")
    add("--out", help="the table without its suffix; default results/benchmarks, with --tiny runs/benchmarks-tiny")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; choose of {', '.join(BENCHMARKS)}")
    args.names = args.names or list(BENCHMARKS)
    args.out = args.out or ("runs/benchmarks-tiny" if args.tiny else "results/benchmarks")
    return args


# ---------------------------------------------------------------- the machine


def machine() -> dict:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    extras = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.machine())} ({', '.join(extras)})"


def version_of(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- the table


def merge(found: dict, case: str, rows: list, **how) -> dict:
    """The cases so far with this one's rows instead of its old ones, in the order of BENCHMARKS."""
    cases = found | {case: {"rows": rows, **how}}
    order = list(BENCHMARKS)
    return dict(sorted(cases.items(), key=lambda item: order.index(item[0].split()[0])))


def render(cases: dict) -> str:
    """The table in Markdown, a part for each machine that a case was run on."""
    lines = ["# Benchmarks", "", "A ratio above 1 means that ours is ahead; the aim is a ratio of at least so much."]
    machines = []
    for case in cases.values():
        if case["machine"] not in machines:
            machines.append(case["machine"])
    for where in machines:
        lines += ["", *described(where), ""]
        lines += ["| what | against | ours | theirs | ratio | aim | GiB, ours / theirs | note |", "|---" * 8 + "|"]
        for case in cases.values():
            if case["machine"] == where:
                lines += [f"| {' | '.join(cells(row))} |" for row in case["rows"]]
        lines += ["", "| case | command | date | seconds |", "|---" * 4 + "|"]
        for name, case in cases.items():
            if case["machine"] == where:
                lines.append(f"| {name} | `{case['command']}` | {case['date']} | {case['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def described(where):
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    yield f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']:.0f} GiB, {where['system']}"
    yield f"Python {where['python']}, {versions}"


def cells(row) -> list[str]:
    def number(value, unit=""):
        return "" if value is None else f"{value:.3g}{unit and ' '}{unit}"

    unit, aim = row.get("unit", ""), row.get("aim")
    verdict = {True: " met", False: " **not met**", None: ""}[row["met"]]
    memory = [number(row.get(key)) for key in ("ours_memory", "theirs_memory")]
    return [
        row["what"],
        row["against"],
        number(row["ours"], unit),
        number(row["theirs"], unit),
        number(row["ratio"]),
        f"{aim:g}{verdict}" if aim is not None else "",
        " / ".join(filter(None, memory)),
        row["note"],
    ]


# ---------------------------------------------------------------- running


def all_cases(args):
    """(name of the case, function that measures it and returns rows) in order."""
    for name in args.names:
        for case, measure in importlib.import_module(f"bench_{name}").cases(args):
            yield " ".join(filter(None, (name, case))), measure


def write_text(path, text):
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def main(argv=None):
    args = get_args(argv)
    if args.list:
        for name in args.names:
            print(f"{name:8} {BENCHMARKS[name]}")
            for case, _ in importlib.import_module(f"bench_{name}").cases(args):
                print(f"           {case}" if case else "", end="\n" if case else "")
        return
    path, here = Path(f"{args.out}.json"), machine()
    command = " ".join(["python benchmarks/bench.py", *(sys.argv[1:] if argv is None else argv)])
    found = read_json(path) if path.exists() else {}
    for case, measure in all_cases(args):
        if args.resume and case in found:
            print(f"{case}: there already")
            continue
        print(f"{case} ...", flush=True)
        started = time.time()
        try:
            rows = measure()
        except SideError as error:  # in preparing; a side that fails is told in its row
            rows = [skipped(case, str(error))]
        how = {"date": datetime.date.today().isoformat(), "seconds": time.time() - started}
        # other processes may have added theirs in the meantime
        found = merge(read_json(path) if path.exists() else {}, case, rows, machine=here, command=command, **how)
        write_json(path, found)
        write_text(path.with_suffix(".md"), render(found))
        for row in rows:
            print("  " + " | ".join(cells(row)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"bench.py: {error}")
