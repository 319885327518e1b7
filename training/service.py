"""The tf.data service: other processes and machines read the training batches of 02 and 03.

    python data_service.py dispatcher --port 5000
    python data_service.py worker --dispatcher grpc://HOST:5000 --host THIS_MACHINE      as many as there is use for
    python 02_pretrain_binary.py --data-service grpc://HOST:5000

A worker needs TensorFlow and sees features and run folder under the trainer's paths. One element is one whole batch,
(tokens (B, L, T, D) float16, labels (B,) int32, number). WindowBatches chooses which windows are a step's batch;
in which order an epoch's batches come is not promised.
"""

import argparse
import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tokens.dataset import replace_whole

PARALLEL_READS = 16  # windows that a worker reads at once
SPARE = 16  # how far beyond the last batch asked for others come before those still missing count as lost
PATIENCE = (30, 270)  # seconds without a batch, until a notice and then until the end
NUMBERS = [(name, "<i8") for name in ("start", "after", "label", "length")]  # of a window, before its file's name

# ---------------------------------------------------------------- dispatcher and worker


def service_address(text):
    """grpc://HOST:PORT; argparse turns the ValueError into exit status 2."""
    if not re.fullmatch(r"grpc://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}", text):
        raise ValueError(text)
    return text


def check_dispatcher(address):
    """Raise ValueError when nobody listens at grpc://HOST:PORT; the service itself would try for an hour."""
    host, port = address.removeprefix("grpc://").rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"{address}: no dispatcher answers ({error}); start one there, python data_service.py dispatcher --port"
            f" {port}, and workers, python data_service.py worker --dispatcher {address}"
        ) from error


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    roles = parser.add_subparsers(dest="role", required=True)
    dispatcher = roles.add_parser("dispatcher", help="hands out the steps: one for all workers and trainers")
    dispatcher.add_argument("--port", type=int, default=5000, help="port to listen at (5000); 0: any")
    worker = roles.add_parser("worker", help="reads batches")
    worker.add_argument("--dispatcher", type=service_address, required=True, help="grpc://HOST:PORT")
    worker.add_argument(
        "--host", default="localhost", help="name by which the trainer reaches this machine (localhost)"
    )
    worker.add_argument("--port", type=int, default=0, help="port to listen at (any)")
    return parser.parse_args(argv)


def start_server(args):
    from tensorflow.data.experimental import service

    if args.role == "dispatcher":  # a worker that was silent for 20 seconds is dead; without this, for a minute
        return service.DispatchServer(service.DispatcherConfig(port=args.port, worker_timeout_ms=20_000))
    check_dispatcher(args.dispatcher)
    options = dict(dispatcher_address=args.dispatcher.removeprefix("grpc://"), port=args.port)
    options |= dict(worker_address=f"{args.host}:%port%", heartbeat_interval_ms=1000)  # %port%: the one it gets
    return service.WorkerServer(service.WorkerConfig(**options))


def main(argv=None):
    args = get_args(argv)
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in TensorFlow's threads too, so that sigwait gets them
    try:
        server = start_server(args)  # runs as long as this name is held
    except Exception as error:  # TensorFlow's errors are no OSError
        sys.exit(f"data_service.py: {error}")
    where = server.target.replace("localhost", socket.gethostname()) if args.role == "dispatcher" else args.dispatcher
    print(f"{args.role} of {where} runs; Ctrl-C ends it", flush=True)
    print(f"{args.role} ended by {signal.Signals(signal.sigwait(signals)).name}", flush=True)
    os._exit(0)  # the server's own stop() waits for trainers that wait for batches


# ---------------------------------------------------------------- what the workers read, without Python


