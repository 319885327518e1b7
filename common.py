"""What the stages share of the papers, in the order of a forward pass: batches, model, losses.

Every class saved in a `.keras` file lives here, so that any script can load it. The generator table is in
tokens/generators.py, its names can be imported from here too.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import basics.backend  # noqa: F401, which chooses Keras's backend, so it comes first

# isort: split
import keras
import keras_hub
from keras import ops

from basics.artifacts import open_zip, parse_json
from basics.checks import RECIPE, Between, check
from basics.running import InputError
from tokens.dataset import FEATURES, SIZE, Windows, window_shape
from tokens.generators import LEVELS, class_index, class_names, is_name, load_generators, stage_of

__all__ = ["LEVELS", "class_index", "class_names", "load_generators"]

# ---------------------------------------------------------------- batches


class WindowBatches(keras.utils.PyDataset):
    """Training batches (tokens (B, L, T, D), labels (B,)) that depend only on seed, epoch and step.

    Labels (N,) are per window. `natural` shuffles all windows, shows each once, leaves out an incomplete last batch and
    shuffles anew. `balanced` gives the classes equally many slots of a batch; a class shows each of its videos once
    before another window of one, and repeats windows only when it has no more. An epoch has `steps` batches, else as
    many as one shuffle. `part` (i, n) takes the i-th of n equal parts of each batch. Use it in a `with` statement,
    which stops reading ahead and raises the errors of reading.
    """

    def __init__(self, windows: Windows, labels, batch_size=64, seed=0, batching="natural", part=(0, 1), steps=None):
        super().__init__()
        self.windows, self.labels, self.failed = windows, np.asarray(labels, "int32"), None
        self.batch_size, self.part = min(batch_size, len(windows)), part
        self.seed, self.batching, self.epoch = seed, batching, 0
        self.steps = steps or len(windows) // self.batch_size
        self.order = (None, None)  # (number of the shuffle, permutation of the windows)
        # Not Keras's own workers: on JAX the batches that they have read before the first epoch come late and twice.
        self.pool, self.reading = ThreadPoolExecutor(windows.workers), {}
        self.ahead = windows.workers if windows.workers > 1 else 0
        _, first, count = np.unique(windows.video, return_index=True, return_counts=True)
        label = self.labels[first]
        self.videos = {name: (first[label == name], count[label == name]) for name in np.unique(label).tolist()}

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        for later in range(step, min(step + 1 + self.ahead, len(self))):
            if later not in self.reading:
                chosen = self.chosen(later)
                self.reading[later] = chosen, self.pool.submit(self.windows.__getitem__, chosen)
        chosen, tokens = self.reading.pop(step)
        try:
            return tokens.result(), dict.fromkeys(OUTPUTS, self.labels[chosen])  # Keras wants a target per output
        except Exception as error:
            self.failed = error
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.failed:
            raise self.failed from None  # TensorFlow makes an error of its own of what a batch raises

    def on_epoch_end(self):
        self.epoch += 1
        self.reading.clear()

    def chosen(self, step):
        """The windows (B,) of this epoch's batch at a step, or of this part of it."""
        if self.batching == "balanced":
            batch = self.balanced_batch(np.random.default_rng((self.seed, self.epoch, step)))
        else:
            shuffle, step = divmod(self.epoch * len(self) + step, len(self.windows) // self.batch_size)
            if self.order[0] != shuffle:
                random = np.random.default_rng((self.seed, shuffle))
                self.order = (shuffle, random.permutation(len(self.windows)))
            batch = self.order[1][step * self.batch_size : (step + 1) * self.batch_size]
        i, n = self.part
        return np.split(batch, n)[i]

    def balanced_batch(self, random):
        """Windows (B,), equally many of each class, up to one."""
        batch, classes = [], random.permutation(list(self.videos))
        slots_per_class = np.bincount(np.arange(self.batch_size) % len(classes), minlength=len(classes))
        for label, slots in zip(classes.tolist(), slots_per_class, strict=True):
            first, count = self.videos[label]  # of each video of the class
            chosen = random.choice(len(first), min(slots, len(first)), replace=False)
            first, count = first[chosen], count[chosen]
            start = random.integers(count)
            rounds = range(count.max(initial=0) if slots > len(chosen) else 1)
            windows = [(first + (start + more) % count)[count > more] for more in rounds]
            batch.append(np.resize(np.concatenate(windows), slots))
        return np.concatenate(batch)


# ---------------------------------------------------------------- model (Sec. 3.1)


OUTPUTS = ("logits", "embedding", "attention")


class TransformerEncoder(keras_hub.layers.TransformerEncoder):  # files of weights are laid out by this name
    """KerasHub's encoder block, whose softmax is computed in float32 in mixed precision too."""

    def build(self, inputs_shape):
        super().build(inputs_shape)
        if self.compute_dtype != "float32":
            set_softmax(self, softmax_in_float32)


def softmax_in_float32(scores, mask):
    """Softmax of attention scores (B, H, L, L) over the last axis, computed in float32 and cast back."""
    assert mask is None, "SAGA masks no token"
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), scores.dtype)


