"""Ablations, back-off, probes as functions of arrays: paired differences, sums along the taxonomy, coverage, policy;
who was trained and tested, read back from a run.
"""

import itertools

import numpy as np
import pytest
from small import untrained_run

from basics.artifacts import read_json, write_json
from experiments import ablations, back_off, compared, label_curve, probes
from experiments.stages import videos_of
from tokens.dataset import Row, features_file, mean_tokens, read_index, write_features
from tokens.generators import class_index, class_names, load_generators
from tokens.split import Split, choose_videos
from training.evaluation import sum_to_level

GENERATORS = list(load_generators())


def seeds(*macro):
    return [{"seed": i, "micro": value, "macro": value} for i, value in enumerate(macro) if value is not None]


def result(*macro, mined=None):
    run = {"hard_pairs": 0.5, "variance_fraction": 0.2, "cross_entropy": 1.0, "mined_loss": mined}
    return {"seeds": seeds(*macro), "collapsed": macro.count(None), "runs": [run]}


def test_differences_pair_the_same_seeds():
    row = ablations.hnm_minus_ce(result(0.5, 0.2, 0.4), result(0.6, None, 0.7, mined=0.1))
    assert row["macro"] == pytest.approx([0.1, 0.3])
    assert row["micro"] == pytest.approx([0.1, 0.3])
    assert (row["collapsed"], row["hnm_mined_loss"], row["ce_mined_loss"]) == (1, [0.1], [])


@pytest.mark.parametrize(
    ("differences", "collapsed", "wanted"),
    [
        ([0.10, 0.11, 0.12], 0, "ahead"),
        ([-0.10, -0.11, -0.12], 0, "behind"),
        ([-0.10, 0.11, 0.12], 0, "open"),
        ([0.10], 0, "open"),
        ([0.10, 0.11], 1, "collapsed (1)"),
        ([], 3, "collapsed (3)"),
    ],
)
def test_verdict_follows_the_interval_over_seeds(differences, collapsed, wanted):
    assert ablations.ablation_verdict({"macro": differences, "collapsed": collapsed}) == wanted


@pytest.mark.parametrize(
    ("macro", "wanted"),
    [
        ((0.2, 0.5, 0.7, 0.74), 2),
        ((0.2, 0.71, 0.6, 0.74), 1),
        ((0.3, None, 0.4, 0.5), None),
        ((0.2, 0.3, 0.4, None), None),
    ],
)
def test_the_knee_has_the_fewest_labels_near_the_best(macro, wanted):
    curve = [{"seeds": seeds(own), "per_class": i} for i, own in enumerate(macro)]
    found = label_curve.knee(curve)
    assert (found and found["per_class"]) == wanted


def test_a_condition_that_stays_at_chance_is_named():
    def trained(*macro):
        return {"seeds": [own | {"uniform": 0.05} for own in seeds(*macro)], "collapsed": macro.count(None)}

    ce, hnm = ablations.LOSSES
    conditions = {"2 blocks": {ce: trained(0.5, 0.6), hnm: trained(0.5, 0.6)}}
    assert ablations.untrained_note(conditions).endswith("none.")
    conditions["12 blocks"] = {ce: trained(0.06, 0.6), hnm: trained(None, 0.05)}
    note = ablations.untrained_note(conditions)
    assert "12 blocks with CE (1 of 2 seeds), 12 blocks with CE+HNM (2 of 2 seeds)." in note and "2 blocks with" in note


@pytest.mark.parametrize("level", ["bin", "task", "sd", "team", "gen"])
def test_sums_to_a_level_equal_loops(level):
    random = np.random.default_rng(0)
    classes = [GENERATORS[i] for i in random.permutation(len(GENERATORS))[:12]]
    probabilities = random.dirichlet(np.ones(12), size=5)
    sums, names = sum_to_level(probabilities, classes, level)
    for v in range(5):
        wanted = {}
        for c, generator in enumerate(classes):
            place = class_index(level, generator)
            if place is not None:
                name = class_names(level)[place]
                wanted[name] = wanted.get(name, 0) + probabilities[v, c]
        assert dict(zip(names, sums[v], strict=True)) == pytest.approx(wanted)


def test_coverage_is_in_the_order_of_confidence():
    confidence, correct = np.array([0.2, 0.9, 0.5, 0.7]), np.array([True, True, False, True])
    assert back_off.coverage_curve(confidence, correct) == pytest.approx([1, 1, 2 / 3, 3 / 4])


def test_policy_answers_at_the_finest_level_with_enough_confidence():
    truth = np.array(["x"] * 4)
    test = {level: (np.zeros(4), np.zeros(4, bool), truth) for level in back_off.FINEST_FIRST}
    test["gen"] = (np.array([0.9, 0.8, 0.1, 0.1]), np.array([True, False, True, True]), truth)
    test["sd"] = (np.array([0.9, 0.9, 0.7, 0.1]), np.array([False, False, True, True]), truth)
    limits = dict.fromkeys(back_off.FINEST_FIRST, np.inf) | {"gen": 0.8, "sd": 0.7}
    found = back_off.policy(test, limits)
    assert found == {"gen": [2, 1], "team": [0, 0], "sd": [1, 1], "task": [0, 0], "bin": [0, 0], "none": [1, 0]}


