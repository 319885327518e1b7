"""What 05 is compared with and depends on: methods against other ways to the same thing, roles of every condition,
scores pooled over folds, edits and attacks, and the entries on features of noise.
"""

import io
import json
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from stages import module
from test_wild import assigned, embeddings, invented, problem, quick, write_clips  # noqa: F401  (quick is a fixture)

import reproduce
from basics.artifacts import read_arrays
from basics.running import ROOT, InputError
from basics.statistics import minimize_lbfgs, ranking
from experiments import datasets, wild, wild_edits, wild_methods, wild_roles
from tokens.generators import load_generators
from tokens.images import read_images

stage = module("05_wild_constrained")
ENTRIES = [f"wild-{what}" for what in wild.CONDITIONS]
NAMES = ("Real", "Lavie", "VideoCrafter", "Gen2", "Sora", "Pika", "HotShot", "SVD", "SD", "Latte")


def made(apart=2.0, **sizes):
    """A run of 05 as far as methods are fitted on it."""
    (labelled,), (pool,) = problem(apart=apart, **sizes)
    return wild_methods.WildRun(labelled, labelled, pool, labelled[0], *[None] * 5)


# ---------------------------------------------------------------- compared methods


def objective(run, theta, l2, weights):
    """Weighted means over labelled and wild images, by a loop."""
    total = l2 / 2 * np.sum(theta[:-1] ** 2)
    for weight, (vectors, labels) in zip(weights, (run.labelled, run.wild), strict=True):
        logits = vectors @ theta[:-1] + theta[-1]
        total -= weight * np.mean(labels * np.log(expit(logits)) + (1 - labels) * np.log(expit(-logits)))
    return total


def theta_of(score):
    """A linear score's parameters, read off its values."""
    bias = score(np.zeros((1, 5)))[0]
    return -np.append(score(np.eye(5)) - bias, bias)


@pytest.mark.parametrize("name", ["wild as negatives", "penalty, weight 0.1", "penalty, weight 10"])
def test_compared_method_minimises_its_own_objective(name):
    given = made()
    found = theta_of(wild_methods.COMPARED[name](given, 0.05))
    weights = {"wild as negatives": [60 / 150, 90 / 150]}.get(name)  # each image as heavy as the next
    weights = weights or [float(name.split()[-1]), 1.0]
    at = objective(given, found, 0.05, weights)
    random = np.random.default_rng(0)
    assert all(objective(given, found + random.normal(0, 0.01, 6), 0.05, weights) > at for _ in range(50))


def test_penalty_of_the_multiplier_is_the_constrained_optimum():
    given = made()
    baseline = stage.fit_baseline([given.labelled], 0.05, np.zeros(6))
    allowed = 1.5 * stage.mean_bce(baseline, [given.labelled])[0]
    constrained, rounds = stage.fine_tune(baseline, allowed, [given.labelled], [given.wild], 0.05)
    penalised = wild_methods.penalised(given, 0.05, rounds[-1]["multiplier"])
    np.testing.assert_allclose(theta_of(penalised), constrained, atol=0.02)


def test_self_training_without_a_confident_image_is_the_baseline():
    given = made()
    unsure = wild_methods.self_training(given, 0.05, confidence=0.99999)
    np.testing.assert_allclose(theta_of(unsure), stage.fit_baseline([given.labelled], 0.05, np.zeros(6)), atol=1e-3)


def test_positive_unlabelled_predicts_the_target_above_half_its_posterior():
    given = made()
    score = wild_methods.positive_unlabelled(given, 0.05)
    (vectors, non_target), wild_images = given.labelled, given.wild[0]
    everything = np.concatenate([vectors, wild_images]), np.append(non_target, np.ones(len(wild_images)))
    fitted = minimize_lbfgs(lambda theta: stage.mean_bce(theta, [everything], 0.05), np.zeros(6))
    labelled = expit(-stage.logits_of(fitted, vectors))  # P(labelled | x)
    posterior = labelled / labelled[non_target == 0].mean()  # P(target | x)
    clear = np.abs(posterior - 0.5) > 1e-3
    assert np.array_equal((score(vectors) > 0)[clear], (posterior > 0.5)[clear]) and 0 < (posterior > 0.5).mean() < 1


def test_loss_and_penalties_are_those_of_stage_five():
    given, theta = made(), np.random.default_rng(0).normal(size=6)
    for side in (given.labelled, given.wild, (np.float32(given.wild[0]), given.wild[1])):
        ours, theirs = wild_methods.mean_bce_of_head(theta, *side, l2=0.1), stage.mean_bce(theta, [side], 0.1)
        assert ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])
    assert wild_methods.L2 == stage.L2


