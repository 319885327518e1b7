"""Unknown-aware attribution: losses against plain loops, the constrained optimum against SciPy's SLSQP, the collapse
without a constraint, roles that never share an image, ranking metrics against loops, and 05 on small features.
"""

import csv
import importlib
import json

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, roc_auc_score

from tokens import ranking, wild
from tokens.dataset import features_file, write_features, write_index, write_json

stage = importlib.import_module("05_wild_constrained")
RECIPE = {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 6, "simulated": True}

# ---------------------------------------------------------------- losses


def problem(seed=0, width=5, labelled=60, unlabelled=90, apart=1.0):
    """Overlapping labelled images (vectors, non-target) and wild ones, a fifth of them from where the target is."""
    random = np.random.default_rng(seed)
    non_target = (np.arange(labelled) % 3 > 0).astype(float)
    vectors = random.normal(size=(labelled, width)) + np.outer(non_target, [apart, *[0.0] * (width - 1)])
    pool = random.normal(size=(unlabelled, width)) + np.outer(np.arange(unlabelled) % 5 > 0, [0.6, 0.6, *[0.0] * 3])
    return (vectors, non_target), [(pool, np.ones(unlabelled))]


def naive_bce(theta, vectors, non_target):
    total = 0.0
    for vector, label in zip(vectors, non_target, strict=True):
        probability = 1 / (1 + np.exp(-(sum(a * b for a, b in zip(theta[:-1], vector, strict=True)) + theta[-1])))
        total -= label * np.log(probability) + (1 - label) * np.log(1 - probability)
    return total / len(vectors)


def test_mean_bce_differs_from_a_loop_or_between_batch_sizes():
    (vectors, non_target), _ = problem()
    theta = np.random.default_rng(1).normal(size=6)
    expected = naive_bce(theta, vectors, non_target)
    assert stage.mean_bce(theta, [(vectors, non_target)])[0] == pytest.approx(expected, rel=1e-12)
    halves = [(vectors[:7], non_target[:7]), (vectors[7:], non_target[7:])]
    assert stage.mean_bce(theta, halves)[0] == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_penalised_loss_is_not_its_slope():
    labelled, _ = problem()

    def loss(theta):
        return stage.add_l2(theta, *stage.mean_bce(theta, [labelled]), 0.3)

    theta, step = np.random.default_rng(1).normal(size=6), 1e-6
    slopes = [(loss(theta + step * axis)[0] - loss(theta - step * axis)[0]) / (2 * step) for axis in np.eye(6)]
    np.testing.assert_allclose(loss(theta)[1], slopes, atol=1e-8)
    assert stage.add_l2(np.array([0.0, 0.0, 5.0]), 0.0, 0.0, 1.0)[0] == 0  # the bias is not penalised


def test_losses_of_certain_logits_overflow():
    loss, gradient = stage.mean_bce(np.array([1000.0, 0.0]), [(np.array([[1.0], [-1.0]]), np.array([0.0, 1.0]))])
    assert loss == pytest.approx(1000) and np.isfinite(gradient).all()


# ---------------------------------------------------------------- the optimum


@pytest.mark.parametrize(("seed", "tau", "l2"), [(0, 2.0, 0.01), (1, 1.1, 0.1), (2, 1.5, 0.001), (3, 5.0, 0.01)])
def test_constrained_optimum_differs_from_slsqp(seed, tau, l2):
    labelled, pool = problem(seed)
    baseline = stage.fit_baseline(labelled, l2, np.zeros(6))
    allowed = tau * naive_bce(baseline, *labelled)
    found, history = stage.fine_tune(baseline, labelled, pool, l2, tau)

    def objective(theta):
        return naive_bce(theta, *pool[0]) + l2 / 2 * np.sum(theta[:-1] ** 2)

    inside = {"type": "ineq", "fun": lambda theta: allowed - naive_bce(theta, *labelled)}
    oracle = minimize(objective, baseline, method="SLSQP", constraints=[inside], options={"maxiter": 500, "ftol": 1e-9})
    assert oracle.success
    assert objective(found) == pytest.approx(oracle.fun, rel=0.01)
    assert naive_bce(found, *labelled) <= allowed + 1e-3
    assert objective(found) < objective(baseline)
    assert history[-1]["labelled_loss"] == pytest.approx(naive_bce(found, *labelled), abs=1e-3)


