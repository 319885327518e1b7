"""A tf.data service (Sec. S-2): other processes and machines read the training batches of 02 and 03.

    python -m training.service dispatcher 5000
    python -m training.service worker grpc://HOST:5000 THIS_MACHINE      as many as there is use for
    python 02_pretrain_binary.py --data-service grpc://HOST:5000

Its guarantees are TensorFlow's own: batches come in no promised order, and those that a killed worker was reading are
lost; later ones take their place. Workers see the features under the trainer's paths.
"""

import os
import re
import socket
import sys
import threading

import numpy as np

from basics.running import InputError

PARALLEL_READS = 16  # windows that a worker reads at once


def service_address(text: str) -> str:
    """grpc://HOST:PORT, as a type of flag."""
    if not re.fullmatch(r"grpc://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}", text):
        raise ValueError(text)
    return text


def check_dispatcher(address):
    """Raise InputError when nobody listens at grpc://HOST:PORT; the service itself would try for an hour."""
    host, port = address.removeprefix("grpc://").rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{address}: no dispatcher answers ({error}); start one there, python -m training.service dispatcher"
            f" {port}, and workers, python -m training.service worker {address}"
        ) from error


def served(batches, address, epochs):
    """A tf.data dataset without end of the batches of WindowBatches from its epoch on, (tokens (B, L, T, D) float16,
    labels (B,)), each read by one of the workers. A window of a long video is read alone.
    """
    import tensorflow as tf
    from tensorflow.data.experimental import service

    check_dispatcher(address)
    windows, shape = batches.windows, batches.windows.shape
    mapped = [windows.mapped(i) for i in range(len(windows))]  # (S, L, T, D) each, on disk
    size = 2 * int(np.prod(shape))
    starts = np.array([own.offset for own in mapped]) + size * windows.offset
    ends = np.array([os.path.getsize(own.filename) for own in mapped]) - size - starts
    names, labels = tf.constant([os.path.abspath(own.filename) for own in mapped]), tf.constant(batches.labels)
    order = []
    for epoch in range(batches.epoch, epochs):
        batches.epoch = epoch + 1  # as Keras's fit, which ends an epoch of the batches before its first
        order += [batches.chosen(step) for step in range(len(batches))]

    def read_window(window):
        place = dict(header_bytes=tf.gather(starts, window), footer_bytes=tf.gather(ends, window))
        read = tf.data.FixedLengthRecordDataset(tf.gather(names, window), size, buffer_size=min(size, 1 << 20), **place)
        tokens = tf.io.decode_raw(read.get_single_element(), tf.float16)
        return tf.reshape(tf.debugging.check_numerics(tokens, "tokens are not finite"), shape), labels[window]

    def read_batch(chosen):
        return (
            tf.data.Dataset.from_tensor_slices(chosen).map(read_window, PARALLEL_READS).batch(batches.batch_size, True)
        )

    # A dataset with an end would wait for the batches of a killed worker. DYNAMIC: a batch goes to one worker only.
    data = tf.data.Dataset.from_tensor_slices(np.stack(order)).repeat().flat_map(read_batch).prefetch(1)
    return data.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address, compression=None))


def main(role, where, host="localhost"):
    from tensorflow.data.experimental import service

    if role == "dispatcher":  # a worker that was silent for 20 seconds is dead; without this, for a minute
        server = service.DispatchServer(service.DispatcherConfig(port=int(where), worker_timeout_ms=20_000))
        where = server.target.replace("localhost", socket.gethostname())
    else:
        check_dispatcher(service_address(where))
        places = dict(dispatcher_address=where.removeprefix("grpc://"), worker_address=f"{host}:%port%")
        server = service.WorkerServer(service.WorkerConfig(**places, heartbeat_interval_ms=1000))
    print(f"{role} of {where} runs; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    finally:
        os._exit(0)  # the server's own end waits for trainers that wait for batches


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("dispatcher", "worker"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
