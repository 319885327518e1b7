"""What constrained fine-tuning on wild data is compared with, another head and another baseline, fitted on the vectors
of a run of 05.

    run = read_run("runs/wild")
    score = COMPARED["self-training"](run, l2)      score(vectors (n, D)) -> (n,), higher where likelier the target

All have the penalty of the baseline.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from basics.artifacts import read_arrays, read_json
from basics.statistics import minimize_constrained, minimize_lbfgs, stop_early

L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried on val, as by 05
FITTED = {"labelled only": "baseline", "constrained": "constrained"}  # names in tables, and in what 05 writes


class WildRun(NamedTuple):
    """What a run of 05 leaves: standardised vectors, what it made of them, and its test images."""

    labelled: tuple[np.ndarray, np.ndarray]  # vectors (n, D), non-target (n,)
    val: tuple[np.ndarray, np.ndarray]
    wild: tuple[np.ndarray, np.ndarray]  # float32; all non-target
    test: np.ndarray  # (n, D)
    path: np.ndarray  # (n,) of the test images
    generator: np.ndarray  # (n,)
    scores: dict[str, np.ndarray]  # of FITTED, (n,)
    roles: dict[str, list[str]]  # generators by role
    training: dict[str, float]


def read_run(folder, test_split_only=False) -> WildRun:
    """A run of 05; with `test_split_only` unseen generators, too, have but their images of split test."""
    rows = read_arrays(Path(folder) / "wild_scores.npz")
    metrics = read_json(Path(folder) / "wild.json", ("target", "roles", "training"))
    classifier = read_arrays(Path(folder) / "wild_classifier.npz", tuple(FITTED.values()))
    training, target, sides = metrics["training"], metrics["target"], {}
    for role in ("labelled", "val", "wild"):
        non_target = rows["generator"][rows["role"] == role] != target
        sides[role] = rows[f"{role}_vectors"], np.float64(non_target | (role == "wild"))
    test = rows["role"] == "test"
    kept = (rows["split"][test] == "test") | (not test_split_only)
    facts = facts_of(training["l2"], training["baseline"]["labelled_loss"], training["rounds"])
    facts |= norms({name: classifier[key] for name, key in FITTED.items()}) | counts(rows, target)
    columns = {key: rows[key][test][kept] for key in ("path", "generator", *FITTED.values())}
    scores = {name: columns.pop(key) for name, key in FITTED.items()}
    return WildRun(
        **sides, test=rows["test_vectors"][kept], **columns, scores=scores, roles=metrics["roles"], training=facts
    )


def facts_of(l2, labelled_loss, rounds):
    return {"l2": l2, "labelled_loss": labelled_loss, "rounds": len(rounds), "multiplier": rounds[-1]["multiplier"]}


def counts(rows, target):
    """How many images of what 05 wrote have which role; and the clips of the target's labelled ones."""
    labelled, wild, own = rows["role"] == "labelled", rows["role"] == "wild", rows["generator"] == target
    numbers = {"target": labelled & own, "known": labelled & ~own, "wild": wild, "wild, of the target": wild & own}
    clips = len(set(rows["path"][labelled & own]))
    return {name: int(chosen.sum()) for name, chosen in numbers.items()} | {"target, clips": clips}


def norms(thetas):
    return {f"norm, {name}": float(np.linalg.norm(theta[:-1])) for name, theta in thetas.items()}


# ---------------------------------------------------------------- heads and their loss


def linear(theta, vectors):
    """Logits (n,) of vectors (n, D) by theta (D + 1,), and the way back: residual (n,) -> gradient (D + 1,)."""
    weights = theta.astype(vectors.dtype)
    return vectors @ weights[:-1] + weights[-1], lambda residual: np.append(residual @ vectors, residual.sum())


def hidden_layer(units):
    """A head as `linear`: logits of tanh(x W + b) v + c, theta being W (D, H), b (H,), v (H,) and c."""

    def head(theta, vectors):
        width = vectors.shape[1]
        parts = np.split(theta[:-1].astype(vectors.dtype), [width * units, (width + 1) * units])
        first, bias, second = parts[0].reshape(width, units), parts[1], parts[2]
        active = np.tanh(vectors @ first + bias)  # (n, H)

        def backward(residual):
            inner = np.outer(residual, second) * (1 - active**2)
            slopes = (vectors.T @ inner).ravel(), inner.sum(axis=0), residual @ active, [residual.sum()]
            return np.concatenate(slopes)

        return active @ second + theta[-1].astype(vectors.dtype), backward

    return head


def draw_weights(width, units, seed):
    """theta of a hidden layer to start from."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=width * units) / np.sqrt(width), random.normal(size=units) / np.sqrt(units)
    return np.concatenate([first, np.zeros(units), second, [0.0]])


def mean_bce_of_head(theta, vectors, non_target, head=linear, l2=0.0):
    """05's mean binary cross-entropy with its penalty, and its gradient, with any head."""
    logits, backward = head(theta, vectors)
    loss = np.sum(np.logaddexp(0, logits) - non_target * logits, dtype=float)
    gradient = np.float64(backward(expit(logits) - non_target.astype(logits.dtype)))
    weights = np.append(theta[:-1], 0)
    return loss / len(vectors) + l2 / 2 * weights @ weights, gradient / len(vectors) + l2 * weights