def test_constraint_that_never_binds_leaves_a_multiplier():
    labelled, pool = problem()
    baseline = stage.fit_baseline(labelled, 0.1, np.zeros(6))
    free = stage.descend(lambda theta: stage.add_l2(theta, *stage.mean_bce(theta, pool), 0.1), baseline)
    found, history = stage.fine_tune(baseline, labelled, pool, 0.1, tau=1000.0)
    assert history[-1]["multiplier"] == 0
    np.testing.assert_allclose(found, free, atol=1e-3)


def test_baseline_differs_from_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    (vectors, non_target), _ = problem()
    theta = stage.fit_baseline((vectors, non_target), 0.05, np.zeros(6))
    oracle = LogisticRegression(C=1 / (0.05 * len(vectors)), tol=1e-8).fit(vectors, non_target)
    np.testing.assert_allclose(theta, [*oracle.coef_[0], oracle.intercept_[0]], atol=1e-4)


def test_wild_loss_alone_does_not_collapse_to_always_non_target_or_the_constraint_does():
    labelled, pool = problem(labelled=300, unlabelled=300, apart=3.0)
    baseline = stage.fit_baseline(labelled, 0.001, np.zeros(6))
    alone = stage.descend(lambda theta: stage.add_l2(theta, *stage.mean_bce(theta, pool), 0.001), baseline)
    constrained, _ = stage.fine_tune(baseline, labelled, pool, 0.001, 1.1)
    target = labelled[0][labelled[1] == 0]
    recall = [np.mean(wild.linear(theta, target)[0] < 0) for theta in (baseline, alone, constrained)]
    assert recall[1] == 0
    assert recall[2] > recall[0] - 0.15 > 0.6


def test_early_stopping_keeps_another_step_than_the_best_on_val():
    labelled, _ = problem(labelled=40)
    val, _ = problem(seed=1, labelled=30)
    best, at = stage.stop_early(labelled, val, np.zeros(6), patience=50)
    rate = 4 * 40 / (np.linalg.norm(labelled[0], 2) ** 2 + 40)
    theta, losses = np.zeros(6), []
    for _ in range(at + 40):
        losses.append(naive_bce(theta, *val))
        theta = theta - rate * stage.mean_bce(theta, [labelled])[1]
    assert at == int(np.argmin(losses)) > 0
    assert naive_bce(best, *val) == pytest.approx(min(losses))


def test_smallest_penalty_is_chosen_although_val_is_pure_noise():
    random = np.random.default_rng(0)
    noise = random.normal(size=(30, 20)), np.arange(30) % 2.0
    assert stage.choose_l2(noise, (random.normal(size=(30, 20)), np.arange(30) % 2.0), np.zeros(21)) == max(stage.L2)


# ---------------------------------------------------------------- ranking


def test_ranking_differs_from_loops():
    random = np.random.default_rng(0)
    target, other = np.round(random.normal(1, 1, 13), 1), np.round(random.normal(0, 1, 21), 1)
    wins = [(t > o) + (t == o) / 2 for t in target for o in other]
    precisions, recall = 0.0, 0.0
    for threshold in sorted({*target, *other}, reverse=True):
        found = np.mean(target >= threshold)
        called = (target >= threshold).sum() + (other >= threshold).sum()
        precisions += (found - recall) * (target >= threshold).sum() / called
        recall = found
    np.testing.assert_allclose(ranking.ranking(target, other), [precisions, np.mean(wins)])
    labels, scores, weight = np.repeat([1, 0], [13, 21]), np.append(target, other), random.integers(0, 3, 34)
    oracle = [score(labels, scores, sample_weight=weight) for score in (average_precision_score, roc_auc_score)]
    np.testing.assert_allclose(ranking.ranking(target, other, weight[:13], weight[13:]), oracle)


