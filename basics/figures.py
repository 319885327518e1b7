"""What all figures share: files that appear whole, grids of attention maps, and scores as histograms and curves."""

import matplotlib

from basics.artifacts import write_atomically

matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first, for machines without a screen)


def save_figure(figure, path):
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, bbox_inches="tight"), suffix=".png")
    plt.close(figure)


def draw_maps(grid, what, path, diverging=False):
    """Rows (name, [(label, map (L, L) or None), ...]) of panels on one colour scale. Maps are shown times L."""
    shown = np.stack([values for _, row in grid for _, values in row if values is not None])
    frames, columns = shown.shape[-1], max(len(row) for _, row in grid)
    low, high = (-np.abs(shown).max(), np.abs(shown).max()) if diverging else (shown.min(), shown.max())
    scale = dict(vmin=frames * low, vmax=frames * high, cmap="RdBu_r" if diverging else "viridis")
    size = (1.15 * columns + 1.5, 1.5 * len(grid) + 1)
    figure, axes = plt.subplots(len(grid), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], box_aspect=1)
        axis.spines[:].set_visible(False)
    for (name, row), line in zip(grid, axes, strict=True):
        line[0].set_ylabel(name)
        for axis, (label, values) in zip(line, row, strict=False):
            axis.set_title(label, fontsize=7)
            if values is not None:
                axis.spines[:].set(visible=True, linewidth=0.4, color="0.5")
                image = axis.imshow(frames * values, **scale)
                axis.set_xticks([0, frames - 1], [1, frames], fontsize=6)
                axis.set_yticks([0, frames - 1], [1, frames], fontsize=6)
    figure.supxlabel("attended frame", fontsize=9)
    figure.supylabel("attending frame", fontsize=9)
    zero = "0 = the mean" if diverging else "1 = uniform"
    figure.colorbar(image, ax=axes, aspect=max(30, 10 * len(grid)), label=f"attention x {frames}")
    figure.suptitle(f"{what}; attention x {frames}, {zero}", fontsize=10)
    save_figure(figure, path)


def wrap_panels(name, panels, columns=7):
    return [(name, panels[start : start + columns]) for start in range(0, len(panels), columns)]


# ---------------------------------------------------------------- scores


def draw_histograms(scores, roles, what, label, path):
    """Scores (N,) of the generators of a role together, a panel below the other per method of {method: {generator:
    (N,)}}; the dotted line is the threshold, 0.
    """
    figure, axes = plt.subplots(len(scores), 1, figsize=(7, 3 * len(scores)), layout="constrained")
    for axis, (method, own) in zip(axes, scores.items(), strict=True):
        bins = np.histogram_bin_edges(np.concatenate(list(own.values())), 30)
        for role in ("target", "known", "unseen"):
            if values := [own[name] for name in roles[role] if name in own]:
                axis.hist(np.concatenate(values), bins, density=True, histtype="step", lw=1.8, label=role)
        axis.axvline(0, color="k", ls=":")
        axis.set(title=method, ylabel="density", xlabel=label)
    axes[0].legend()
    figure.suptitle(what)
    save_figure(figure, path)


def draw_rankings(scores, target, others, what, path):
    """ROC, and precision against recall, of the target against each of `others`, generators of {method: {generator:
    scores (N,)}}; the first method is dotted.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for number, name in enumerate(others):
        for (method, own), style in zip(scores.items(), (":", "-"), strict=True):
            labels = np.repeat([1, 0], [len(own[target]), len(own[name])])
            values, line = np.concatenate([own[target], own[name]]), {"color": f"C{number}", "ls": style}
            axes[0].plot(*roc_curve(labels, values)[:2], **line)
            precision, recall, _ = precision_recall_curve(labels, values)
            axes[1].plot(recall, precision, **line, label=f"{name}, {method}")
    axes[0].plot([0, 1], [0, 1], "k", lw=0.5)
    axes[0].set(xlabel="share of others called the target", ylabel="share of the target found", title="ROC")
    axes[1].set(xlabel="recall of the target", ylabel="precision", title="precision and recall", ylim=(0, 1.02))
    axes[1].legend(fontsize=8)
    figure.suptitle(what)
    save_figure(figure, path)