def test_gradient_of_the_hidden_layer_is_its_slope():
    head, side = wild_methods.hidden_layer(3), made().labelled
    theta = wild_methods.draw_weights(5, 3, seed=0)
    assert len(theta) == 5 * 3 + 3 + 3 + 1

    def loss(theta):
        return wild_methods.mean_bce_of_head(theta, *side, head)

    slopes = [(loss(theta + 1e-6 * axis)[0] - loss(theta - 1e-6 * axis)[0]) / 2e-6 for axis in np.eye(len(theta))]
    np.testing.assert_allclose(loss(theta)[1], slopes, atol=1e-8)


def test_other_heads_and_baselines_keep_the_constraint(monkeypatch):
    monkeypatch.setattr(wild_methods, "L2", (0.01, 0.1))
    given = made(apart=3.0)
    for refit in (partial(wild_methods.with_hidden_layer, units=3), partial(wild_methods.with_few_steps, steps=30)):
        scores, facts = refit(given, 1.5, 0)
        vectors, non_target = given.labelled
        losses = [np.mean(np.log1p(np.exp((2 * non_target - 1) * score(vectors)))) for score in scores.values()]
        assert losses[0] == pytest.approx(facts["labelled_loss"]) and losses[1] <= 1.5 * losses[0] * 1.001
        assert np.mean(scores["constrained"](given.wild[0])) < np.mean(scores["labelled only"](given.wild[0]))


# ---------------------------------------------------------------- conditions


def shared(change, target="HotShot", seed=0, clips=60, frames=4):
    """Images and their roles under a condition, as 05 assigns them by its flags."""
    images = invented(NAMES, clips=clips, frames=frames)
    change = change(set(NAMES), target, seed) if callable(change) else change
    settings = wild_roles.by_role(set(NAMES), target) | wild_roles.SETTINGS | change.settings
    flags = stage.get_args(["--wild", ",".join(settings["wild"]), "--wild-count", str(settings["wild_count"])])
    counts = {role: settings[f"{role}_count"] for role in ("target", "known")}
    counts |= {"wild": [count or flags.wild_count for count in flags.wild.values()]}
    named = {"known": settings["known"], "unseen": settings["unseen"], "wild": list(flags.wild)}
    roles = assigned(images, counts, seed, target=target, **named)
    if change.test_split_only:
        test = {name: places[images.split[places] == "test"] for name, places in roles.test.items()}
        roles = roles._replace(test=test)
    return images, roles


def test_contaminated_wild_images_are_as_many_as_the_papers_at_every_fraction():
    labelled, total = [], []
    for name, change in wild.CONDITIONS["noise"].items():
        images, roles = shared(change, clips=84, frames=wild_roles.ALL_FRAMES)
        generators = images.generator[roles.wild]
        total.append(len(generators))
        others = np.unique(generators[generators != "HotShot"], return_counts=True)[1]
        assert np.mean(generators == "HotShot") == pytest.approx(int(name.split("%")[0]) / 100, abs=0.005)
        assert len(others) == 3 and max(others) - min(others) <= 1
        labelled.append(roles.labelled.tolist())
    assert total == [201, 201, 201, 201, 100]  # 67 of each of three
    assert all(own == labelled[0] for own in labelled)
    known = {name: (images.generator[labelled[0]] == name).sum() for name in ("HotShot", "Real", "Lavie")}
    assert known == {"HotShot": 200, "Real": 67, "Lavie": 67}


@pytest.mark.parametrize("target", ["HotShot", "Gen2"])
def test_later_releases_are_unseen_and_a_control_is_as_large(target):
    months = {name: own.released for name, own in load_generators().items()}
    _, change = settings = wild.CONDITIONS["released"].values()
    later, *drawn = [own(set(NAMES), target, seed).settings for seed, own in enumerate((*settings, change, change))]
    seen = max(months[name] for name in (target, *later["known"], *later["wild"]))
    assert seen < min(months[name] for name in later["unseen"]) == wild_roles.by_release(NAMES)[-1]
    for own in drawn:
        assert own["known"] == later["known"] and len(own["unseen"]) == len(later["unseen"])
        assert sorted(own["unseen"] + own["wild"]) == sorted(later["unseen"] + later["wild"])
    assert len({tuple(sorted(own["unseen"])) for own in drawn}) > 1
    assert "Pika" not in str(later)  # whose month is not known