def test_weights_are_not_repetitions():
    target, other = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.5])
    weighted = ranking.ranking(target, other, np.array([2.0, 0.0, 1.0]), np.array([1.0, 3.0]))
    repeated = ranking.ranking(np.array([3.0, 3.0, 2.0]), np.array([0.0, 2.5, 2.5, 2.5]))
    np.testing.assert_allclose(weighted, repeated)


ROLES = {"target": ["T"], "known": ["K"], "unseen": ["O", "P"]}


def test_mean_over_a_role_is_not_bootstrapped_as_a_whole():
    """The target's two groups decide both generators alike, so the mean is as uncertain as either."""
    scores = {"T": np.repeat([1.0, -1.0], 50), "O": np.zeros(100), "P": np.zeros(100)}
    groups = {"T": np.repeat(["a", "b"], 50), "O": np.arange(100).astype(str), "P": np.arange(100).astype(str)}
    means = ranking.ranking_table({"one": scores}, groups, ROLES)["means"]
    assert set(means) == {"unseen"}  # K is not tested
    assert means["unseen"]["one"]["auc"] == 0.5 and means["unseen"]["one"]["auc_interval"] == [0, 1]


def test_bootstrap_draws_images_and_not_whole_groups():
    scores = np.repeat([1.0, -1.0], 50)
    groups = {"T": np.repeat(["a", "b"], 50), "O": np.arange(100).astype(str)}
    entry = ranking.ranking_table({"one": {"T": scores, "O": np.zeros(100)}}, groups, ROLES)["by_generator"]["O"]
    assert entry["one"]["auc"] == 0.5 and entry["one"]["auc_interval"] == [0, 1]  # a and b alone are 1 and 0
    assert entry["prevalence"] == 0.5 and entry["groups"] == 100


def test_gain_is_not_the_last_method_less_the_first():
    scores = {"before": {"T": np.array([1.0, 0.0]), "O": np.array([0.5])}, "after": {"T": np.ones(2), "O": np.zeros(1)}}
    groups = {"T": np.array(["a", "b"]), "O": np.array(["c"])}
    entry = ranking.ranking_table(scores, groups, ROLES, repeats=50)["by_generator"]["O"]
    assert entry["gain"]["auc"] == 0.5 and entry["gain"]["auc_interval"][1] == 1


def test_always_non_target_does_not_show_at_the_threshold():
    scores = {"T": np.full(4, -2.0), "A": np.full(3, -3.0), "B": np.array([-9.0, 1.0])}
    found = ranking.at_threshold(scores, "T", 0.0)
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
    return wild.Images(np.float32(vectors), path, names, path, split, {"features": RECIPE})


def named(target="T", known=("Real", "K"), wild=("W",), unseen=("U",)):
    return target, {"known": list(known), "wild": list(wild), "unseen": list(unseen)}


