"""Unknown-aware attribution: losses against plain loops, the constrained optimum against SciPy's SLSQP, the collapse
without a constraint, roles that never share an image, ranking metrics against loops, and 05 on small features.
"""

import csv
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, roc_auc_score
from stages import module
from stages import stage as run_stage

from basics import statistics
from basics.artifacts import make_recipe, read_arrays, write_arrays, write_json
from basics.running import ROOT, InputError
from basics.statistics import minimize_lbfgs, stop_early
from tokens.dataset import Row, features_file, write_features, write_index
from tokens.generators import TABLE
from tokens.images import Images, assign_roles, on_disk, read_images, resolve_roles, standardize

stage = module("05_wild_constrained")
RECIPE = {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 6, "simulated": True}

# ---------------------------------------------------------------- losses


def problem(seed=0, width=5, labelled=60, unlabelled=90, apart=1.0):
    """Overlapping labelled images, a batch of (vectors, non-target), and wild ones, a fifth of them from where the
    target is.
    """
    random = np.random.default_rng(seed)
    non_target = (np.arange(labelled) % 3 > 0).astype(float)
    vectors = random.normal(size=(labelled, width)) + np.outer(non_target, [apart, *[0.0] * (width - 1)])
    pool = random.normal(size=(unlabelled, width)) + np.outer(np.arange(unlabelled) % 5 > 0, [0.6, 0.6, *[0.0] * 3])
    return [(vectors, non_target)], [(pool, np.ones(unlabelled))]


def naive_bce(theta, batch):
    total = 0.0
    for vector, label in zip(*batch, strict=True):
        probability = 1 / (1 + np.exp(-(sum(a * b for a, b in zip(theta[:-1], vector, strict=True)) + theta[-1])))
        total -= label * np.log(probability) + (1 - label) * np.log(1 - probability)
    return total / len(batch[0])


def test_mean_bce_is_a_loops_in_batches_of_any_size():
    ((vectors, non_target),), _ = problem()
    theta = np.random.default_rng(1).normal(size=6)
    expected = naive_bce(theta, (vectors, non_target))
    assert stage.mean_bce(theta, [(vectors, non_target)])[0] == pytest.approx(expected, rel=1e-12)
    halves = [(vectors[:7], non_target[:7]), (vectors[7:], non_target[7:])]
    assert stage.mean_bce(theta, halves)[0] == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_penalised_loss_is_its_slope():
    labelled, _ = problem()

    def loss(theta):
        return stage.mean_bce(theta, labelled, 0.3)

    theta, step = np.random.default_rng(1).normal(size=6), 1e-6
    slopes = [(loss(theta + step * axis)[0] - loss(theta - step * axis)[0]) / (2 * step) for axis in np.eye(6)]
    np.testing.assert_allclose(loss(theta)[1], slopes, atol=1e-8)
    batch, theta = [(np.zeros((1, 2)), np.ones(1))], np.array([0.0, 2.0, 5.0])
    penalty = stage.mean_bce(theta, batch, 1.0)[0] - stage.mean_bce(theta, batch)[0]
    assert penalty == pytest.approx(2)  # of the weights; the bias has none


def test_losses_of_certain_logits_are_finite():
    loss, gradient = stage.mean_bce(np.array([1000.0, 0.0]), [(np.array([[1.0], [-1.0]]), np.array([0.0, 1.0]))])
    assert loss == pytest.approx(1000) and np.isfinite(gradient).all()


# ---------------------------------------------------------------- the optimum


@pytest.mark.parametrize(("seed", "tau", "l2"), [(0, 2.0, 0.01), (1, 1.1, 0.1), (2, 1.5, 0.001), (3, 5.0, 0.01)])
def test_constrained_optimum_is_that_of_slsqp(seed, tau, l2):
    labelled, pool = problem(seed)
    baseline = stage.fit_baseline(labelled, l2, np.zeros(6))
    allowed = tau * naive_bce(baseline, labelled[0])
    found, rounds = stage.fine_tune(baseline, allowed, labelled, pool, l2)

    def bce(theta, batch):
        vectors, non_target = batch
        signed = (1 - 2 * non_target) * (vectors @ theta[:-1] + theta[-1])
        return np.mean(np.log1p(np.exp(signed)))

    def objective(theta):
        return bce(theta, pool[0]) + l2 / 2 * np.sum(theta[:-1] ** 2)

    inside = {"type": "ineq", "fun": lambda theta: allowed - bce(theta, labelled[0])}
    oracle = minimize(objective, baseline, method="SLSQP", constraints=[inside], options={"maxiter": 500, "ftol": 1e-9})
    assert oracle.success
    assert objective(found) == pytest.approx(oracle.fun, rel=0.01)
    assert naive_bce(found, labelled[0]) <= allowed + 1e-3
    assert objective(found) < objective(baseline)
    assert rounds[-1]["constraint"] == pytest.approx(naive_bce(found, labelled[0]) - allowed)
    assert rounds[-1]["objective"] == pytest.approx(objective(found))