def test_threshold_holds_its_accuracy_on_val():
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    levels = {
        "gen": (confidence, np.array([True, True, True, False]), None),
        "sd": (confidence, np.array([False, True, False, True]), None),
    }
    assert back_off.thresholds(levels, wanted=0.75) == {"gen": 0.6, "sd": np.inf}
    assert back_off.thresholds(levels, wanted=1)["gen"] == 0.7


def test_an_undefined_level_has_no_truth():
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1]])
    confidence, correct, truth = back_off.judged(probabilities, ["Real", "SD 2.1"], np.array(["SVD", "Sora"]), "sd")
    assert confidence == pytest.approx([0.8, 0.9]) and correct.tolist() == [True, False]
    assert truth.tolist() == ["SD 2.1", ""]


def metadata(macro):
    counts = {name: [40, round(40 * macro)] for name in "abcd"}
    seed = {"macro": macro, "uniform": 0.25, "per_class": counts}
    return {"methods": {"metadata only, all": {"levels": {"gen": {"seeds": [seed]}}}}}


def test_metadata_line_says_chance_only_within_the_interval():
    assert "is at chance: macro 25.0" in compared.metadata_line(metadata(0.25))
    assert "separates the classes" in compared.metadata_line(metadata(0.5))
    assert "is at chance" in compared.metadata_line(metadata(0.3))


def test_videos_of_a_run_are_those_it_chose(features, tmp_path):
    chosen = choose_videos(read_index(features), "sd", features, load_generators())
    metrics = read_json(untrained_run(features, tmp_path, "sd") / "sd.json")
    assert videos_of(metrics, features) == chosen and chosen.excluded and chosen.unseen


# ---------------------------------------------------------------- probes


@pytest.fixture
def videos(tmp_path):
    """Sixty clips of three classes whose tokens lie apart, in the order of their class; the first class has most."""
    random, rows = np.random.default_rng(0), []
    write_json(tmp_path / "recipe.json", {"frames": 8, "tokens": 2, "dim": 6})
    for i, label in enumerate([0] * 30 + [1] * 15 + [2] * 15):
        tokens = 4 * np.eye(6)[label] + random.normal(size=(1, 8, 2, 6))
        write_features(features_file(tmp_path, f"{i}.mp4"), tokens, np.zeros((1, 8)), np.ones((1, 8), bool))
        facts = dict(windows=1, size="8x8", fps="8", length="1", container="mp4", features=tmp_path, label=label)
        rows.append(Row(f"{i}.mp4", "a", f"{i}.mp4", **facts))
    return Split(("a", "b", "c"), rows[::2], [], rows[1::2], [], {})


@pytest.mark.parametrize("name", list(probes.PROBES))
def test_a_probe_separates_distant_classes(videos, name):
    labels = [row.label for row in videos.test]
    probabilities = probes.PROBES[name](videos, 0)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    assert accuracy == (0.5 if name == "metadata only" else 1)  # clips of one make differ in no metadata


def test_temporal_statistics_are_those_by_loops_and_padding_does_not_count(tmp_path):
    write_json(tmp_path / "recipe.json", {"frames": 4, "tokens": 2, "dim": 3})
    tokens, rows = np.float16(np.random.default_rng(0).normal(size=(2, 2, 4, 2, 3))), []
    for i, count in enumerate((7, 1)):  # of 8 frames; the others are padding, and would show
        valid = (np.arange(8) < count).reshape(2, 4)
        write_features(features_file(tmp_path, f"{i}.mp4"), tokens[i] + 99 * ~valid[..., None, None], valid, valid)
        rows.append(Row(f"{i}.mp4", "a", f"{i}.mp4", windows=2, features=tmp_path))
    found = probes.temporal_statistics(rows)
    assert found.shape == (2, 9)
    for i, count in enumerate((7, 1)):
        frames = np.float64(tokens[i]).reshape(8, 2, 3)[:count]
        for d in range(3):
            sums = np.zeros(3)
            for place in range(2):
                values = frames[:, place, d].tolist()
                mean = sum(values) / count
                changes = [abs(after - before) for before, after in itertools.pairwise(values)]
                deviation = (sum((value - mean) ** 2 for value in values) / count) ** 0.5
                sums += (mean, deviation, sum(changes) / len(changes) if changes else 0)
            assert found[i, d::3] == pytest.approx(sums / 2, abs=1e-5)


def test_class_means_do_not_prefer_the_larger_class(videos):
    far = [row for row in videos.train if row.label == 0] * 20
    even = videos._replace(train=videos.train + far)
    middle = videos.test[0]._replace(path="middle.mp4")
    means = [mean_tokens([row for row in even.train if row.label == i]).mean(axis=0) for i in (0, 1)]
    tokens = np.tile(0.499 * means[0] + 0.501 * means[1], (1, 8, 2, 1))
    write_features(features_file(middle.features, "middle.mp4"), tokens, np.zeros((1, 8)), np.ones((1, 8), bool))
    predicted = probes.discriminant_probe(even._replace(test=[middle])).argmax(axis=1)
    assert predicted.tolist() == [1]  # a little nearer to b's mean, though a has forty times as many clips
