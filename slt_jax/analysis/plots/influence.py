"""A matrix of influence, its rows and columns in an order that shows structure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from slt_jax.analysis.plots.style import (
    DIVERGING,
    INK,
    centred_scale,
    name_and_unit,
    new_figure,
)


def plot_influence(
    influence: xr.DataArray,
    *,
    row_labels: Sequence[Any] | np.ndarray | None = None,
    column_labels: Sequence[Any] | np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw a matrix of influence of rows on columns, ordered by label or by likeness.

    Args:
        influence: two-dimensional, such as ``inf.to_xarray()["influence"]`` (train, query) or a
            loss kernel (example, other); up to a few thousand rows.
        row_labels: one per row, such as its class: equal labels are put together and marked. None
            orders rows by average-linkage clustering of their profiles (1 − correlation), so that
            rows that influence the same columns are neighbours.
        column_labels: likewise for columns.
        title: of the figure.

    Returns:
        A figure with colours centred at zero; the largest 1 % share the last colour.

    Raises:
        ValueError: other than two dimensions, or labels of another length.
    """
    if influence.ndim != 2:
        raise ValueError(f"expected a matrix, got the dimensions {influence.dims}")
    values = np.asarray(influence.values, np.float64)
    labels = [_checked(row_labels, influence, 0), _checked(column_labels, influence, 1)]
    is_kernel = values.shape[0] == values.shape[1] and np.allclose(values, values.T, equal_nan=True)
    rows = _order(values, labels[0])
    columns = rows if is_kernel and labels[1] is None else _order(values.T, labels[1])
    height = float(np.clip(5.2 * len(rows) / len(columns), 3.0, 8.0))
    figure = new_figure(6.4, height)
    axes = figure.subplots()
    ordered = values[rows][:, columns]
    image = axes.imshow(
        ordered,
        cmap=DIVERGING,
        norm=centred_scale(_without_self(values) if is_kernel else values),
        aspect="auto",
        interpolation="nearest",
    )
    _mark(axes, 0, labels[0], rows, str(influence.dims[0]))
    _mark(axes, 1, labels[1], columns, str(influence.dims[1]))
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    bar = figure.colorbar(image, ax=axes, aspect=30, extend="both")
    bar.set_label(name_and_unit(influence), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _checked(labels: Any, influence: xr.DataArray, axis: int) -> np.ndarray | None:
    if labels is None:
        return None
    if len(labels) != influence.shape[axis]:
        raise ValueError(
            f"expected a label for each of the {influence.shape[axis]} entries of "
            f"{influence.dims[axis]!r}, got {len(labels)}"
        )
    return np.asarray(labels)


def _order(
    values: Float[np.ndarray, "row column"], labels: np.ndarray | None
) -> Int[np.ndarray, " row"]:
    if labels is not None:
        return np.argsort(labels, kind="stable")
    if len(values) < 3:
        return np.arange(len(values))
    profiles = np.nan_to_num(values - values.mean(axis=1, keepdims=True))
    norms = np.linalg.norm(profiles, axis=1, keepdims=True)
    profiles = profiles / np.where(norms == 0, 1, norms)
    # For unit vectors ½ the squared distance is 1 − correlation.
    return leaves_list(linkage(profiles, "average", optimal_ordering=len(values) <= 500))


def _without_self(values: Float[np.ndarray, "row row"]) -> Float[np.ndarray, " entry"]:
    """Leave out the diagonal, whose entries would set the scale for all others."""
    return values[~np.eye(len(values), dtype=bool)]


def _mark(
    axes: Axes,
    axis: int,
    labels: np.ndarray | None,
    order: Int[np.ndarray, " entry"],
    dimension: str,
) -> None:
    name, ticks = (
        (axes.set_ylabel, axes.set_yticks) if axis == 0 else (axes.set_xlabel, axes.set_xticks)
    )
    line = axes.axhline if axis == 0 else axes.axvline
    if labels is None:
        ticks([])
        name(f"{dimension}, {len(order)} ordered by likeness")
        return
    distinct, starts = np.unique(labels[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    ticks((starts + ends - 1) / 2, [str(label) for label in distinct])
    name(f"{dimension}, {len(order)} by label")
    for start in starts[1:]:
        line(start - 0.5, color=INK, linewidth=0.6)