def test_too_few_releases_raise():
    with pytest.raises(InputError, match=r"generators.csv: releases of 5 generators"):
        wild_roles.by_release(("Real", "Pika", "Lavie", "Gen2", "Sora", "SVD", "SD"))


def test_covering_pools_have_one_size_and_one_test():
    tested, sizes, sources = [], [], []
    for change in wild.CONDITIONS["coverage"].values():
        images, roles = shared(change)
        tested.append({name: places.tolist() for name, places in roles.test.items()})
        sizes.append(len(roles.wild))
        sources.append(set(images.generator[roles.wild]))
    assert all(own == tested[0] for own in tested)
    assert max(sizes) - min(sizes) <= 6 and max(sizes) <= wild_roles.POOL + 6
    assert [len(own) for own in sources] == [1, 3, 3, 6, 3]
    assert sources[-1] == {"Gen2", "Sora", "Pika"} < sources[-2]


def test_each_generator_has_one_role():
    for target in NAMES:
        roles = wild_roles.by_role(set(NAMES), target)
        taken = [name for own in roles.values() for name in own]
        assert target not in taken and len(taken) == len(set(taken)) == len(NAMES) - 1


# ---------------------------------------------------------------- outcomes


def test_folds_are_averaged_by_image():
    clips = {}
    wild.add_scores(clips, np.array(["b", "a", "a"]), np.array([1.0, 2.0, 3.0]))
    wild.add_scores(clips, np.array(["a", "a"]), np.array([4.0, 7.0]))
    assert wild.mean_over_folds(clips).tolist() == [3.0, 5.0, 1.0]


def test_outcome_is_the_mean_over_the_generators_of_a_role():
    random = np.random.default_rng(0)
    scores = {name: random.normal(size=9) for name in ("T", "K", "A", "B")}
    found = wild.outcome(scores, {"target": ["T"], "known": ["K", "none tested"], "unseen": ["A", "B"]})
    pairs = [ranking(scores["T"], scores[name]) for name in ("A", "B")]
    assert found["unseen"]["ap"] == pytest.approx((pairs[0][0] + pairs[1][0]) / 2)
    assert found["known"]["auc"] == pytest.approx(ranking(scores["T"], scores["K"])[1])
    assert found["recall"] == np.mean(scores["T"] > 0) and found["prevalence"] == 0.5
    assert found["unseen_false_positives"] == np.mean([np.mean(scores[name] > 0) for name in ("A", "B")])


def made_row(target, gains):
    """A trial's row whose constrained AP is so many points above 40 by seed, and whose recall is halved."""
    own = {"known": dict.fromkeys(("ap", "auc"), 0.5), "unseen_false_positives": 0.1, "prevalence": 0.2}
    own |= {"images": {target: 48}}
    before = own | {"unseen": {"ap": 0.4, "auc": 0.7}, "recall": 0.8}
    training = {"labelled_loss": 0.2, "known": 134, "wild": 804, "wild, of the target": 0, "target, clips": 43}
    seeds = []
    for seed, gain in enumerate(gains):
        after = own | {"unseen": {"ap": 0.4 + gain / 100, "auc": 0.7}, "recall": 0.4}
        facts = training | {"target": 172 + 28 * seed}
        seeds.append({"seed": seed, "training": facts, "methods": {"labelled only": before, "constrained": after}})
    return {"vectors": "frames", "condition": "", "target": target, "seeds": seeds}


def test_gain_that_one_target_carries_is_seen():
    rows = [made_row("HotShot", (9, 12)), made_row("SVD", (-2, 1)), made_row("SD", (-4, -1))]
    about = {"data": "zoo", "simulated": True, "folds": 1}
    text = "\n".join(wild.render({"rows": rows, "about": about}, "what"))
    assert "| HotShot | 48 | 20.0 ± 0.0 | 40.0 ± 0.0 | +10.5 (+9.0 to +12.0) | +0.0 (+0.0 to +0.0) | -40.0" in text
    assert "| SVD | 48 | 20.0 ± 0.0 | 40.0 ± 0.0 | -0.5 (-2.0 to +1.0) |" in text
    assert "| mean of 3; AP up by over a point for 1, down for 1 |  |  |  | +2.5 (+1.0 to +4.0) |" in text
    assert "| 172-200 (43) / 134 / 804 (0) |" in text and "simulated: a month" not in text
    released = {"earlier": ["SVD"], "later": ["Sora", "OpenSora"], "since": "2024-02"}
    for simulated in (True, False):
        results = {"rows": rows, "about": about | {"simulated": simulated}, "released": released}
        text = " ".join(wild.render(results, "what"))
        assert ("a month says nothing about their pixels" in text) == simulated
        assert "Released before 2024-02: SVD. Later, and unseen: Sora, OpenSora." in text


