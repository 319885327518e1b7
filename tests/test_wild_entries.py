"""What 05 is compared with and depends on: rivals against other ways to the same thing, roles of every condition,
scores pooled over folds, edits and attacks, and the entries on features of noise.
"""

import importlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from test_wild import invented, problem, write_clips

import reproduce
from common import HERE
from experiments import datasets as corpora
from experiments import registry as paper
from experiments import wild as wild_entries
from experiments import wild_compared as wild_rivals
from tokens import ranking, wild

method = importlib.import_module("05_wild_constrained")
CONDITIONS = [f"wild-{what}" for what in wild_entries.CONDITIONS]
NAMES = ("Real", "Lavie", "VideoCrafter", "Gen2", "Sora", "Pika", "HotShot", "SVD", "SD", "Latte")


def prepared(apart=2.0, **sizes):
    (vectors, non_target), [(pool, _)] = problem(apart=apart, **sizes)
    wild_images = [(pool, np.ones(len(pool)))]
    return wild.Problem((vectors, non_target), (vectors, non_target), wild_images, np.zeros(5), np.ones(5))


# ---------------------------------------------------------------- rivals


def objective(problem, theta, l2, weights):
    """Weighted means over labelled and wild images, by a loop."""
    total = l2 / 2 * np.sum(theta[:-1] ** 2)
    for weight, (vectors, labels) in zip(weights, (problem.labelled, problem.wild[0]), strict=True):
        logits = vectors @ theta[:-1] + theta[-1]
        total -= weight * np.mean(labels * np.log(expit(logits)) + (1 - labels) * np.log(expit(-logits)))
    return total


def theta_of(score):
    """A linear score's parameters, read off its values."""
    bias = score(np.zeros((1, 5)))[0]
    return -np.append(score(np.eye(5)) - bias, bias)


@pytest.mark.parametrize("name", ["wild as negatives", "penalty, weight 0.1", "penalty, weight 10"])
def test_rival_does_not_minimise_its_own_objective(name):
    given = prepared()
    found = theta_of(wild_rivals.RIVALS[name](given, 0.05))
    weights = {"wild as negatives": [60 / 150, 90 / 150]}.get(name)  # each image as heavy as the next
    weights = weights or [float(name.split()[-1]), 1.0]
    at = objective(given, found, 0.05, weights)
    random = np.random.default_rng(0)
    assert all(objective(given, found + random.normal(0, 0.01, 6), 0.05, weights) > at for _ in range(50))


def test_penalty_of_the_multiplier_is_not_the_constrained_optimum():
    given = prepared()
    baseline = method.fit_baseline(given.labelled, 0.05, np.zeros(6))
    constrained, rounds = method.fine_tune(baseline, given.labelled, given.wild, 0.05, 1.5)
    penalised = wild_rivals.penalised(given, 0.05, rounds[-1]["multiplier"])
    np.testing.assert_allclose(theta_of(penalised), constrained, atol=0.02)


def test_self_training_without_a_sure_image_is_not_the_baseline():
    given = prepared()
    unsure = wild_rivals.self_training(given, 0.05, confidence=0.99999)
    np.testing.assert_allclose(theta_of(unsure), method.fit_baseline(given.labelled, 0.05, np.zeros(6)), atol=1e-3)


def test_positive_unlabelled_calls_the_target_otherwise_than_at_half_its_labelled_share():
    given = prepared()
    score = wild_rivals.positive_unlabelled(given, 0.05)
    (vectors, non_target), wild_images = given.labelled, given.wild[0][0]
    labels = np.append(1 - non_target, np.zeros(len(wild_images)))
    weights = [len(vectors) / len(labels), len(wild_images) / len(labels)]
    fitted = method.descend(
        lambda theta: method.add_l2(
            theta, *method.mean_bce(theta, [(np.concatenate([vectors, wild_images]), 1 - labels)]), 0.05
        ),
        np.zeros(6),
    )
    assert sum(weights) == 1
    labelled = expit(-wild.linear(fitted, vectors)[0])  # P(labelled | x)
    share = labelled[non_target == 0].mean()
    called = labelled / share > 0.5
    clear = np.abs(labelled / share - 0.5) > 1e-3
    assert np.array_equal((score(vectors) > 0)[clear], called[clear]) and 0 < called.mean() < 1


