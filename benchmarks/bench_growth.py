"""What stage 01 costs as work grows: 1, 4 and 16 times 100 simulated clips; seconds per clip and peak memory.

The clips of the larger folders are links to those of the smallest, so that all are alike. Seconds are of the work,
without Python's imports. A ratio of 1 is flat; above 1, more work costs less per clip.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from measuring import ROOT, alternated, command_measured, compared, side

TIMES, ROUNDS = (1, 4, 16), 3
FULL, TINY = 5, 1  # clips of each of the zoo's generators
FLAT = 1 / 1.1  # at most 10 per cent more


def cases(args):
    return [("", partial(measure, TINY if args.tiny else FULL, 1 if args.tiny else ROUNDS))]


def measure(per_generator, rounds):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags = ["--clips-per-generator", per_generator, "--limit", per_generator]
        command_measured([sys.executable, ROOT / "simulate_videos.py", "--out", folder / "zoo", *flags])
        clips = sorted((folder / "zoo").rglob("*.mp4"))
        for times in TIMES:
            link(clips, folder / f"videos-{times}", times)
        found = alternated(rounds, **{str(times): partial(stage_01, folder, times) for times in TIMES})
        rows = []
        for times in TIMES[1:]:
            what, against = f"stage 01 on {times * len(clips)} clips", f"on {len(clips)}"
            once, more = found["1"], found[str(times)]
            rows.append(compared(f"{what}: time per clip", against, more, once, "s", "per_clip", aim=FLAT))
            rows.append(compared(f"{what}: peak memory", against, more, once, "GiB", "memory", aim=FLAT))
        return rows


def link(clips, folder, times):
    for clip in clips:
        (folder / clip.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            os.symlink(clip, folder / clip.parent.name / f"{clip.stem}-{copy}{clip.suffix}")


def stage_01(folder, times):
    place = dict(videos=folder / f"videos-{times}", features=folder / f"features-{times}")
    found = side(Path(__file__).with_name("bench_corpus.py"), "stage_01", **place, flags=["--overwrite"])
    return {"per_clip": 1 / found["rate"], "memory": found["memory"]}