@keras.saving.register_keras_serializable("saga")
class SAGA(keras.Model):
    """Frozen tokens -> spatial block -> mean over tokens -> positions -> temporal blocks -> mean over frames -> head.

    `class_names`, `features` (the recipe of the features it was trained on) and `recipe` travel in its config.
    """

    def __init__(self, num_classes, frames, tokens, dim, heads, temporal_blocks, dropout, **kwargs):
        config = dict(num_classes=num_classes, frames=frames, tokens=tokens, dim=dim, heads=heads)
        config |= dict(temporal_blocks=temporal_blocks, dropout=dropout)
        config |= dict(class_names=tuple(kwargs.pop("class_names", ())))
        config |= {key: dict(kwargs.pop(key, None) or {}) for key in ("features", "recipe")}
        super().__init__(**kwargs)
        self.config = config

        block = dict(intermediate_dim=4 * dim, num_heads=heads, dropout=dropout, activation="gelu")
        block |= dict(dtype=self.dtype_policy)
        self.spatial = TransformerEncoder(**block, name="spatial")
        self.positions = keras_hub.layers.SinePositionEncoding(dtype=self.dtype_policy, name="positions")  # Eq. S-1
        self.temporal = [TransformerEncoder(**block, name=f"temporal_{i}") for i in range(temporal_blocks)]
        self.classifier = keras.layers.Dense(num_classes, dtype="float32", name="classifier")

    def call(self, tokens, training=False):
        x = self.frame_vectors(tokens, training)  # (B, L, D)
        x = x + self.positions(x)
        for block in self.temporal[:-2]:
            x = block(x, training=training)
        x, attention = self.temporal[-2](x, training=training, return_attention_scores=True)  # T-Sigs: (B, H, L, L)
        x = self.temporal[-1](x, training=training)
        embedding = ops.cast(ops.mean(x, axis=1), "float32")  # phi (B, D)
        return {
            "logits": self.classifier(embedding),  # (B, C)
            "embedding": embedding,
            "attention": ops.cast(attention, "float32"),
        }

    def frame_vectors(self, tokens, training):
        """Tokens (B, L, T, D) through the spatial block, averaged per frame: (B, L, D)."""
        frames, count, dim = (self.config[key] for key in ("frames", "tokens", "dim"))
        x = ops.reshape(tokens, (-1, count, dim))  # (B L, T, D)
        x = self.spatial(x, training=training)
        return ops.reshape(ops.mean(x, axis=1), (-1, frames, dim))

    def get_config(self):
        return {**super().get_config(), **self.config}


def build_saga(
    num_classes, frames=8, tokens=729, dim=1152, heads=12, temporal_blocks=5, dropout=0.1, kind=SAGA, **description
) -> keras.Model:
    """SAGA's video transformer, built: 95,643,650 parameters for 2 classes at the paper's sizes (Sec. S-2).

    model(tokens (B, L, T, D)) -> {"logits": (B, C), "embedding": (B, D), "attention": (B, H, L, L) after softmax}, in
    float32. Attention is that of the penultimate temporal block. `description` (class_names, features, recipe) is
    kept in the model's config. `kind` is SAGA or a subclass. Raises InputError for sizes that cannot work.
    """
    check_sizes(num_classes, frames, tokens, dim, heads, temporal_blocks)
    model = kind(num_classes, frames, tokens, dim, heads, temporal_blocks, dropout, **description)
    model(np.zeros((1, frames, tokens, dim), "float32"))
    return model


MOST_NUMBERS = 1 << 30  # of a model's weights, and of what it computes of one window


def check_sizes(num_classes, frames, tokens, dim, heads, temporal_blocks, **_):
    """Raise InputError for sizes that no model can have, or no machine is made for."""
    if temporal_blocks < 2:
        raise InputError(f"temporal_blocks is {temporal_blocks}; T-Sigs need a penultimate block, so at least 2")
    if dim < heads:
        raise InputError(f"{heads} heads do not fit into tokens of width {dim}")
    weights = (1 + temporal_blocks) * 12 * dim**2 + dim * num_classes  # but for biases
    window = frames * tokens * max(4 * dim, heads * tokens)  # the feed-forward layer, or attention
    if (most := max(weights, window)) > MOST_NUMBERS:
        sizes = f"{num_classes} classes, {temporal_blocks} temporal blocks, windows of {(frames, tokens, dim)}"
        raise InputError(f"{sizes}: {most:.3g} numbers, and a model has at most {MOST_NUMBERS:.3g}")


