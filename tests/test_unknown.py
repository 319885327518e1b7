"""Scores of unseen generators against loops and examples by hand; degenerate training clips; noise, a planted mark."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.covariance import LedoitWolf

from basics.running import ROOT, InputError
from report import scores as unknown

FITS = {
    "nearest class mean": unknown.fit_nearest_class_mean,
    "Mahalanobis": unknown.fit_mahalanobis,
    "k-nearest neighbours": lambda embedding, labels: unknown.fit_nearest_neighbours(embedding),
    "T-Sig": unknown.fit_tsig,
}


def draw(clips, seed=0, width=6, unseen=False):
    """Clips of three classes in all fields; unseen ones lie amid the classes and off their plane, in maps too."""
    random, label = np.random.default_rng(seed), np.arange(clips) % 3
    places = np.array([[1, 1, 1, 3]] if unseen else 3 * np.eye(3, 4))[label * (not unseen)]
    embedding = np.pad(places, ((0, 0), (0, width - 4))) + 0.5 * random.normal(size=(clips, width))
    logits = unknown.head_logits(embedding, 2 * np.eye(width, 3), np.zeros(3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    maps = places[:, None] / 12 + random.normal(size=(clips, 4, 4)) / 20
    return unknown.Clips(embedding, probabilities, logits, maps, label)


def means_by_loop(values, labels):
    return [np.mean([v for v, label in zip(values, labels, strict=True) if label == k], axis=0) for k in set(labels)]


# ---------------------------------------------------------------- scores


def test_softmax_and_energy_equal_a_count_by_hand():
    assert unknown.maximum_softmax([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]) == pytest.approx([0.3, 0.5])
    assert unknown.energy([[0.0, 0.0], [math.log(3), 0.0]]) == pytest.approx([-math.log(2), -math.log(4)])
    assert unknown.energy(np.array([[5000.0, 5000.0]], np.float32)) == pytest.approx([-5000 - math.log(2)])


def test_logits_of_a_clip_are_the_mean_over_its_windows():
    random = np.random.default_rng(0)
    windows, weights, bias = random.normal(size=(7, 5)), random.normal(size=(5, 3)), random.normal(size=3)
    each = [[sum(w[d] * weights[d, c] for d in range(5)) + bias[c] for c in range(3)] for w in windows]
    logits = unknown.head_logits(windows.mean(axis=0)[None], weights, bias)
    np.testing.assert_allclose(logits[0], np.mean(each, axis=0), atol=1e-12)


def test_nearest_class_mean_equals_a_loop():
    train, test = draw(30), draw(11, seed=1)
    means = means_by_loop(train.embedding, train.label)
    nearest = [min(math.dist(clip, mean) for mean in means) for clip in test.embedding]
    score = unknown.fit_nearest_class_mean(train.embedding, train.label)
    assert score(test.embedding) == pytest.approx(nearest)
    assert unknown.fit_nearest_class_mean([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]], ["a", "a", "b"])(
        [[1.0, 1.0], [9.0, 7.0]]
    ) == pytest.approx([1, 2])


@pytest.mark.parametrize("width", [6, 80])
def test_mahalanobis_equals_scipy_also_where_width_exceeds_clips(width):
    train, test = draw(60, width=width), draw(9, seed=1, width=width)
    means = means_by_loop(train.embedding, train.label)
    residuals = [clip - means[label] for clip, label in zip(train.embedding, train.label, strict=True)]
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    nearest = [min(distance.mahalanobis(clip, mean, precision) for mean in means) for clip in test.embedding]
    score = unknown.fit_mahalanobis(train.embedding, train.label)
    assert score(test.embedding) == pytest.approx(nearest)


def test_mahalanobis_counts_in_the_spread_within_classes():
    random, labels = np.random.default_rng(0), np.arange(400) % 2
    train = 5 * np.eye(2)[labels] + random.normal(size=(400, 2)) * [3, 0.1]
    along, across = unknown.fit_mahalanobis(train, labels)([[2.0, 5.0], [0.0, 7.0]])
    assert along < 1 and across > 5 * along  # both are 2 from the second class's mean


def test_kth_neighbour_equals_a_sorted_list():
    train, test = draw(25).embedding, draw(8, seed=1).embedding
    on_sphere = [[clip / math.hypot(*clip) for clip in clips] for clips in (train, test)]
    for k in (1, 5, 25):
        wanted = [sorted(math.dist(clip, other) for other in on_sphere[0])[k - 1] for clip in on_sphere[1]]
        assert unknown.fit_nearest_neighbours(train, k)(test) == pytest.approx(wanted)
    assert unknown.fit_nearest_neighbours(train, 99)(7 * test) == pytest.approx(wanted)  # k is clipped, length ignored
    with pytest.raises(ValueError, match="n_neighbors"):
        unknown.fit_nearest_neighbours(train, 0)


def test_tsig_distance_equals_a_count_by_hand():
    maps = np.array([[[1.0, 0], [0, 1]], [[3, 0], [0, 1]], [[1, 4], [0, 1]], [[3, 4], [0, 1]]])
    score = unknown.fit_tsig(maps, [0, 0, 1, 1])  # the first entry has standard deviation sqrt(2), the others none
    scales = [math.sqrt(2)] + 3 * [1e-3 * math.sqrt(2) / 4]
    assert score([[[2.0, 0], [0, 1]], [[4, 4], [0, 1]]]) == pytest.approx([0, math.sqrt((2 / scales[0]) ** 2 / 4)])
    assert score([[[2.0, 0], [0, 1.01]]]) == pytest.approx([math.sqrt((0.01 / scales[3]) ** 2 / 4)])
    with pytest.raises(ValueError):
        score(np.zeros((1, 3, 3)))


@pytest.mark.filterwarnings("ignore:Only one sample")
@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(
    ("train", "labels"),
    [(np.eye(3)[[0, 1, 0, 1]] + np.arange(4)[:, None] / 100, [4, 4, 4, 4])]  # one class
    + [(np.eye(3), ["a", "b", "c"])]  # one clip per class: no spread to divide by
    + [(np.eye(3)[:1], [0])]  # one clip
    + [(np.eye(3)[:2] + [[0.0, 0, 0.1], [0.1, 0, 0]], [0, 0])]  # two clips: the spread is one line
    + [(np.full((9, 3), 0.1) + np.eye(3)[0], [0, 1, 2] * 3)],  # a collapsed embedding
)
def test_degenerate_training_clips_keep_the_order_of_near_and_far(name, train, labels):
    score = FITS[name](train[:, None] if name == "T-Sig" else train, labels)
    near, far = train[0] + [0.01, 0.01, 0.02], np.array([-3.0, -1, -2])
    scores = score(np.stack([near, far])[:, None] if name == "T-Sig" else np.stack([near, far]))
    assert np.isfinite(scores).all() and scores[0] < scores[1]


@pytest.mark.parametrize("name", FITS)
def test_training_clips_that_cannot_be_fitted_raise(name):
    clips, shape = np.ones((4, 2, 2)), (-1, 2, 2) if name == "T-Sig" else (-1, 4)
    for bad, labels in ((clips[:0], []), (clips * np.nan, [0, 0, 1, 1])):
        with pytest.raises(ValueError):
            FITS[name](bad.reshape(len(bad), *shape[1:]), np.array(labels))
    if name != "k-nearest neighbours":
        with pytest.raises(InputError, match="4 training clips and 3 labels"):
            FITS[name](clips.reshape(shape), [0, 0, 1])


def test_every_score_is_there_and_takes_its_field():
    train, test = draw(90), draw(20, seed=1)
    scores = unknown.fit_scores(train)(test)
    assert list(scores) == list(unknown.SCORES) and len(scores) == 6
    np.testing.assert_array_equal(scores["maximum softmax"], unknown.maximum_softmax(test.probabilities))
    np.testing.assert_array_equal(scores["energy"], unknown.energy(test.logits))
    for name, fit in FITS.items():
        trained, tested = (clips.maps if name == "T-Sig" else clips.embedding for clips in (train, test))
        np.testing.assert_array_equal(scores[name], fit(trained, train.label)(tested))
    assert list(unknown.fit_scores(train._replace(maps=None))(test._replace(maps=None))) == list(scores)[:-1]


def test_functions_of_arrays_do_without_keras():
    command = "import sys, report.scores; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", unknown.SCORES)
def test_planted_mark_is_told_apart_and_noise_is_not(name):
    score, seen = unknown.fit_scores(draw(200)), draw(150, seed=1)
    for planted in (False, True):
        scores = score(seen)[name], score(draw(120, seed=2, unseen=planted))[name]
        intervals = unknown.group_bootstrap(*scores, np.arange(150), np.arange(120), repeats=50)
        low, high = intervals["auroc"]
        area, missed = unknown.auroc(*scores), unknown.fpr_at_tpr(*scores)
        assert low <= area <= high and intervals["fpr_at_tpr"][0] <= missed <= intervals["fpr_at_tpr"][1]
        if planted:
            assert area > 0.9 and low > 0.8 and missed < 0.4
        else:
            assert abs(area - 0.5) < 0.1 and low < 0.5 < high and missed > 0.8


# ---------------------------------------------------------------- how good a score is


def test_auroc_equals_a_loop_over_pairs_with_ties():
    random = np.random.default_rng(0)
    seen, unseen = random.integers(0, 5, 40), random.integers(1, 7, 30)
    pairs = [(u > s) + (u == s) / 2 for s, u in itertools.product(seen, unseen)]
    assert unknown.auroc(seen, unseen) == pytest.approx(sum(pairs) / len(pairs))
    assert unknown.auroc([0.1, 0.2], [0.3]) == 1 and unknown.auroc([1, 1, 1], [1, 1]) == 0.5


def test_false_positives_equal_a_count_by_hand():
    twenty = np.arange(1, 21)
    assert unknown.fpr_at_tpr([0, 1, 1.5, 2, 30], twenty) == 2 / 5  # 19 of 20 are at 2 or above; 2 itself is called
    assert unknown.fpr_at_tpr([0, 1, 1.5, 2, 30], twenty[:10]) == 4 / 5  # 9 of 10 would miss 95%
    assert unknown.fpr_at_tpr([0, 1, 1.5, 2, 30], twenty, tpr=0.05) == 1 / 5
    assert unknown.fpr_at_tpr([93.5], np.arange(100), tpr=0.07) == 1  # 93 and above are 7; 94 and above only 6
    assert unknown.fpr_at_tpr([92.5], np.arange(100), tpr=0.07) == 0
    assert unknown.fpr_at_tpr([1, 1], [1, 1, 1]) == 1 and unknown.fpr_at_tpr([0], [1]) == 0


def test_false_positives_equal_a_search_over_all_thresholds():
    random = np.random.default_rng(0)
    for tpr in (0.5, 0.8, 0.95, 1):
        seen, unseen = random.integers(0, 12, 50), random.integers(3, 15, 37)
        thresholds = [t for t in range(15) if sum(u >= t for u in unseen) / len(unseen) >= tpr]
        assert unknown.fpr_at_tpr(seen, unseen, tpr) == sum(s >= max(thresholds) for s in seen) / len(seen)


@pytest.mark.parametrize("measure", [unknown.auroc, unknown.fpr_at_tpr, unknown.group_bootstrap])
@pytest.mark.parametrize(
    ("seen", "unseen", "message"),
    [
        ([1.0], [], "0 scores of unseen"),
        ([], [1.0], "0 scores of seen"),
        ([1.0], [np.nan], "1 scores of unseen.*finite"),
    ],
)
def test_measure_of_no_clips_raises(measure, seen, unseen, message):
    groups = (seen, unseen) if measure is unknown.group_bootstrap else ()
    with pytest.raises(InputError, match=message):
        measure(seen, unseen, *groups)


def test_bootstrap_draws_groups_by_its_seed():
    random = np.random.default_rng(0)
    seen, unseen = random.normal(size=40), random.normal(size=30) + 0.5
    names = [f"s{i:02}" for i in range(40)], [f"u{i:02}" for i in range(30)]
    alone = unknown.group_bootstrap(seen, unseen, *names, repeats=50)
    copies = [np.repeat(values, 9) for values in (seen, unseen, *names)]
    assert unknown.group_bootstrap(*copies, repeats=50)["auroc"] == pytest.approx(alone["auroc"])
    as_clips = unknown.group_bootstrap(*copies[:2], np.arange(360), np.arange(270), repeats=50)
    widths = [np.ptp(intervals["auroc"]) for intervals in (alone, as_clips)]
    assert widths[0] > 2 * widths[1]  # nine copies of a clip are no more evidence: a third of the width is false
    assert unknown.group_bootstrap(seen, unseen, *names, repeats=50) == alone
    assert unknown.group_bootstrap(seen, unseen, *names, repeats=50, seed=1) != alone


def test_bootstrap_equals_drawing_groups_in_a_loop():
    random = np.random.default_rng(0)
    seen, unseen = random.normal(size=60), random.normal(size=50) + 1
    seen_group, unseen_group = np.arange(60) % 20, np.arange(50) // 4
    areas = []
    for _ in range(200):
        drawn = []
        for scores, group in ((seen, seen_group), (unseen, unseen_group)):
            chosen = random.choice(sorted(set(group)), len(set(group)))
            drawn.append([score for one in chosen for score, its in zip(scores, group, strict=True) if its == one])
        areas.append(np.mean([u > s for s, u in itertools.product(*drawn)]))
    interval = unknown.group_bootstrap(seen, unseen, seen_group, unseen_group, repeats=200)["auroc"]
    assert interval == pytest.approx(np.percentile(areas, [2.5, 97.5]).tolist(), abs=0.03)


def test_one_group_on_a_side_gives_no_interval():
    scores = np.arange(6.0)
    none = {"auroc": None, "fpr_at_tpr": None}
    assert unknown.group_bootstrap(scores, scores, scores, ["one"] * 6) == none
    assert unknown.group_bootstrap(scores, scores, ["one"] * 6, scores) == none


# ---------------------------------------------------------------- where unseen clips land


def test_landing_and_its_chance_equal_a_count_by_hand():
    classes, own, others = ("Real", "SD 1.5", "SD 2.1"), np.eye(3)[[2, 2, 2, 2, 1, 0]], np.eye(3)[[2, 0, 1, 1, 1]]
    landed = unknown.lands_on(0.8 * own + 0.1, others, classes, "SD 2.1")
    assert landed["share"] == pytest.approx(4 / 6) and landed["share_videos"] == 6
    assert landed["share_interval"] == pytest.approx([0.3, 0.9032], abs=1e-3)  # Wilson, 4 of 6
    assert landed["chance"] == pytest.approx(1 / 5) and landed["chance_videos"] == 5
    nowhere = unknown.lands_on(own, others[1:], classes, "SD 2.1")
    assert nowhere["chance"] == 0 and nowhere["chance_interval"] == pytest.approx([0, 0.4899], abs=1e-3)  # 0 of 4


def test_landing_without_its_class_or_clips_raises():
    clips = np.eye(2)
    with pytest.raises(InputError, match=r"SDXL is no class of the model \(Real, SD 2.1\); train it with one that has"):
        unknown.lands_on(clips, clips, ("Real", "SD 2.1"), "SDXL")
    for own, others in ((clips[:0], clips), (clips, clips[:0])):
        with pytest.raises(InputError, match="Real: . clips and . others; there must be some of both"):
            unknown.lands_on(own, others, ("Real", "SD 2.1"), "Real")
