"""docs/the_papers_against_themselves.md: its numbers, computed again from paper_results.csv and generators.csv."""

import re
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import linprog

from basics.running import ROOT
from common import build_saga
from experiments.paper import all_lines, paper_lines, paper_values
from tokens.generators import LEVELS, class_index, class_names, load_generators

PAGE = (ROOT / "docs" / "the_papers_against_themselves.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
TABLE = load_generators()
# Clips of GenVideo, arXiv 2405.19707, Table 1, but real ones as many as SAGA's Sec. 4 says
CLIPS = {
    "Real": 1_000_000,
    "ZeroScope": 133169,
    "I2VGen-XL": 61975,
    "SVD": 149026,
    "VideoCrafter": 39485,
    "Pika": 98377,
}
CLIPS |= {"DynamiCrafter": 46205, "SD": 200720, "SEINE": 24737, "Latte": 149979, "OpenSora": 177410, "ModelScope": 700}
CLIPS |= {"MorphStudio": 700, "MoonValley": 626, "HotShot": 700, "Show_1": 700, "Gen2": 1380, "Crafter": 1400}
CLIPS |= {"Lavie": 1400, "Sora": 56}
LEVEL_OF = {"2 TASK-L": "task", "3 SD-L": "sd", "6 TEAM-L": "team", "7 GEN-L": "gen"}
TEAMS = {"Hotshot Co.": "HotShot", "MoonValley": "MoonValley", "MorphStudio": "MorphStudio", "OpenAI": "Sora"}
TEAMS |= {"Runway": "Gen2", "Show Lab": "Show_1"}  # of Table 6, with one generator of GenVideo's val set each


def said(section, *facts):
    """Each fact, a text or a number to two digits, stands in a section of the page."""
    text = " ".join(SECTIONS[str(section)].split())
    for fact in facts:
        wanted = fact if isinstance(fact, str) else f"{fact:.2f}"
        assert re.search(rf"(?<![\d.,]){re.escape(wanted)}(?![\d]|[.,]\d)", text), f"section {section}: {wanted}"


def settings_of(table):
    return list(dict.fromkeys(line["setting"] for line in paper_lines(table)))


def classes_of(table, setting):
    """{class: per cent} without Overall, in the paper's order, and Overall."""
    values = paper_values(table, setting)
    return values, values.pop("Overall")


def micro(table, setting):
    """The mean over clips of GenVideo, were every class tested in proportion to its size."""
    level, (values, _) = LEVEL_OF[table], classes_of(table, setting)
    names, sizes = class_names(level), Counter()
    for name, count in CLIPS.items():
        if (index := class_index(level, name)) is not None:
            sizes[names[index]] += count
    weights = [sizes[name] for name in values]
    assert all(weights) and len(weights) == len(names)
    return np.average(list(values.values()), weights=weights)


def likely_count(values):
    """The least number of clips of which fractions give all these percentages, as printed to two digits."""
    for count in range(1, 2000):
        nearest = [100 * round(value * count / 100) / count for value in values]
        if np.allclose(nearest, values, rtol=0, atol=0.00501):
            return count
    raise AssertionError(values)


def test_every_section_says_what_is_printed_computed_and_chosen():
    assert list(SECTIONS) == [str(number) for number in range(1, len(SECTIONS) + 1)] and len(SECTIONS) >= 18
    for number, text in SECTIONS.items():
        for word in ("Printed", "Arithmetic", "Here"):
            assert f"**{word}.**" in text, (number, word)


def test_schedule():
    steps = 1_600_000 / 64
    smooth, stairs = 1 / (1 - 0.5 ** (1 / 1000)), 1000 / (1 - 0.5)
    few = 500 * 20 * 10 / 64
    said(1, *(f"{number:,.0f}" for number in (steps, 10 * steps, smooth, stairs, few)), f"{smooth / (10 * steps):.1%}")
    said(1, f"{1e13 * 1e-5 * 0.5 ** (steps / 1000):.0f} x 10^-13", f"{1e6 * 1e-5 * 0.5 ** (few / 1000):.1f} x 10^-6")


def test_overall_is_not_one_kind_of_average():
    for table in LEVEL_OF:
        for setting in settings_of(table):
            values, overall = classes_of(table, setting)
            macro = np.mean(list(values.values()))
            kind = f"{overall:.2f} | {macro:.2f} | {micro(table, setting):.2f}"
            assert f"| {table.split()[1]} | {setting} | {kind} |" in SECTIONS["2"], (table, setting, kind)


def test_no_class_sizes_give_table_2s_overalls():
    few, full, ours = (classes_of("2 TASK-L", setting) for setting in ("1-stage 0.5%", "1-stage 100%", "2-stage 0.5%"))
    columns, overall = zip(*((list(values.values()), printed) for values, printed in (few, full, ours)), strict=True)
    matrix, bound = np.array(columns), np.array(overall)
    for rows, possible in (([0, 2], False), ([0], True), ([2], True)):
        limits = np.concatenate([bound[rows] + 0.005, 0.005 - bound[rows]])
        found = linprog(np.zeros(3), np.concatenate([matrix[rows], -matrix[rows]]), limits, [[1, 1, 1]], [1])
        assert found.success == possible
    least = (few[0]["T2V"] - few[1]) / (few[0]["T2V"] - few[0]["I2V"])
    most = (ours[0]["Real"] - ours[1]) / (ours[0]["Real"] - ours[0]["I2V"])
    said(3, f"{least:.0%}", f"{most:.0%}")


def test_two_stages_against_all_labels():
    one, two = (classes_of("6 TEAM-L", setting)[0] for setting in ("1-stage 100%", "2-stage 0.5%"))
    macros = [np.mean(list(own.values())) for own in (one, two)]
    said(4, *macros, macros[0] - macros[1], micro("6 TEAM-L", "1-stage 100%"), micro("6 TEAM-L", "2-stage 0.5%"))
    said(4, "97.77", "94.94")


def test_averaged_over_classes():
    for setting in ("2-stage 0.5% CE", "2-stage 0.5% CE+HNM"):
        values, overall = classes_of("7 GEN-L", setting)
        said(5, overall, np.mean(list(values.values())))
    for setting in ("1-stage 100% CE", "1-stage 100% CE+HNM"):
        values, overall = classes_of("7 GEN-L", setting)
        said(5, overall, np.mean(list(values.values())), micro("7 GEN-L", setting))


def test_semi_hard_mining_has_two_numbers():
    (semi,) = (line["value"] for line in paper_lines("S-6 loss GEN-L") if line["row"] == "CE+semi-HNM")
    said(6, semi, "70.31", 70.31 - float(semi))


def test_encoders_differ_by_more_than_is_said():
    levels = settings_of("S-3 backbone")
    gaps = {level: float(np.ptp(list(paper_values("S-3 backbone", level).values()))) for level in levels}
    assert max(gaps, key=gaps.get) == "SD-L"
    said(7, *gaps.values(), "0.4")


def share_of_fakes(precision, recall, accuracy):
    """The fraction of test clips that are positive, which three percentages imply."""
    errors = (1 - recall) + recall * (1 - precision) / precision  # per positive: misses and false alarms
    return (1 - accuracy) / errors, errors


def test_dvf_triple_is_impossible():
    keys = ("precision", "recall", "accuracy")
    precision, recall, accuracy = (paper_values("5 BIN-L DVF", key)["SAGA"] / 100 for key in keys)
    share, errors = share_of_fakes(precision, recall, accuracy)
    false_alarms = recall * (1 - precision) / precision
    most = 1 / (1 + false_alarms)  # no real clip is right
    assert share > 1 and 1 - most * errors > accuracy + 0.0005
    fakes, clips = 1800 + 450 + 800 + 153 + 122 + 500 + 12 + 101, 2750 + 3938
    said(
        8,
        100 * errors,
        100 * most,
        100 * (1 - most * errors),
        100 * (1 - fakes / clips * errors),
        f"{fakes:,}",
        "2,750",
    )
    loosest = min(
        1 - (1 - r + r * (1 - p) / p) / (1 + r * (1 - p) / p) for p in (0.99345, 0.99355) for r in (0.96135, 0.96145)
    )
    said(8, 100 * loosest)


def test_generators_of_table_4():
    fakes = [own for own in TABLE.values() if own.name != "Real"]
    four = [own.name for own in fakes if own.team in ("Alibaba Group", "Stability AI", "Tencent AI Lab", "Pika")]
    said(9, *four, f"{len(four)} and {len(fakes) - len(four)}", "8 and 11", f"{len(fakes)}")
    tasks, versions = Counter(own.task for own in fakes), Counter(own.sd_version for own in fakes)
    known = sum(count for name, count in versions.items() if name not in ("Unknown", "Mixed", "SD 2.1"))
    said(9, f"{tasks['T2V']} and {tasks['I2V']}", f"{versions['SD 2.1']} and {known}")


def test_numbers_of_classes_and_teams():
    assert [len(class_names(level)) for level in LEVELS] == [2, 3, 5, 15, 20]
    merged = {own.team.removesuffix("-1").removesuffix("-2") for own in TABLE.values()}
    said(10, f"{len(merged)} classes", "15 classes")
    said(18, f"{len(TABLE) - 1} generators", f"{len(TABLE)}")


def test_shares_of_fakes_in_table_4():
    values = {key: paper_values("4 BIN-L", key) for key in ("precision", "recall", "accuracy")}
    for row in values["accuracy"]:
        share, _ = share_of_fakes(*(values[key][row] / 100 for key in values))
        said(11, f"{share:.0%}")


def test_label_counts():
    sizes = {}
    for name in list(CLIPS)[-9:]:
        printed = [classes_of("7 GEN-L", setting)[0][name] for setting in settings_of("7 GEN-L")]
        for team in (team for team, own in TEAMS.items() if own == name):
            printed += [classes_of("6 TEAM-L", setting)[0][team] for setting in settings_of("6 TEAM-L")]
        sizes[name] = likely_count(printed)
    for name, count in sizes.items():
        assert f"| {name} | {CLIPS[name]} | {count} | {CLIPS[name] - count} |" in SECTIONS["12"], (name, count)
    assert {name for name, count in sizes.items() if CLIPS[name] - count < 500} == {"Sora", "MoonValley"}
    said(12, 100 / sizes["Sora"], f"{sum(sizes.values()) / sum(CLIPS[name] for name in sizes):.1%}")
    said(12, f"{0.005 * 1_600_000:,.0f}", f"{500 * 20:,}", f"{500 * 3:,}", f"{500 * 3 / 1_600_000:.2%}")


def test_margins_sign():
    near, far, margin = 1.0, 1.5, 1.0
    said(13, f"{max(0, near - far + margin):g}", f"{max(0, near - (far + margin)):g}")


def test_gradients_sign():
    random = np.random.default_rng(0)
    anchor, positive, negative = random.normal(size=(3, 8))

    def loss(at):
        return np.sum((at - positive) ** 2) - np.sum((at - negative) ** 2) + 1

    slopes = [(loss(anchor + step) - loss(anchor - step)) / 2e-6 for step in 1e-6 * np.eye(8)]
    np.testing.assert_allclose(slopes, -(2 * (anchor - negative) - 2 * (anchor - positive)), atol=1e-6)
    said(14, "2(n - p)", "2(p - n)")


def test_positions_exponent():
    said(15, f"{10000 ** (2 * 100 / 1152):.2f}", f"{10000 * 2 * 100 / 1152:,.2f}")


def test_depth_by_parameter_counts():
    def weights(width, blocks, classes):
        return blocks * (12 * width**2 + 13 * width) + (width + 1) * classes

    assert weights(24, 6, 3) == build_saga(3, frames=2, tokens=3, dim=24).count_params()
    for classes in (2, 20):
        count = weights(1152, 6, classes)
        said(16, f"{count:,}", f"{count / 1e6:.2f}", f"{4 * count / 2**20:.2f}", f"{4 * count / 1e6:.2f}")
    said(16, f"{weights(1152, 8, 2) / 1e6:.2f}", f"{weights(1024, 6, 2) / 1e6:.2f}")


def test_where_cross_entropy_is_ahead():
    for number, setting in enumerate(("1-stage 0.5%", "2-stage 0.5%", "1-stage 100%")):
        alone, mined = (classes_of("7 GEN-L", f"{setting} {loss}")[0] for loss in ("CE", "CE+HNM"))
        stages, labels = setting.split("-stage ")
        said(17, f"{sum(alone[name] > mined[name] for name in alone)} of 20 with {stages} stage, {labels}")
        if number == 1:
            said(17, *(own[name] for own in (alone, mined) for name in ("MorphStudio", "Sora")))
    values, _ = classes_of("7 GEN-L", "2-stage 0.5% CE+HNM")
    said(17, values["DynamiCrafter"])


def test_a_linear_classifier_of_401_points_can_be_perfect():
    random, count = np.random.default_rng(0), 200 + 3 * 67
    vectors, signs = random.normal(size=(count, 768)), random.choice([-1.0, 1.0], count)
    theta = np.linalg.lstsq(np.column_stack([vectors, np.ones(count)]), signs, rcond=None)[0]
    assert (signs * (vectors @ theta[:-1] + theta[-1]) > 0.99).all()
    said(20, str(count), "769", f"{14 * 67}")


def test_gains_of_the_unknown_aware_paper():
    values = [float(line["value"]) * 100 for line in paper_lines("Unknown-Aware")]
    said(21, *values, values[2] - values[0], values[3] - values[1])


def test_numbers_that_are_said_to_be_printed_are():
    said_elsewhere = {"70.31", "364.85", "364.93"}  # in Sec. 3.2 and S-2
    known = {line["value"] for line in all_lines()} | said_elsewhere
    for number, text in SECTIONS.items():
        printed = text.split("**Arithmetic.**")[0]
        quoted = set(re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.]|M)", printed))
        assert quoted <= known, (number, quoted - known)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z-]+)", PAGE))))
def test_flags_of_the_alternatives_exist(flag):
    assert any(flag in path.read_text(encoding="utf-8") for path in ROOT.glob("0*.py"))
