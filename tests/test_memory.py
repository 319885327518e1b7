"""--accumulate and --remat against the undivided batch: the same weights, with less held at a time."""

import functools
import importlib
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from common import HERE, OUTPUTS, build_saga, keras
from training import devices
from training.remat import FrugalSAGA

SIZES = dict(frames=4, tokens=9, dim=24, heads=2, temporal_blocks=2)
FRUGAL = [dict(remat=True), dict(accumulate=3)]  # both together: tests/test_devices.py
LOSSES = [["--loss", "ce"], ["--loss", "hnm"], ["--loss", "semi", "--normalize", "--margin", "0.2"]]


def random_tokens(batch):
    shape = (batch, *(SIZES[key] for key in ("frames", "tokens", "dim")))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def trained(flags, dropout=0.0, dtype="float32", xla="auto", **frugal):
    """Weights after three steps of SGD, and the last losses."""
    keras.utils.set_random_seed(0)
    model = build_saga(5, **SIZES, dropout=dropout, dtype=dtype, kind=functools.partial(FrugalSAGA, **frugal))
    stage_two = importlib.import_module("03_attribute")
    losses, weights, _ = stage_two.stage_two_loss(stage_two.get_args(flags))
    model.compile(keras.optimizers.SGD(0.05), losses, loss_weights=weights, jit_compile=xla)
    for _ in range(3):
        found = model.train_on_batch(random_tokens(12), dict.fromkeys(OUTPUTS, np.arange(12) % 5))
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()]), found


@pytest.mark.parametrize("flags", LOSSES, ids=" ".join)
def test_weights_differ_from_those_of_the_undivided_batch(flags):
    expected, losses = trained(flags)
    for frugal in FRUGAL:
        weights, found = trained(flags, **frugal)
        np.testing.assert_allclose(weights, expected, atol=2e-5, err_msg=str(frugal))
        np.testing.assert_allclose(found, losses, rtol=1e-4, err_msg=str(frugal))


def test_chunks_that_mine_among_themselves_go_unnoticed(monkeypatch):
    """The test above, of a loss that is the mean of the chunks' own, with labels that repeat in each chunk."""
    stage_two = importlib.import_module("03_attribute")
    whole = trained(["--loss", "hnm"])[0]
    terms = stage_two.triplet_terms

    def of_chunks(labels, embeddings, *more):
        found = zip(*(terms(labels[i::2], embeddings[i::2], *more) for i in range(2)), strict=True)
        return [keras.ops.concatenate([keras.ops.ravel(part) for part in parts]) for parts in found]

    monkeypatch.setattr(stage_two, "triplet_terms", of_chunks)
    assert np.abs(whole - trained(["--loss", "hnm"])[0]).max() > 1e-3


@pytest.mark.parametrize("frugal", FRUGAL, ids=str)
def test_xla_cannot_compile_it(frugal):
    """As Keras does by itself on a GPU or TPU."""
    compiled, plain = (trained(["--loss", "hnm"], xla=xla, **frugal)[0] for xla in (True, False))
    np.testing.assert_allclose(compiled, plain, atol=2e-5)


def test_gradients_of_chunks_are_summed_in_bfloat16():
    """In mixed precision: as near to float32's weights as the undivided batch, not a tenth further."""
    exact = trained(["--loss", "ce"])[0]
    found = [trained(["--loss", "ce"], dtype="mixed_bfloat16", **how)[0] for how in ({}, dict(accumulate=6))]
    whole, chunks = (np.abs(weights - exact).mean() for weights in found)
    assert 0 < chunks < 1.05 * whole


def test_classifier_of_a_chunk_computes_in_bfloat16():
    logits = []
    for chunks in (1, 2):
        keras.utils.set_random_seed(0)
        kind = functools.partial(FrugalSAGA, accumulate=chunks)
        model = build_saga(5, **SIZES, dropout=0.0, dtype="mixed_bfloat16", kind=kind)
        logits.append(np.array(model(random_tokens(4), training=True)["logits"]))
    np.testing.assert_allclose(*logits, atol=1e-6)


