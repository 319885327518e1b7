"""The model and the losses against the paper's printed numbers and against naive NumPy loops."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from basics.running import ROOT, InputError
from common import (
    KERAS_TRIED,
    build_saga,
    hard_negative_loss,
    load_saga,
    pairwise_squared_distances,
    positive_pairs,
    same_label_mask,
    semi_hard_negative_loss,
    without_autocast,
)

SMALL = dict(frames=8, tokens=3, dim=24)


@pytest.fixture(scope="module")
def small_model():
    return build_saga(5, **SMALL, class_names=("Real", "a", "b", "c", "d"), features={"encoder": "test"})


def tokens(count=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8, 3, 24)).astype("float32")


# ---------------------------------------------------------------- model


def test_parameter_counts_are_the_papers_95_64m_and_95_66m():
    two = build_saga(2).count_params()
    counts = [two, two + 18 * (1152 + 1)]  # only the head has more for 20 classes
    assert counts == [95_643_650, 95_664_404]
    assert [f"{4 * count / 2**20:.2f} MiB" for count in counts] == ["364.85 MiB", "364.93 MiB"]


def test_outputs_have_their_shapes_in_float32(small_model):
    outputs = small_model(tokens())
    shapes = {"logits": (2, 5), "embedding": (2, 24), "attention": (2, 12, 8, 8)}
    assert {key: tuple(value.shape) for key, value in outputs.items()} == shapes
    assert all(keras.backend.standardize_dtype(value.dtype) == "float32" for value in outputs.values())
    np.testing.assert_allclose(np.array(outputs["attention"]).sum(-1), 1, atol=1e-5)


def test_attention_is_that_of_the_penultimate_temporal_block(small_model):
    x = np.array(small_model.spatial(tokens().reshape(-1, 3, 24))).mean(axis=1).reshape(2, 8, 24)
    x = x + positions(8, 24)
    scores = []
    for block in small_model.temporal:
        x, attention = block(x, return_attention_scores=True)
        scores.append(np.array(attention))
    outputs = small_model(tokens())
    np.testing.assert_allclose(outputs["attention"], scores[3], atol=1e-5)
    np.testing.assert_allclose(outputs["embedding"], np.array(x).mean(axis=1), atol=1e-4)


def positions(frames, dim):
    """Eq. S-1, element by element."""
    table = np.zeros((frames, dim))
    for m in range(frames):
        for r in range(dim // 2):
            table[m, 2 * r] = np.sin(m / 10000 ** (2 * r / dim))
            table[m, 2 * r + 1] = np.cos(m / 10000 ** (2 * r / dim))
    return table


def test_positions_equal_equation_s1(small_model):
    table = small_model.positions(np.zeros((1, 8, 24), "float32"))
    np.testing.assert_allclose(np.array(table)[0], positions(8, 24), atol=1e-6)


def test_blocks_are_post_norm(small_model):
    small_model.spatial(tokens().reshape(-1, 3, 24))
    out = np.array(small_model.temporal[-1](tokens()[:, :, 0]))
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)  # a post-norm block ends in a LayerNorm
    np.testing.assert_allclose(out.std(-1), 1, atol=1e-2)


def test_order_of_frames_matters(small_model):
    clip = tokens(1)
    forward, backward = small_model(clip)["logits"], small_model(clip[:, ::-1])["logits"]
    assert np.abs(np.array(forward) - np.array(backward)).max() > 1e-4


def test_bad_sizes_raise():
    with pytest.raises(InputError, match="penultimate"):
        build_saga(2, temporal_blocks=1, **SMALL)
    with pytest.raises(InputError, match="heads"):
        build_saga(2, frames=8, tokens=3, dim=8)


def test_saved_model_loads_in_a_fresh_process(small_model, tmp_path):
    small_model.save(tmp_path / "model.keras")
    np.save(tmp_path / "tokens.npy", tokens())
    script = (
        "import sys, numpy as np, common, keras; model = keras.saving.load_model(sys.argv[1] + '/model.keras');"
        "logits = np.array(model(np.load(sys.argv[1] + '/tokens.npy'))['logits']);"
        "np.save(sys.argv[1] + '/logits.npy', logits); print(model.config['class_names'], model.config['features'])"
    )
    # TensorFlow sets its log level for the processes that it starts
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    fresh = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert fresh.stdout.strip() == "('Real', 'a', 'b', 'c', 'd') {'encoder': 'test'}", fresh.stderr
    assert "Warning" not in fresh.stderr and "Traceback" not in fresh.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), small_model(tokens())["logits"], atol=1e-5)


def test_import_leaves_standard_error_alone():
    """A daemon has it closed, and what TensorFlow says when it crashes must come through."""
    script = "import os; before = os.fstat(2).st_ino; import common; assert os.fstat(2).st_ino == before; print('same')"
    closed = "import os; os.close(2); import common; print('closed')"
    for code, word in ((script, "same"), (closed, "closed")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == word, done.stderr


def test_summary_lists_the_layers_of_a_built_and_of_a_loaded_model(small_model, tmp_path, capsys):
    small_model.save(tmp_path / "model.keras")
    for model in (small_model, load_saga(tmp_path / "model.keras", "gen")):
        model.summary()
        text = capsys.readouterr().out
        assert all(name in text for name in ("spatial", "positions", "temporal_4", "classifier"))
        assert f"Total params: {small_model.count_params():,}" in text


def test_private_parts_of_keras_are_those_of_the_version_tried(small_model):
    """Where this fails, a new Keras needs a look at the last part of common.py."""
    layer = small_model.spatial._self_attention_layer
    for name in ("_softmax", "_compute_attention", "_key_dim", "_dropout"):
        assert hasattr(layer, name), f"{name} is gone; Keras {KERAS_TRIED} has it, this is {keras.__version__}"
    with without_autocast():
        assert keras.src.backend.get_autocast_scope() is not None
    assert keras.__version__.split(".")[:2] == KERAS_TRIED.split(".")[:2]
    rooms = [
        path for room in ("basics", "tokens", "training", "report", "experiments") for path in ROOT.glob(f"{room}/*.py")
    ]
    private = re.compile(r"\._(softmax|compute_attention|key_dim|dropout|self_attention_layer)\b|keras\.src")
    assert [path.name for path in [*ROOT.glob("*.py"), *rooms] if private.search(path.read_text())] == ["common.py"]


# ---------------------------------------------------------------- losses


def naive_loss(labels, embeddings, margin, semi_hard):
    """Eq. (2) with mined negatives, in float64, one pair at a time."""
    total, count = 0.0, 0
    for a in range(len(labels)):
        for p in range(len(labels)):
            if a == p or labels[a] != labels[p]:
                continue
            count += 1
            to_positive = sum((embeddings[a] - embeddings[p]) ** 2)
            negatives = [
                sum((embeddings[a] - e) ** 2) for e, y in zip(embeddings, labels, strict=True) if y != labels[a]
            ]
            if semi_hard:
                negatives = [d for d in negatives if to_positive < d < to_positive + margin]
            if negatives:
                total += max(0.0, to_positive - min(negatives) + margin)
    return total / count if count else 0.0


def batch(seed, size=24, classes=4, scale=1.0):
    random = np.random.default_rng(seed)
    return random.integers(0, classes, size), random.normal(size=(size, 6)) * scale


@pytest.mark.parametrize(("loss", "semi_hard"), [(hard_negative_loss, False), (semi_hard_negative_loss, True)])
@pytest.mark.parametrize("margin", [0.2, 1.0, 5.0, -1.0])
def test_loss_equals_the_naive_loop(loss, semi_hard, margin):
    for seed, scale in enumerate((0.1, 0.5, 1.0, 3.0)):
        labels, embeddings = batch(seed, scale=scale)
        expected = naive_loss(labels, embeddings, margin, semi_hard)
        assert float(loss(labels, embeddings, margin)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", [hard_negative_loss, semi_hard_negative_loss])
class TestEdges:
    def test_column_labels_count_as_flat_ones(self, loss):
        labels, embeddings = batch(1, scale=0.5)
        assert float(loss(labels[:, None], embeddings)) == float(loss(labels, embeddings))

    def test_order_of_the_batch_does_not_matter(self, loss):
        labels, embeddings = batch(2, scale=0.5)
        order = np.random.default_rng(0).permutation(len(labels))
        assert float(loss(labels[order], embeddings[order])) == pytest.approx(float(loss(labels, embeddings)), rel=1e-5)

    @pytest.mark.parametrize("labels", [[3] * 6, [0], [0, 1, 2, 3]], ids=["one class", "one clip", "no pair"])
    def test_loss_without_a_pair_or_a_negative_is_zero(self, loss, labels):
        assert float(loss(np.array(labels), np.random.default_rng(0).normal(size=(len(labels), 4)))) == 0

    def test_gradient_is_finite_at_zero_distances(self, loss):
        labels, embeddings = np.array([0, 0, 1, 1, 1]), np.ones((5, 4), "float32")
        embeddings[3:] += 0.3  # duplicates of both classes, and equal points across classes
        assert np.isfinite(gradient(loss, labels, embeddings)).all()

    def test_gradient_equals_finite_differences(self, loss):
        labels, embeddings = batch(3, size=10, classes=3, scale=0.6)
        found, step = gradient(loss, labels, embeddings), 1e-5
        semi_hard = loss is semi_hard_negative_loss
        for i, j in [(0, 0), (3, 2), (9, 5)]:
            moved = [embeddings.copy(), embeddings.copy()]
            moved[0][i, j] += step
            moved[1][i, j] -= step
            up, down = (naive_loss(labels, e, 1.0, semi_hard) for e in moved)
            assert found[i, j] == pytest.approx((up - down) / (2 * step), rel=1e-2, abs=1e-3)


def gradient(loss, labels, embeddings):
    tensorflow = pytest.importorskip("tensorflow")
    points = tensorflow.Variable(embeddings.astype("float32"))
    with tensorflow.GradientTape() as tape:
        value = loss(labels, points)
    return tensorflow.convert_to_tensor(tape.gradient(value, points)).numpy()


def test_collapsed_embeddings_give_the_margin():
    labels = np.arange(12) % 3
    assert float(hard_negative_loss(labels, np.ones((12, 4)), 1.0)) == pytest.approx(1.0)
    assert float(semi_hard_negative_loss(labels, np.ones((12, 4)), 1.0)) == 0  # no negative is farther


def test_distances_are_exact_far_from_the_origin():
    points = np.random.default_rng(0).normal(size=(20, 8)) + 100
    points[7] = points[3]
    found = np.array(pairwise_squared_distances(points.astype("float32")))
    expected = ((points[:, None] - points[None]) ** 2).sum(-1)
    assert (found >= 0).all() and (np.diag(found) == 0).all()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_hardest_and_random_positives_are_one_per_anchor():
    labels, embeddings = batch(5)
    labels[0] = 99  # alone in its class
    distances = np.array(pairwise_squared_distances(embeddings))
    same = same_label_mask(labels)
    for choice in ("hardest", "random"):
        pairs = np.array(positive_pairs(same, ops.convert_to_tensor(distances), choice))
        assert (pairs.sum(axis=1) == (np.arange(24) != 0)).all() and not np.diag(pairs).any()
        for a in range(1, 24):
            p = int(np.argmax(pairs[a]))
            mates = [j for j in range(24) if j != a and labels[j] == labels[a]]
            wanted = (
                max(mates, key=lambda j, a=a: distances[a, j])
                if choice == "hardest"
                else min(mates, key=lambda j, a=a: (j - a) % 24)
            )
            assert p == wanted


def test_embeddings_that_overflow_do_not_break_the_search():
    """Training then stops by its own check of the loss."""
    labels, embeddings = np.array([0, 0, 1, 1]), np.float32([[3e38], [-3e38], [1], [2]])
    assert np.array(semi_hard_negative_loss(labels, embeddings)).shape == ()