def test_attack_is_as_strong_as_the_worst_move_of_its_length():
    theta, random = np.random.default_rng(0).normal(size=6), np.random.default_rng(1)
    vectors = {"T": random.normal(size=(20, 5)), "A": random.normal(size=(20, 5))}
    score = wild_methods.score_by(theta)
    scores = {name: score(own) for name, own in vectors.items()}
    found = wild_edits.attacked(scores, "T", 0.7 * np.linalg.norm(theta[:-1]))
    for _ in range(200):
        moved = random.normal(size=5)
        moved *= 0.7 / np.linalg.norm(moved)
        assert (score(vectors["T"] + moved) >= found["T"] - 1e-12).all()
        assert (score(vectors["A"] + moved) <= found["A"] + 1e-12).all()
    best = 0.7 * theta[:-1] / np.linalg.norm(theta[:-1])
    np.testing.assert_allclose(score(vectors["T"] + best), found["T"])


@pytest.mark.parametrize("name", wild_edits.EDITS)
def test_edit_changes_values_and_no_shape(name):
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8), (90, 120))
    edited = wild_edits.EDITS[name](image, np.random.default_rng(0))
    assert edited.shape == image.shape and edited.dtype == np.uint8
    change = np.abs(edited.astype(float) - image).mean()
    assert change == 0 if name == "as they are" else 0 < change < 12  # of colours, not of their order


def test_jpeg_of_an_image_is_that_of_pillow():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), (96, 96))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=50)
    expected = np.asarray(Image.open(file)).astype(float)
    assert np.abs(wild_edits.jpeg(image, 50) - expected).mean() < 0.5


