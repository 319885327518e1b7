"""The tf.data service with a dispatcher and workers in processes of their own: what comes, and what a kill takes."""

import contextlib
import gc
import importlib
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import HERE, OUTPUTS, WindowBatches
from tokens.dataset import Windows, features_file, read_json, write_features, write_index, write_json
from training import service as data_service
from training.service import ServiceBatches

stage_one = importlib.import_module("02_pretrain_binary")
SECONDS = 60  # that a process may take to end
KEPT = []  # a dispatcher that the waiting trainer asks again and again, to the end


@pytest.fixture(scope="module")
def service():
    """(address, [worker, worker]) of a running dispatcher and two workers."""
    with contextlib.ExitStack() as stack:

        def run(*flags):
            command = [sys.executable, str(HERE / "data_service.py"), *flags]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(process.wait, SECONDS)
            stack.callback(process.kill)
            return process

        port = re.search(r"dispatcher of grpc://\S+:(\d+) runs", run("dispatcher", "--port", "0").stdout.readline())[1]
        address = f"grpc://localhost:{port}"
        workers = [run("worker", "--dispatcher", address) for _ in range(2)]
        assert all(f"worker of {address} runs" in worker.stdout.readline() for worker in workers)
        yield address, workers


@pytest.fixture
def features(tmp_path):
    """100 videos of one to three windows; two generators; names that are not ASCII."""
    random, rows = np.random.default_rng(0), []
    for i in range(100):
        generator, windows = ("Real", "SVD")[i % 2], 1 + i % 3
        path = f"{generator}/é {'x' * (i % 7)}{i}.mp4"
        split = "test" if i < 20 else "val" if i < 30 else "train"
        tokens = random.normal(size=(windows, 8, 2, 12)) + 3 * (i % 2)
        write_features(features_file(tmp_path, path), tokens, np.zeros((windows, 8)), np.ones((windows, 8)))
        row = dict(path=path, generator=generator, group=path, stratum="", split=split, windows=windows, fps=8)
        rows.append(row | dict(size="64x64", length=windows, container="mp4", error="", source=path))
    write_index(tmp_path / "index-1-of-1.csv", rows)
    write_json(tmp_path / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12})
    return tmp_path, [row | {"features": tmp_path} for row in rows]


def window_batches(rows, **options):
    windows = Windows(rows, memory=0)
    return WindowBatches(windows, np.arange(len(windows)) % 3, **({"batch_size": 4, "seed": 3} | options))


def expected(rows, epoch, **options):
    """The epoch's batches in training as bytes, read by NumPy whole and chosen by WindowBatches."""
    tokens = np.concatenate([np.load(features_file(row["features"], row["path"]))["tokens"] for row in rows])
    batches = window_batches(rows, start_epoch=epoch + 1, **options)  # fit ends an epoch before its first
    chosen = [batches.chosen(step) for step in range(len(batches))]
    return sorted(tokens[own].tobytes() + (own % 3).astype("int32").tobytes() for own in chosen)


def as_bytes(tokens, labels):
    assert tokens.dtype == np.float16 and labels.keys() == set(OUTPUTS)
    return tokens.tobytes() + labels["logits"].tobytes()


@pytest.mark.parametrize("batching", ["natural", "pk"])
def test_epoch_of_the_service_holds_other_batches(service, features, tmp_path, batching, capsys):
    address, rows = service[0], features[1]
    batches = window_batches(rows, batching=batching, start_epoch=1)
    with ServiceBatches(batches, address, tmp_path / "plan", epochs=3) as source:
        came = [as_bytes(*element) for element in source.stream()]
    steps = len(batches)
    assert steps == 49 and sorted(came[:steps]) == expected(rows, 1, batching=batching)
    assert sorted(came[steps:]) == expected(rows, 2, batching=batching) != expected(rows, 1, batching=batching)
    assert not (tmp_path / "plan").exists() and "lost" not in capsys.readouterr().out