def test_constraint_that_never_binds_has_no_multiplier():
    labelled, pool = problem()
    baseline = stage.fit_baseline(labelled, 0.1, np.zeros(6))
    free = minimize_lbfgs(lambda theta: stage.mean_bce(theta, pool, 0.1), baseline)
    found, rounds = stage.fine_tune(baseline, 1000.0, labelled, pool, 0.1)
    assert rounds[-1]["multiplier"] == 0
    np.testing.assert_allclose(found, free, atol=1e-3)


def test_baseline_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    ((vectors, non_target),), _ = problem()
    theta = stage.fit_baseline([(vectors, non_target)], 0.05, np.zeros(6))
    oracle = LogisticRegression(C=1 / (0.05 * len(vectors)), tol=1e-8).fit(vectors, non_target)
    np.testing.assert_allclose(theta, [*oracle.coef_[0], oracle.intercept_[0]], atol=1e-4)


def test_wild_loss_alone_collapses_to_always_non_target_and_the_constraint_prevents_it():
    labelled, pool = problem(labelled=300, unlabelled=300, apart=3.0)
    baseline = stage.fit_baseline(labelled, 0.001, np.zeros(6))
    alone = minimize_lbfgs(lambda theta: stage.mean_bce(theta, pool, 0.001), baseline)
    constrained, _ = stage.fine_tune(baseline, 1.1 * naive_bce(baseline, labelled[0]), labelled, pool, 0.001)
    target = labelled[0][0][labelled[0][1] == 0]
    recall = [np.mean(stage.logits_of(theta, target) < 0) for theta in (baseline, alone, constrained)]
    assert recall[1] == 0
    assert recall[2] > recall[0] - 0.15 > 0.6


def test_early_stopping_keeps_the_step_best_on_val():
    labelled, _ = problem(labelled=40)
    val, _ = problem(seed=1, labelled=30)
    rate = 4 * 40 / (np.linalg.norm(labelled[0][0], 2) ** 2 + 40)
    held_out = lambda theta: stage.mean_bce(theta, val)[0]  # noqa: E731
    best, at = stop_early(lambda theta: stage.mean_bce(theta, labelled), held_out, np.zeros(6), rate, patience=50)
    theta, losses = np.zeros(6), []
    for _ in range(at + 40):
        losses.append(naive_bce(theta, val[0]))
        theta = theta - rate * stage.mean_bce(theta, labelled)[1]
    assert at == int(np.argmin(losses)) > 0
    assert naive_bce(best, val[0]) == pytest.approx(min(losses))
    assert np.array_equal(stage.fit_early(labelled, val, np.zeros(6))[0], best)


def test_largest_penalty_is_chosen_on_pure_noise():
    random = np.random.default_rng(0)
    noise, val = ([(random.normal(size=(30, 20)), np.arange(30) % 2.0)] for _ in range(2))
    assert stage.choose_l2(noise, val, np.zeros(21)) == max(stage.L2)


# ---------------------------------------------------------------- ranking


def test_ranking_is_that_of_loops_and_of_scikit_learn():
    random = np.random.default_rng(0)
    target, other = np.round(random.normal(1, 1, 13), 1), np.round(random.normal(0, 1, 21), 1)
    wins = [(t > o) + (t == o) / 2 for t in target for o in other]
    precisions, recall = 0.0, 0.0
    for threshold in sorted({*target, *other}, reverse=True):
        found = np.mean(target >= threshold)
        called = (target >= threshold).sum() + (other >= threshold).sum()
        precisions += (found - recall) * (target >= threshold).sum() / called
        recall = found
    np.testing.assert_allclose(statistics.ranking(target, other), [precisions, np.mean(wins)])
    labels, scores, weight = np.repeat([1, 0], [13, 21]), np.append(target, other), random.integers(0, 3, 34)
    oracle = [score(labels, scores, sample_weight=weight) for score in (average_precision_score, roc_auc_score)]
    np.testing.assert_allclose(statistics.ranking(target, other, weight[:13], weight[13:]), oracle)


