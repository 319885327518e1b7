"""What a run computes on: one device, several GPUs, a TPU, many hosts. The numbered scripts call `use_devices` first.

A batch of B windows is split over the devices; losses that compare windows see all B of them (`global_batch`). Every
process of many hosts reads its part of each batch and computes the same weights; the first one writes the files.
"""

import contextlib
import functools
import hashlib
import json
import os

import numpy as np

from basics.running import InputError
from common import attention_layer, keras

BACKEND = keras.backend.backend()
HOSTS = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")


def use_devices(tpu=False):
    """Let all models made from now on train on all accelerators of the machine, or of all hosts.

    With `tpu`, raises InputError where there is no TPU. Raises InputError for several hosts on TensorFlow, whose
    MultiWorkerMirroredStrategy does not work with Keras 3's `fit`. One device needs nothing of this.
    """
    keras.utils.clear_session()  # here: it would forget the devices as well as older models
    if BACKEND == "jax":
        use_jax_devices(tpu)
    else:
        use_tensorflow_devices(tpu)


def use_jax_devices(tpu):
    import jax

    given = [name for name in HOSTS if name in os.environ]
    if 0 < len(given) < len(HOSTS):
        raise InputError(f"several hosts want {', '.join(HOSTS)}; only {', '.join(given)} is set")
    pod = tpu and "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")  # a slice of several hosts knows its own
    if (given or pod) and not jax.distributed.is_initialized():
        keras.distribution.initialize()
    if tpu and jax.default_backend() != "tpu":
        raise InputError(
            f"--tpu: JAX sees no TPU here, only {jax.default_backend()}; leave --tpu out, or install jax[tpu]"
        )
    several = jax.device_count() > 1
    # WindowBatches split the batch over processes, not Keras.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False) if several else None)


def use_tensorflow_devices(tpu):
    import tensorflow as tf

    try:
        workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"TF_CONFIG is not a JSON object ({error}); unset it to train on this host") from error
    if any(name in os.environ for name in HOSTS) or sum(map(len, workers.values())) > 1:
        raise InputError(
            "several hosts need KERAS_BACKEND=jax: TensorFlow's MultiWorkerMirroredStrategy does not work with Keras"
            f" 3's fit; unset TF_CONFIG and {HOSTS[0]}, ... to train on this host alone"
        )
    if tpu:
        tf.distribute.experimental_set_strategy(tpu_strategy())
    elif len(devices := tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")) > 1:
        tf.distribute.experimental_set_strategy(mirrored_strategy(tuple(device.name for device in devices)))


@functools.cache  # a second one in a process would count its collective operations again, and they would collide
def mirrored_strategy(names):
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)


@functools.cache
def tpu_strategy():
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, ImportError, tf.errors.OpError) as error:
        raise InputError("--tpu: TensorFlow finds no TPU here; leave --tpu out, or set TPU_NAME") from error
    return tf.distribute.TPUStrategy(resolver)


# ---------------------------------------------------------------- counting


def replicas() -> int:
    """How many devices a batch is split over."""
    if BACKEND == "jax":
        distribution = keras.distribution.distribution()
        return distribution.num_model_replicas if distribution else 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def processes() -> tuple[int, int]:
    """(number of this process, number of processes that compute together); process 0 writes the files."""
    if BACKEND != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """Whether this process writes the files."""
    return processes()[0] == 0


def devices_text() -> str:
    """The devices in words, for messages."""
    count, hosts = replicas(), processes()[1]
    return f"{count} devices" + f" of {hosts} processes" * (hosts > 1) if count > 1 else "one device"


def check_alike(*facts):
    """Raise InputError in all processes of a run unless their facts are equal; else they would wait for each other."""
    if processes()[1] == 1:
        return
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(repr(facts).encode()).digest()
    seen = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if len({bytes(one) for one in np.asarray(seen)}) > 1:
        raise InputError(
            f"the processes of this run start differently (this one: {facts}); --features and --run must be folders"
            " that all of them share"
        )


