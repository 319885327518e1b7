"""Calibration against plain loops and simulated truth: temperature, reliability, taxonomy, thresholds."""

import numpy as np
import pytest
from scipy import special

from report.calibrate import (
    BINS,
    agreement,
    apply_temperature,
    fit_temperature,
    rejection_threshold,
    reliability,
    sum_along_taxonomy,
    temperature_interval,
)
from report.look import nearest, spread_evenly


def softmax(logits):
    return special.softmax(logits, axis=1)


def drawn(random, count, classes=4, temperature=1.0, scale=2.0):
    """Logits and labels drawn from their softmax at a temperature."""
    logits = scale * random.normal(size=(count, classes))
    true = softmax(logits / temperature)
    return logits, (true.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)


# ---------------------------------------------------------------- temperature


def test_apply_temperature_is_the_softmax_of_scaled_logits():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(apply_temperature(softmax(logits), 2.5), softmax(logits / 2.5))
    assert np.allclose(apply_temperature(softmax(logits), 1), softmax(logits))
    certain = apply_temperature(np.array([[1.0, 0.0]]), 4)
    assert np.isfinite(certain).all() and certain.argmax() == 0


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_fitted_temperature_is_that_of_simulated_labels(true):
    logits, labels = drawn(np.random.default_rng(1), 20000, temperature=true)
    assert fit_temperature(softmax(logits), labels) == pytest.approx(true, rel=0.05)


def test_temperature_is_the_best_of_a_grid():
    logits, labels = drawn(np.random.default_rng(2), 60, temperature=1.7)
    probabilities = softmax(logits)

    def loss(temperature):
        total = 0.0
        for row, label in zip(probabilities, labels, strict=True):
            powers = [p ** (1 / temperature) for p in row]
            total -= np.log(powers[label] / sum(powers))
        return total + (np.log(temperature) / np.log(2)) ** 2 / 2

    grid = np.linspace(0.3, 10, 500)
    assert loss(fit_temperature(probabilities, labels)) <= min(map(loss, grid)) + 1e-6


def test_temperature_of_few_clips_all_correct_is_bounded_by_the_prior():
    confident = np.full((20, 3), 0.1) + np.array([0.7, 0, 0])
    assert 0.2 < fit_temperature(confident, np.zeros(20, int)) < 1
    low, high = temperature_interval(confident, np.zeros(20, int), np.arange(20))
    assert low <= fit_temperature(confident, np.zeros(20, int)) <= high


# ---------------------------------------------------------------- reliability


def plain_reliability(probabilities, labels):
    nll = brier = 0.0
    bins = [[] for _ in range(BINS)]
    for row, label in zip(probabilities, labels, strict=True):
        nll -= np.log(row[label]) / len(labels)
        brier += sum((p - (i == label)) ** 2 for i, p in enumerate(row)) / len(labels)
        bins[min(int(max(row) * BINS), BINS - 1)].append((max(row), np.argmax(row) == label))
    gaps = []
    for clips in filter(None, bins):
        confidence, correct = zip(*clips, strict=True)
        gaps.append(abs(np.mean(confidence) - np.mean(correct)) * len(clips))
    return nll, brier, sum(gaps) / len(labels)


def test_reliability_equals_plain_loops():
    logits, labels = drawn(np.random.default_rng(3), 80)
    probabilities = softmax(1.5 * logits)
    found = reliability(probabilities, labels, np.arange(80))
    values = [found[name]["value"] for name in ("nll", "brier", "ece")]
    assert values == pytest.approx(plain_reliability(probabilities, labels))
    for entry in found.values():
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]


def test_interval_draws_whole_groups():
    logits, labels = drawn(np.random.default_rng(4), 40)
    alone = softmax(logits), labels, np.arange(40)
    doubled = tuple(np.concatenate([part, part]) for part in alone)  # every clip twice, in its group
    one, two = (reliability(*clips)["nll"]["interval"] for clips in (alone, doubled))
    assert two == pytest.approx(one, rel=0.2)
    assert reliability(softmax(logits), labels, np.zeros(40))["nll"]["interval"] is None


