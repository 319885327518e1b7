"""Does a clip come from a generator that the model was not trained on? Scores, how good they are, which classes such
clips are predicted as, and names for the clips of such a generator once a few of them are given.

    score = fit_scores(train)                      Clips of the training split
    seen, unseen = score(test), score(left_out)    {name in SCORES: (V,)}
    auroc(seen["energy"], unseen["energy"])

A higher score is likelier unseen, and unseen is the positive class. Functions of arrays, without Keras: V clips,
C classes, embeddings of width D, L frames per window. Raises InputError for what cannot be computed.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import normalize

from basics.running import InputError
from basics.statistics import resample_groups, wilson_interval

# ---------------------------------------------------------------- scores of the classifier


def maximum_softmax(probabilities):
    """1 - the largest of a clip's probabilities (V, C): (V,) in [0, 1 - 1 / C] (Hendrycks & Gimpel 2017)."""
    return 1 - np.max(probabilities, axis=1)


def energy(logits):
    """-log sum exp of logits (V, C): (V,), in nats (Liu et al. 2020, temperature 1)."""
    return -logsumexp(np.float64(logits), axis=1)


def head_logits(embedding, weights, bias):
    """Logits (V, C) of embeddings (V, D) by the model's Dense head, weights (D, C) and bias (C,).

    The head is linear, so the mean embedding over windows gives exactly the mean of the windows' logits. Their softmax
    is not the clip's `probabilities`, which are the mean of the windows' softmax.
    """
    return np.float64(embedding) @ weights + bias


# ---------------------------------------------------------------- distances from the training clips


def class_means(values, labels):
    """Means (K, N) of the K classes in labels (V,), and values (V, N) minus the mean of their class."""
    values, (_, number) = np.float64(values), np.unique(labels, return_inverse=True)
    if not len(values) or len(values) != len(number):
        raise InputError(f"{len(values)} training clips and {len(number)} labels; there must be some, and as many")
    if not np.isfinite(values).all():
        raise InputError("values of training clips are not finite; leave out clips without a window free of padding")
    means = np.stack([values[number == k].mean(axis=0) for k in range(number.max() + 1)])
    return means, values - means[number]


def floored(deviations):
    """Standard deviations (N,), none below a thousandth of their mean: a value that did not vary in training must not
    decide alone. Where nothing varied (one clip per class) all are equal, which keeps the order of Euclidean distances.
    """
    return np.maximum(deviations, max(1e-3 * deviations.mean(), 1e-6))


def fit_nearest_class_mean(embedding, labels):
    """score(embedding (V, D)) -> (V,): Euclidean distance to the nearest class mean (Mensink et al. 2013)."""
    means, _ = class_means(embedding, labels)
    return lambda clips: cdist(clips, means).min(axis=1)


def fit_mahalanobis(embedding, labels):
    """score(embedding (V, D)) -> (V,): Mahalanobis distance to the nearest class mean, in standard deviations, with one
    covariance within all classes (Lee et al. 2018 square it), shrunk so that D > V works (Ledoit & Wolf 2004).
    """
    means, residuals = class_means(embedding, labels)
    whiten = whitening(residuals)
    return lambda clips: cdist(clips @ whiten, means @ whiten).min(axis=1)


def whitening(residuals):
    """(D, D): residuals (V, D) times this have unit variance in all directions, by a shrunk covariance."""
    variances, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    return axes / floored(np.sqrt(np.maximum(variances, 0)))


def fit_nearest_neighbours(embedding, k=5):
    """score(embedding (V, D)) -> (V,) in [0, 2]: distance on the unit sphere to the k-th nearest training clip, or to
    the farthest where there are fewer (Sun et al. 2022). Not for training clips, whose nearest neighbour is themselves.
    """
    neighbours = NearestNeighbors(n_neighbors=min(k, len(embedding))).fit(normalize(np.float64(embedding)))
    return lambda clips: neighbours.kneighbors(normalize(np.float64(clips)))[0][:, -1]


def fit_tsig(maps, labels):
    """score(maps (V, L, L)) -> (V,): distance from a clip's attention to the nearest class's mean map (its T-Sig, SAGA
    Sec. 3.1): root mean square over entries, each in pooled standard deviations within classes. NaN maps give NaN.
    """
    means, residuals = class_means(np.reshape(maps, (len(maps), -1)), labels)  # (K, L * L), (V, L * L)
    freedom = max(len(residuals) - len(means), 1)
    scale = floored(np.sqrt(np.sum(residuals**2, axis=0) / freedom)) * np.sqrt(means.shape[1])
    return lambda clips: cdist(np.reshape(clips, (len(clips), -1)) / scale, means / scale).min(axis=1)


class Clips(NamedTuple):
    """Arrays over the same V clips; scores of a field that is None are left out, labels are training clips' alone."""

    embedding: np.ndarray  # (V, D)
    probabilities: np.ndarray  # (V, C)
    logits: np.ndarray  # (V, C)
    maps: np.ndarray | None = None  # (V, L, L)
    label: np.ndarray | None = None  # (V,)


def as_clips(arrays) -> Clips:
    """The fields of Clips that a dict of arrays has."""
    return Clips(*map(arrays.get, Clips._fields))


SCORES = {  # name: field of Clips, fit(field, label) of the training clips -> score(field)
    "maximum softmax": ("probabilities", lambda *train: maximum_softmax),
    "energy": ("logits", lambda *train: energy),
    "nearest class mean": ("embedding", fit_nearest_class_mean),
    "Mahalanobis": ("embedding", fit_mahalanobis),
    "k-nearest neighbours": ("embedding", lambda embedding, labels: fit_nearest_neighbours(embedding)),
    "T-Sig": ("maps", fit_tsig),
}


