"""How far a reader of a stage has to walk: what of the project runs in a plain, small run of each.

    python tests/reading.py                  all five stages
    python tests/reading.py --functions 03   the functions of one, in the order of their first call

For each stage: own functions that ran (those with a name), their files, lines that ran, jumps (two functions that
follow each other in the order of their first call and lie in different files), the share of the lines in the four
files with the most, in the stage itself, and in the stage and common.py.
"""

import os
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (str(ROOT / "tests"), str(ROOT / ".venv"))


class Reading(NamedTuple):
    stage: str  # the name of its file
    functions: list[tuple[str, str]]  # (file, name) in the order of their first call
    lines: Counter  # lines that ran, by file

    @property
    def files(self):
        return list(dict.fromkeys(file for file, _ in self.functions))

    @property
    def jumps(self):
        return sum(one != other for (one, _), (other, _) in pairwise(self.functions))

    def share(self, *files):
        return sum(self.lines[file] for file in files) / self.lines.total()

    @property
    def in_four(self):
        return self.share(*(file for file, _ in self.lines.most_common(4)))

    @property
    def in_stage(self):
        return self.share(self.stage)

    @property
    def in_stage_or_common(self):
        return self.share(self.stage, "common.py")


@contextmanager
def traced():
    """Yield two dicts whose keys become the project's calls (file, name) and lines (file, line), on all threads."""
    calls, lines, own = {}, {}, {}

    def file_of(code):
        if code not in own:
            path = os.path.abspath(code.co_filename)
            inside = path.startswith(f"{ROOT}{os.sep}") and not path.startswith(OUTSIDE) and os.path.exists(path)
            own[code] = os.path.relpath(path, ROOT) if inside else None
        return own[code]

    def trace(frame, event, argument):
        if (file := file_of(frame.f_code)) is None or frame.f_code.co_name == "<module>":
            return None
        if not frame.f_code.co_name.startswith("<"):  # neither a lambda nor a comprehension
            calls.setdefault((file, frame.f_code.co_qualname))

        def line(frame, event, argument):
            if event == "line":
                lines.setdefault((file, frame.f_lineno))
            return line

        return line

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield calls, lines
    finally:
        sys.settrace(before)
        threading.settrace(before)


def read(name, *flags):
    """What runs in main of a stage with these flags."""
    from stages import module

    main = module(name).main  # imported before it is traced
    with traced() as (calls, lines):
        main([str(flag) for flag in flags])
    return Reading(f"{name}.py", list(calls), Counter(file for file, _ in lines))


def read_all(folder, videos):
    """The readings of the five stages on a folder of videos, each on what the one before it left in `folder`; of 05 on
    features of all generators of the table, so that its roles are the default ones.
    """
    from small import write_folder  # here, since it imports the project, whose root a script has to add first

    from tokens.generators import load_generators

    features, run = Path(folder) / "features", Path(folder) / "run"
    place = ["--features", features, "--run", run]
    return [
        read("01_extract_features", "--videos", videos, "--features", features),
        read("02_pretrain_binary", *place, "--epochs", 1, "--batch-size", 8),
        read("03_attribute", *place, "--epochs", 1, "--batch-size", 8),
        read("04_tsigs", *place, "--repeats", 2),
        read("05_wild_constrained", "--features", write_folder(Path(folder) / "all", load_generators()), "--run", run),
    ]


def describe(reading):
    shares = (reading.in_four, reading.in_stage, reading.in_stage_or_common)
    cells = [reading.stage[:2], len(reading.functions), len(reading.files), reading.lines.total(), reading.jumps]
    return " ".join(f"{cell:>10}" for cell in [*cells, *(f"{share:.0%}" for share in shares)])


HEADER = ("stage", "functions", "files", "lines", "jumps", "in 4 files", "in stage", "or common")


def small_zoo(folder):
    """A simulated zoo of three generators and Real, eight clips each."""
    from stages import stage

    table, kept = Path(folder) / "generators.csv", ("name", "Real", "SVD", "Pika", "ModelScope")
    lines = (ROOT / "generators.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(line for line in lines if line.split(",")[0] in kept), encoding="utf-8")
    zoo = Path(folder) / "zoo"
    stage("simulate_videos", "--out", zoo, "--generators", table, "--clips-per-generator", 8, "--limit", 8)
    return zoo


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        readings = read_all(folder, small_zoo(folder))
    for reading in readings:
        if "--functions" in sys.argv and reading.stage[:2] in sys.argv:
            print("\n".join(f"{file}  {name}" for file, name in reading.functions))
            print("\n".join(f"{count:5} {file}" for file, count in reading.lines.most_common()))
    print(" ".join(f"{head:>10}" for head in HEADER))
    print("\n".join(map(describe, readings)))
