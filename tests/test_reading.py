"""A stage stays short to walk through: what runs of the project in a plain, small run (tests/reading.py)."""

import pytest
from reading import read_all

# Per stage: so many files, functions and jumps between files at most; of the lines that ran, at least this part in four
# files, and this in the stage (01, 05) or in the stage and common.py. The aims: 5 files at 01 and 05 and 8 elsewhere,
# 60 functions, 25 jumps, 0.8, and 0.4 at 01 and 05 and 0.5 elsewhere. What is beyond an aim is what is reached.
LIMITS = {
    "01": (14, 116, 52, 0.58, 0.14),
    "02": (18, 130, 72, 0.43, 0.21),
    "03": (17, 146, 84, 0.47, 0.28),
    "04": (12, 88, 40, 0.6, 0.32),
    "05": (9, 80, 40, 0.7, 0.26),
}


@pytest.fixture(scope="module")
def readings(zoo, tmp_path_factory):
    return {reading.stage[:2]: reading for reading in read_all(tmp_path_factory.mktemp("reading"), zoo)}


@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.parametrize("stage", LIMITS)
def test_stage_is_short_to_walk_through(readings, stage):
    reading, (files, functions, jumps, in_four, in_stage) = readings[stage], LIMITS[stage]
    own = reading.in_stage if stage in ("01", "05") else reading.in_stage_or_common
    assert len(reading.files) <= files and len(reading.functions) <= functions and reading.jumps <= jumps
    assert reading.in_four >= in_four and own >= in_stage
