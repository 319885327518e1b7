"""What constrained fine-tuning on wild data is compared with, and a head with a hidden layer.

    score = RIVALS["self-training"](problem, l2)      score(vectors (n, D)) -> (n,), higher where likelier the target

A problem is wild.prepare's; vectors are standardised as its own. Every rival has the penalty of the baseline.
"""

import functools
import importlib

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import SelfTrainingClassifier

from tokens.wild import linear

method = importlib.import_module("05_wild_constrained")


def by_theta(theta, head=linear):
    return lambda vectors: -head(theta, vectors)[0]


def penalised(problem, l2, weight):
    """mean BCE of wild + weight x mean BCE of labelled: a Lagrangian whose multiplier nobody adapts."""

    def objective(theta):
        parts = method.mean_bce(theta, problem.wild), method.mean_bce(theta, [problem.labelled])
        return method.add_l2(theta, *(own + weight * other for own, other in zip(*parts, strict=True)), l2)

    return by_theta(method.descend(objective, np.zeros(len(problem.mean) + 1)))


def regression(l2, count):
    """scikit-learn's logistic regression of the same penalty; it wants the penalty of a sum over images."""
    return LogisticRegression(C=1 / (l2 * count), max_iter=2000)


def wild_vectors(problem):
    return np.concatenate([vectors for vectors, _ in problem.wild])


def wild_as_negatives(problem, l2):
    """Plain fine-tuning: wild images are more non-target ones, each as heavy as a labelled one."""
    (vectors, non_target), wild = problem.labelled, wild_vectors(problem)
    labels = np.append(non_target, np.ones(len(wild)))
    fitted = regression(l2, len(labels)).fit(np.concatenate([vectors, wild]), 1 - labels)
    return fitted.decision_function


def self_training(problem, l2, confidence=0.9):
    """scikit-learn's pseudo-labels: what it is sure of among the wild is labelled, again and again (Yarowsky 1995)."""
    (vectors, non_target), wild = problem.labelled, wild_vectors(problem)
    labels = np.append(1 - non_target, np.full(len(wild), -1)).astype(int)
    base = regression(l2, len(non_target))
    return (
        SelfTrainingClassifier(base, threshold=confidence)
        .fit(np.concatenate([vectors, wild]), labels)
        .decision_function
    )


def positive_unlabelled(problem, l2):
    """Target against known and wild together, unlabelled (Elkan & Noto 2008): the share of the target that is called
    so, on val or else on the labelled themselves, gives the threshold.
    """
    (vectors, non_target), wild = problem.labelled, wild_vectors(problem)
    labels = np.append(1 - non_target, np.zeros(len(wild)))
    fitted = regression(l2, len(labels)).fit(np.concatenate([vectors, wild]), labels)
    held, held_non_target = problem.val if np.any(problem.val[1] == 0) else problem.labelled
    share = fitted.predict_proba(held[held_non_target == 0])[:, 1].mean()  # c: P(labelled | target)
    half = np.log(share / 2 / (1 - share / 2))  # P(target | x) = P(labelled | x) / c > 1/2
    return lambda vectors: fitted.decision_function(vectors) - half


RIVALS = {
    "wild as negatives": wild_as_negatives,
    **{f"penalty, weight {weight:g}": functools.partial(penalised, weight=weight) for weight in (0.1, 1.0, 10.0)},
    "self-training": self_training,
    "positive-unlabelled": positive_unlabelled,
}


# ---------------------------------------------------------------- a head with a hidden layer


def mlp(hidden):
    """A head as wild.linear: logits of tanh(x W + b) v + c, theta being W (D, H), b (H,), v (H,) and c."""

    def head(theta, vectors):
        width = vectors.shape[1]
        parts = np.split(theta[:-1].astype(vectors.dtype), [width * hidden, (width + 1) * hidden])
        first, bias, second = parts[0].reshape(width, hidden), parts[1], parts[2]
        active = np.tanh(vectors @ first + bias)  # (n, H)

        def backward(residual):
            inner = np.outer(residual, second) * (1 - active**2)
            slopes = (vectors.T @ inner).ravel(), inner.sum(axis=0), residual @ active, [residual.sum()]
            return np.concatenate(slopes)

        return active @ second + theta[-1].astype(vectors.dtype), backward

    return head


def mlp_start(width, hidden, seed):
    random = np.random.default_rng(seed)
    first, second = random.normal(size=width * hidden) / np.sqrt(width), random.normal(size=hidden) / np.sqrt(hidden)
    return np.concatenate([first, np.zeros(hidden), second, [0.0]])
