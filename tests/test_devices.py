"""Several devices against one: the same weights and the same outputs, for every loss, in processes of their own."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small import RECIPE, stage_two_losses, write_folder
from stages import module

from basics.artifacts import read_arrays
from basics.running import ROOT, InputError
from common import OUTPUTS, SAGA, WindowBatches, build_saga, keras
from training import devices, evaluation
from training.remat import RematSAGA

LOSSES = {
    "ce": ["--loss", "ce"],
    "hnm": ["--loss", "hnm"],
    "semi": ["--loss", "semi"],
    "remat": ["--loss", "hnm"],  # frame by frame
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


def split_cpu(options):
    if "two CPUs" in options:
        import tensorflow as tf

        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)


def side(path, options):
    """Train at every loss on all devices; the first process saves weights, outputs and the number of devices."""
    split_cpu(options)
    devices.use_devices()
    found = {"devices": devices.replicas()}
    if "without gathering" in options:
        module("03_attribute").global_batch = lambda *arrays: arrays
    for name, flags in LOSSES.items():
        if "without gathering" in options and name == "remat":
            continue
        keras.utils.set_random_seed(0)
        model = build_saga(4, **SIZES, kind=RematSAGA if name == "remat" else SAGA)
        losses, weights = stage_two_losses(*flags)
        model.compile(keras.optimizers.SGD(0.02), losses, loss_weights=weights)
        model.fit(Batches(), shuffle=False, verbose=0)
        flat = [keras.ops.convert_to_numpy(weight).ravel() for weight in model.trainable_weights]
        found[name] = np.concatenate(flat)
    tokens = np.random.default_rng(0).standard_normal((5, *Batches()[0][0].shape[1:]), np.float32)  # 5: an odd number
    found |= {f"output {key}": value for key, value in devices.predict_on_batch(model, tokens).items()}
    if devices.is_main_process():
        np.savez(path, **found)


def start(path, backend, *options, **environment):
    environment = os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-c", SIDE, str(path), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(path, *running):
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output.decode()
    with np.load(path) as arrays:
        return dict(arrays)


def two_hosts():
    """The environment of each of two processes that compute together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    names = devices.HOSTS
    return [dict(zip(names, (address, "2", str(i)), strict=True)) for i in range(2)]


EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
KINDS = {  # the processes of each: backend, options and environment
    "one TensorFlow device": lambda: [("tensorflow", {})],
    "two TensorFlow replicas": lambda: [("tensorflow", "two CPUs", {})],
    "replicas that do not gather": lambda: [("tensorflow", "two CPUs", "without gathering", {})],
    "one JAX device": lambda: [("jax", {})],
    "eight JAX devices": lambda: [("jax", EIGHT)],
    "two JAX processes": lambda: [("jax", hosts) for hosts in two_hosts()],
}

# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of KINDS saved; so many run at once as there are processors."""
    folder = tmp_path_factory.mktemp("devices")

    def run(kind):
        path = folder / f"{kind}.npz"
        return finished(path, *(start(path, *own, **environment) for *own, environment in KINDS[kind]()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(KINDS, pool.map(run, KINDS), strict=True))


@pytest.mark.slow
def test_training_moves_the_weights(found):
    """Or all the tests below would compare weights as they were drawn."""
    alone = found["one JAX device"]
    assert min(np.abs(alone["ce"] - alone[name]).max() for name in ("hnm", "semi")) > 0.01
    np.testing.assert_allclose(alone["remat"], alone["hnm"], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "alone"),
    [
        ("two TensorFlow replicas", 2, "one TensorFlow device"),
        ("eight JAX devices", 8, "one JAX device"),
        ("two JAX processes", 2, "one JAX device"),
    ],
)
def test_several_devices_equal_one(found, kind, count, alone):
    assert found[kind]["devices"] == count and found[alone]["devices"] == 1
    for name in (*LOSSES, *(f"output {key}" for key in OUTPUTS)):
        np.testing.assert_allclose(found[kind][name], found[alone][name], atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_replicas_that_mine_their_own_part_differ(found):
    for name in ("ce", "hnm", "semi"):
        apart = np.abs(found["replicas that do not gather"][name] - found["one TensorFlow device"][name]).max()
        assert apart < 2e-5 if name == "ce" else apart > 1e-3, name


# ---------------------------------------------------------------- a stage on several devices

STAGE = """
import sys
sys.path[:0] = ["tests", "."]
import test_devices
test_devices.split_cpu(sys.argv[1:])
test_devices.module("03_attribute").main([flag for flag in sys.argv[1:] if flag != "two CPUs"])
"""


def run_stage(folder, run, backend, *options, environments=({},)):
    """Run 03 with mining in a process for each environment: what they print, and the run's files."""
    flags = ["--features", folder, "--run", run, "--epochs", "2", "--batch-size", "8", "--learning-rate", "1e-3"]
    flags += ["--init", "scratch", "--normalize", "--dropout", "0", "--temporal-blocks", "2", "--schedule", "constant"]
    command = [sys.executable, "-c", STAGE, *map(str, flags), *options]
    environments = [os.environ | {"KERAS_BACKEND": backend} | own for own in environments]
    pipes = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = [subprocess.Popen(command, env=own, **pipes) for own in environments]
    printed = [process.communicate(timeout=600)[0] for process in running]
    assert not any(process.returncode for process in running), printed
    return printed, sorted(path.name for path in run.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "where"), [("tensorflow", "2 devices"), ("jax", "2 devices of 2 processes")])
