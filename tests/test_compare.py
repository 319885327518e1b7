"""Runs beside each other: McNemar's exact test, Holm's correction, accuracies with a bootstrap over groups, and
`reproduce.py compare`.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

import reproduce
from basics.artifacts import write_arrays, write_json
from basics.running import InputError
from basics.statistics import bootstrap_accuracies, holm, mcnemar

# ---------------------------------------------------------------- statistics


def as_pair(both, only_one, only_other, neither):
    """Whether two classifiers are correct, with these counts of clips."""
    counts = [both, only_one, only_other, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(("only_one", "only_other"), [(0, 1), (5, 5), (9, 2), (2, 9), (0, 12), (30, 17)])
def test_mcnemar_sums_the_outcomes_that_are_no_likelier(only_one, only_other):
    count = only_one + only_other
    outcomes = [math.comb(count, k) for k in range(count + 1)]
    wanted = sum(own for own in outcomes if own <= outcomes[only_one]) / 2**count
    assert mcnemar(*as_pair(7, only_one, only_other, 3)) == (only_one, only_other, pytest.approx(wanted))


def test_mcnemar_of_a_printed_example():
    """1 - 2 * sum of C(11, k) / 2^11 over k <= 1: 0.01171875, of 10 and 1 discordant pairs."""
    assert mcnemar(*as_pair(50, 10, 1, 9))[2] == pytest.approx(2 * (1 + 11) / 2**11)


def test_mcnemar_of_equal_answers_is_one():
    assert mcnemar(*as_pair(4, 0, 0, 2)) == (0, 0, 1.0)


def test_holm_of_a_hand_worked_example():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, the last raised to 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert len(holm([])) == 0


def simulated(correct, classes, groups, repeats=4000, seed=5):
    """Bootstrap draws of micro and macro accuracy by loops over lists of clips."""
    random, members, found = np.random.default_rng(seed), {}, []
    for clip, group in enumerate(groups):
        members.setdefault(group, []).append(clip)
    names = list(members)
    for _ in range(repeats):
        clips = [clip for i in random.integers(len(names), size=len(names)) for clip in members[names[i]]]
        by_class = {}
        for clip in clips:
            by_class.setdefault(classes[clip], []).append(correct[clip])
        found.append((np.mean([correct[clip] for clip in clips]), np.mean([np.mean(own) for own in by_class.values()])))
    return np.percentile(found, [2.5, 97.5], axis=0)


def test_bootstrap_is_that_of_a_simulation():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), random.integers(1, 6, size=40))
    classes = np.where(groups % 4 == 0, "a", np.where(groups % 4 == 1, "b", "c"))
    correct = random.random(len(groups)) < np.where(groups % 3 == 0, 0.9, 0.3)
    draws = bootstrap_accuracies(correct[None], classes, groups, repeats=4000)
    assert draws.shape == (4000, 1, 2)
    found = np.percentile(draws[:, 0], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(found, simulated(correct, classes, groups), atol=0.015)


def test_clips_of_one_group_widen_the_interval():
    """Ten groups of ten like clips are as sure as ten clips and not as a hundred."""
    correct, classes = np.repeat(np.arange(10) % 2 == 0, 10)[None], np.full(100, "a")
    width = [
        np.ptp(np.percentile(bootstrap_accuracies(correct, classes, groups)[:, 0, 0], [2.5, 97.5]))
        for groups in (np.repeat(np.arange(10), 10), np.arange(100))
    ]
    assert width[0] > 2.5 * width[1]


def test_runs_meet_the_same_draws():
    random = np.random.default_rng(0)
    correct = np.repeat(random.random((1, 60)) < 0.5, 2, axis=0)
    draws = bootstrap_accuracies(correct, np.repeat(list("abc"), 20), np.arange(60) // 2)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])


# ---------------------------------------------------------------- compare

CLASSES = ("Real", "SVD", "Pika")


def write_run(folder, predicted, names=None, groups=None, level="gen", videos=None, classes=CLASSES):
    """A run that predicts these class numbers for its test clips, after two clips of training."""
    names = names or [CLASSES[i % 3] for i in range(len(predicted))]
    videos = videos or [f"{name}/{i}.mp4" for i, name in enumerate(names)]
    arrays = {
        "video": ["t/1", "t/2", *videos],
        "class": ["Real", "SVD", *names],
        "group": ["t", "t", *(groups or videos)],
    }
    arrays = {key: np.array(own) for key, own in arrays.items()} | {
        "probabilities": np.eye(len(classes))[[0, 0, *predicted]]
    }
    write_arrays(
        folder / f"{level}_embeddings.npz", arrays | {"split": np.array(["train"] * 2 + ["test"] * len(predicted))}
    )
    write_json(folder / f"{level}.json", {"level": level, "classes": list(classes)})
    return str(folder)


def predictions(seed, fraction, clips=90):
    """Class numbers, about this fraction of them correct."""
    random = np.random.default_rng(seed)
    return np.where(random.random(clips) < fraction, np.arange(clips) % 3, random.integers(3, size=clips)).tolist()


def compare(*arguments):
    return reproduce.main(["compare", *arguments])


def test_runs_are_compared(tmp_path, capsys):
    predicted = [predictions(0, 0.9), predictions(1, 0.5), predictions(2, 0.4)]
    runs = [write_run(tmp_path / name, own) for name, own in zip("abc", predicted, strict=True)]
    (result,) = compare(*runs)
    truth, printed = np.arange(90) % 3, capsys.readouterr().out
    correct = [np.array(own) == truth for own in predicted]
    assert (result["level"], result["clips"], result["groups"]) == ("gen", 90, 90)
    assert (result["majority"], result["uniform"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    for run, own, entry in zip(runs, correct, result["runs"], strict=True):
        assert entry["run"] == run
        assert entry["micro"] == own.mean()
        assert entry["per_class"] == {name: own[truth == i].mean() for i, name in enumerate(CLASSES)}
        assert entry["macro"] == pytest.approx(np.mean([own[truth == i].mean() for i in range(3)]))
        for key in ("micro", "macro"):
            low, high = entry[f"{key}_interval"]
            assert low < entry[key] < high and 0.1 < high - low < 0.25
    p = [mcnemar(correct[i], correct[j])[2] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [pair["runs"] for pair in result["pairs"]] == [runs[:2], [runs[0], runs[2]], runs[1:]]
    assert [pair["p"] for pair in result["pairs"]] == p
    assert [pair["holm"] for pair in result["pairs"]] == pytest.approx(holm(p))
    low, high = result["pairs"][0]["difference_interval"]
    assert 0 < low < correct[0].mean() - correct[1].mean() < high
    rows = [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")]
    assert [row.strip("| ") for row in rows if "---" not in row] == [
        *("run", *runs), *("class", *sorted(CLASSES)), *("pair", f"{runs[0]}, {runs[1]}"),
        *(f"{runs[0]}, {runs[2]}", f"{runs[1]}, {runs[2]}"),
    ]  # fmt: skip
    tables = [line.count("|") for line in printed.splitlines()]
    assert all(one == other for one, other in pairwise(tables) if one and other)


def test_equal_runs_do_not_differ(tmp_path):
    """A run that collapsed to one class is compared with itself, and with one whose classes have another order."""
    runs = [write_run(tmp_path / "a", [0] * 30), write_run(tmp_path / "b", [1] * 30, classes=("SVD", "Real", "Pika"))]
    (result,) = compare(*runs)
    assert (result["pairs"][0]["p"], result["pairs"][0]["holm"]) == (1, 1)
    assert result["pairs"][0]["difference_interval"] == [0, 0]


def test_clips_of_a_group_count_as_one(tmp_path, capsys):
    """The same answers, correct in every other nine clips: in groups of nine their interval is wider."""
    answers, width = [(i + i // 9 % 2) % 3 for i in range(90)], {}
    for name, groups in (("alone", None), ("nines", [f"{i // 9}" for i in range(90)])):
        (result,) = compare(*(write_run(tmp_path / name / run, answers, groups=groups) for run in "ab"))
        width[result["groups"]] = np.ptp(result["runs"][0]["micro_interval"])
        assert ("trust the intervals" in capsys.readouterr().out) == (groups is not None)
    assert width[10] > 2 * width[90]


def test_every_level_that_all_runs_have_is_compared(tmp_path):
    a, b = (write_run(tmp_path / name, predictions(0, 0.9)) for name in "ab")
    write_run(tmp_path / "a", predictions(0, 0.9), level="team")
    for name in "ab":
        write_run(tmp_path / name, [0] * 6, names=["Real", "Fake"] * 3, level="bin", classes=("Real", "Fake"))
    assert [result["level"] for result in compare(a, b)] == ["bin", "gen"]
    assert [result["level"] for result in compare(a, b, "--level", "gen")] == ["gen"]
    with pytest.raises(InputError, match=f"not all runs have team: {a} has bin, team, gen; {b} has bin, gen; train it"):
        compare(a, b, "--level", "team")
    alone = write_run(tmp_path / "c", predictions(0, 0.9), level="sd")
    with pytest.raises(
        InputError, match=f"not all runs have one level: {a} has bin, team, gen; {alone} has sd; train "
    ):
        compare(a, alone)
    with pytest.raises(InputError, match="gone has none"):
        compare(a, "gone")


def test_other_test_clips_are_refused_and_named(tmp_path):
    a = write_run(tmp_path / "a", predictions(0, 0.9))
    fewer = write_run(tmp_path / "b", predictions(0, 0.9, 85))
    five = r"5 \(SVD/85.mp4, Pika/86.mp4, Real/87.mp4, \.\.\.\)"
    wanted = f"gen_embeddings.npz: its test clips are not those of {a}: 0 tested here alone, {five} there alone"
    with pytest.raises(InputError, match=f"{fewer}/{wanted}"):
        compare(a, fewer)
    with pytest.raises(InputError, match=f"of {fewer}: {five} tested here alone, 0 there alone"):
        compare(fewer, a)
    names = [CLASSES[i % 3] for i in range(90)]
    videos = [f"{name}/{i}.mp4" for i, name in enumerate(names)]
    names[4] = "Pika"
    relabelled = write_run(tmp_path / "c", predictions(0, 0.9), names=names, videos=videos)
    with pytest.raises(InputError, match=r"SVD/4.mp4: Pika of group SVD/4.mp4 here, SVD of group SVD/4.mp4 there"):
        compare(a, relabelled)


@pytest.mark.parametrize("wrong", [["compare"], ["compare", "a"], ["table-7", "--level", "gen"], ["table-7", "a", "b"]])
def test_wrong_arguments_end_with_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(wrong)
    assert ended.value.code == 2
    capsys.readouterr()