def test_weights_are_repetitions():
    target, other = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.5])
    weighted = statistics.ranking(target, other, np.array([2.0, 0.0, 1.0]), np.array([1.0, 3.0]))
    repeated = statistics.ranking(np.array([3.0, 3.0, 2.0]), np.array([0.0, 2.5, 2.5, 2.5]))
    np.testing.assert_allclose(weighted, repeated)


ROLES = {"target": ["T"], "known": ["K"], "unseen": ["O", "P"]}
ranking_table = partial(statistics.ranking_table, repeats=100)


def test_mean_over_a_role_is_bootstrapped_as_a_whole():
    """The target's two groups decide both generators alike, so the mean is as uncertain as either."""
    scores = {"T": np.repeat([1.0, -1.0], 50), "O": np.zeros(100), "P": np.zeros(100)}
    groups = {"T": np.repeat(["a", "b"], 50), "O": np.arange(100).astype(str), "P": np.arange(100).astype(str)}
    means = ranking_table({"one": scores}, groups, ROLES)["means"]
    assert set(means) == {"unseen"}  # K is not tested
    assert means["unseen"]["one"]["auc"] == 0.5 and means["unseen"]["one"]["auc_interval"] == [0, 1]


def test_bootstrap_draws_whole_groups():
    scores = np.repeat([1.0, -1.0], 50)
    groups = {"T": np.repeat(["a", "b"], 50), "O": np.arange(100).astype(str)}
    entry = ranking_table({"one": {"T": scores, "O": np.zeros(100)}}, groups, ROLES)["by_generator"]["O"]
    assert entry["one"]["auc"] == 0.5 and entry["one"]["auc_interval"] == [0, 1]  # a and b alone are 1 and 0
    assert entry["prevalence"] == 0.5 and entry["groups"] == 100


def test_gain_is_the_last_method_less_the_first():
    scores = {"before": {"T": np.array([1.0, 0.0]), "O": np.array([0.5])}, "after": {"T": np.ones(2), "O": np.zeros(1)}}
    groups = {"T": np.array(["a", "b"]), "O": np.array(["c"])}
    entry = ranking_table(scores, groups, ROLES)["by_generator"]["O"]
    assert entry["gain"]["auc"] == 0.5 and entry["gain"]["auc_interval"][1] == 1


def test_always_non_target_shows_at_the_threshold():
    scores = {"T": np.full(4, -2.0), "A": np.full(3, -3.0), "B": np.array([-9.0, 1.0])}
    found = statistics.at_threshold(scores, "T")
    assert found == {"recall": 0.0, "false_alarms": {"A": 0.0, "B": 0.5}, "balanced_accuracy": 0.375}


# ---------------------------------------------------------------- images and roles

COUNTS = {"target": 6, "known": 4, "wild": 5}


