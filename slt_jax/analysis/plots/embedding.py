"""Tokens in the plane, coloured by what they are."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from slt_jax.analysis.plots.style import (
    FAINT,
    GREY,
    GROUP_COLORS,
    GROUP_MARKERS,
    new_figure,
)

_REST = "other"


def plot_embedding(
    embedding: xr.DataArray,
    groups: xr.DataArray,
    *,
    order: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw the tokens of a map, each in the colour and shape of the first group it belongs to.

    Args:
        embedding: (token, axis) with two axes, such as ``umap_embedding`` gives.
        groups: bool (group, token), such as ``token_patterns`` gives; a token may have several.
        order: names of the groups to show, at most eight, the one that decides first; all but
            ``other`` by default, as they come. Tokens in none of them are grey.
        title: of the figure.

    Returns:
        A figure with the number of tokens of each group in the legend.

    Raises:
        ValueError: arrays that do not fit each other, unknown or too many groups.
    """
    _check(embedding, groups)
    names = [str(name) for name in groups[groups.dims[0]].values]
    shown = list(order) or [name for name in names if name != _REST]
    if not set(shown) <= set(names) or len(shown) > len(GROUP_COLORS):
        raise ValueError(f"at most {len(GROUP_COLORS)} of {names} can be shown, got {shown}")
    points = embedding.values
    size = float(np.clip(30_000 / max(len(points), 1), 2, 30))
    free = np.ones(len(points), bool)
    drawn = []
    for name, color, marker in zip(shown, GROUP_COLORS, GROUP_MARKERS, strict=False):
        own = np.asarray(groups.values[names.index(name)], bool) & free
        free &= ~own
        drawn.append((own, color, marker, f"{name} ({own.sum()})", size))
    drawn.insert(0, (free, GREY, ".", f"{_REST} ({free.sum()})", 0.7 * size))
    figure = new_figure(7.0, 5.0)
    axes = figure.subplots()
    for own, color, marker, label, area in drawn:
        axes.scatter(
            *points[own].T, s=area, c=color, marker=marker, linewidths=0, label=label, alpha=0.8
        )
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color(FAINT)
    axes.set_xlabel("axes have no unit: read what lies together", fontsize=8)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    legend = figure.legend(loc="outside right center", frameon=False, fontsize=8, title="tokens")
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])
    return figure


def _check(embedding: xr.DataArray, groups: xr.DataArray) -> None:
    if embedding.dims != ("token", "axis") or embedding.sizes["axis"] != 2:
        raise ValueError(
            f"expected an embedding (token, axis) of 2 axes, got {dict(embedding.sizes)}"
        )
    if groups.dims[1:] != ("token",) or groups.sizes["token"] != embedding.sizes["token"]:
        raise ValueError(
            f"expected groups (group, token) of {embedding.sizes['token']} tokens, got "
            f"{dict(groups.sizes)}"
        )