NO_MODEL = "cannot be read as a model"
MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
# What the config of a saved SAGA holds, in the words of `check`; of the recipe of its features some may be missing.
SAVED = {"num_classes": range(2, 1 << 20), "heads": SIZE, "temporal_blocks": SIZE, "dropout": Between(0, 0.999)}
SAVED |= {"frames": SIZE, "tokens": SIZE, "dim": SIZE, "class_names": [str], "recipe": RECIPE}
SAVED |= {"features": {f"{key.removesuffix('?')}?": held for key, held in FEATURES.items()}}
SAVED |= {"dtype": {"module": {"keras"}, "class_name": {"DTypePolicy"}, "config": {"name": str}}}


def saga_config(path, level) -> dict:
    """What build_saga made the model of a level of, without its weights. Raises as load_saga."""
    with open_zip(path, f"run {stage_of(level)} again", wrong=NO_MODEL) as archive:
        if set(archive.namelist()) != MEMBERS:
            raise ValueError(f"in it are {', '.join(archive.namelist())}")
        saved = parse_json(archive.read("config.json"))
        if saved["registered_name"] != "saga>SAGA":
            raise InputError(f"{path} is not a model of {stage_of(level)}; run that again")
        check(saved, {"config": SAVED, "build_config": {"input_shape": list}})
        config = saved["config"]
        names, features, shape = config["class_names"], config["features"], window_shape(config)
        if window_shape(config | features) != shape or saved["build_config"]["input_shape"][1:] != list(shape):
            raise ValueError(f"not all in it is of windows {shape}")
        named = len(set(names)) == config["num_classes"] and all(map(is_name, names))
        if not named and (names or features):  # a model may lack a description
            raise ValueError(f"{config['num_classes']} classes are named {', '.join(names)}")
        check_sizes(**config)
    return config


def load_saga(path, level) -> SAGA:
    """The model of a level, not compiled. Raises InputError naming its stage when the file cannot be read, or is not
    what that stage writes.
    """
    saga_config(path, level)
    with open_zip(path, f"run {stage_of(level)} again", wrong=NO_MODEL):
        model = load_model(path)
        if not all(np.isfinite(weight).all() for weight in model.get_weights()):
            raise ValueError("weights are not finite")
    return model


def load_model(path):
    """Keras's loading, which else remembers the variables of a model that could not be built, and fails with the next
    model in trying to make them.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return keras.saving.load_model(path, compile=False)
    finally:
        forget_unmade_variables()


# ---------------------------------------------------------------- optimizer (Sec. S-2)


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A rate, or a schedule of one, that begins after a linear rise over so many steps."""

    def __init__(self, rate, steps):
        self.rate, self.steps = rate, steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = self.rate(ops.maximum(step - self.steps, 0.0)) if callable(self.rate) else self.rate
        return rate * ops.minimum((step + 1.0) / self.steps, 1.0)


def adamw(schedule, learning_rate, decay_steps, warmup_steps, steps, weight_decay):
    """AdamW. After `warmup_steps` its rate is `halving` every `decay_steps` (the paper's; smoothly, which it does not
    say), falls along a `cosine` to 0 at the last of all `steps`, or is `constant`.
    """
    if schedule == "halving":
        learning_rate = keras.optimizers.schedules.ExponentialDecay(learning_rate, decay_steps, 0.5)
    elif schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, max(steps - warmup_steps, 1))
    rate = Warmup(learning_rate, warmup_steps) if warmup_steps else learning_rate
    return keras.optimizers.AdamW(rate, weight_decay=weight_decay)


# ---------------------------------------------------------------- losses (Sec. 3.2)