def invented(generators=("T", "Real", "K", "W", "U"), clips=40, frames=2, width=6, seed=0):
    """Images of clips in groups of one clip each; T stands apart along the first axis, U half-way to it."""
    random = np.random.default_rng(seed)
    names = np.repeat(generators, clips * frames)
    path = np.array([f"{name}/{i // frames}.mp4" for i, name in enumerate(names)])
    shift = {"T": 2.0, "U": 1.0}
    vectors = random.normal(size=(len(names), width)) + np.outer(
        [shift.get(name, 0) for name in names], np.eye(width)[0]
    )
    split = np.array(
        ["test" if i % 4 == 0 else "val" if i % 4 == 1 else "train" for i in np.arange(len(names)) // frames]
    )
    return Images(np.float32(vectors), path, names, path, split, {"features": RECIPE})


def resolved(images, target="T", known=("Real", "K"), wild=("W",), unseen=("U",), table=None):
    named = {"target": [target], "known": list(known), "wild": list(wild), "unseen": list(unseen)}
    return resolve_roles(images, named, table or TABLE)


def assigned(images, counts=COUNTS, seed=0, **roles):
    """Roles of the images; `counts` by role, or of each of its generators."""
    named = resolved(images, **roles)
    each = {role: own if isinstance(own, list) else [own] * len(named[role]) for role, own in counts.items()}
    return assign_roles(images, named, each, seed)


def test_aliases_of_the_given_table_are_known(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("name,aliases,task,sd_version,team\nReal,,Real,Real,Real\nT,Tee,T2V,Unknown,Nobody\n")
    roles = resolved(invented(frames=1), target="tee", table=table)
    assert roles["target"] == ["T"] and roles["known"] == ["Real", "K"]


def test_roles_keep_counts_and_splits():
    images = invented()
    roles = assigned(images)
    count = {name: int((images.generator[roles.labelled] == name).sum()) for name in ("T", "Real", "K")}
    assert count == {"T": 6, "Real": 4, "K": 4} and len(roles.wild) == 5
    assert set(images.split[roles.labelled]) == set(images.split[roles.wild]) == {"train"}
    assert set(images.split[roles.val]) == {"val"} and set(images.generator[roles.val]) == {"T", "Real", "K"}
    assert {name: len(places) for name, places in roles.test.items()} == {"T": 20, "Real": 20, "K": 20, "U": 80}


def test_wild_generators_have_their_own_counts():
    images = invented()
    roles = assigned(images, wild=("W", "T", "K"), counts=COUNTS | {"wild": [7, 1, 2]})
    assert {name: int((images.generator[roles.wild] == name).sum()) for name in "WTK"} == {"W": 7, "T": 1, "K": 2}


def test_target_in_the_wild_shares_no_image_with_the_labelled():
    images = invented()
    roles = assigned(images, wild=("W", "T", "U"), counts=COUNTS | {"wild": 1000})
    trained = set(images.group[roles.labelled]), set(images.group[roles.wild])
    assert not trained[0] & trained[1]
    assert {"W", "T", "U"} == set(images.generator[roles.wild])
    tested = set(np.concatenate([images.group[places] for places in roles.test.values()]))
    assert not tested & (trained[0] | trained[1])
    assert len(roles.test["U"]) == 20  # its train images are wild


def test_group_is_on_one_side_of_training_and_test():
    images = invented(frames=1)
    group = images.group.copy()
    group[images.generator == "U"] = "T/2.mp4"  # an unseen generator's clips, of one source with a labelled clip
    torn = images._replace(group=group)
    with pytest.raises(InputError, match="U: no image to test on"):
        assigned(torn, counts=COUNTS | {"target": 100})


def test_seed_chooses_the_images():
    images = invented()
    assert not np.array_equal(assigned(images).labelled, assigned(images, seed=1).labelled)
    assert np.array_equal(assigned(images).labelled, assigned(images).labelled)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"target": "Nobody"}, "target: no image of Nobody; there are: K, Real, T, U, W"),
        ({"known": ("Real", "T")}, "T: in two roles"),
        ({"unseen": ("Real",)}, "Real: in two roles"),
        ({"wild": ()}, "wild: no generator named"),
        ({"known": ("K", "K")}, "known: K named twice"),
    ],
)
def test_wrong_role_raises(roles, message):
    with pytest.raises(InputError, match=message):
        assigned(invented(), **roles)


def test_same_image_in_two_roles_raises():
    images = invented()
    roles = assigned(images)
    vectors = images.vectors.copy()
    vectors[roles.test["U"][3]] = vectors[roles.wild[2]]
    pair = f"{images.path[roles.wild[2]]} .wild. and {images.path[roles.test['U'][3]]} .test. are the same image"
    with pytest.raises(InputError, match=pair):
        assigned(images._replace(vectors=vectors))


def test_clips_that_begin_alike_are_not_the_same_and_twins_are_counted(tmp_path):
    """In each clip of two frames the first is black; then three clips hold what a clip of another role holds."""
    images = invented()
    vectors = images.vectors.copy()
    vectors[::2] = 0
    write_clips(tmp_path / "black", images._replace(vectors=vectors))
    roles = assigned(read_images(tmp_path / "black", 2))
    pairs = zip(roles.labelled[::2], roles.test["U"][::2], strict=False)
    read = read_images(tmp_path / "black", 2)
    names = [[str(read.path[place]) for place in pair] for pair in pairs][:5]
    for labelled, tested in names:
        own, other = (np.flatnonzero(images.path == path) for path in (labelled, tested))
        vectors[other] = vectors[own]
    write_clips(tmp_path / "twins", images._replace(vectors=vectors))
    for per_clip in (1, 2):
        with pytest.raises(
            InputError, match=r"and 2 more are the same image in two roles; remove one of each"
        ) as error:
            assigned(read_images(tmp_path / "twins", per_clip))
        assert sum(f"{one} (labelled) and {other} (test)" in str(error.value) for one, other in names) == 3


def test_target_without_test_images_raises():
    images = invented()
    split = np.where((images.generator == "T") & (images.split == "test"), "val", images.split)
    with pytest.raises(InputError, match="T: no image to test on"):
        assigned(images._replace(split=split))


