"""Several devices against one: the same weights and the same outputs, for every loss, in processes of their own."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import devices
from common import HERE, OUTPUTS, build_saga, keras

LOSSES = {
    "ce": ["--loss", "ce"],
    "hnm": ["--loss", "hnm"],
    "normalized": ["--loss", "hnm", "--normalize", "--margin", "0.2"],
    "hardest": ["--loss", "hnm", "--positives", "hardest"],
    "semi": ["--loss", "semi"],
}
SIZES = dict(frames=2, tokens=4, dim=12, heads=2, temporal_blocks=2, dropout=0)
BATCH, STEPS = 16, 4

# ---------------------------------------------------------------- the side that computes

SIDE = """
import sys
sys.path[:0] = ["tests", "."]
import test_devices
test_devices.side(sys.argv[1], sys.argv[2:])
"""


class Batches(keras.utils.PyDataset):
    """Random batches, this process's part of each."""

    def __len__(self):
        return STEPS

    def __getitem__(self, step):
        random = np.random.default_rng(step)
        shape = (BATCH, *(SIZES[key] for key in ("frames", "tokens", "dim")))
        tokens, labels = random.standard_normal(shape, np.float32), random.integers(0, 4, BATCH)
        place, count = devices.processes()
        parts = (np.split(array, count)[place] for array in (tokens, labels))
        tokens, labels = parts
        return tokens, dict.fromkeys(OUTPUTS, labels)


def side(path, options):
    """Train at every loss on all devices; the first process saves weights, outputs and the number of devices."""
    import importlib

    if "two CPUs" in options:
        import tensorflow as tf

        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    devices.use_devices()
    stage_two, found = importlib.import_module("03_attribute"), {"devices": devices.replicas()}
    if "without gathering" in options:
        stage_two.global_batch = lambda *arrays: arrays
    for name, flags in LOSSES.items():
        keras.utils.set_random_seed(0)
        model = build_saga(4, **SIZES)
        losses, weights, _ = stage_two.stage_two_loss(stage_two.get_args(flags))
        model.compile(keras.optimizers.SGD(0.02), losses, loss_weights=weights)
        model.fit(Batches(), shuffle=False, verbose=0)
        flat = [keras.ops.convert_to_numpy(weight).ravel() for weight in model.trainable_weights]
        found[name] = np.concatenate(flat)
    tokens = np.random.default_rng(0).standard_normal((5, *Batches()[0][0].shape[1:]), np.float32)  # 5: an odd number
    found |= {f"output {key}": value for key, value in devices.predict_on_batch(model, tokens).items()}
    if devices.writes():
        np.savez(path, **found)


def start(path, backend, *options, **environment):
    environment = os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-c", SIDE, str(path), *options]
    return subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(path, *running):
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
    with np.load(path) as arrays:
        return dict(arrays)


def assert_equal(found, expected):
    for name in (*LOSSES, *(f"output {key}" for key in OUTPUTS)):
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def tensorflow_alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "tensorflow.npz"
    return finished(path, start(path, "tensorflow"))


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "jax.npz"
    return finished(path, start(path, "jax"))


def test_training_hardly_moves_the_weights(jax_alone):
    """Or all the tests below would compare weights as they were drawn."""
    for name in LOSSES:
        assert max(np.abs(jax_alone[name] - jax_alone[other]).max() for other in LOSSES) > 0.01, name


def test_two_tensorflow_replicas_differ_from_one(tensorflow_alone, tmp_path):
    found = finished(tmp_path / "two.npz", start(tmp_path / "two.npz", "tensorflow", "two CPUs"))
    assert found["devices"] == 2 and tensorflow_alone["devices"] == 1
    assert_equal(found, tensorflow_alone)


def test_replicas_that_mine_their_own_part_go_unnoticed(tensorflow_alone, tmp_path):
    path = tmp_path / "apart.npz"
    found = finished(path, start(path, "tensorflow", "two CPUs", "without gathering"))
    for name in LOSSES:
        apart = np.abs(found[name] - tensorflow_alone[name]).max()
        assert apart < 2e-5 if name == "ce" else apart > 1e-3, name


def test_eight_jax_devices_differ_from_one(jax_alone, tmp_path):
    path = tmp_path / "eight.npz"
    found = finished(path, start(path, "jax", XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    assert found["devices"] == 8
    assert_equal(found, jax_alone)


def test_two_jax_processes_differ_from_one(jax_alone, tmp_path):
    path = tmp_path / "hosts.npz"
    found = finished(path, *(start(path, "jax", **hosts) for hosts in two_hosts()))
    assert found["devices"] == 2
    assert_equal(found, jax_alone)


def two_hosts():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    names = devices.HOSTS
    return [dict(zip(names, (address, "2", str(i)), strict=True)) for i in range(2)]
