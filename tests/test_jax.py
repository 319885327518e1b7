"""The stages on JAX, in a process without TensorFlow, against TensorFlow in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from presets import tiny_presets
from stages import module, stage

from basics.artifacts import read_json
from basics.running import ROOT
from common import OUTPUTS, build_saga, hard_negative_loss, keras, ops, semi_hard_negative_loss
from tokens import pretrained
from tokens.dataset import features_file, map_tokens, read_index
from training import callbacks

pytestmark = pytest.mark.slow
ENCODERS = ("dct", "mobilenet", "siglip", "dinov2", "clip")
LOSSES = ("hard negatives", "semi-hard negatives", "cross-entropy")
SPLITS = ("train", "train", "val", "test")
SMALL = ["--batch-size", "4", "--learning-rate", "1e-3"]
JAX_SIDE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import test_jax
test_jax.jax_side(*map(test_jax.Path, sys.argv[1:]))
assert "tensorflow" not in sys.modules
"""


# ---------------------------------------------------------------- what both backends do


def extract(inputs, features):
    """Features of every encoder; the pretrained ones of one clip per generator."""
    for name in ENCODERS:
        more = {"dct": ["--pool", 2], "mobilenet": ["--encoder-weights", inputs / "mobilenet.weights.h5"]}
        encoder = name if name in more else inputs / name
        more = more.get(name, []) if name == "dct" else [*more.get(name, []), "--limit", 1]
        place = ["--videos", inputs / "clips.csv", "--features", features / name]
        stage("01_extract_features", *place, "--encoder", encoder, *more)


def losses(labels, embeddings, logits):
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {
        "hard negatives": hard_negative_loss(labels, embeddings),
        "semi-hard negatives": semi_hard_negative_loss(labels, embeddings),
        "cross-entropy": cross_entropy(labels, logits),
    }


def value_and_gradients(function, values):
    values = [ops.convert_to_tensor(value) for value in values]
    if keras.backend.backend() == "jax":
        import jax

        value, gradients = jax.jit(jax.value_and_grad(function))(values)
    else:
        import tensorflow

        with tensorflow.GradientTape() as tape:
            tape.watch(values)
            value = function(values)
        gradients = tape.gradient(value, values, unconnected_gradients="zero")
    return np.array(value), [ops.convert_to_numpy(gradient) for gradient in gradients]


def compute(inputs):
    """A saved model's outputs and gradients, and the losses of free embeddings, by name."""
    with np.load(inputs / "inputs.npz") as arrays:
        tokens, labels, points = (arrays[name] for name in ("tokens", "labels", "points"))
    model = keras.saving.load_model(inputs / "model.keras", compile=False)
    found = model.predict_on_batch(tokens)

    def model_loss(weights):
        outputs, _ = model.stateless_call(weights, model.non_trainable_variables, tokens)
        terms = losses(labels, outputs["embedding"], outputs["logits"])
        return 0.5 * terms["cross-entropy"] + 0.5 * terms["hard negatives"]

    variables = model.trainable_variables
    found["model loss"], gradients = value_and_gradients(model_loss, [variable.numpy() for variable in variables])
    found |= {f"gradient of {variable.path}": gradient for variable, gradient in zip(variables, gradients, strict=True)}
    for name in LOSSES:
        value, (gradient,) = value_and_gradients(lambda e, name=name: losses(labels, e[0], e[0])[name], [points])
        found |= {name: value, f"gradient of {name}": gradient}
    return found


# ---------------------------------------------------------------- the side without TensorFlow


class Interrupt(callbacks.EpochEnd):
    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        raise KeyboardInterrupt


def jax_side(inputs, out):
    extract(inputs, out / "features")
    place = ["--features", out / "features" / "dct"]
    pretrain = [*place, *SMALL, "--epochs", 2, "--run"]
    stage("02_pretrain_binary", *pretrain, out / "run")
    script = module("02_pretrain_binary")
    script.EpochEnd = Interrupt
    with pytest.raises(KeyboardInterrupt):
        stage("02_pretrain_binary", *pretrain, out / "resumed")
    script.EpochEnd = callbacks.EpochEnd
    stage("02_pretrain_binary", *pretrain, out / "resumed")
    stage("03_attribute", *place, *SMALL, "--epochs", 1, "--level", "gen", "--run", out / "run")
    gen = keras.saving.load_model(out / "run" / "gen.keras", compile=False)
    np.savez(out / "trained.npz", **gen.predict_on_batch(trained_tokens(inputs)))
    np.savez(out / "computed.npz", **compute(inputs))


def trained_tokens(inputs):
    with np.load(inputs / "inputs.npz") as arrays:
        return arrays["trained_tokens"]


# ---------------------------------------------------------------- the comparison


def random_mobilenet(random):
    """A MobileNet of random weights whose tokens depend on the image: fresh BatchNorms would leave their betas only."""
    model = pretrained.mobilenet(5, "float32", None)
    for variable in model.weights:
        variable.assign(variable + random.normal(size=variable.shape, scale=0.05))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one batch sets the moving statistics
    model(random.uniform(-1, 1, (4, 28, 28, 3)).repeat(8, axis=1).repeat(8, axis=2), training=True)
    return model