def test_calibration_error_of_true_probabilities_is_the_expected_one():
    errors, expected = [], []
    for seed in range(40):
        logits, labels = drawn(np.random.default_rng(seed), 150)
        found = reliability(softmax(logits), labels, np.arange(150), repeats=200)["ece"]
        errors.append(found["value"])
        expected.append(found["perfect"])
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.1)
    logits, labels = drawn(np.random.default_rng(50), 150)
    overconfident = reliability(softmax(5 * logits), labels, np.arange(150), repeats=200)["ece"]
    assert overconfident["value"] > 2 * overconfident["perfect"]


# ---------------------------------------------------------------- levels, unknown generators, neighbours


def test_generator_probabilities_sum_to_those_of_teams_and_of_none():
    taxonomy = {
        "Real": {"team": "Real"},
        "A": {"team": "X"},
        "B": {"team": "Y"},
        "C": {"team": "X"},
        "D": {"team": None},
    }
    sums, names, undefined = sum_along_taxonomy(
        np.array([[0.1, 0.2, 0.3, 0.25, 0.15]]), list(taxonomy), taxonomy, "team"
    )
    assert names == ["Real", "X", "Y"] and sums == pytest.approx(np.array([[0.1, 0.45, 0.3]]))
    assert undefined == pytest.approx([0.15])


def test_trust_goes_to_the_answer_that_is_correct_more_often():
    truth = np.array(["a"] * 30)
    correct, wrong = truth, np.array(["b"] * 30)
    assert agreement(correct, wrong, truth) == dict(clips=30, differ=30, own_right=30, generator_right=0, trust="own")
    assert agreement(wrong, correct, truth)["trust"] == "generator"
    partly = np.array(["a"] * 4 + ["b"] * 26)
    counts = agreement(partly, correct, truth)
    assert (counts["differ"], counts["own_right"], counts["generator_right"]) == (26, 0, 26)
    few = agreement(np.array(["a", "b", "b"]), np.array(["b", "a", "a"]), np.array(["a"] * 3))
    assert few["trust"] is None and few["own_right"] == 1
    assert agreement(correct, correct, truth)["trust"] is None


def test_threshold_rejects_as_many_known_clips_as_stated():
    random, rejected = np.random.default_rng(5), []
    for _ in range(2000):
        threshold = rejection_threshold(random.normal(size=30), 0.1)
        rejected.append(np.mean(random.normal(size=20) > threshold))
    assert 0.08 < np.mean(rejected) < 0.105


def test_threshold_needs_enough_val_clips_for_the_rate():
    assert rejection_threshold(np.arange(18.0), 0.05) is None
    assert rejection_threshold(np.arange(19.0), 0.05) == 18
    assert rejection_threshold(np.array([]), 0.05) is None


def test_nearest_training_clips_equal_a_search_by_hand():
    random = np.random.default_rng(6)
    clips = {"window_embedding": random.normal(size=(20, 3)), "window_clip": np.repeat(np.arange(10), 2)}
    own = random.normal(size=(4, 3))
    by_hand = []
    for clip in range(10):
        pairs = [
            (np.linalg.norm(own[i] - clips["window_embedding"][j]), clip, j, i)
            for i in range(4)
            for j in (2 * clip, 2 * clip + 1)
        ]
        by_hand.append(min(pairs))
    found = nearest(own, clips, 3)
    for one, other in zip(found, sorted(by_hand)[:3], strict=True):
        assert one == pytest.approx(other)
    assert len(nearest(own, clips, 50)) == 10


def test_evenly_spread_numbers_are_middles_of_equal_parts():
    assert spread_evenly(10, 3).tolist() == [1, 5, 8]
    assert spread_evenly(3, 10).tolist() == [0, 1, 2]
    assert spread_evenly(7, None).tolist() == list(range(7))
    assert spread_evenly(5, 1).tolist() == [2]
