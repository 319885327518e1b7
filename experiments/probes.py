"""What SAGA must beat: simple probes on the same videos, splits and classes.

Metadata sees no pixel: size, frame rate, length and container of the index. Where it does well, an accuracy on pixels
proves little. The others see the mean frozen token of a video. All take Videos (tokens/split.py) and give class
probabilities (V, C) for the test rows.
"""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from tokens.dataset import mean_tokens


def metadata(rows, containers) -> np.ndarray:
    """Width, height, frame rate, length and one column per container, (V, 4 + containers)."""
    numbers = [[*map(float, row.size.split("x")), float(row.fps), float(row.length)] for row in rows]
    kinds = [[row.container == container for container in containers] for row in rows]
    return np.hstack([numbers, kinds])


def metadata_probe(videos, seed=0):
    containers = sorted({row.container for row in videos.train})
    forest = RandomForestClassifier(300, random_state=seed)
    return fit_predict(forest, videos, lambda rows: metadata(rows, containers))


def linear_probe(videos, seed=0):
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, random_state=seed))
    return fit_predict(regression, videos, mean_tokens)


def neighbours_probe(videos, seed=0):
    """Retrieval: the five most alike training clips vote, by the cosine of mean tokens."""
    vote = make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(5, weights="distance"))
    return fit_predict(vote, videos, mean_tokens)


def discriminant_probe(videos, seed=0):
    """The nearest class mean by Mahalanobis distance: linear discriminants, whatever the classes' frequencies."""
    classes = len({row.label for row in videos.train + videos.val})
    discriminants = LinearDiscriminantAnalysis("lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    return fit_predict(discriminants, videos, mean_tokens)


def fit_predict(probe, videos, describe):
    """Train on train and val (nothing is tuned), predict test; columns follow videos.classes."""
    rows = videos.train + videos.val
    probe.fit(describe(rows), [row.label for row in rows])
    probabilities = np.zeros((len(videos.test), len(videos.classes)))
    probabilities[:, probe.classes_] = probe.predict_proba(describe(videos.test))
    return probabilities


PROBES = {
    "metadata only": metadata_probe,
    "linear on mean tokens": linear_probe,
    "class means on mean tokens": discriminant_probe,
    "nearest neighbours on mean tokens": neighbours_probe,
}