def test_an_alias_of_ones_own_table_is_not_known(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("name,aliases,task,sd_version,team\nReal,,Real,Real,Real\nT,Tee,T2V,Unknown,Nobody\n")
    roles = wild.resolve_roles(invented(frames=1), *named(target="tee"), table)
    assert roles["target"] == ["T"] and roles["known"] == ["Real", "K"]


def dealt(images, counts=COUNTS, seed=0, **roles):
    return wild.deal(images, wild.resolve_roles(images, *named(**roles)), counts, seed)


def test_counts_or_splits_of_the_roles_are_not_kept():
    images = invented()
    roles = dealt(images)
    count = {name: int((images.generator[roles.labelled] == name).sum()) for name in ("T", "Real", "K")}
    assert count == {"T": 6, "Real": 4, "K": 4} and len(roles.wild) == 5
    assert set(images.split[roles.labelled]) == set(images.split[roles.wild]) == {"train"}
    assert set(images.split[roles.val]) == {"val"} and set(images.generator[roles.val]) == {"T", "Real", "K"}
    assert {name: len(places) for name, places in roles.test.items()} == {"T": 20, "Real": 20, "K": 20, "U": 80}


def test_target_in_the_wild_shares_images_with_the_labelled():
    images = invented()
    roles = dealt(images, wild=("W", "T", "U"), counts=COUNTS | {"wild": 1000})
    trained = set(images.group[roles.labelled]), set(images.group[roles.wild])
    assert not trained[0] & trained[1]
    assert {"W", "T", "U"} == set(images.generator[roles.wild])
    tested = set(np.concatenate([images.group[places] for places in roles.test.values()]))
    assert not tested & (trained[0] | trained[1])
    assert len(roles.test["U"]) == 20  # its train images are wild


def test_group_is_torn_between_training_and_test():
    images = invented(frames=1)
    group = images.group.copy()
    group[images.generator == "U"] = "T/2.mp4"  # an unseen generator's clips, of one source with a labelled clip
    torn = images._replace(group=group)
    with pytest.raises(ValueError, match="U: no image to test on"):
        dealt(torn, counts=COUNTS | {"target": 100})


def test_seed_does_not_choose_the_images():
    images = invented()
    assert not np.array_equal(dealt(images).labelled, dealt(images, seed=1).labelled)
    assert np.array_equal(dealt(images).labelled, dealt(images).labelled)


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
def test_wrong_role_is_taken(roles, message):
    with pytest.raises(ValueError, match=message):
        dealt(invented(), **roles)


def test_same_image_in_two_roles_is_taken():
    images = invented()
    roles = dealt(images)
    vectors = images.vectors.copy()
    vectors[roles.test["U"][3]] = vectors[roles.wild[2]]
    pair = f"{images.path[roles.wild[2]]} .wild. and {images.path[roles.test['U'][3]]} .test. are the same image"
    with pytest.raises(ValueError, match=pair):
        dealt(images._replace(vectors=vectors))


def test_target_without_test_images_is_taken():
    images = invented()
    split = np.where((images.generator == "T") & (images.split == "test"), "val", images.split)
    with pytest.raises(ValueError, match="T: no image to test on"):
        dealt(images._replace(split=split))


# ---------------------------------------------------------------- 05 on small features


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
        row = {"path": path, "generator": images.generator[first], "group": path, "split": images.split[first]}
        rows.append(row | dict.fromkeys(("stratum", "fps", "size", "length", "container", "error", "source"), ""))
        rows[-1]["windows"] = 1
    write_index(folder / "index-1-of-1.csv", rows)
    write_json(folder / "recipe.json", recipe | {"tokens": tokens})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wild") / "features"
    write_clips(folder, invented())
    return folder


FLAGS = "--images-per-clip 1 --target T --known Real,K --wild W --unseen U"
FLAGS += " --target-count 20 --known-count 9 --wild-count 20"


def run(small, place, *more):
    return stage.main(["--features", str(small), "--run", str(place), *FLAGS.split(), *more])


def test_frames_or_padding_are_read_wrongly(small):
    one, two = (wild.read_images(small, count) for count in (1, 8))
    expected = invented()
    order = np.lexsort((np.arange(len(expected.path)), expected.path))
    np.testing.assert_allclose(two.vectors, expected.vectors[order], atol=0.01)  # float16, and no padding
    assert len(one.path) == 200 and len(two.path) == 400
    np.testing.assert_allclose(one.vectors, two.vectors[1::2], atol=1e-6)  # of two frames the later is the middle


def test_run_writes_other_numbers_than_it_measures(small, tmp_path, capsys):
    metrics = run(small, tmp_path)
    saved = json.loads((tmp_path / "wild.json").read_text())
    assert saved == json.loads(json.dumps(metrics))
    assert saved["by_generator"]["U"]["images"] == 40 and saved["test_images"]["T"] == 10
    assert saved["by_generator"]["U"]["prevalence"] == 0.2
    assert saved["training"]["constrained"]["labelled_loss"] <= saved["training"]["allowed"] * (1 + stage.TOLERANCE)
    assert saved["training"]["constrained"]["wild_loss"] < saved["training"]["baseline"]["wild_loss"]
    assert saved["by_generator"]["U"]["baseline"]["auc"] > 0.6
    assert {"wild_scores.png", "wild_curves.png"} <= {path.name for path in tmp_path.iterdir()}
    out = capsys.readouterr().out
    assert "unseen  U" in out and "finds" in out
    assert run(small, tmp_path) == saved and "up to date" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings .tau."):
        run(small, tmp_path, "--tau", "3")


def test_applied_scores_are_not_the_classifiers(small, tmp_path):
    run(small, tmp_path)
    stage.main(["--run", str(tmp_path), "--apply", str(small)])
    with open(tmp_path / "wild_applied.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "wild_classifier.npz") as arrays:
        images = wild.read_images(small)
        for method in ("baseline", "constrained"):
            *weights, bias = arrays[method]
            expected = -((images.vectors - arrays["mean"]) / arrays["scale"] @ weights + bias)
            np.testing.assert_allclose([float(row[method]) for row in rows], expected, atol=1e-4)
    assert [row["path"] for row in rows] == images.path.tolist()


def test_features_of_another_encoder_are_scored(small, tmp_path):
    run(small, tmp_path / "run")
    write_clips(tmp_path / "other", invented(clips=4), recipe=RECIPE | {"encoder": "another"})
    with pytest.raises(ValueError, match="other vectors .*encoder"):
        stage.main(["--run", str(tmp_path / "run"), "--apply", str(tmp_path / "other")])
    with pytest.raises(ValueError, match="wild_classifier.npz is missing"):
        stage.main(["--run", str(tmp_path), "--apply", str(small)])
    (tmp_path / "run" / "wild_classifier.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="wild_classifier.npz: damaged"):
        stage.main(["--run", str(tmp_path / "run"), "--apply", str(small)])


def test_vectors_that_are_not_finite_or_of_other_widths_are_taken(tmp_path):
    images = invented(clips=4)
    write_clips(tmp_path, images)
    damaged = features_file(tmp_path, "K/9.mp4")
    with np.load(damaged) as arrays:
        tokens, times, valid = (arrays[key] for key in ("tokens", "times", "valid"))
    write_features(damaged, tokens[..., :4], times, valid)
    with pytest.raises(ValueError, match=r"K/9.mp4.npz: 4 wide, the recipe says 6"):
        wild.read_images(tmp_path)
    write_features(damaged, tokens * np.nan, times, valid)
    with pytest.raises(ValueError, match="K/9.mp4 is not finite"):
        wild.read_images(tmp_path)
    write_features(damaged, tokens, times, valid * False)
    with pytest.raises(ValueError, match=r"K/9.mp4.npz: not a features file .every frame is padding"):
        wild.read_images(tmp_path)
    np.savez(damaged, tokens=tokens)
    with pytest.raises(ValueError, match=r"K/9.mp4.npz: not a features file"):
        wild.read_images(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"K/9.mp4.npz: not a features file"):
        wild.read_images(tmp_path)


def test_images_of_val_train_where_split_val_is_empty():
    images = invented()
    images = images._replace(split=np.where(images.split == "val", "train", images.split))
    roles = dealt(images, counts=COUNTS | {"target": 1000})
    held = {
        name: np.unique(images.group[roles.val][images.generator[roles.val] == name]) for name in ("T", "Real", "K")
    }
    assert [len(groups) for groups in held.values()] == [6, 6, 6]  # a fifth of thirty clips
    assert not set(images.group[roles.val]) & set(images.group[np.concatenate([roles.labelled, roles.wild])])
    assert (images.generator[roles.labelled] == "T").sum() == 48


def test_target_of_one_clip_chooses_a_penalty(tmp_path):
    images = invented(clips=12)
    mine = (images.generator == "T") & (images.split != "test")
    group, path = (np.where(mine, "T/one", own) for own in (images.group, images.path))
    images = images._replace(split=np.where(images.split == "val", "train", images.split), group=group)
    roles = dealt(images)
    assert {*images.path[roles.val]} & {*images.path[mine]}  # a fifth of the group's clips
    assert not set(images.path[roles.val]) & set(images.path[roles.labelled])
    lonely = images._replace(path=path)
    problem = wild.prepare(lonely, dealt(lonely), "T")
    with pytest.raises(ValueError, match="val has no image of the target"):
        stage.train(problem, 2.0)
    assert stage.train(problem, 2.0, 0.01)[1]["l2"] == 0.01


@pytest.mark.parametrize("flags", [("--tau", "0.5"), ("--l2", "-1"), ("--wild-count", "0"), ("--fold", "3/2")])
def test_wrong_flag_is_taken(flags):
    with pytest.raises(SystemExit) as error:
        stage.get_args(list(flags))
    assert error.value.code == 2


def test_memory_for_wild_images_grows_with_the_batch_alone():
    images = invented()
    roles = dealt(images)
    few, many = (stage.train(wild.prepare(images, roles, "T", size), 2.0, 0.01)[0] for size in (3, 1000))
    np.testing.assert_allclose(few["constrained"], many["constrained"], atol=2e-3)
    sizes = [len(vectors) for vectors, _ in wild.WildBatches(images, roles.wild, np.zeros(6), 1, 3)]
    assert sizes == [3, 2]


# ---------------------------------------------------------------- embeddings of a run


def embeddings(path, images, unseen=("W", "U")):
    split = np.where(np.isin(images.generator, unseen), "unseen", images.split)
    recipe = {"level": "gen", "arguments": {"seed": 0, "run": "r"}, "features": RECIPE, "index_sha256": "0"}
    arrays = {"embedding": images.vectors, "video": images.path, "generator": images.generator, "split": split}
    np.savez(path, **arrays, group=images.group, recipe=json.dumps(recipe))


def test_unseen_clips_of_a_run_are_not_split_by_group(tmp_path, capsys):
    expected = invented(frames=1)
    embeddings(tmp_path / "gen_embeddings.npz", expected)
    images = wild.read_images(tmp_path / "gen_embeddings.npz")
    trained = ~np.isin(images.generator, ("W", "U"))
    assert np.array_equal(images.split[trained], expected.split[trained])
    assert set(images.split[~trained]) == {"train", "val", "test"}
    assert images.recipe["run"]["trained_on"] == ["K", "Real", "T"]
    wild.resolve_roles(images, *named(known=("Real",), unseen=("U", "K")))
    assert "was trained on K, so unseen" in capsys.readouterr().out
    metrics = stage.main(["--features", str(tmp_path / "gen_embeddings.npz"), "--run", str(tmp_path), *FLAGS.split()])
    assert metrics["by_generator"]["U"]["images"] == 40
    assert stage.main(["--run", str(tmp_path), "--apply", str(tmp_path / "gen_embeddings.npz")])["images"] == 200


def test_embeddings_of_another_training_leave_the_run_up_to_date(tmp_path):
    """The same clips and settings, other weights."""
    place = ["--features", str(tmp_path / "e.npz"), "--run", str(tmp_path), *FLAGS.split()]
    embeddings(tmp_path / "e.npz", invented(frames=1))
    stage.main(place)
    embeddings(tmp_path / "e.npz", invented(frames=1, seed=1))
    with pytest.raises(ValueError, match="other settings .embeddings_sha256"):
        stage.main(place)
    few = wild.read_images(tmp_path / "e.npz", limit=3)
    assert np.isin(few.generator, ("T", "Real", "K")).sum() == 3 * 3 * 3  # generators, splits, clips


def test_damaged_embeddings_or_folds_of_them_are_taken(tmp_path):
    path = tmp_path / "gen_embeddings.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no embeddings of 02 or 03"):
        wild.read_images(path)
    embeddings(path, invented())
    with pytest.raises(ValueError, match="its own split"):
        wild.read_images(path, fold=(1, 2))