def test_images_of_train_are_val_where_split_val_is_empty():
    images = invented()
    images = images._replace(split=np.where(images.split == "val", "train", images.split))
    roles = assigned(images, counts=COUNTS | {"target": 1000})
    held = {
        name: np.unique(images.group[roles.val][images.generator[roles.val] == name]) for name in ("T", "Real", "K")
    }
    assert [len(groups) for groups in held.values()] == [6, 6, 6]  # a fifth of thirty clips
    assert not set(images.group[roles.val]) & set(images.group[np.concatenate([roles.labelled, roles.wild])])
    assert (images.generator[roles.labelled] == "T").sum() == 48


def of_one_group(columns=("group",)):
    """Images whose target has one group, or one clip as well, and nobody split val."""
    images = invented(clips=12)
    mine = (images.generator == "T") & (images.split != "test")
    changed = {key: np.where(mine, "T/one", getattr(images, key)) for key in columns}
    return images._replace(split=np.where(images.split == "val", "train", images.split), **changed), mine


def test_target_of_one_group_has_a_fifth_of_its_clips_in_val():
    images, mine = of_one_group()
    roles = assigned(images)
    assert {*images.path[roles.val]} & {*images.path[mine]}
    assert not set(images.path[roles.val]) & set(images.path[roles.labelled])


# ---------------------------------------------------------------- 05 on small features


draw_results = stage.draw_results


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A short bootstrap, and no figures: they would take most of the time."""
    monkeypatch.setattr(stage, "draw_results", lambda *given: None)
    monkeypatch.setattr(stage, "ranking_table", partial(statistics.ranking_table, repeats=10))


def write_clips(folder, images, tokens=2, recipe=RECIPE):
    """A features folder of clips of one window, whose frames have the images' vectors as the mean over their tokens."""
    rows = []
    for path in dict.fromkeys(images.path.tolist()):
        own = images.path == path
        frames = images.vectors[own]
        valid = np.arange(8)[None] < len(frames)
        padded = frames[np.minimum(np.arange(8), len(frames) - 1)]  # (8, D)
        offset = np.linspace(-1, 1, tokens)[:, None]
        write_features(features_file(folder, path), padded[None, :, None] + offset, np.zeros((1, 8)), valid)
        first = np.flatnonzero(own)[0]
        rows.append(Row(path, images.generator[first], group=path, split=images.split[first], windows=1))
    write_index(folder / "index-1-of-1.csv", rows)
    write_json(folder / "recipe.json", recipe | {"tokens": tokens})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wild") / "features"
    write_clips(folder, invented())
    return folder


FLAGS = "--images-per-clip 1 --target T --known Real,K --wild W --unseen U"
FLAGS += " --target-count 20 --known-count 9 --wild-count 20"


def run(features, place, *more):
    return run_stage("05_wild_constrained", "--features", features, "--run", place, *FLAGS.split(), *more)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """What 05 leaves, run as users do; its output; whether Keras was imported."""
    place = tmp_path_factory.mktemp("wild") / "run"
    code = "import sys, runpy; runpy.run_path(sys.argv[0], run_name='__main__'); print('keras' in sys.modules)"
    command = ["05_wild_constrained.py", "--features", str(small), "--run", str(place), *FLAGS.split()]
    code = f"import sys; sys.argv = {command}; sys.path.insert(0, '.'); {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return place, done.stdout


def test_frames_are_read_evenly_spread_and_without_padding(small):
    one, two = (read_images(small, count) for count in (1, 8))
    expected = invented()
    order = np.lexsort((np.arange(len(expected.path)), expected.path))
    np.testing.assert_allclose(two.vectors, expected.vectors[order], atol=0.01)  # float16, and no padding
    assert len(one.path) == 200 and len(two.path) == 400
    np.testing.assert_allclose(one.vectors, two.vectors[1::2], atol=1e-6)  # of two frames the later is the middle