def test_gradient_of_the_hidden_layer_is_not_its_slope():
    head, (vectors, non_target) = wild_rivals.mlp(3), prepared().labelled
    theta = wild_rivals.mlp_start(5, 3, seed=0)
    assert len(theta) == 5 * 3 + 3 + 3 + 1

    def loss(theta):
        return method.mean_bce(theta, [(vectors, non_target)], head)

    slopes = [(loss(theta + 1e-6 * axis)[0] - loss(theta - 1e-6 * axis)[0]) / 2e-6 for axis in np.eye(len(theta))]
    np.testing.assert_allclose(loss(theta)[1], slopes, atol=1e-8)


# ---------------------------------------------------------------- conditions


def dealt(change, target="HotShot", seed=0, clips=60):
    images = invented(NAMES, clips=clips, frames=4)
    change = change(set(NAMES), target, seed) if callable(change) else change
    others = wild_entries.by_role(set(NAMES), target, list(change.wild))
    names = wild.resolve_roles(images, target, others)
    return images, wild.deal(images, names, wild_entries.COUNTS | change.counts, seed, change.apart)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_share_of_the_target_among_the_wild_is_another(share):
    images, roles = dealt(wild_entries.noisy(share, total=60))
    found = np.mean(images.generator[roles.wild] == "HotShot")
    assert found == pytest.approx(share, abs=0.02) and 55 <= len(roles.wild) <= 65


def test_covering_pools_differ_in_size_or_in_the_images_tested():
    tested, sizes, sources = [], [], []
    for change in wild_entries.CONDITIONS["coverage"].values():
        images, roles = dealt(change)
        tested.append({name: places.tolist() for name, places in roles.test.items()})
        sizes.append(len(roles.wild))
        sources.append(set(images.generator[roles.wild]))
    assert all(own == tested[0] for own in tested)
    assert max(sizes) - min(sizes) <= 6 and max(sizes) <= wild_entries.POOL + 6
    assert [len(own) for own in sources] == [1, 3, 3, 6, 3]
    assert sources[-1] == {"Gen2", "Sora", "Pika"} < sources[-2]


def test_target_is_known_or_unseen_as_well():
    for target in NAMES:
        roles = wild_entries.by_role(set(NAMES), target)
        taken = [name for own in roles.values() for name in own]
        assert target not in taken and len(taken) == len(set(taken)) == len(NAMES) - 1


# ---------------------------------------------------------------- outcomes


def test_folds_are_not_averaged_by_image():
    clips = {}
    wild_entries.add_scores(clips, np.array(["b", "a", "a"]), np.array([1.0, 2.0, 3.0]))
    wild_entries.add_scores(clips, np.array(["a", "a"]), np.array([4.0, 7.0]))
    assert wild_entries.pooled(clips).tolist() == [3.0, 5.0, 1.0]


def test_outcome_is_not_the_mean_over_the_generators_of_a_role():
    random = np.random.default_rng(0)
    scores = {name: random.normal(size=9) for name in ("T", "K", "A", "B")}
    found = wild_entries.outcome(scores, {"target": ["T"], "known": ["K", "none tested"], "unseen": ["A", "B"]})
    pairs = [ranking.ranking(scores["T"], scores[name]) for name in ("A", "B")]
    assert found["unseen"]["ap"] == pytest.approx((pairs[0][0] + pairs[1][0]) / 2)
    assert found["known"]["auc"] == pytest.approx(ranking.ranking(scores["T"], scores["K"])[1])
    assert found["recall"] == np.mean(scores["T"] > 0) and found["prevalence"] == 0.5
    assert found["unseen_called"] == np.mean([np.mean(scores[name] > 0) for name in ("A", "B")])