def pairwise_squared_distances(embeddings):
    """Squared Euclidean distances (B, B) between embeddings (B, D): never negative, zero diagonal."""
    embeddings = ops.cast(embeddings, "float32")
    embeddings = embeddings - ops.mean(embeddings, axis=0)  # distances stay; the cancellation below loses fewer digits
    squares = ops.sum(ops.square(embeddings), axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * ops.matmul(embeddings, ops.transpose(embeddings))
    return ops.maximum(distances, 0.0) * (1.0 - ops.eye(ops.shape(embeddings)[0]))


def same_label_mask(labels):
    """True (B, B) where two of the labels, (B,) or (B, 1), are equal."""
    labels = ops.reshape(labels, (-1,))
    return labels[:, None] == labels[None, :]


def positive_pairs(same, distances, positives="all"):
    """True (B, B) at the ordered pairs (a, p), a != p, that enter the loss, of `same` and `distances` (B, B).

    "hardest" and "random" keep one p per anchor (Eq. 5's index i): the farthest, or the next of its class in the
    batch, which is a random one because the batch is shuffled.
    """
    size = ops.shape(same)[0]
    pairs = ops.logical_and(same, ops.logical_not(ops.eye(size, dtype="bool")))
    if positives == "all":
        return pairs
    position = ops.arange(size)
    ahead = ops.cast((position[None, :] - position[:, None]) % size, "float32")
    rank = distances if positives == "hardest" else -ahead
    best = ops.argmax(ops.where(pairs, rank, -np.inf), axis=1)  # (B,)
    return ops.logical_and(pairs, best[:, None] == position[None, :])


def hardest_negative(same, distances):
    """d(a, n) of the nearest other-class embedding, (B, 1), infinite where the batch has none (Eq. 6)."""
    return ops.min(ops.where(same, np.inf, distances), axis=1, keepdims=True)


def semi_hard_negative(same, distances):
    """d(a, n) (B, B) of the nearest negative farther than p for each pair (a, p), infinite without one (Eq. 3).

    Each anchor's negatives are sorted and p's rank among them is found by binary search: memory O(B^2), time
    O(B^2 log B).
    """
    ranked = ops.sort(ops.where(same, np.inf, distances), axis=1)
    size, rank = ops.shape(distances)[1], ops.zeros_like(distances, dtype="int32")
    for bit in reversed(range((distances.shape[1] or 1 << 16).bit_length())):
        further = ops.minimum(rank + (1 << bit), size)
        passed = ops.take_along_axis(ranked, further - 1, axis=1) <= distances
        rank = ops.where(passed, further, rank)  # the number of negatives that are not farther than p
    return ops.take_along_axis(ranked, ops.minimum(rank, size - 1), axis=1)  # p may be at an infinite distance


def triplet_terms(labels, embeddings, margin, semi_hard=False, positives="all"):
    """max(0, d(a, p) - d(a, n) + margin) (B, B) of Eq. (2) with mined negatives, and the float mask (B, B) of the pairs
    that count, of labels (B,) or (B, 1) and embeddings (B, D).

    DEVIATION: Eq. (4) and (5) print the margin with the other sign; margin=-1 is that reading.
    """
    distances = pairwise_squared_distances(embeddings)
    same = same_label_mask(labels)
    pairs = positive_pairs(same, distances, positives)
    negative = semi_hard_negative(same, distances) if semi_hard else hardest_negative(same, distances)
    terms = ops.where(ops.isfinite(negative), ops.maximum(distances - negative + margin, 0.0), 0.0)
    return terms, ops.cast(pairs, "float32")


def mean_over_pairs(terms, pairs):
    """The mean of terms (B, B) over the pairs of a mask (B, B); 0 without a pair."""
    return ops.sum(terms * pairs) / ops.maximum(ops.sum(pairs), 1.0)


def hard_negative_loss(labels, embeddings, margin=1.0, positives="all"):
    """Hard negative mining, Eq. (5) and (6): a scalar, the mean over all pairs (a, p) of labels (B,) and embeddings
    (B, D); 0 without a pair or a negative.
    """
    return mean_over_pairs(*triplet_terms(labels, embeddings, margin, positives=positives))


def semi_hard_negative_loss(labels, embeddings, margin=1.0, positives="all"):
    """Semi-hard mining, Eq. (3), (4), as hard_negative_loss. A pair without a semi-hard negative adds 0 and counts."""
    return mean_over_pairs(*triplet_terms(labels, embeddings, margin, semi_hard=True, positives=positives))


# ---------------------------------------------------------------- the only uses of private parts of Keras

KERAS_TRIED = "3.15.1"  # another version may have other private parts; tests/test_model.py tries them


def set_softmax(block, softmax):
    """Let softmax(scores (N, H, T, T), mask) stand for that of an encoder block's attention."""
    block._self_attention_layer._softmax = softmax


def get_attention(block):
    """Of an encoder block's attention: (query, key, value, ...) -> (output, scores), a head's width, the dropout."""
    layer = block._self_attention_layer
    return layer._compute_attention, layer._key_dim, layer._dropout


def set_attention(block, compute):
    """Let compute(query, key, value, ...) -> (output, scores) stand for that of an encoder block's attention."""
    block._self_attention_layer._compute_attention = compute


def forget_unmade_variables():
    """Empty the list of variables that Keras will make at the end of the next build."""
    keras.src.backend.common.global_state.set_global_attribute("uninitialized_variables", [])


def without_autocast():
    """A scope in which float32 weights are not cast to the compute dtype of mixed precision."""
    return keras.src.backend.AutocastScope(None)