def write_windows(path, batches) -> int:
    """Write a record per window: where its tokens start in which file, the bytes after them, its label.

    A file, because millions of names do not belong into a graph that is sent to each worker. Returns the bytes of a
    record. Raises ValueError naming a features file that does not match the index or holds other than float16.
    """
    windows, labels = batches.windows, batches.labels
    names = [os.fsencode(os.path.abspath(windows.file(video))) for video in range(len(windows.rows))]
    record = np.dtype([*NUMBERS, ("name", f"S{max(map(len, names))}")])
    bounds = np.append(np.flatnonzero(windows.offset == 0), len(windows))  # of each video's windows

    def write(temporary):
        with open(temporary, "wb") as file:
            for first, last in zip(bounds[:-1], bounds[1:], strict=True):
                tokens, name = windows.mapped(last - 1), names[windows.video[first]]
                if tokens.dtype != np.dtype("<f2"):
                    raise ValueError(f"{tokens.filename}: tokens are {tokens.dtype}, not float16; run 01 again")
                own = np.zeros(last - first, record)
                own["start"] = tokens.offset + tokens[0].nbytes * np.arange(len(own))
                own["after"] = os.path.getsize(tokens.filename) - tokens[0].nbytes - own["start"]
                own["label"], own["length"], own["name"] = labels[first:last], len(name), name
                file.write(own.tobytes())

    replace_whole(path, write)
    return record.itemsize


def read_batches(windows_file, record, count, steps_file, steps, batch, shape):
    """A tf.data dataset of (tokens (B, L, T, D), labels (B,), number), round and round; number counts on.

    `windows_file` holds `count` records of `record` bytes, `steps_file` which windows (B,) int64 are each of `steps`
    batches. A window of a long video is read alone.
    """
    import tensorflow as tf

    def piece(file, start, size, after):
        options = dict(header_bytes=start, footer_bytes=after, buffer_size=min(size, 1 << 20))
        return tf.data.FixedLengthRecordDataset(file, size, **options).get_single_element()

    def read_window(window):
        entry = piece(windows_file, window * record, record, (count - 1 - window) * record)
        numbers = tf.io.decode_raw(tf.strings.substr(entry, 0, 8 * len(NUMBERS)), tf.int64)
        start, after, label, length = tf.unstack(numbers, len(NUMBERS))
        name = tf.strings.substr(entry, tf.constant(8 * len(NUMBERS), tf.int64), length)
        tokens = tf.io.decode_raw(piece(name, start, 2 * int(np.prod(shape)), after), tf.float16)
        finite = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(tokens)), ["tokens are not finite", name])
        with tf.control_dependencies([finite]):
            return tf.reshape(tokens, shape), tf.cast(label, tf.int32)

    def read_batch(number):
        step, size = number % steps, 8 * batch
        windows = tf.io.decode_raw(piece(steps_file, size * step, size, size * (steps - 1 - step)), tf.int64)
        each = tf.data.Dataset.from_tensor_slices(windows).map(read_window, PARALLEL_READS, deterministic=True)
        return each.batch(batch, drop_remainder=True).map(lambda tokens, labels: (tokens, labels, number))

    return tf.data.Dataset.range(tf.int64.max).flat_map(read_batch).prefetch(1)


# ---------------------------------------------------------------- training