@contextlib.contextmanager
def one_device():
    """A context in which models are made on one device: on JAX, making one on all devices takes all processes."""
    if BACKEND != "jax":
        yield
        return
    held = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(held)


def divisible_batch_size(batch_size: int) -> int:
    """`batch_size` lowered to a multiple of the devices. Raises InputError when it is smaller than that."""
    if batch_size < replicas():
        raise InputError(
            f"a batch of {batch_size} cannot be split over {replicas()} devices; use a larger --batch-size"
            " or more videos"
        )
    return batch_size - batch_size % replicas()


# ---------------------------------------------------------------- computing on all of them


def global_batch(*arrays):
    """Arrays (B, ...) of the whole batch, for a loss that compares its windows, from each device's part of them.

    JAX shows the whole batch anyway. On TensorFlow every device then has the loss of the whole batch; Keras divides it
    by their number and adds their gradients.
    """
    if BACKEND != "tensorflow" or replicas() == 1:
        return arrays
    import tensorflow as tf

    if (context := tf.distribute.get_replica_context()) is None:  # outside a step nothing is split
        return arrays
    return tuple(context.all_gather(array, axis=0) for array in arrays)


def predict_on_batch(model, tokens):
    """Outputs {name: (B, ...)} in NumPy for tokens (B, L, T, D), computed on all devices, given to all processes."""
    count = replicas()
    if count == 1:
        return model.predict_on_batch(tokens)
    size = len(tokens)
    tokens = np.resize(tokens, (size + -size % count, *tokens.shape[1:]))
    outputs = predict_with_jax(model, tokens) if BACKEND == "jax" else predict_with_tensorflow(model, tokens, count)
    return {name: values[:size] for name, values in outputs.items()}


def predict_with_tensorflow(model, tokens, count):
    import tensorflow as tf

    parts = np.split(tokens, count)
    split = model.distribute_strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    return model.predict_on_batch(split)


def predict_with_jax(model, tokens):
    import jax

    layout = keras.distribution.distribution().get_data_layout(tokens.shape).backend_layout
    split = jax.make_array_from_callback(tokens.shape, layout, lambda part: tokens[part])
    outputs = forward(model)(*([variable.value for variable in part] for part in states(model)), split)
    return {name: np.asarray(values) for name, values in outputs.items()}


def states(model):
    return model.trainable_variables, model.non_trainable_variables


@functools.lru_cache(maxsize=1)
def forward(model):
    """The compiled forward pass of the model in use; every device has all outputs."""
    import jax

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def call(weights, state, tokens):
        return model.stateless_call(weights, state, tokens, training=False)[0]

    return jax.jit(call, out_shardings=replicated)


def fuse_attention(model, implementation="cudnn"):
    """Compute the spatial block's attention with cuDNN's fused kernel on JAX, never holding its (T, T) scores.

    Keras does so itself where it can, but JAX (0.11) differentiates that kernel for even numbers of tokens alone, and
    there are 27 x 27. So they get one more, which is not attended to. Where the kernel does not fit (another device,
    heads of a width above 128 or no multiple of 8, float32, dropout on the scores) nothing changes.
    """
    if BACKEND != "jax":
        return
    import jax

    attention = attention_layer(model.spatial)
    width = attention._key_dim
    if implementation == "cudnn" and (jax.default_backend() != "gpu" or width % 8 or width > 128):
        return
    plain = attention._compute_attention

    def fused(query, key, value, mask=None, training=None, *more, **named):
        if query.dtype != "bfloat16" or (training and attention._dropout):
            return plain(query, key, value, mask, training, *more, **named)
        count = query.shape[1]
        query, key, value = (jax.numpy.pad(x, [(0, 0), (0, count % 2), (0, 0), (0, 0)]) for x in (query, key, value))
        lengths = jax.numpy.full(len(query), count, "int32")
        lengths = dict(query_seq_lengths=lengths, key_value_seq_lengths=lengths)
        output = jax.nn.dot_product_attention(query, key, value, implementation=implementation, **lengths)
        return output[:, :count], None

    attention._compute_attention = fused