# ---------------------------------------------------------------- entries


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with features f, where entries share their runs."""
    folder = tmp_path_factory.mktemp("entries")
    write_clips(folder / "f", invented(NAMES, clips=12, frames=2))
    return folder


@pytest.fixture
def one_target(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(wild_roles, "TARGETS", {"simulated": ("HotShot",), "real": ()})
    monkeypatch.setattr(wild_roles, "SETTINGS", wild_roles.SETTINGS | {"target_count": 4, "wild_count": 2})
    monkeypatch.setattr(wild, "SETTINGS", wild_roles.SETTINGS)
    conditions = {
        what: dict([*own.items()][:: len(own) - 1]) for what, own in wild.CONDITIONS.items()
    }  # first and last
    conditions["noise"] = {name: wild.CONDITIONS["noise"][name] for name in ("0% target", "50% target")}
    conditions["head"] = {"MLP, 3 units": wild_roles.Change(refit=partial(wild_methods.with_hidden_layer, units=3))}
    monkeypatch.setattr(wild, "CONDITIONS", conditions)
    monkeypatch.setattr(wild_methods, "L2", (1.0,))  # a hidden layer with less penalty takes long


@pytest.mark.parametrize("name", ["wild", *ENTRIES, "wild-target", "wild-encoder"])
def test_entry_leaves_the_numbers_that_it_measured(one_target, name, monkeypatch):
    monkeypatch.setattr(wild, "every_target", lambda data: ["HotShot", "SVD"])
    results = reproduce.main([name, "--features", "f", "--seeds", "1"])
    (saved,) = Path("results").rglob(f"{name}.json")
    assert json.loads(saved.read_text()) == json.loads(json.dumps(results))
    lines = saved.with_suffix(".md").read_text().splitlines()
    assert lines[1:-2] == wild.render(json.loads(saved.read_text()), what="")[1:]
    tables = [own.splitlines() for own in re.findall(r"(?:^\|.*\n)+", "\n".join(lines), re.M)]
    assert len(tables) == 2 and all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert len(tables[0]) >= 4 and len(tables[1]) >= 3
    assert not any("nan" in line for line in lines) and any("92.78" in line and "other data" in line for line in lines)
    rows = {row["condition"] for row in results["rows"]}
    assert rows == (set(wild.CONDITIONS.get(name.removeprefix("wild-"), ())) or rows)


def test_trial_has_the_scores_of_its_run(one_target):
    args = reproduce.get_args(["wild", "--features", "f", "--seeds", "1"])
    (data,) = datasets.choose_data(args)
    folder = wild.run_stage(args, data, "SVD", 3, None, "frames", wild_roles.Change({"l2": 0.01}))
    (outcomes, (facts,)) = wild.trial(args, data, "SVD", 3, change=wild_roles.Change({"l2": 0.01}))
    saved, classifier = json.loads((folder / "wild.json").read_text()), read_arrays(folder / "wild_classifier.npz")
    for name, method in wild_methods.FITTED.items():
        for metric in ("ap", "auc"):
            mean = saved["means"]["unseen"][method][metric]
            assert outcomes[name]["unseen"][metric] == pytest.approx(mean)
        assert facts[f"norm, {name}"] == np.linalg.norm(classifier[method][:-1])
    assert facts["rounds"] == len(saved["training"]["rounds"]) and facts["l2"] == 0.01
    only = wild_methods.read_run(folder, test_split_only=True)
    assert {name: (only.generator == name).sum() for name in ("SVD", "Gen2")} == {"SVD": 6, "Gen2": 6}


def test_folds_test_a_clip_once(one_target, monkeypatch):
    monkeypatch.setitem(wild.CONDITIONS, "threshold", {"tau 2": wild_roles.Change({"l2": 0.01})})
    results = reproduce.main(["wild-threshold", "--features", "f", "--folds", "3", "--seeds", "1"])
    images = results["rows"][0]["seeds"][0]["methods"]["constrained"]["images"]
    assert images == dict.fromkeys(("HotShot", "Real", "Lavie", "VideoCrafter", "Gen2", "Sora", "Pika"), 24)


@pytest.mark.parametrize("folds", [(), ("--folds", "3")])
def test_embeddings_of_saga_are_trained_on_the_labelled_generators(one_target, monkeypatch, folds):
    def train_arm(args, data, arm, level, seed, only):
        assert only == {"train_generators": ["HotShot", "Real", "Lavie", "VideoCrafter"]}
        ((fold,), images) = data.folds, invented(NAMES, clips=12, frames=1)
        if fold:
            part = np.array([int(path.split("/")[1][:-4]) % 3 for path in images.path])
            images = images._replace(split=np.where(part == int(fold[0]) - 1, "test", "train"))
        run = Path("runs") / f"saga{fold or ''}".replace("/", "-")
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "gen_embeddings.npz").exists():
            embeddings(run / "gen_embeddings.npz", images, set(NAMES) - set(only["train_generators"]))
        return [run]

    monkeypatch.setattr(wild, "train_arm", train_arm)
    results = reproduce.main(["wild-video", "--features", "f", "--seeds", "1", *folds])
    (row,) = results["rows"]
    assert row["vectors"] == "SAGA" and set(row["seeds"][0]["methods"]) == {
        *wild_methods.FITTED,
        *wild_methods.COMPARED,
    }
    tested = {"HotShot": 3, "Real": 3, "Lavie": 3, "VideoCrafter": 3, "Gen2": 12, "Sora": 12, "Pika": 12}
    assert row["seeds"][0]["methods"]["constrained"]["images"] == (dict.fromkeys(tested, 12) if folds else tested)


def test_too_few_images_for_a_fraction_raise(one_target, monkeypatch):
    monkeypatch.setitem(wild_roles.SETTINGS, "target_count", 9)
    with pytest.raises(InputError, match="HotShot has too few images to be 50% of 5 wild ones"):
        reproduce.main(["wild-noise", "--features", "f", "--seeds", "1"])


def test_too_few_generators_raise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clips(Path("f"), invented(("Real", "Sora", "Pika"), clips=4))
    with pytest.raises(InputError, match="f has clips of 2 generators and Real; a trial takes six"):
        reproduce.main(["wild-target", "--features", "f"])


def test_edits_need_the_clips(one_target):
    with pytest.raises(InputError, match="wild-edits wants the clips"):
        reproduce.main(["wild-edits", "--features", "f"])


@pytest.mark.slow
def test_unedited_stills_are_the_images_of_their_clips(tmp_path, monkeypatch):
    """The frames that 01 took of simulated clips, written as PNG and read again, give the same vectors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo").symlink_to(ROOT / "data" / "zoo")
    args = reproduce.get_args(["wild-edits", "--limit", "8"])
    (data,) = datasets.choose_data(args)
    clips, stills = read_images(data.features, 4), wild_edits.edited_images(args, data, "as they are", 4)
    test = clips.rows(clips.split == "test")
    assert sorted(stills.path.tolist()) == sorted(test.path.tolist())
    for path in np.unique(test.path):
        ours, theirs = (np.sort(own.vectors[own.path == path], axis=0) for own in (stills, test))
        np.testing.assert_allclose(ours, theirs, atol=0.05)