def score_by(theta, head=linear):
    return lambda vectors: -head(theta, vectors)[0]


# ---------------------------------------------------------------- constrained fine-tuning of other classifiers


def fine_tune_head(run, baseline, l2, tau, head=linear):
    """05's fine-tuning from a baseline: {name: score} of FITTED, and the facts of training."""
    loss = mean_bce_of_head(baseline, *run.labelled, head)[0]

    def objective(theta):
        return mean_bce_of_head(theta, *run.wild, head, l2)

    def constraint(theta):
        value, gradient = mean_bce_of_head(theta, *run.labelled, head)
        return value - tau * loss, gradient

    theta, rounds = minimize_constrained(objective, constraint, baseline, unit=tau * loss)
    thetas = dict(zip(FITTED, (baseline, theta), strict=True))
    return {name: score_by(own, head) for name, own in thetas.items()}, facts_of(l2, loss, rounds) | norms(thetas)


def with_hidden_layer(run, tau, seed, units):
    """A head of one hidden layer in place of a linear one."""
    head, start = hidden_layer(units), draw_weights(run.test.shape[1], units, seed)

    def fit(l2):
        return minimize_lbfgs(lambda theta: mean_bce_of_head(theta, *run.labelled, head, l2), start)

    l2 = min(L2, key=lambda l2: mean_bce_of_head(fit(l2), *run.val, head)[0])
    return fine_tune_head(run, fit(l2), l2, tau, head)


def with_few_steps(run, tau, seed, steps):
    """A baseline of so many steps of gradient descent without penalty, and fine-tuning without penalty."""
    vectors = run.labelled[0]
    rate = 4 * len(vectors) / (np.linalg.norm(vectors, 2) ** 2 + len(vectors))  # 1 / the loss's largest curvature
    start = np.zeros(vectors.shape[1] + 1)
    objective = functools.partial(mean_bce_of_head, vectors=vectors, non_target=run.labelled[1])
    baseline, _ = stop_early(objective, lambda theta: objective(theta)[0], start, rate, steps=steps)
    return fine_tune_head(run, baseline, 0.0, tau)


# ---------------------------------------------------------------- what it is compared with


def penalised(run, l2, weight):
    """mean BCE of wild + weight x mean BCE of labelled: a Lagrangian with a fixed multiplier."""

    def objective(theta):
        wild, slope = mean_bce_of_head(theta, *run.wild, l2=l2)
        labelled, other = mean_bce_of_head(theta, *run.labelled)
        return wild + weight * labelled, slope + weight * other

    return score_by(minimize_lbfgs(objective, np.zeros(run.test.shape[1] + 1)))


def regression(l2, count):
    """scikit-learn's logistic regression of the same penalty; it wants the penalty of a sum over images."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (l2 * count), max_iter=2000)


def with_wild(run, wild_label):
    """Labelled and wild vectors together, and whether each is the target, a wild one as given."""
    (vectors, non_target), wild = run.labelled, run.wild[0]
    return np.concatenate([vectors, wild]), np.append(1 - non_target, np.full(len(wild), wild_label))


def wild_as_negatives(run, l2):
    """Plain fine-tuning: wild images are more non-target ones, each as heavy as a labelled one."""
    vectors, is_target = with_wild(run, 0)
    return regression(l2, len(vectors)).fit(vectors, is_target).decision_function


def self_training(run, l2, confidence=0.9):
    """scikit-learn's pseudo-labels: wild images predicted with confidence are labelled, repeatedly (Yarowsky 1995)."""
    from sklearn.semi_supervised import SelfTrainingClassifier

    vectors, is_target = with_wild(run, -1)
    fitted = SelfTrainingClassifier(regression(l2, len(run.labelled[0])), threshold=confidence)
    return fitted.fit(vectors, is_target.astype(int)).decision_function


def positive_unlabelled(run, l2):
    """Target against known and wild together, unlabelled (Elkan & Noto 2008): the mean probability of the target's own
    images, on val or else on the labelled themselves, gives the threshold.
    """
    vectors, is_target = with_wild(run, 0)
    fitted = regression(l2, len(vectors)).fit(vectors, is_target)
    held, held_non_target = run.val if np.any(run.val[1] == 0) else run.labelled
    labelled = fitted.predict_proba(held[held_non_target == 0])[:, 1].mean()  # c: P(labelled | target)
    half = np.log(labelled / 2 / (1 - labelled / 2))  # P(target | x) = P(labelled | x) / c > 1/2
    return lambda vectors: fitted.decision_function(vectors) - half


COMPARED = {
    "wild as negatives": wild_as_negatives,
    **{f"penalty, weight {weight:g}": functools.partial(penalised, weight=weight) for weight in (0.1, 1.0, 10.0)},
    "self-training": self_training,
    "positive-unlabelled": positive_unlabelled,
}
