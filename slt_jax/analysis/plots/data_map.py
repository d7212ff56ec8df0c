"""The examples of a data set, placed by how a network treats them."""

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from slt_jax.analysis.plots.style import (
    ACCENT,
    FAINT,
    GROUP_COLORS,
    GROUP_MARKERS,
    INK,
    new_figure,
    tidy,
)


def plot_data_map(placed: xr.Dataset, *, title: str = "") -> Figure:
    """Draw the map of a loss kernel: examples whose losses move together lie close together.

    Args:
        placed: as ``kernel.data_map(labels=…)`` gives it: ``coordinate`` (example, axis) with at
            least two axes, ``explained_share`` (axis), and a coordinate ``label`` if there is one.
        title: of the figure.

    Returns:
        A figure; labels are told apart by colour and shape, and named at the middle of theirs.

    Raises:
        ValueError: fewer than two axes.
    """
    if placed.sizes.get("axis", 0) < 2:
        raise ValueError(f"a map needs two axes, got {dict(placed.sizes)}")
    points = placed["coordinate"].transpose("example", "axis").values[:, :2]
    figure = new_figure(6.6, 5.4)
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    size = float(np.clip(6000 / max(len(points), 1), 4, 36))
    if "label" in placed.coords:
        _draw_labelled(axes, points, placed["label"].values, size)
        figure.legend(loc="outside right center", frameon=False, fontsize=8, title="label")
    else:
        axes.scatter(*points.T, s=size, color=ACCENT, linewidths=0, alpha=0.75)
    unit = str(placed["coordinate"].attrs.get("units", "1"))
    for number, name in enumerate((axes.set_xlabel, axes.set_ylabel)):
        facts = [] if unit == "1" else [unit]
        facts.append(f"{float(placed['explained_share'][number]):.1%} of the variance")
        name(f"axis {number + 1} ({', '.join(facts)})")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(labelsize=8)
    tidy(axes)
    return figure


def _draw_labelled(
    axes: Axes, points: Float[np.ndarray, "example 2"], labels: np.ndarray, size: float
) -> None:
    for number, label in enumerate(np.unique(labels)):
        own = labels == label
        axes.scatter(
            *points[own].T,
            s=size,
            color=GROUP_COLORS[number % len(GROUP_COLORS)],
            # After all colours the markers move on, so that no two labels look alike.
            marker=GROUP_MARKERS[(number + number // 8) % len(GROUP_MARKERS)],
            linewidths=0,
            alpha=0.75,
            label=str(label),
        )
        axes.annotate(
            str(label),
            tuple(np.nanmedian(points[own], axis=0)),
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
