"""Losses with mined negatives, value and gradient, by batch: ours, pytorch-metric-learning, a loop over the anchors.

Embeddings (B, 1152) of 20 classes, squared distances, margin 1, the hardest positive and the hardest negative of each
anchor, as the batch-hard miner chooses them; semi-hard negatives over all pairs. Ours are the functions of common.py on
TensorFlow, compiled by XLA as Keras does in training; the loop is NumPy's, without a gradient. Losses are compared; the
semi-hard miner's is another: all triplets whose negative is semi-hard, where ours has the nearest one of each pair.
Notes tell how much memory the work takes beyond what the process had before it, in arrays (B, B) of float32; in small
batches compiling takes more than they do.
"""

from functools import partial

import numpy as np
from measuring import SideError, compared, held_at_most, run_side, seconds_of, side

FULL, TINY = (64, 256, 1024, 4096, 8192), (16, 64)
MINERS = {"hard": "batch-hard miner", "semi_hard": "semi-hard triplet miner"}
MOST_CUBED = 1024  # of pytorch-metric-learning's (B, B, B) arrays; 1 GiB a boolean one
MOST_LOOPED = 4096
LONGEST = 900  # seconds of a side
CLASSES, WIDTH, MARGIN = 20, 1152, 1.0


def cases(args):
    for mining in MINERS:
        for batch in TINY if args.tiny else FULL:
            yield f"{mining} {batch}", partial(measure, mining, batch)


def measure(mining, batch):
    what = f"{mining.replace('_', '-')} negatives, batch {batch}"
    sizes = dict(mining=mining, batch=batch)
    ours = attempt("ours", **sizes)
    rows = []
    for name, text, most in (
        (
            "metric_learning",
            f"pytorch-metric-learning, {MINERS[mining]}",
            MOST_CUBED if mining == "semi_hard" else None,
        ),
        ("loop", "a loop in NumPy, value alone", MOST_LOOPED),
    ):
        if most and batch > most:
            why = "(B, B, B) arrays" if name == "metric_learning" else "a loop"
            theirs = SideError(f"not tried, {why} at {batch}")
        else:
            theirs = attempt(name, **sizes)
        rows.append(compared(what, text, ours, theirs, note=told(ours, theirs, batch)))
    return rows


def attempt(name, **sizes):
    try:
        return side(__file__, name, limit=LONGEST, **sizes)
    except SideError as error:
        return error


def told(ours, theirs, batch):
    """Whether both have the same loss, and in large batches how many arrays (B, B) ours takes."""
    words = []
    if not isinstance(ours, SideError) and not isinstance(theirs, SideError):
        apart = abs(ours["loss"] - theirs["loss"]) / max(abs(theirs["loss"]), 1e-9)
        words.append("same loss" if apart < 1e-3 else f"another loss: {ours['loss']:.6g}, theirs {theirs['loss']:.6g}")
    if not isinstance(ours, SideError) and batch >= 1024:
        words.append(f"ours takes {ours['working'] * 2**30 / (4 * batch**2):.0f} arrays")
    return "; ".join(words)


# ---------------------------------------------------------------- the sides


def data(batch):
    """Embeddings whose classes overlap, so that every kind of negative is there."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, batch)
    centres = random.normal(0, 0.02, (CLASSES, WIDTH))
    return labels, (centres[labels] + random.normal(0, 0.03, (batch, WIDTH))).astype(np.float32)


def repeats_for(batch):
    return 3 if batch > 2048 else 10


def ours(mining, batch):
    import tensorflow as tf

    from common import hard_negative_loss, semi_hard_negative_loss

    labels, embeddings = map(tf.constant, data(batch))

    @tf.function(jit_compile=True)
    def loss_and_gradient(embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            if mining == "hard":
                loss = hard_negative_loss(labels, embeddings, MARGIN, positives="hardest")
            else:
                loss = semi_hard_negative_loss(labels, embeddings, MARGIN)
        return loss, tape.gradient(loss, embeddings)

    before, found = held_at_most(), {}

    def work():
        loss, gradient = loss_and_gradient(embeddings)
        found["loss"] = float(loss)
        gradient.numpy()

    seconds = seconds_of(work, repeats_for(batch))
    return {"seconds": seconds, "working": held_at_most() - before} | found


def metric_learning(mining, batch):
    import torch
    from pytorch_metric_learning import distances, losses, miners, reducers

    labels, embeddings = map(torch.from_numpy, data(batch))
    embeddings.requires_grad_()
    squared = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
    reducer = reducers.SumReducer()
    loss_function = losses.TripletMarginLoss(margin=MARGIN, distance=squared, reducer=reducer)
    if mining == "hard":
        miner = miners.BatchHardMiner(distance=squared)
    else:
        miner = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=squared)
    found = {}

    def work():
        embeddings.grad = None
        triplets = miner(embeddings, labels)
        loss = loss_function(embeddings, labels, triplets) / max(len(triplets[0]), 1)
        loss.backward()
        found["loss"] = float(loss)

    return {"seconds": seconds_of(work, repeats_for(batch))} | found


def loop(mining, batch):
    labels, embeddings = data(batch)

    def work():
        terms = []
        for anchor in range(batch):
            distances = np.square(embeddings - embeddings[anchor]).sum(axis=1)
            positive = labels == labels[anchor]
            negative = distances[~positive]
            positive[anchor] = False
            if not positive.any() or not len(negative):
                continue
            if mining == "hard":
                terms.append(max(0.0, distances[positive].max() - negative.min() + MARGIN))
                continue
            for to_positive in distances[positive]:
                farther = negative[negative > to_positive]
                terms.append(max(0.0, to_positive - farther.min() + MARGIN) if len(farther) else 0.0)
        work.loss = float(np.mean(terms))

    seconds = seconds_of(work, 1, warm_up=0)
    return {"seconds": seconds, "loss": work.loss}


if __name__ == "__main__":
    run_side(globals())
