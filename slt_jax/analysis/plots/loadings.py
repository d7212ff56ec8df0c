"""Components of the model in the plane of two principal components."""

from collections.abc import Collection

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from slt_jax.analysis.decomposition import AXIS
from slt_jax.analysis.plots.style import (
    ACCENT,
    FAINT,
    GROUP_COLORS,
    INK,
    MUTED,
    new_figure,
    place_names,
    tidy,
)


def plot_loadings(
    components: xr.Dataset,
    first: int = 1,
    second: int = 2,
    *,
    highlighted: Collection[str] = (),
    highlight_label: str = "highlighted",
    title: str = "",
) -> Figure:
    """Draw every component (such as a head) at its loadings on two principal components.

    Args:
        components: as ``principal_components`` returns it.
        first: label of the principal component along the horizontal axis, counted from 1.
        second: likewise along the vertical axis.
        highlighted: names to be drawn in another colour and shape, such as the induction heads.
        highlight_label: what they are, for the legend.
        title: of the figure.

    Returns:
        A figure. The axes say which part of the variance a principal component explains and, where
        known, how its loadings are correlated with the mean gaps E[g].

    Raises:
        ValueError: highlighted names that are not components.
    """
    names = [str(name) for name in components["component"].values]
    unknown = sorted(set(highlighted) - set(names))
    if unknown:
        raise ValueError(f"{unknown} are not components of the analysis: got {names}")
    points = np.stack([components["loadings"].sel({AXIS: k}).values for k in (first, second)], 1)
    figure = new_figure(5.6, 5.2)
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    chosen = np.isin(names, list(highlighted))
    axes.scatter(*points[~chosen].T, s=22, color=ACCENT, label="other components")
    if chosen.any():
        axes.scatter(
            *points[chosen].T, s=40, color=GROUP_COLORS[0], marker="D", label=highlight_label
        )
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    axes.margins(0.12)
    axes.set_xlabel(_axis_label(components, first), fontsize=9)
    axes.set_ylabel(_axis_label(components, second), fontsize=9)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(labelsize=8, colors=MUTED)
    tidy(axes)
    place_names(axes, points, names, [GROUP_COLORS[0] if own else INK for own in chosen])
    return figure


def _axis_label(components: xr.Dataset, number: int) -> str:
    one = components.sel({AXIS: number})
    facts = [f"{float(one['explained_variance_ratio']):.1%} of the variance"]
    if "noise_ratio" in one:
        facts.append(f"{float(one['noise_ratio']):.1%} of it noise")
    if "gap_correlation" in one:
        facts.append(f"r with E[g] {float(one['gap_correlation']):.2f}".replace("-", "−"))
    return f"loading on component {number}\n({', '.join(facts)})"