def test_stage_is_not_trained_by_the_service_or_starts_anew_without_it(service, features, capsys):
    folder = features[0]
    flags = ["--features", str(folder), "--run", str(folder / "run"), "--epochs", "1", "--batch-size", "16"]
    flags += ["--temporal-blocks", "2", "--learning-rate", "1e-3", "--accumulate", "2", "--remat"]
    stage_one.main([*flags, "--data-service", service[0]])
    metrics = read_json(folder / "run" / "bin.json")
    assert metrics["videos"] == 20 and metrics["recipe"]["arguments"]["data_service"] == service[0]
    assert not (folder / "run" / "bin_service").exists()
    assert "val_accuracy" in (folder / "run" / "bin_history.csv").read_text()
    capsys.readouterr()
    stage_one.main(flags)
    assert "up to date" in capsys.readouterr().out


class Reads(keras.Model):
    """What it has seen is another number for other batches of the same windows."""

    def train_step(self, data):
        self.seen.update_state(keras.ops.square(keras.ops.sum(keras.ops.cast(data[0], "float32"))))
        return {"seen": self.seen.result()}


def reading_model():
    model = Reads()
    model.seen = keras.metrics.Mean("seen")
    model.built = True
    model.compile()
    return model


@pytest.mark.parametrize("start", [0, 2])
def test_epochs_of_the_service_have_other_batches_than_those_without_it(service, features, tmp_path, start):
    options = dict(shuffle=False, verbose=0, initial_epoch=start, epochs=start + 2)
    batches = window_batches(features[1], start_epoch=start)
    with ServiceBatches(batches, service[0], tmp_path / "plan", epochs=start + 2) as source:
        served = reading_model().fit(source.stream(), steps_per_epoch=len(batches), **options)
    alone = reading_model().fit(window_batches(features[1], start_epoch=start), **options)
    np.testing.assert_allclose(served.history["seen"], alone.history["seen"], rtol=1e-4)
    first, second = alone.history["seen"]
    assert abs(first / second - 1) > 1e-3


def test_run_whose_evaluation_was_interrupted_cannot_go_on(service, features, monkeypatch):
    folder = features[0]
    flags = ["--features", str(folder), "--run", str(folder / "run"), "--epochs", "1", "--batch-size", "16"]
    flags += ["--temporal-blocks", "2", "--data-service", service[0]]
    evaluate = stage_one.evaluate

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_one, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage_one.main(flags)
    monkeypatch.setattr(stage_one, "evaluate", evaluate)
    with monkeypatch.context() as other:
        other.setattr("training.callbacks.even", lambda *_: 15)
        with pytest.raises(ValueError, match="begun with 16 windows a batch, one device would take 15.*--overwrite"):
            stage_one.main(flags)
    assert stage_one.main(flags)["videos"] == 20


def test_several_devices_are_fed_by_the_service(service, features, monkeypatch):
    for module in ("training", "devices"):
        monkeypatch.setattr(f"{module}.replicas", lambda: 2)
    with pytest.raises(ValueError, match="--data-service feeds one device, and there are 2 devices; leave it out"):
        stage_one.main(["--features", str(features[0]), "--run", str(features[0] / "r"), "--data-service", service[0]])


@pytest.mark.parametrize("damage", ["infinite", "cut", "gone"])
def test_damaged_file_is_not_named(service, features, tmp_path, damage):
    rows = features[1]
    victim = features_file(tmp_path, rows[40]["path"])
    model = reading_model()
    with (
        pytest.raises(ValueError, match=f"run 01 again.*{re.escape(str(victim))}"),
        ServiceBatches(window_batches(rows), service[0], tmp_path / "plan", epochs=1) as source,
    ):
        if damage == "infinite":
            write_features(victim, np.full((2, 8, 2, 12), np.inf), np.zeros((2, 8)), np.ones((2, 8)))
        elif damage == "cut":
            victim.write_bytes(victim.read_bytes()[:-500])
        else:
            victim.unlink()
        model.fit(source.stream(), steps_per_epoch=49, shuffle=False, verbose=0)
    gc.collect()  # iterators that a traceback holds would go on asking workers that are gone


