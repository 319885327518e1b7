"""Figures: atomic saving, and grids of attention maps."""

import matplotlib

from basics.artifacts import write_atomically

matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first, for machines without a screen)


def save_figure(figure, path):
    """Write a figure as PNG, and close it."""
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
    """Rows for draw_maps: the panels [(label, map), ...] in rows of so many columns, all of one name."""
    return [(name, panels[start : start + columns]) for start in range(0, len(panels), columns)]
