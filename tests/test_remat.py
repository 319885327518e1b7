"""--remat against the plain model: the same weights, with less held at a time; attention fused on a GPU."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
from small import stage_two_losses

from basics.running import ROOT
from common import OUTPUTS, SAGA, build_saga, keras
from training import devices
from training.remat import RematSAGA

SIZES = dict(frames=4, tokens=9, dim=24, heads=2, temporal_blocks=2)
HNM = ["--loss", "hnm"]
LOSSES = [["--loss", "ce"], ["--loss", "semi", "--normalize", "--margin", "0.2"]]


def random_tokens(batch):
    shape = (batch, *(SIZES[key] for key in ("frames", "tokens", "dim")))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def trained(flags, kind=SAGA, dropout=0.0, dtype="float32", xla="auto"):
    """Weights after three steps of SGD, and the last losses."""
    keras.utils.set_random_seed(0)
    model = build_saga(5, **SIZES, dropout=dropout, dtype=dtype, kind=kind)
    losses, weights = stage_two_losses(*flags)
    model.compile(keras.optimizers.SGD(0.05), losses, loss_weights=weights, jit_compile=xla)
    for _ in range(3):
        found = model.train_on_batch(random_tokens(12), dict.fromkeys(OUTPUTS, np.arange(12) % 5))
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()]), found


@pytest.mark.parametrize("flags", [*LOSSES, pytest.param(HNM, marks=pytest.mark.graph)], ids=" ".join)
def test_remat_trains_the_weights_of_the_plain_model(flags):
    expected, losses = trained(flags)
    weights, found = trained(flags, RematSAGA)
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    np.testing.assert_allclose(found, losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.graph
def test_xla_compiles_remat():
    """As Keras does by itself on a GPU or TPU."""
    compiled, plain = (trained(HNM, RematSAGA, xla=xla)[0] for xla in (True, False))
    np.testing.assert_allclose(compiled, plain, atol=2e-5)


@pytest.mark.slow
@pytest.mark.graph
def test_gradients_of_frames_are_summed_in_float32():
    """In mixed precision: as near to float32's weights as the plain model, not a tenth further."""
    exact = trained(["--loss", "ce"])[0]
    found = [trained(["--loss", "ce"], kind, dtype="mixed_bfloat16")[0] for kind in (SAGA, RematSAGA)]
    plain, remat = (np.abs(weights - exact).mean() for weights in found)
    assert 0 < remat < 1.05 * plain


def test_predictions_equal_the_plain_models():
    models = []
    for kind in (SAGA, RematSAGA):
        keras.utils.set_random_seed(0)
        models.append(build_saga(5, **SIZES, dropout=0.3, kind=kind))
    plain, ours = (model.predict_on_batch(random_tokens(5)) for model in models)
    np.testing.assert_allclose(plain["embedding"], ours["embedding"], atol=1e-5)


def test_dropout_is_the_same_going_back(monkeypatch):
    again = trained(HNM, RematSAGA, dropout=0.3)[0]
    monkeypatch.setattr(keras, "remat", lambda function: function)
    remembered = trained(HNM, RematSAGA, dropout=0.3)[0]
    np.testing.assert_allclose(again, remembered, atol=2e-5)
    assert np.abs(again - trained(HNM, RematSAGA)[0]).max() > 1e-3  # dropout does something


def test_frames_have_dropout_of_their_own():
    keras.utils.set_random_seed(0)
    model = build_saga(2, **SIZES, dropout=0.5, kind=RematSAGA)
    same = np.ones((2, *(SIZES[key] for key in ("frames", "tokens", "dim"))), np.float32)
    first, second = np.array(model(same, training=True)["embedding"])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(first - np.array(model(same, training=True)["embedding"])[0]).max() > 0.01
    np.testing.assert_allclose(*np.array(model(same)["embedding"]), atol=1e-5)


COMPILED = """
import sys; sys.path[:0] = ["tests", "."]
import test_remat
print(*map(test_remat.working_bytes, (test_remat.SAGA, test_remat.RematSAGA)))
"""


def working_bytes(kind):
    """What XLA sets aside for the gradients of a batch, beside inputs and outputs."""
    import jax

    sizes = dict(frames=8, tokens=64, dim=48, heads=4, temporal_blocks=2)
    model = build_saga(2, **sizes, dropout=0.1, kind=kind)
    states = [[variable.value for variable in part] for part in devices.states(model)]

    def loss(weights, state, tokens):
        return model.stateless_call(weights, state, tokens, training=True)[0]["embedding"].std()

    gradients = jax.jit(jax.grad(loss)).lower(*states, np.zeros((12, 8, 64, 48), np.float32))
    return gradients.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_remat_saves_memory():
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, env=environment, capture_output=True, text=True)
    plain, remat = map(int, done.stdout.split())
    assert remat < plain / 3, done.stdout


FUSED = """
import sys; sys.path[:0] = ["tests", "."]
import test_remat
test_remat.compare_attention()
"""


def compare_attention():
    """Outputs and weights with fuse_attention, its kernel replaced by plain XLA, against Keras's own attention."""
    found = []
    for fuse in (False, True):
        keras.utils.set_random_seed(0)
        model = build_saga(2, **SIZES, dropout=0, dtype="mixed_bfloat16")
        if fuse:
            devices.fuse_attention(model, "xla")
        model.compile(keras.optimizers.SGD(0.1), {"logits": keras.losses.SparseCategoricalCrossentropy(True)})
        tokens = np.random.default_rng(0).standard_normal((4, 4, 9, 24), np.float32)
        for _ in range(3):
            model.train_on_batch(tokens, dict.fromkeys(OUTPUTS, np.arange(4) % 2))
        found.append(np.array(model.predict_on_batch(tokens)["embedding"]))
        found.append(model.spatial._self_attention_layer._compute_attention.__name__)
    plain, name, fused, other = found
    np.testing.assert_allclose(plain, fused, atol=0.02)
    assert (name, other) == ("_compute_attention", "fused") and plain.std() > 0.1


def test_heads_that_the_kernel_refuses_keep_keras_attention(monkeypatch):
    monkeypatch.setattr(devices, "BACKEND", "jax")
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(default_backend=lambda: "gpu"))
    for dim, fused in ((144, False), (1024, False), (1152, True)):  # heads of 12, 85 and 96
        attention = types.SimpleNamespace(_key_dim=dim // 12, _compute_attention="Keras's", _dropout=0)
        devices.fuse_attention(types.SimpleNamespace(spatial=types.SimpleNamespace(_self_attention_layer=attention)))
        assert (attention._compute_attention != "Keras's") == fused


@pytest.mark.slow
def test_fused_attention_computes_the_same():
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", FUSED], cwd=ROOT, env=environment, check=True)