class ServiceBatches:
    """The batches of WindowBatches from its epoch on, read by a tf.data service into files' places in `folder`.

    A killed worker takes along the batches that it was reading, and a dataset with an end waits for them. So the
    workers go round and round and this side counts; what has not come SPARE batches after the end is asked for anew.
    Raises ValueError without TensorFlow, without a dispatcher, or for batches above the service's 2 GiB.
    """

    def __init__(self, batches, address, folder, epochs):
        if not find_spec("tensorflow"):
            raise ValueError("--data-service needs TensorFlow, with JAX too: pip install tensorflow")
        self.batches, self.address, self.folder = batches, address, Path(folder).absolute()
        self.epochs, self.error = range(batches.epoch, epochs), None
        self.lag, self.over, self.thread, self.lock = 0, False, None, threading.Lock()
        self.done = threading.Event()
        if (size := 2 * batches.batch_size * int(np.prod(batches.windows.shape)) / 2**30) > 1.99:
            raise ValueError(f"--data-service: a batch has {size:.1f} GiB, at most 2 pass; lower --batch-size")
        check_dispatcher(address)

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = write_windows(self.folder / "windows.bin", self.batches)
        return self

    def __exit__(self, kind, error, traceback):
        with self.lock:
            self.over = True
        if self.thread:
            self.thread.join(10)  # Python aborts or hangs where TensorFlow's threads return into it while it ends
            self.done.wait(2)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.error and isinstance(error, Exception):  # fit has wrapped it
            if isinstance(self.error, (ValueError, OSError)):
                raise self.error from error
            why = " ".join(str(self.error).split())
            raise ValueError(f"a worker of {self.address} cannot read a batch; run 01 again? {why}") from error

    def stream(self):
        """A generator of (tokens (B, L, T, D), labels (B,) by output) to the end of the last epoch."""
        from common import OUTPUTS  # not above: workers do without Keras

        try:
            for epoch in self.epochs:
                for tokens, labels in self.read_epoch(epoch):
                    yield tokens, dict.fromkeys(OUTPUTS, labels)
                if self.over:
                    return
        except Exception as error:
            self.error = error
            raise
        finally:
            self.done.set()

    def read_epoch(self, epoch):
        self.batches.epoch = epoch + 1  # as Keras's fit, which ends an epoch of the batches before its first
        missing, lost = dict.fromkeys(range(len(self.batches))), []
        while missing:
            asked, highest = list(missing), 0
            for tokens, labels, number in self.ask(f"epoch-{epoch}", asked):
                highest = max(highest, number)
                self.lag = max(self.lag, highest - number)  # the more workers, the further out of order
                if number < len(asked) and asked[number] in missing:
                    del missing[asked[number]]
                    yield tokens, labels
                if not missing or highest >= len(asked) + SPARE + 2 * self.lag:
                    break
            if self.over:
                return
            if missing:
                lost += missing
                self.lag += SPARE  # should they only have been slow
        if lost:
            print(f"epoch {epoch + 1}: steps {', '.join(map(str, lost))} were lost with a worker and read again")

    def ask(self, name, steps):
        """Elements of the service, without end, whose numbers are places in `steps` in the first round."""
        path, windows = self.folder / f"{name}-{len(steps)}.bin", self.batches.windows
        chosen = np.stack([self.batches.chosen(step) for step in steps]).astype("<i8")  # (steps, B)
        replace_whole(path, chosen.tofile)
        plan = (str(self.folder / "windows.bin"), self.record, len(windows), str(path), *chosen.shape, windows.shape)
        elements = served(self.address, plan)
        coming = self.fetch(elements)
        while coming:
            element = self.wait_for(coming)
            coming = self.fetch(elements)  # while this one trains
            yield element

    def fetch(self, elements):
        """A queue that gets the next element, or the exception met on the way; None when training is over."""
        coming = queue.Queue()

        def work():
            try:
                coming.put(next(elements))
            except Exception as error:
                coming.put(error)

        with self.lock:
            if self.over:
                return None
            self.thread = threading.Thread(target=work, daemon=True)  # nothing else ends a wait inside TensorFlow
            self.thread.start()
        return coming

    def wait_for(self, coming):
        for seconds in PATIENCE:
            with contextlib.suppress(queue.Empty):
                element = coming.get(timeout=seconds)
                if isinstance(element, Exception):
                    raise element
                return element
            print(f"{self.address}: no batch in {seconds} s; a worker is started by", flush=True)
            print(f"  python data_service.py worker --dispatcher {self.address} --host THIS_MACHINE", flush=True)
        raise ValueError(
            f"{self.address}: no batch in {sum(PATIENCE)} s; with workers running the same command goes on"
        )


def served(address, plan):
    """The elements of read_batches(*plan), each read by one of the workers."""
    from tensorflow.data.experimental import service

    # DYNAMIC: a number goes to one worker only. Uncompressed: tokens hardly compress.
    distribute = service.distribute(service.ShardingPolicy.DYNAMIC, address, compression=None)
    yield from read_batches(*plan).apply(distribute).as_numpy_iterator()


if __name__ == "__main__":
    main()