def test_file_that_does_not_match_the_index_is_planned(service, features, tmp_path):
    rows = features[1]
    batches = window_batches(rows)
    for tokens, why in ((np.zeros((1, 8, 2, 12)), "do not match the index"), (np.zeros((2, 8, 2, 12)), "not float16")):
        np.savez(features_file(tmp_path, rows[40]["path"]), tokens=tokens)
        with pytest.raises(ValueError, match=f"{re.escape(rows[40]['path'])}.npz: .*{why}.*run 01 again"):
            ServiceBatches(batches, service[0], tmp_path / "plan", epochs=1).__enter__()


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", "grpc://:5000", "http://a:5", "grpc://a:b"])
def test_malformed_address_is_taken(address):
    with pytest.raises(SystemExit) as stopped:
        stage_one.get_args(["--data-service", address])
    assert stopped.value.code == 2


def test_nobody_to_read_is_waited_for_without_end(features, tmp_path, monkeypatch, capsys):
    batches = window_batches(features[1])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"grpc://localhost:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"{address}: no dispatcher answers.*python data_service.py dispatcher --port"):
        ServiceBatches(batches, address, tmp_path / "plan", epochs=1)
    KEPT.append(dispatcher := tf.data.experimental.service.DispatchServer())
    monkeypatch.setattr(data_service, "PATIENCE", (0.2, 0.2))
    with (
        pytest.raises(ValueError, match=f"{dispatcher.target}: no batch in 0.4 s"),
        ServiceBatches(batches, dispatcher.target, tmp_path / "plan", epochs=1) as source,
    ):
        next(source.stream())
    assert f"python data_service.py worker --dispatcher {dispatcher.target}" in capsys.readouterr().out
    server = tf.data.experimental.service
    KEPT.append(server.WorkerServer(server.WorkerConfig(dispatcher.target.removeprefix("grpc://"))))


def test_missing_tensorflow_or_a_batch_too_large_for_the_service_fails_late(features, tmp_path, monkeypatch):
    huge = SimpleNamespace(windows=SimpleNamespace(shape=(8, 729, 1152)), batch_size=256, epoch=0)
    with pytest.raises(ValueError, match="3.2 GiB, at most 2 pass; lower --batch-size"):
        ServiceBatches(huge, "grpc://localhost:1", tmp_path, epochs=1)
    monkeypatch.setattr(data_service, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs TensorFlow"):
        ServiceBatches(window_batches(features[1]), "grpc://localhost:1", tmp_path, epochs=1)


@pytest.mark.parametrize("gone", [(), (7, 95, 98)])
def test_batches_that_are_only_late_count_as_lost(service, features, tmp_path, monkeypatch, capsys, gone):
    """Thirty workers, whose batches come thirty at a time, the last first; some never come."""
    source = ServiceBatches(window_batches(features[1], batch_size=2), service[0], tmp_path, epochs=1)
    numbers = [block + i for block in range(0, 3000, 30) for i in reversed(range(30))]
    asked = []

    def ask(name, steps):
        asked.append(steps)
        yield from ((n, "labels", n) for n in numbers if len(asked) > 1 or n not in gone)

    monkeypatch.setattr(source, "ask", ask)
    assert len(list(source.read_epoch(0))) == len(source.batches) == 99
    assert asked[1:] == ([list(gone)] if gone else [])
    assert ("steps 7, 95, 98 were lost" in capsys.readouterr().out) == bool(gone)


def test_killed_worker_hangs_the_run_or_takes_batches_along(service, features, tmp_path, capsys):
    """The last test: it ends the workers. While one is stopped the other reads, so it dies with batches in hand."""
    address, (dies, stays) = service
    rows, came = features[1], []
    with ServiceBatches(window_batches(rows, batch_size=2), address, tmp_path / "plan", epochs=1) as source:
        for element in source.stream():
            came.append(as_bytes(*element))
            if len(came) == 30:
                stays.send_signal(signal.SIGSTOP)
            if len(came) == 50:
                dies.kill()
                stays.send_signal(signal.SIGCONT)
    assert sorted(came) == expected(rows, 0, batch_size=2)
    assert re.search(r"^epoch 1: steps [\d, ]+ were lost with a worker and read again$", capsys.readouterr().out, re.M)
    stays.send_signal(signal.SIGINT)
    assert stays.communicate(timeout=SECONDS)[0] == "worker ended by SIGINT\n" and stays.returncode == 0