@pytest.mark.parametrize("frugal", FRUGAL, ids=str)
def test_predictions_differ_from_the_plain_models(frugal):
    models = []
    for own in ({}, frugal):
        keras.utils.set_random_seed(0)
        models.append(build_saga(5, **SIZES, dropout=0.3, kind=functools.partial(FrugalSAGA, **own)))
    plain, ours = (model.predict_on_batch(random_tokens(5)) for model in models)
    np.testing.assert_allclose(plain["embedding"], ours["embedding"], atol=1e-5)


@pytest.mark.parametrize("frugal", FRUGAL, ids=str)
def test_dropout_is_drawn_anew_going_back(frugal, monkeypatch):
    again = trained(["--loss", "hnm"], dropout=0.3, **frugal)[0]
    monkeypatch.setattr(keras, "remat", lambda function: function)
    remembered = trained(["--loss", "hnm"], dropout=0.3, **frugal)[0]
    np.testing.assert_allclose(again, remembered, atol=2e-5)
    assert np.abs(again - trained(["--loss", "hnm"], **frugal)[0]).max() > 1e-3  # dropout does something


def test_chunks_or_frames_share_their_dropout():
    keras.utils.set_random_seed(0)
    model = build_saga(2, **SIZES, dropout=0.5, kind=functools.partial(FrugalSAGA, accumulate=2, remat=True))
    same = np.ones((2, *(SIZES[key] for key in ("frames", "tokens", "dim"))), np.float32)
    first, second = np.array(model(same, training=True)["embedding"])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(first - np.array(model(same, training=True)["embedding"])[0]).max() > 0.01
    np.testing.assert_allclose(*np.array(model(same)["embedding"]), atol=1e-5)


COMPILED = """
import sys; sys.path[:0] = ["tests", "."]
import test_memory
print(*map(test_memory.working_bytes, [{}, *test_memory.FRUGAL, dict(accumulate=3, remat=True)]))
"""


def working_bytes(frugal):
    """What XLA sets aside for the gradients of a batch, beside inputs and outputs."""
    import jax

    sizes = dict(frames=8, tokens=64, dim=48, heads=4, temporal_blocks=2)
    model = build_saga(2, **sizes, dropout=0.1, kind=functools.partial(FrugalSAGA, **frugal))
    states = [[variable.value for variable in part] for part in devices.states(model)]

    def loss(weights, state, tokens):
        return model.stateless_call(weights, state, tokens, training=True)[0]["embedding"].std()

    gradients = jax.jit(jax.grad(loss)).lower(*states, np.zeros((12, 8, 64, 48), np.float32))
    return gradients.compile().memory_analysis().temp_size_in_bytes


def test_no_memory_is_saved():
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=HERE, env=environment, capture_output=True, text=True)
    plain, remat, chunks, both = map(int, done.stdout.split())
    assert remat < plain / 3 and chunks < plain / 2 and both < remat, done.stdout


FUSED = """
import sys; sys.path[:0] = ["tests", "."]
import test_memory
test_memory.compare_attention()
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


def test_heads_that_the_kernel_refuses_are_given_to_it(monkeypatch):
    monkeypatch.setattr(devices, "BACKEND", "jax")
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(default_backend=lambda: "gpu"))
    for dim, fused in ((144, False), (1024, False), (1152, True)):  # heads of 12, 85 and 96
        attention = types.SimpleNamespace(_key_dim=dim // 12, _compute_attention="Keras's")
        devices.fuse_attention(types.SimpleNamespace(spatial=types.SimpleNamespace(_self_attention_layer=attention)))
        assert (attention._compute_attention != "Keras's") == fused


def test_fused_attention_computes_otherwise():
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", FUSED], cwd=HERE, env=environment, check=True)