def test_stage_five_runs_without_keras_and_draws(trained):
    place, out = trained
    assert out.splitlines()[-1] == "False"
    assert "unseen  U" in out and "recall" in out
    pictures = [place / name for name in ("wild_scores.png", "wild_curves.png")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_metrics_say_what_was_reached(trained):
    saved = json.loads((trained[0] / "wild.json").read_text())
    assert saved["by_generator"]["U"]["images"] == 40 and saved["test_images"]["T"] == 10
    assert saved["by_generator"]["U"]["prevalence"] == 0.2
    assert saved["training"]["constrained"]["labelled_loss"] <= saved["training"]["allowed"] * 1.001
    assert saved["training"]["constrained"]["wild_loss"] < saved["training"]["baseline"]["wild_loss"]
    assert saved["by_generator"]["U"]["baseline"]["auc"] > 0.6


def test_scores_are_those_of_the_standardised_vectors_by_role(trained, small):
    place, _ = trained
    rows, classifier = (read_arrays(place / f"wild_{name}.npz") for name in ("scores", "classifier"))
    images, saved = read_images(small), json.loads((place / "wild.json").read_text())
    roles = assigned(images, counts={"target": 20, "known": 9, "wild": 20})
    places = {"labelled": roles.labelled, "val": roles.val, "wild": roles.wild}
    places["test"] = np.concatenate(list(roles.test.values()))
    for role, own in places.items():
        mine = rows["role"] == role
        for key in ("path", "generator", "group", "split"):
            assert np.array_equal(rows[key][mine], getattr(images, key)[own])
        vectors = (images.vectors[own] - classifier["mean"]) / classifier["scale"]
        np.testing.assert_allclose(rows[f"{role}_vectors"], vectors, atol=1e-5)
        for method in stage.METHODS:
            *weights, bias = classifier[method]
            np.testing.assert_allclose(rows[method][mine], -(vectors @ weights + bias), atol=1e-4)
    np.testing.assert_allclose(rows["labelled_vectors"].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(rows["labelled_vectors"].std(axis=0), 1)
    tested = [rows["constrained"][(rows["role"] == "test") & (rows["generator"] == name)] for name in "TU"]
    auc = roc_auc_score(np.repeat([1, 0], [len(own) for own in tested]), np.concatenate(tested))
    assert saved["by_generator"]["U"]["constrained"]["auc"] == pytest.approx(auc)


@pytest.mark.parametrize("more", [("--l2", "0.01"), ("--l2", "0.01", "--fold", "1/3")])
def test_same_command_is_up_to_date_also_after_overwrite(small, tmp_path, capsys, more):
    first = run(small, tmp_path, *more)
    assert json.loads((tmp_path / "wild.json").read_text()) == json.loads(json.dumps(first))
    again = run(small, tmp_path, *more, "--overwrite")
    assert "up to date" not in capsys.readouterr().out
    assert again["training"] == first["training"] and again["by_generator"] == first["by_generator"]
    assert run(small, tmp_path, *more) == json.loads(json.dumps(again)) and "up to date" in capsys.readouterr().out
    with pytest.raises(InputError, match="other settings .tau."):
        run(small, tmp_path, *more, "--tau", "3")


def test_edited_method_is_other_code(small, tmp_path):
    run(small, tmp_path, "--l2", "0.01")
    saved = json.loads((tmp_path / "wild.json").read_text())
    code = saved["recipe"]["code"]
    solver, roles = "basics/statistics.py:minimize_constrained", "tokens/images.py:choose_images"
    assert {"05_wild_constrained.py:mean_bce", solver, roles} < code.keys()
    write_json(tmp_path / "wild.json", saved | {"recipe": saved["recipe"] | {"code": code | {solver: "edited"}}})
    with pytest.raises(InputError, match="other code .basics/statistics.py:minimize_constrained.*--overwrite"):
        run(small, tmp_path, "--l2", "0.01")


def test_figures_without_known_test_images_are_drawn(tmp_path):
    random = np.random.default_rng(0)
    scores = {method: {name: random.normal(size=5) for name in "TOP"} for method in stage.METHODS}
    draw_results(scores, {"target": ["T"], "known": ["K"], "unseen": ["O", "P"]}, "T against others", tmp_path)
    for name in ("wild_scores.png", "wild_curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_edited_generator_table_is_another_setting(small, tmp_path):
    table = tmp_path / "table.csv"
    table.write_bytes((ROOT / "generators.csv").read_bytes())
    run(small, tmp_path, "--l2", "0.01", "--generators", table)
    table.write_text(table.read_text().replace("Real,", "Real,Camera", 1))
    with pytest.raises(InputError, match="other settings .table_sha256."):
        run(small, tmp_path, "--l2", "0.01", "--generators", table)


def test_counts_of_wild_generators_are_taken_by_name(small, tmp_path):
    run(small, tmp_path, "--l2", "0.01", "--wild", "W=3, T=2,U", "--target-count", "9")
    rows = read_arrays(tmp_path / "wild_scores.npz")
    wild = rows["generator"][rows["role"] == "wild"].tolist()
    assert {name: wild.count(name) for name in "WTU"} == {"W": 3, "T": 2, "U": 20}


def test_applied_scores_are_the_classifiers(trained, small):
    place, _ = trained
    run_stage("05_wild_constrained", "--run", place, "--apply", small, "--wild-batch", 7)
    with open(place / "wild_applied.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    arrays, images = read_arrays(place / "wild_classifier.npz"), read_images(small)
    for method in ("baseline", "constrained"):
        *weights, bias = arrays[method]
        expected = -((images.vectors - arrays["mean"]) / arrays["scale"] @ weights + bias)
        np.testing.assert_allclose([float(row[method]) for row in rows], expected, atol=1e-4)
    assert [row["path"] for row in rows] == images.path.tolist()


def test_features_of_another_encoder_are_refused(trained, small, tmp_path):
    write_clips(tmp_path / "other", invented(clips=4), recipe=RECIPE | {"encoder": "another"})
    with pytest.raises(InputError, match="other vectors .*encoder"):
        run_stage("05_wild_constrained", "--run", trained[0], "--apply", tmp_path / "other")
    with pytest.raises(InputError, match="wild_classifier.npz is missing; train it first"):
        run_stage("05_wild_constrained", "--run", tmp_path, "--apply", small)
    (tmp_path / "wild_classifier.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="wild_classifier.npz: damaged"):
        run_stage("05_wild_constrained", "--run", tmp_path, "--apply", small)


NARROW = {key: np.ones(2) for key in ("baseline", "constrained", "mean", "scale")}


@pytest.mark.parametrize(
    "changed",
    [*({key: value} for key in NARROW for value in (np.ones(3), np.full(6, np.nan), np.full(6, "x"), np.ones((1, 6))))]
    + [
        NARROW,
        {"scale": np.zeros(6)},
        {"recipe": {}},
        {"recipe": {"arguments": {"images_per_clip": 0, "target": "T"}}},
    ],
    ids=repr,
)
def test_edited_classifier_is_refused_by_name(trained, small, tmp_path, changed):
    arrays = read_arrays(trained[0] / "wild_classifier.npz")
    if "recipe" in changed:
        changed = {"recipe": {"features": RECIPE} | changed["recipe"]}
    write_arrays(tmp_path / "wild_classifier.npz", arrays | changed)
    with pytest.raises(InputError, match=r"wild_classifier.npz: .*; train it first"):
        run_stage("05_wild_constrained", "--run", tmp_path, "--apply", small)


def test_unreadable_vectors_raise(tmp_path):
    images = invented(clips=4)
    write_clips(tmp_path, images)
    damaged = features_file(tmp_path, "K/9.mp4")
    with np.load(damaged) as arrays:
        tokens, times, valid = (arrays[key] for key in ("tokens", "times", "valid"))
    write_features(damaged, tokens[..., :4], times, valid)
    with pytest.raises(InputError, match=r"K/9.mp4.npz: tokens \(1, 8, 2, 4\), but .* \(1, 8, 2, 6\)"):
        read_images(tmp_path)
    write_features(damaged, tokens * np.nan, times, valid)
    with pytest.raises(InputError, match=r"K/9.mp4.npz: a vector is not finite"):
        read_images(tmp_path)
    write_features(damaged, tokens, times, valid * False)
    with pytest.raises(InputError, match=r"K/9.mp4.npz: every frame is padding"):
        read_images(tmp_path)
    np.savez(damaged, tokens=tokens)
    with pytest.raises(InputError, match=r"K/9.mp4.npz: damaged"):
        read_images(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(InputError, match=r"K/9.mp4.npz: damaged"):
        read_images(tmp_path)


def test_target_of_one_clip_needs_a_penalty(tmp_path):
    write_clips(tmp_path / "features", of_one_group(("group", "path"))[0])
    with pytest.raises(InputError, match="val has no image of the target"):
        run(tmp_path / "features", tmp_path)
    with pytest.raises(InputError, match="val has no image of the target"):
        run(tmp_path / "features", tmp_path, "--l2", "0.01", "--early-stopping")
    assert run(tmp_path / "features", tmp_path, "--l2", "0.01")["training"]["l2"] == 0.01


def test_early_stopping_has_no_penalty(small, tmp_path):
    training = run(small, tmp_path, "--early-stopping")["training"]
    assert training["l2"] == 0 and training["steps"] > 0
    assert training["constrained"]["labelled_loss"] <= training["allowed"] * 1.001


@pytest.mark.parametrize(
    "flags",
    [
        ("--tau", "0.5"),
        ("--l2", "-1"),
        ("--wild-count", "0"),
        ("--fold", "3/2"),
        ("--wild", "A=0"),
        ("--wild", "A,A=3"),
    ],
)
def test_wrong_flag_exits_with_two(flags):
    with pytest.raises(SystemExit) as error:
        stage.get_args(list(flags))
    assert error.value.code == 2


def test_wild_batch_bounds_the_wild_images_in_memory(small, tmp_path):
    few, many = (run(small, tmp_path / size, "--l2", "0.01", "--wild-batch", size) for size in ("3", "1000"))
    for key in ("labelled_loss", "wild_loss"):
        assert few["training"]["constrained"][key] == pytest.approx(many["training"]["constrained"][key], abs=2e-3)
    images, read = invented(), []

    class Counted(np.ndarray):
        def __getitem__(self, places):
            read.append(np.size(places))
            return np.asarray(self)[places]

    places = {"labelled": np.arange(4), "wild": np.arange(100, 111)}
    vectors, _, _ = standardize(images.vectors.view(Counted), places, 3)
    assert read == [4, 4, 3, 3, 3, 2]
    assert isinstance(vectors["wild"], np.memmap) and vectors["wild"].shape == (11, 6)


def test_array_on_disk_holds_what_was_written():
    parts = np.random.default_rng(0).normal(size=(3, 4, 2))
    whole = on_disk(iter(parts), 2)
    assert isinstance(whole, np.memmap) and np.array_equal(whole, np.float32(parts).reshape(12, 2))


# ---------------------------------------------------------------- embeddings of a run


def embeddings(path, images, unseen=("W", "U")):
    split = np.where(np.isin(images.generator, unseen), "unseen", images.split)
    recipe = make_recipe({"seed": 0, "run": str(path)}, ("run",), level="gen", features=RECIPE, index_sha256="0")
    arrays = {"embedding": images.vectors, "video": images.path, "generator": images.generator, "split": split}
    write_arrays(path, arrays | {"group": images.group, "recipe": recipe})


def test_unseen_clips_of_a_run_are_split_by_group(tmp_path, capsys):
    expected = invented(frames=1)
    embeddings(tmp_path / "gen_embeddings.npz", expected)
    images = read_images(tmp_path / "gen_embeddings.npz")
    trained = ~np.isin(images.generator, ("W", "U"))
    assert np.array_equal(images.split[trained], expected.split[trained])
    assert set(images.split[~trained]) == {"train", "val", "test"}
    assert images.recipe["run"]["trained_on"] == ["K", "Real", "T"]
    resolved(images, known=("Real",), unseen=("U", "K"))
    assert "was trained on K, so unseen" in capsys.readouterr().out
    metrics = run(tmp_path / "gen_embeddings.npz", tmp_path)
    assert metrics["by_generator"]["U"]["images"] == 40
    applied = run_stage("05_wild_constrained", "--run", tmp_path, "--apply", tmp_path / "gen_embeddings.npz")
    assert applied == {"images": 200}


def test_embeddings_of_another_training_are_another_setting(tmp_path):
    """The same clips and settings, other weights; and the same run at another place, which is none."""
    embeddings(tmp_path / "e.npz", invented(frames=1))
    run(tmp_path / "e.npz", tmp_path)
    (tmp_path / "moved.npz").write_bytes((tmp_path / "e.npz").read_bytes())
    run(tmp_path / "moved.npz", tmp_path)
    embeddings(tmp_path / "e.npz", invented(frames=1, seed=1))
    with pytest.raises(InputError, match="other settings .embeddings_sha256"):
        run(tmp_path / "e.npz", tmp_path)
    few = read_images(tmp_path / "e.npz", limit=3)
    assert np.isin(few.generator, ("T", "Real", "K")).sum() == 3 * 3 * 3  # generators, splits, clips


def test_damaged_embeddings_and_folds_of_them_raise(tmp_path):
    path = tmp_path / "gen_embeddings.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="gen_embeddings.npz: damaged .*run 02 or 03 again"):
        read_images(path)
    embeddings(path, invented())
    with pytest.raises(InputError, match="its own split"):
        read_images(path, fold=(1, 2))
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"recipe": {"level": "gen"}})
    with pytest.raises(InputError, match="recipe lacks arguments, features, index_sha256"):
        read_images(path)