def test_stage_on_several_devices_ends_as_on_one(tmp_path, backend, where):
    recipe = RECIPE | {"frames": 2, "tokens": 4}
    options = dict(clips=10, windows=lambda i: 1, split=lambda i: "test" if i < 3 else "val" if i < 5 else "train")
    write_folder(tmp_path / "features", ["Real", "SVD", "Pika"], recipe=recipe, **options)
    options = ["two CPUs"] if backend == "tensorflow" else []
    environments = two_hosts() if backend == "jax" else ({},)
    _, files = run_stage(tmp_path / "features", tmp_path / "one", backend)
    printed, theirs = run_stage(tmp_path / "features", tmp_path / "two", backend, *options, environments=environments)
    assert all(f" an epoch on {where}:" in text for text in printed)
    assert theirs == files and ["model, metrics and figures" in text for text in printed] in ([True], [True, False])
    runs = (tmp_path / "two", tmp_path / "one")
    ours, expected = (read_arrays(run / "gen_embeddings.npz", ["embedding"]) for run in runs)
    np.testing.assert_allclose(ours["embedding"], expected["embedding"], atol=1e-3)


# ---------------------------------------------------------------- --tpu, as far as a processor goes

TPU = """
import sys
sys.path[:0] = ["tests", "."]
import test_devices
test_devices.stages_on_a_tpu(*sys.argv[1:])
"""


def stages_on_a_tpu(features, run):
    """02 and 03 with --tpu: logical devices stand for what TensorFlow's resolver finds, virtual ones for JAX's.

    Prints the shapes of all batches that are trained on and predicted, one set for each stage.
    """
    if devices.BACKEND == "tensorflow":
        import tensorflow as tf

        split_cpu(["two CPUs"])
        names = tuple(device.name for device in tf.config.list_logical_devices("CPU"))
        devices.tpu_strategy = lambda: devices.mirrored_strategy(names)
    else:
        import jax

        jax.default_backend = lambda: "tpu"
    place = ["--features", features, "--run", run, "--tpu", "--epochs", "2", "--batch-size", "16"]
    shapes, read, predict = set(), WindowBatches.__getitem__, evaluation.predict_on_batch

    def read_batch(self, step):
        tokens, labels = read(self, step)
        shapes.add((*tokens.shape, *labels["logits"].shape))
        return tokens, labels

    def predict_batch(model, tokens):
        shapes.add((*tokens.shape, len(tokens)))
        return predict(model, tokens)

    WindowBatches.__getitem__, evaluation.predict_on_batch = read_batch, predict_batch
    for name, more in (
        ("02_pretrain_binary", []),
        ("03_attribute", ["--loss", "semi"]),
        ("03_attribute", ["--overwrite"]),
    ):
        shapes.clear()
        module(name).main([*place, "--temporal-blocks", "2", *more])
        print("shapes", sorted(shapes))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("tensorflow", 2), ("jax", 8)])
def test_stages_train_with_tpu_in_batches_of_one_shape(tmp_path, backend, count):
    write_folder(tmp_path / "features", ["Real", "SVD", "Pika"], windows=lambda i: 1 + i % 2)
    environment = (
        os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""} | (EIGHT if backend == "jax" else {})
    )
    command = [sys.executable, "-c", TPU, str(tmp_path / "features"), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"an epoch on {count} devices") == 3
    shapes = [line for line in done.stdout.splitlines() if line.startswith("shapes")]
    assert shapes == ["shapes [(16, 8, 2, 12, 16)]"] * 3  # XLA compiles once for a shape
    assert {"bin.keras", "gen.keras", "gen.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.skipif(devices.BACKEND != "tensorflow", reason="JAX compiles every step with XLA anyway")
@pytest.mark.parametrize("loss", ["hnm", "semi"])
def test_mining_compiled_by_xla_trains_the_same_weights(loss):
    found = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = build_saga(4, **SIZES)
        losses, weights = stage_two_losses("--loss", loss)
        model.compile(keras.optimizers.SGD(0.02), losses, loss_weights=weights, jit_compile=jit_compile)
        model.fit(Batches(), shuffle=False, verbose=0)
        found.append(np.concatenate([weight.ravel() for weight in model.get_weights()]))
    np.testing.assert_allclose(*found, atol=2e-5)


@pytest.mark.slow
def test_without_a_tpu_there_is_one_short_line(tmp_path):
    write_folder(tmp_path / "features", ["Real", "SVD"], clips=8)
    command = [sys.executable, "02_pretrain_binary.py", "--tpu", "--features", str(tmp_path / "features")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("02_pretrain_binary.py: ")]
    assert done.returncode == 1 and "--tpu: TensorFlow finds no TPU here" in line and len(line) < 120
    assert "Traceback" not in done.stderr and done.stdout == ""


# ---------------------------------------------------------------- what is refused


def test_missing_tpu_raises(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(InputError, match="--tpu: .*no TPU here.*leave"):
        devices.use_devices(tpu=True)
    assert devices.replicas() == 1 and devices.processes() == (0, 1) and devices.is_main_process()


@pytest.mark.parametrize(
    "variables",
    [{"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'}, {devices.HOSTS[1]: "2"}],
    ids=["TF_CONFIG", "Keras's own"],
)
def test_several_hosts_on_tensorflow_raise(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="KERAS_BACKEND=jax.*MultiWorkerMirroredStrategy"):
        devices.use_devices()


def test_batch_that_cannot_be_split_raises(monkeypatch):
    monkeypatch.setattr(devices, "replicas", lambda: 4)
    assert devices.divisible_batch_size(64) == 64 and devices.divisible_batch_size(63) == 60
    with pytest.raises(InputError, match="--batch-size"):
        devices.divisible_batch_size(3)
