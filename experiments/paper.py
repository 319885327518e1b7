"""What the papers print, and what they call the settings that are trained here. It stands beside our numbers in what
reproduce.py prints, and is measured on other data: GenVideo.

paper_values("7 GEN-L", paper_setting(TWO_FEW, "gen"))["Overall"]      94.99
"""

import functools
from pathlib import Path

from basics.artifacts import read_csv

PAPER_TABLES = {"task": "2 TASK-L", "sd": "3 SD-L", "team": "6 TEAM-L", "gen": "7 GEN-L"}

LABELS = {"few": "0.5%", "all": "100%"}


@functools.cache
def all_lines():
    return read_csv(Path(__file__).with_name("paper_results.csv"), ("table", "setting", "row", "value"))


def paper_lines(table):
    """The rows of paper_results.csv that are of a table, dicts of text."""
    return [line for line in all_lines() if line["table"] == table]


def paper_values(table, setting):
    """{row: per cent} of a setting of one of the paper's tables."""
    return {line["row"]: float(line["value"]) for line in paper_lines(table) if line["setting"] == setting}


def paper_setting(arm, level):
    """What the paper calls an arm (stages.Arm): its Tables 2, 3 and 6 do not say the loss."""
    return f"{arm.stages}-stage {LABELS[arm.labels]}" + (f" {arm.loss}" if level == "gen" else "")


def arm_values(arm, level):
    """What the paper prints of an arm at an attribution level, by row; nothing of one that trains for longer."""
    return paper_values(PAPER_TABLES[level], paper_setting(arm, level)) if arm.times == 1 else {}


def paper_overall(arm):
    """The paper's Overall of an arm by level; at BIN-L it has stage 1 with all labels alone."""
    all_labels = float(paper_lines("4 BIN-L")[0]["value"])
    values = {"bin": all_labels if arm.stages == 2 or arm.labels == "all" else None}
    return values | {level: arm_values(arm, level)["Overall"] for level in PAPER_TABLES}


def printed(value):
    """A number as the paper prints it; nothing for None."""
    return "" if value is None else f"{value:.2f}"
