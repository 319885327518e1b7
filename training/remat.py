"""Training in less memory (--remat): the same gradients, with the spatial block's activations, which are nearly all,
held for one frame at a time and computed again in the backward pass. Prediction uses it too: attention scores alone
would take 12 GiB for 64 windows of full size in float32.
"""

from common import SAGA, keras, ops, without_autocast


class RematSAGA(SAGA):
    """A SAGA for training; it is saved as a plain SAGA with the same weights."""

    def frame_vectors(self, tokens, training):
        def vector(frame):  # (B, T, D) -> (B, D)
            return ops.mean(self.spatial(frame, training=training), axis=1)

        return ops.moveaxis(scan_with_remat(vector, self.spatial, ops.moveaxis(tokens, 1, 0)), 0, 1)


def scan_with_remat(function, layer, inputs):
    """function(x) of each x of inputs (N, ...), stacked; the backward pass computes each again instead of storing it.

    `function` uses only the layer's variables. Its dropout draws the same masks again, since the states of its random
    generators, the only other variables, are passed as values. Weights stay in float32, so that gradients accumulate in
    float32.
    """
    with without_autocast():
        weights = [variable.value for variable in layer.trainable_variables]
    states = layer.non_trainable_variables
    # TensorFlow recomputes functions of real numbers alone; float64 holds a seed's 32 bits.
    kind = "float64" if keras.backend.backend() == "tensorflow" else "uint32"

    def pure(weights, values, x):
        mapping = [*zip(layer.trainable_variables, weights, strict=True)]
        mapping += [(state, ops.cast(value, state.dtype)) for state, value in zip(states, values, strict=True)]
        with without_autocast(), keras.StatelessScope(mapping) as scope:
            y = function(x)
        return y, [ops.cast(scope.get_current_value(state), kind) for state in states]

    rematted = keras.remat(pure)

    def step(values, x):
        y, values = rematted(weights, values, x)
        return values, y

    values, outputs = scan(step, [ops.cast(state.value, kind) for state in states], inputs)
    for state, value in zip(states, values, strict=True):
        state.assign(ops.cast(value, state.dtype))
    return outputs


def scan(step, values, inputs):
    """ops.scan, which on TensorFlow wants outputs of the carried values' shapes (Keras 3.15)."""
    if keras.backend.backend() != "tensorflow":
        return ops.scan(step, values, inputs)
    import tensorflow as tf

    specs = tf.function(step).get_concrete_function(values, inputs[0]).structured_outputs[1]
    count = inputs.shape[0]
    arrays = [tf.TensorArray(spec.dtype, count) for spec in tf.nest.flatten(specs)]

    def body(i, values, arrays):
        values, outputs = step(values, inputs[i])
        parts = zip(arrays, tf.nest.flatten(outputs), strict=True)
        return i + 1, values, [array.write(i, part) for array, part in parts]

    start = (tf.constant(0), values, arrays)
    # without maximum_iterations XLA cannot differentiate it
    options = dict(maximum_iterations=count, parallel_iterations=1)
    _, values, arrays = tf.while_loop(lambda i, *_: i < count, body, start, **options)
    stacked = [
        tf.ensure_shape(array.stack(), [None, *spec.shape])
        for array, spec in zip(arrays, tf.nest.flatten(specs), strict=True)
    ]
    return values, tf.nest.pack_sequence_as(specs, stacked)