def fit_scores(train: Clips):
    """score(clips: Clips) -> {name: (V,)}, every score in SCORES whose field `train` has."""
    there = {name: entry for name, entry in SCORES.items() if getattr(train, entry[0]) is not None}
    fitted = {name: (field, fit(getattr(train, field), train.label)) for name, (field, fit) in there.items()}
    return lambda clips: {name: score(getattr(clips, field)) for name, (field, score) in fitted.items()}


# ---------------------------------------------------------------- how well a score tells unseen from seen


def check_scores(seen, unseen):
    for name, scores in (("seen", seen), ("unseen", unseen)):
        if not len(scores) or not np.isfinite(scores).all():
            raise InputError(f"{len(scores)} scores of {name} clips: there must be some, all of them finite")


def auroc(seen, unseen) -> float:
    """Area under the ROC curve: the fraction of pairs of scores (V,), (U,) where the unseen clip's is higher, ties
    counting half (Hanley & McNeil 1982).
    """
    check_scores(seen, unseen)
    return float(roc_auc_score(np.repeat([0, 1], [len(seen), len(unseen)]), np.concatenate([seen, unseen])))


def fpr_at_tpr(seen, unseen, tpr=0.95) -> float:
    """The fraction of seen clips (V,) predicted as unseen at the highest threshold that detects at least `tpr` of the
    unseen ones (U,).

    The threshold is a clip's score, and a score equal to it is predicted as unseen. Chance is `tpr`. Liu et al. (2020)
    and many others swap the classes: the fraction of unseen clips accepted where 95% of the seen ones are.
    """
    check_scores(seen, unseen)
    detected = int(np.ceil(tpr * len(unseen) - 1e-9))  # 0.07 * 100 is 7.000000000000001
    return float(np.mean(np.asarray(seen) >= np.sort(unseen)[len(unseen) - detected]))


def group_bootstrap(seen, unseen, seen_group, unseen_group, tpr=0.95, repeats=1000, seed=0) -> dict:
    """95% percentile intervals {"auroc": [low, high], "fpr_at_tpr": [low, high]} of scores (V,), (U,) in groups (V,),
    (U,): groups are drawn with replacement, seen and unseen ones separately (Efron & Tibshirani 1993).

    None where a side has a single group, since a bootstrap then shows no variation. Scores of the same clips with the
    same seed meet the same draws.
    """
    check_scores(seen, unseen)
    sides = [(seen, np.unique(seen_group, return_inverse=True)[1])]
    sides += [(unseen, np.unique(unseen_group, return_inverse=True)[1])]
    if min(group.max() for _, group in sides) == 0:
        return {"auroc": None, "fpr_at_tpr": None}
    random, drawn = np.random.default_rng(seed), np.empty((repeats, 2))
    for i in range(repeats):
        sample = [np.repeat(scores, resample_groups(group, random)) for scores, group in sides]
        drawn[i] = auroc(*sample), fpr_at_tpr(*sample, tpr)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0).tolist()
    return {"auroc": [low[0], high[0]], "fpr_at_tpr": [low[1], high[1]]}


# ---------------------------------------------------------------- which classes unseen clips are predicted as


def lands_on(probabilities, others, classes, wanted) -> dict:
    """How many of an unseen generator's clips are predicted as `wanted`, its class (SD version, team), by probabilities
    (V, C) of classes (C,): {"share_videos", "share", "share_interval"}, the second a fraction.

    Chance, {"chance_videos", "chance", "chance_interval"}, is the same of `others` (W, C), clips of unseen generators
    of other classes: a class that attracts all unseen clips proves nothing. Seen clips of other classes would give too
    low a chance, since the model was trained to reject them there. 95% intervals (Wilson 1927) take clips as
    independent, so with few sources they are too narrow.
    """
    if wanted not in classes:
        raise InputError(f"{wanted} is no class of the model ({', '.join(classes)}); train it with one that has it")
    if not len(probabilities) or not len(others):
        raise InputError(f"{wanted}: {len(probabilities)} clips and {len(others)} others; there must be some of both")
    result = {}
    for key, clips in (("share", probabilities), ("chance", others)):
        count = int(np.sum(np.argmax(clips, axis=1) == list(classes).index(wanted)))
        result |= {f"{key}_videos": len(clips), key: count / len(clips)}
        result |= {f"{key}_interval": wilson_interval(count, len(clips))}
    return result


# ---------------------------------------------------------------- enrolling: naming clips of a new class, no training

# Distances are Euclidean. On the unit sphere (zoo, class means) as many are named correctly, or fewer.


def name_by_mean(embedding, labels):
    """names(embedding (V, D)) -> (V,): the class in labels (V,) whose mean is nearest (Mensink et al. 2013)."""
    means, _ = class_means(embedding, labels)
    classes = np.unique(labels)
    return lambda clips: classes[cdist(clips, means).argmin(axis=1)]


def name_by_mahalanobis(embedding, labels):
    """As name_by_mean, with the distance of fit_mahalanobis: linear discriminants of classes taken to be as frequent.

    With a single clip of a class, its mean is that clip, noise included.
    """
    whiten = whitening(class_means(embedding, labels)[1])
    names = name_by_mean(embedding @ whiten, labels)
    return lambda clips: names(clips @ whiten)


def name_by_neighbours(embedding, labels, k=5):
    """names(embedding (V, D)) -> (V,): the class of most of the k nearest clips, or of all where there are fewer.

    Large classes win: one of a clip or two is outvoted as soon as two or three of another are among the k.
    """
    class_means(embedding, labels)  # raises InputError for bad values
    return KNeighborsClassifier(min(k, len(labels))).fit(embedding, labels).predict


NAMINGS = {"mean": name_by_mean, "mahalanobis": name_by_mahalanobis, "neighbours": name_by_neighbours}
