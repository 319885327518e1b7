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

from basics.running import InputError


def service_address(text: str) -> str:
    """grpc://HOST:PORT, as a type of flag."""
    if re.fullmatch(r"grpc://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}", text):
        return text
    raise ValueError(text)


def check_dispatcher(address):
    """Raise InputError when nobody listens at grpc://HOST:PORT; the service itself would try for an hour."""
    host, port = address.removeprefix("grpc://").rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"{address}: no answer ({error}); run python -m training.service dispatcher {port}") from error


def served(batches, address, epochs):
    """A tf.data dataset without end of WindowBatches from its epoch on, each batch read by one of the workers: tokens
    (B, L, T, D), labels (B,). Raises InputError without a dispatcher or TensorFlow.
    """
    if not find_spec("tensorflow"):
        raise InputError("--data-service needs TensorFlow, with JAX too: pip install tensorflow")
    check_dispatcher(address)
    import tensorflow as tf

    windows, shape = batches.windows, batches.windows.shape
    mapped = [windows.mapped(i) for i in range(len(windows))]  # (S, L, T, D) each, on disk
    size, labels, order = 2 * int(np.prod(shape)), tf.constant(batches.labels), []
    starts = tf.constant([own.offset + size * int(i) for own, i in zip(mapped, windows.offset, strict=True)], tf.int64)
    ends = tf.constant([os.path.getsize(own.filename) - size for own in mapped], tf.int64) - starts
    names = tf.constant([os.path.abspath(own.filename) for own in mapped])
    while batches.epoch < epochs:
        batches.epoch += 1  # as Keras's fit, which ends an epoch of the batches before its first
        order += [batches.chosen(step) for step in range(len(batches))]

    def read_window(window):
        read = tf.data.FixedLengthRecordDataset(names[window], size, starts[window], ends[window], min(size, 1 << 20))
        tokens = tf.reshape(tf.io.decode_raw(read.get_single_element(), tf.float16), shape)
        return tf.debugging.check_numerics(tokens, "tokens are not finite; run 01 again"), labels[window]

    def read_batch(chosen):
        return tf.data.Dataset.from_tensor_slices(chosen).map(read_window, tf.data.AUTOTUNE).batch(len(order[0]), True)

    # A dataset with an end would wait for the batches of a killed worker. DYNAMIC: a batch goes to one worker only.
    data = tf.data.Dataset.from_tensor_slices(np.stack(order)).repeat().flat_map(read_batch).prefetch(1)
    return data.apply(tf.data.experimental.service.distribute("distributed_epoch", address, compression=None))


def main(role, where, host="localhost"):
    from tensorflow.data.experimental import service

    if role == "dispatcher":  # a worker that was silent for 20 seconds is dead; without this, for a minute
        server = service.DispatchServer(service.DispatcherConfig(port=int(where), worker_timeout_ms=20_000))
        where = server.target
    else:
        check_dispatcher(where)
        config = service.WorkerConfig(where.removeprefix("grpc://"), f"{host}:%port%", heartbeat_interval_ms=1000)
        server = service.WorkerServer(config)
    print(f"{role} of {where} runs; Ctrl-C ends it", flush=True)  # as long as `server` is held
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    os._exit(0)  # the server's own end waits for trainers that wait for batches


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:2] in (["dispatcher"], ["worker"]) else sys.exit(__doc__)
