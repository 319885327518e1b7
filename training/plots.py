"""Figures of a run: confusion matrix, t-SNE of the embedding, ROC."""

import numpy as np

from basics.figures import plt, save_figure
from training.evaluation import title


def confusion_figure(metrics, path):
    """Confusion matrix: rows true, columns predicted, coloured by the fraction of the row, labelled by counts."""
    confusion, classes = np.array(metrics["confusion"]), metrics["classes"]
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.36 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            axes.text(
                j, i, count, ha="center", va="center", fontsize=8, color="white" if fraction[i, j] > 0.5 else "black"
            )
    axes.set(xlabel="predicted", ylabel="true", title=title(metrics))
    save_figure(figure, path)


TSNE_VIDEOS = 5000  # drawn of larger sets; t-SNE's time grows faster than they do


def drawable(embedding):
    """Whether t-SNE has five videos (V, D) and not all at one point."""
    return len(embedding) >= 5 and embedding.std(axis=0).max() > 1e-6


def tsne(embedding):
    """Places (V, 2) of embeddings (V, D) by t-SNE, as in the paper's Fig. 4 and 5."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    method = TSNE(perplexity=min(30, (len(embedding) - 1) / 3), init="pca", random_state=0)
    with threadpool_limits(1):  # for so few videos threads cost more than they give, up to ten times on busy cores
        return method.fit_transform(embedding)


def tsne_panel(axes, places, groups, heading):
    """Videos at their places (V, 2), coloured by group (V,)."""
    names = sorted(set(groups), key=lambda name: (name != "Real", name))
    colours = plt.get_cmap("tab20")
    for i, name in enumerate(names):
        chosen = np.asarray(groups) == name
        axes.scatter(*places[chosen].T, s=14, color=colours(i % 20), marker="os^"[i % 3], label=name)
    axes.legend(fontsize=7, ncols=1 + len(names) // 21, bbox_to_anchor=(1.01, 1), loc="upper left")
    axes.set(xticks=[], yticks=[], title=heading)


def roc_figure(labels, fake_probability, metrics, path):
    """ROC of Fake against Real (BIN-L) from labels (V,) and the probability of Fake (V,)."""
    from sklearn.metrics import roc_curve

    false_alarms, hits, _ = roc_curve(labels, fake_probability)
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.plot(false_alarms, hits, label=f"area {metrics['auc']:.3f}")
    axes.plot([0, 1], [0, 1], "k:", label="chance, 0.5")
    axes.set(
        xlabel="false positive rate: Real predicted as Fake",
        ylabel="true positive rate (recall) of Fake",
        title=title(metrics),
    )
    axes.legend()
    save_figure(figure, path)


def draw_figures(metrics, arrays, run):
    """All figures of a level into the run's folder; t-SNE needs five different videos, ROC both classes."""
    stem, test = f"{run}/{metrics['level']}", arrays["split"] == "test"
    confusion_figure(metrics, f"{stem}_confusion.png")
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(test))[:TSNE_VIDEOS]
    if drawable(arrays["embedding"][drawn]):
        places = tsne(arrays["embedding"][drawn])
        for what in ("class", "generator"):
            figure, axes = plt.subplots(figsize=(7, 6))
            tsne_panel(axes, places, arrays[what][drawn], title(metrics, f", t-SNE by {what}"))
            save_figure(figure, f"{stem}_tsne_{what}.png")
    labels = arrays["class"][test] == "Fake"
    if metrics["level"] == "bin" and 0 < labels.sum() < len(labels):
        roc_figure(labels, arrays["probabilities"][test, 1], metrics, f"{stem}_roc.png")
