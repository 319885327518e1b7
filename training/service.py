"""A tf.data service (Sec. S-2): other processes and machines read the training batches of 02 and 03.

    python -m training.service dispatcher 5000
    python -m training.service worker grpc://HOST:5000 THIS_MACHINE      as many as there is use for
    python 02_pretrain_binary.py --data-service grpc://HOST:5000

TensorFlow's guarantees: batches come in any order, those that a killed worker was reading are lost, and others take
their place. Workers see the features under the trainer's paths.
"""

import contextlib
import os
import re
import socket
import sys
import threading
from importlib.util import find_spec

import numpy as np

import basics.backend  # noqa: F401, before TensorFlow
from basics.running import InputError, port, run_script


def service_address(text: str) -> str:
    """grpc://HOST:PORT, a type of flag."""
    if not re.fullmatch(r"grpc://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}", text):
        raise ValueError(text)
    port(text.rpartition(":")[2])
    return text


def check_dispatcher(address):
    """Raise InputError when no dispatcher listens at grpc://HOST:PORT; the service itself would retry for an hour."""
    host, port = address.removeprefix("grpc://").rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"{address}: no answer ({error}); run python -m training.service dispatcher {port}") from error


def served(batches, address, epochs):
    """A tf.data dataset without end of what WindowBatches give from their epoch on: tokens (B, L, T, D) and the labels
    (B,) of each output. Raises InputError without a dispatcher, or with several devices.
    """
    from common import OUTPUTS  # here, since dispatcher and workers do without Keras
    from training.devices import devices_text, processes, replicas

    if processes()[1] > 1 or replicas() > 1:
        raise InputError(f"--data-service feeds one device, and there are {devices_text()}; leave it out")
    if not find_spec("tensorflow"):
        raise InputError("--data-service needs TensorFlow, with JAX too: pip install tensorflow")
    windows, shape = batches.windows, batches.windows.shape
    size = 2 * int(np.prod(shape))  # bytes of a window
    if (total := size * batches.batch_size / 2**30) > 1.99:
        raise InputError(f"--data-service: a batch has {total:.1f} GiB, at most 2 pass; lower --batch-size")
    check_dispatcher(address)
    import tensorflow as tf

    lasts = np.append(np.flatnonzero(windows.offset == 0)[1:], len(windows)) - 1  # each video's last window
    mapped = ((own.filename, own.offset, os.path.getsize(own.filename)) for own in map(windows.mapped, lasts))
    names, *sizes = zip(*mapped, strict=True)
    names, (starts, ends), order = tf.constant(names), tf.unstack(tf.constant(sizes, tf.int64)), []
    video, place, labels = (tf.constant(own) for own in (windows.video, windows.offset, batches.labels))
    while batches.epoch < epochs:
        batches.epoch += 1  # as Keras's fit, which ends an epoch of the batches before its first
        order += [batches.chosen(step) for step in range(len(batches))]

    def read_window(window):
        own = video[window]
        start = starts[own] + size * place[window]
        read = tf.data.FixedLengthRecordDataset(names[own], size, start, ends[own] - size - start, min(size, 1 << 20))
        tokens = tf.reshape(tf.io.decode_raw(read.get_single_element(), tf.float16), shape)
        return tf.debugging.check_numerics(tokens, "tokens are not finite; run 01 again"), labels[window]

    def read_batch(chosen):
        return tf.data.Dataset.from_tensor_slices(chosen).map(read_window, tf.data.AUTOTUNE).batch(len(order[0]), True)

    # A dataset with an end would wait for the batches of a killed worker.
    data = tf.data.Dataset.from_tensor_slices(np.stack(order)).repeat().flat_map(read_batch).prefetch(1)
    print(f"batches come from the workers of {address}; training waits for one")
    data = data.apply(tf.data.experimental.service.distribute("distributed_epoch", address, compression=None))
    return data.map(lambda tokens, own: (tokens, dict.fromkeys(OUTPUTS, own)))


def main(role, where, host="localhost"):
    if not find_spec("tensorflow"):
        raise InputError("the service needs TensorFlow: pip install tensorflow")
    if role == "worker":
        check_dispatcher(where)
    from tensorflow.data.experimental import service

    if role == "dispatcher":  # a worker that was silent for 20 seconds is dead; without this, for a minute
        try:
            server = service.DispatchServer(service.DispatcherConfig(port=where, worker_timeout_ms=20_000))
        except RuntimeError as error:
            raise InputError(f"port {where}: {error}; another process may have it, so name another one") from error
        where = server.target.replace("localhost", socket.gethostname())
    else:
        config = service.WorkerConfig(where.removeprefix("grpc://"), f"{host}:%port%", heartbeat_interval_ms=1000)
        server = service.WorkerServer(config)
    print(f"{role} of {where} runs; Ctrl-C ends it", flush=True)  # as long as `server` is held
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    os._exit(0)  # the server's own end waits for trainers that wait for batches


if __name__ == "__main__":
    try:
        role, where, *host = sys.argv[1:]
        where = {"dispatcher": port, "worker": service_address}[role](where)
    except (ValueError, KeyError):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    run_script(lambda: main(role, where, *host[:1]))
