"""What every row of bench.py needs: a side in a process of its own, its seconds and peak memory, a row of the table.

    measured = side(__file__, "ours", clips=4)    what the function ours(clips=4) of that file returned, "seconds" and
                                                  "memory" (GiB, the most that the process ever held)
    compared("tokens", "PyTorch", ours, theirs, "s", aim=1.0)    a row; its ratio is above 1 where we are ahead

A file of sides ends with `run_side(globals())`.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class SideError(Exception):
    """A side that could not be measured, and why."""


def side(file, function, environment=(), limit=3600, **sizes) -> dict:
    """What one side returns, and its "memory" (GiB); raises SideError with its last line of complaint."""
    command = [sys.executable, file, function, json.dumps(sizes, default=str)]
    return json.loads(command_measured(command, environment, limit)[1].splitlines()[-1])


def command_measured(command, environment=(), limit=3600):
    """Seconds, standard output and peak memory (GiB) of a command, its own children left out; SideError after `limit`.

    Linux begins a child's peak with its parent's, so the process that measures stays small: whatever takes memory,
    preparing included, is a side, and a side tells its own.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(environment),
    )
    # communicate() would reap the process, and with it what is known of its memory
    with process.stdout, process.stderr:
        complaints, timer = [], threading.Timer(limit, process.kill)
        timer.daemon = True
        timer.start()
        reader = threading.Thread(target=lambda: complaints.append(process.stderr.read()))
        reader.start()
        output = process.stdout.read()
        reader.join()
    timer.cancel()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = [line for line in complaints[0].splitlines() if line.strip()]
        seconds = time.perf_counter() - started
        if process.returncode < 0:
            late = seconds >= limit
            raise SideError(f"not done in {limit} s" if late else "ended by a signal, as when memory runs out")
        raise SideError(lines[-1].strip()[:200] if lines else f"exit status {process.returncode}")
    return time.perf_counter() - started, output, usage.ru_maxrss / 2**20


def run_side(functions):
    """In the process of a side: call the function that the command line names and print what it returns."""
    if len(sys.argv) == 3:
        found = functions[sys.argv[1]](**json.loads(sys.argv[2]))
        print("\n" + json.dumps({"memory": held_at_most()} | found))


def held_at_most() -> float:
    """The most memory (GiB) that this program ever held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def seconds_of(work, repeats, warm_up=1) -> float:
    """The median time of `repeats` calls after a warm-up."""
    for _ in range(warm_up):
        work()
    return statistics.median(once(work) for _ in range(repeats))


def once(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternated(rounds, **sides) -> dict:
    """Each side's median seconds and highest memory over rounds in which all sides are measured in turn.

    `sides` are functions without arguments that measure; whoever else uses the machine then slows all of them alike.
    A side that cannot be measured is its SideError.
    """
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            if isinstance(found[name], list):
                try:
                    found[name].append(measure())
                except SideError as error:
                    found[name] = error
    return {name: all_of if isinstance(all_of, SideError) else middle(all_of) for name, all_of in found.items()}


def middle(measurements) -> dict:
    """One measurement of several: medians of numbers, the highest memory, the first of everything else."""
    merged = dict(measurements[0])
    for key, value in merged.items():
        values = [one[key] for one in measurements]
        if key == "memory":
            merged[key] = max(values)
        elif isinstance(value, float):
            merged[key] = statistics.median(values)
    return merged


def compared(what, against, ours, theirs, unit="s", key="seconds", aim=1.0, higher=False, note="") -> dict:
    """A row that compares one number of two measurements. ratio > 1: ours is ahead. aim None: for the record."""
    row = {"what": what, "against": against, "unit": unit, "aim": aim, "note": note}
    for whose, measured in (("ours", ours), ("theirs", theirs)):
        if isinstance(measured, SideError):
            row |= {whose: None, "note": "; ".join(filter(None, (f"{whose}: {measured}", row["note"])))}
        else:
            row |= {whose: measured[key], f"{whose}_memory": measured.get("memory")}
    row["ratio"] = None
    if row["ours"] is not None and row["theirs"] is not None:
        row["ratio"] = row["ours"] / row["theirs"] if higher else row["theirs"] / row["ours"]
    row["met"] = None if aim is None or row["ratio"] is None else bool(row["ratio"] >= aim)
    return row


def skipped(what, why) -> dict:
    """A row that says why something is not measured here."""
    return {"what": what, "against": "", "note": why, "ours": None, "theirs": None, "ratio": None, "met": None}