@pytest.fixture(scope="module")
def inputs(zoo, tmp_path_factory):
    """What TensorFlow and NumPy write for JAX: clips, weights of the encoders, a model, arrays."""
    folder, random = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    generators = ("Real", "SVD", "Pika")
    rows = [f"{zoo}/{name}/{i:04d}.mp4,{name},{split}" for name in generators for i, split in enumerate(SPLITS)]
    (folder / "clips.csv").write_text("\n".join(["path,generator,split", *rows]))
    tiny_presets(folder)
    mobilenet = random_mobilenet(random)
    model = build_saga(3, frames=8, tokens=3, dim=24, dropout=0.1, class_names=generators)
    for variable in model.weights:
        variable.assign(variable + random.normal(size=variable.shape, scale=0.05))
    mobilenet.save_weights(folder / "mobilenet.weights.h5")
    model.save(folder / "model.keras")
    arrays = {"tokens": random.normal(size=(12, 8, 3, 24)), "trained_tokens": random.normal(size=(4, 8, 4, 144))}
    arrays = {name: array.astype("float32") for name, array in arrays.items()}
    points = random.normal(size=(12, 3)).astype("float32")
    np.savez(folder / "inputs.npz", labels=np.arange(12) % 3, points=points, **arrays)
    return folder


@pytest.fixture(scope="module")
def by_jax(inputs, tmp_path_factory):
    """The folder that the process without TensorFlow has written."""
    out = tmp_path_factory.mktemp("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(out / "cache")}  # the resumed run compiles nothing
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling takes half the time
    command = [sys.executable, "-c", JAX_SIDE, inputs, out]
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "printed.txt").write_text(done.stdout + done.stderr)
    return out


@pytest.fixture(scope="module")
def computed(inputs, by_jax):
    """What JAX and TensorFlow compute from the same inputs."""
    with np.load(by_jax / "computed.npz") as arrays:
        return dict(arrays), compute(inputs)


@pytest.fixture(scope="module")
def by_tensorflow(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    extract(inputs, folder)
    return folder


def test_scripts_run_without_tensorflow_and_without_mentioning_it(by_jax):
    printed = (by_jax / "printed.txt").read_text()
    assert "tensorflow" not in printed.casefold() and "Warning" not in printed
    for level in ("bin", "gen"):
        versions = json.loads((by_jax / "run" / f"{level}.json").read_text())["recipe"]["versions"]
        assert versions["backend"] == "jax"
    assert not (by_jax / "run" / "logs").exists()  # Keras' TensorBoard callback writes with TensorFlow


def test_an_install_without_tensorflow_takes_jax():
    code = "import sys; sys.modules['tensorflow'] = None; import common; print(common.keras.backend.backend())"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "jax", done.stderr[-3000:]


def test_a_resumed_run_equals_an_uninterrupted_one_on_jax(by_jax):
    assert "resuming after epoch 1" in (by_jax / "printed.txt").read_text()
    whole, resumed = (
        keras.saving.load_model(by_jax / run / "bin_last.keras", compile=False).get_weights()
        for run in ("run", "resumed")
    )
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    histories = [(by_jax / run / "bin_history.csv").read_text() for run in ("run", "resumed")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_tokens_and_their_recipe_are_the_same_on_both_backends(encoder, by_jax, by_tensorflow):
    folders = by_jax / "features" / encoder, by_tensorflow / encoder
    recipes = [read_json(folder / "recipe.json") | {"git": None} for folder in folders]
    assert recipes[0] == recipes[1]  # weights_sha256 among the rest
    rows = read_index(folders[0])
    assert rows and rows == read_index(folders[1])
    for row in rows:
        one, other = (np.float32(map_tokens(features_file(folder, row.path))) for folder in folders)
        assert one.std(axis=(0, 1, 2)).mean() > 0.1  # over frames and places; constants would agree on any backend
        np.testing.assert_allclose(one, other, atol=1e-2)


def test_a_model_written_by_tensorflow_computes_the_same_on_jax(computed):
    ours, theirs = computed
    for output in OUTPUTS:
        np.testing.assert_allclose(ours[output], theirs[output], atol=1e-4)


def test_a_model_written_by_jax_computes_the_same_on_tensorflow(inputs, by_jax):
    model = keras.saving.load_model(by_jax / "run" / "gen.keras", compile=False)
    outputs = model.predict_on_batch(trained_tokens(inputs))
    with np.load(by_jax / "trained.npz") as arrays:
        for output in OUTPUTS:
            np.testing.assert_allclose(arrays[output], outputs[output], atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_and_its_gradient_are_the_same_on_both_backends(loss, computed):
    ours, theirs = computed
    assert theirs[loss] > 0.1
    np.testing.assert_allclose(ours[loss], theirs[loss], rtol=1e-5)
    np.testing.assert_allclose(ours[f"gradient of {loss}"], theirs[f"gradient of {loss}"], atol=1e-5)


def test_gradients_of_all_weights_are_the_same_on_both_backends(computed):
    ours, theirs = computed
    np.testing.assert_allclose(ours["model loss"], theirs["model loss"], rtol=1e-4)
    names = [name for name in theirs if name.startswith("gradient of") and "/" in name]
    assert len(names) > 90
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)
