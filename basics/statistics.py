"""Intervals of accuracies, the bootstrap of whole groups, and how well a score tells one side from another."""

import numpy as np
from scipy.stats import binomtest


def wilson_interval(correct, count):
    """The 95% Wilson score interval of a proportion, [low, high]. `correct` may be a mean over seeds."""
    if float(correct).is_integer():
        return list(map(float, binomtest(int(correct), count).proportion_ci(method="wilson")))
    below, above = (np.array(wilson_interval(end, count)) for end in (np.floor(correct), np.ceil(correct)))
    return (below + (above - below) * (correct % 1)).tolist()


def macro_interval(correct, count, z=1.96):
    """The 95% normal interval of the mean of classes' accuracies (C,), each with its own count (C,).

    The classes' variances are those of (correct + 1) / (count + 2), so that a class of one video is not certain.
    """
    p = (correct + 1) / (count + 2)
    half = z * np.sqrt(np.sum(p * (1 - p) / count)) / len(count)
    middle = np.mean(correct / count)
    return [float(max(middle - half, 0)), float(min(middle + half, 1))]


def draw_groups(groups, random):
    """How often each of V clips counts, (V,), when as many whole groups (V,) are drawn with replacement.

    The bootstrap of groups (Efron & Tibshirani 1993): clips of one source are alike, so that they come together.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = member.max() + 1
    return np.bincount(random.integers(count, size=count), minlength=count)[member]
