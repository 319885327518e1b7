"""The tf.data service with a dispatcher and workers in processes of their own: what comes, and what a kill takes."""

import contextlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from small import RECIPE, write_folder
from stages import module, stage

from basics.artifacts import read_json
from basics.running import ROOT, InputError
from common import WindowBatches
from tokens.dataset import Windows, features_file, read_index, usable, write_features
from training.service import served

ONE, SECONDS = "02_pretrain_binary", 60  # that a process may take to end


@pytest.fixture
def service():
    """(address, [worker, worker]) of a running dispatcher and two workers."""
    with contextlib.ExitStack() as stack:

        def run(*flags):
            command = [sys.executable, "-m", "training.service", *flags]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(process.wait, SECONDS)
            stack.callback(process.kill)
            return process

        port = re.search(r"dispatcher of grpc://\S+:(\d+) runs", run("dispatcher", "0").stdout.readline())[1]
        address = f"grpc://localhost:{port}"
        workers = [run("worker", address) for _ in range(2)]
        assert all(f"worker of {address} runs" in worker.stdout.readline() for worker in workers)
        yield address, workers


@pytest.fixture
def rows(tmp_path):
    """100 videos of one to three windows; two generators; names that are not ASCII."""
    folder = write_folder(tmp_path / "é", ["Real", "SVD"], clips=50, recipe=RECIPE)
    return usable(read_index(folder), folder)


def window_batches(rows, **options):
    windows = Windows(rows, memory=0)
    return WindowBatches(windows, np.arange(len(windows)) % 3, **({"batch_size": 4, "seed": 3} | options))


def expected(rows, epoch, **options):
    """The epoch's batches in training as bytes, read by NumPy whole and chosen by WindowBatches."""
    tokens = np.concatenate([np.load(features_file(row.features, row.path))["tokens"] for row in rows])
    batches = window_batches(rows, **options)
    batches.epoch = epoch + 1  # fit ends an epoch before its first
    chosen = [batches.chosen(step) for step in range(len(batches))]
    return [tokens[own].tobytes() + (own % 3).astype("int32").tobytes() for own in chosen]


def came(data, count):
    elements = data.take(count).as_numpy_iterator()
    return [tokens.tobytes() + labels["logits"].tobytes() for tokens, labels in elements]


@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.parametrize("batching", ["natural", "balanced"])
def test_service_reads_the_batches_of_the_epochs(service, rows, batching):
    batches = window_batches(rows, batching=batching)
    batches.epoch = 1
    steps = len(batches)
    assert steps == 49
    wanted = {*expected(rows, 1, batching=batching), *expected(rows, 2, batching=batching)}
    found = came(served(batches, service[0], epochs=3), 2 * steps + 20)  # a batch may overtake some of the round before
    assert len(wanted) == 2 * steps and set(found) == wanted and len(set(found[: 2 * steps])) > 2 * steps - 10


@pytest.mark.slow
@pytest.mark.graph
def test_stage_trains_by_the_service_and_is_up_to_date_without_it(service, rows, tmp_path, capsys):
    flags = ["--features", rows[0].features, "--run", tmp_path / "run", "--epochs", 2, "--batch-size", 16]
    flags += ["--temporal-blocks", 2, "--learning-rate", 1e-3]
    stage(ONE, *flags, "--data-service", service[0])
    metrics = read_json(tmp_path / "run" / "bin.json")
    assert metrics["videos"] == 10 and metrics["recipe"]["machine"]["data_service"] == service[0]
    assert "val_accuracy" in (tmp_path / "run" / "bin_history.csv").read_text()
    capsys.readouterr()
    stage(ONE, *flags)
    assert "up to date" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.graph
def test_killed_worker_takes_its_batches_along_and_the_other_goes_on(service, rows):
    batches = window_batches(rows, batch_size=2)
    elements = served(batches, service[0], epochs=1).as_numpy_iterator()
    wanted, found = set(expected(rows, 0, batch_size=2)), []
    for i in range(len(batches)):
        tokens, labels = next(elements)
        found.append(tokens.tobytes() + labels["logits"].tobytes())
        if i == 30:
            service[1][0].kill()
    assert len(found) == len(wanted) and set(found) <= wanted


@pytest.mark.slow
@pytest.mark.graph
def test_tokens_that_are_not_finite_end_training(service, rows):
    data = served(window_batches(rows), service[0], epochs=1)
    for row in rows:
        times = np.zeros((row.windows, 8))
        tokens = np.full((*times.shape, 2, 12), np.inf)
        write_features(features_file(row.features, row.path), tokens, times, times)
    with pytest.raises(tf.errors.InvalidArgumentError, match="tokens are not finite; run 01 again"):
        came(data, 49)


def test_several_devices_are_not_fed_by_the_service(features, tmp_path, monkeypatch):
    monkeypatch.setattr("training.devices.replicas", lambda: 2)
    address = "grpc://localhost:1"
    with pytest.raises(InputError, match="--data-service feeds one device, and there are 2 devices; leave it out"):
        stage(ONE, "--features", features, "--run", tmp_path, "--data-service", address, "--temporal-blocks", 2)


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", "grpc://:5000", "http://a:5", "grpc://a:b"])
def test_malformed_addresses_are_wrong_arguments(address):
    with pytest.raises(SystemExit) as stopped:
        module(ONE).get_args(["--data-service", address])
    assert stopped.value.code == 2


def test_missing_dispatcher_and_missing_tensorflow_raise(rows, monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"grpc://localhost:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=f"{address}: no answer.*training.service dispatcher"):
        served(window_batches(rows), address, epochs=1)
    monkeypatch.setattr("training.service.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs TensorFlow"):
        served(window_batches(rows), address, epochs=1)