def test_attack_is_weaker_than_any_move_of_its_length():
    theta, random = np.random.default_rng(0).normal(size=6), np.random.default_rng(1)
    vectors = {"T": random.normal(size=(20, 5)), "A": random.normal(size=(20, 5))}
    score = wild_rivals.by_theta(theta)
    found = wild_entries.attacked(score, vectors, "T", 0.7 * np.linalg.norm(theta[:-1]))
    for _ in range(200):
        moved = random.normal(size=5)
        moved *= 0.7 / np.linalg.norm(moved)
        assert (score(vectors["T"] + moved) >= found["T"] - 1e-12).all()
        assert (score(vectors["A"] + moved) <= found["A"] + 1e-12).all()
    best = 0.7 * theta[:-1] / np.linalg.norm(theta[:-1])
    np.testing.assert_allclose(score(vectors["T"] + best), found["T"])


@pytest.mark.parametrize("name", wild_entries.EDITS)
def test_edit_changes_nothing_or_the_shape(name):
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8), (90, 120))
    edited = wild_entries.EDITS[name](image, np.random.default_rng(0))
    assert edited.shape == image.shape and edited.dtype == np.uint8
    change = np.abs(edited.astype(float) - image).mean()
    assert change == 0 if name == "as they are" else 0 < change < 12  # of colours, not of their order


def test_jpeg_of_an_image_is_not_that_of_pillow():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), (96, 96))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=50)
    expected = np.asarray(Image.open(file)).astype(float)
    assert np.abs(wild_entries.jpeg(image, 50) - expected).mean() < 0.5


# ---------------------------------------------------------------- entries


@pytest.fixture
def features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clips(Path("f"), invented(NAMES, clips=20, frames=2))
    wild_entries.frames.cache_clear()
    return Path("f")


@pytest.mark.parametrize("name", ["wild", *CONDITIONS, "wild-target", "wild-encoder"])
def test_entry_leaves_other_numbers_than_it_measured(features, name, monkeypatch):
    results = reproduce.main([name, "--features", "f", "--seeds", "2"])
    folder = Path("results") if paper.ENTRIES[name].several else Path("results/f")
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(results))
    lines = (folder / f"{name}.md").read_text().splitlines()
    assert lines == paper.ENTRIES[name].render(json.loads((folder / f"{name}.json").read_text()))
    table = [line for line in lines if line.startswith("|")]
    assert len(table) >= 4 and len({line.count("|") for line in table}) == 1
    assert not any("nan" in line for line in lines) and "92.78" in lines[-1] and "other data" in lines[-1]
    rows = {row["condition"] for row in results["rows"]}
    assert rows == (set(wild_entries.CONDITIONS.get(name.removeprefix("wild-"), ())) or rows)


def test_folds_test_a_clip_twice_or_never(features):
    results = reproduce.main(["wild-threshold", "--features", "f", "--folds", "4", "--seeds", "1"])
    images = results["rows"][0]["seeds"][0]["methods"]["constrained"]["images"]
    assert images == dict.fromkeys(("HotShot", "Real", "Lavie", "VideoCrafter", "Gen2", "Sora", "Pika"), 40)


def test_too_few_generators_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clips(Path("f"), invented(("Real", "Sora", "Pika"), clips=4))
    with pytest.raises(ValueError, match="f has clips of 2 generators and Real; a trial takes six"):
        reproduce.main(["wild-target", "--features", "f"])


def test_edits_of_features_without_clips_are_measured(features):
    with pytest.raises(ValueError, match="wild-edits wants the clips"):
        reproduce.main(["wild-edits", "--features", "f"])


@pytest.mark.slow
def test_unedited_stills_are_other_images_than_their_clips(tmp_path, monkeypatch):
    """The frames that 01 took of simulated clips, written as PNG and read again, give the same vectors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo").symlink_to(HERE / "data" / "zoo")
    args = reproduce.get_args(["wild-edits", "--limit", "8"])
    (data,) = corpora.choose_data(args)
    clips, stills = wild.read_images(data.features, 4), wild_entries.edited_images(args, data, "as they are")
    test = clips.rows(clips.split == "test")
    assert sorted(stills.path.tolist()) == sorted(test.path.tolist())
    for path in np.unique(test.path):
        ours, theirs = (np.sort(own.vectors[own.path == path], axis=0) for own in (stills, test))
        np.testing.assert_allclose(ours, theirs, atol=0.05)
