"""A table of components by data sets, as colours and numbers."""

import math

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from slt_jax.analysis.plots.style import (
    DIVERGING,
    INK,
    MISSING,
    MUTED,
    SEQUENTIAL,
    centred_scale,
    name_and_unit,
    new_figure,
    with_error,
)

_MOST_WRITTEN_ROWS = 40


def plot_component_heatmap(
    values: xr.DataArray,
    errors: xr.DataArray | None = None,
    *,
    title: str = "",
    label: str = "",
) -> Figure:
    """Draw a value for every component and data set, with its error written into its cell.

    Args:
        values: (component, column): susceptibilities by data set, refined learning coefficients,
            … with the names of both as coordinates.
        errors: standard errors of the same shape and unit; cells within two of them of zero are
            written in brackets, which a line below says if there are any. None for none.
        title: of the figure.
        label: of the colour bar; the default is the array's ``long_name`` (or name) with its
            ``units``. Small or large values are given in a power of ten, which only it names.

    Returns:
        A figure. The colours are centred at zero unless no value is negative; cells without a
        finite value are grey. Numbers are left out beyond 40 components.

    Raises:
        ValueError: other than two dimensions, or errors of other dimensions.
    """
    if values.ndim != 2 or values.dims[0] != "component":
        raise ValueError(f"expected the dimensions (component, …), got {values.dims}")
    if errors is not None and errors.dims != values.dims:
        raise ValueError(f"errors have the dimensions {errors.dims}, values {values.dims}")
    rows, columns = values.shape
    names = [str(name) for name in values[values.dims[1]].values]
    exponent = _exponent(values.values)
    numbers = np.asarray(values.values, np.float64) / 10.0**exponent
    numbers[~np.isfinite(numbers)] = np.nan
    scale, colors = _colors(numbers)
    is_written = rows <= _MOST_WRITTEN_ROWS
    width = 1.1 if is_written else 0.5
    height = 0.24 * rows if is_written else min(0.1 * rows, 8.0)
    figure = new_figure(2.2 + width * columns, 1.4 + height)
    axes = figure.subplots()
    axes.set_facecolor(MISSING)
    axes.imshow(numbers, cmap=colors, norm=scale, aspect="auto")
    axes.set_xticks(range(columns), names, rotation=30, ha="right", rotation_mode="anchor")
    step = 1 if is_written else max(1, rows // 40)
    axes.set_yticks(range(0, rows, step), [str(n) for n in values["component"].values[::step]])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    _draw_bar(figure, axes, label or name_and_unit(values, exponent))
    if is_written:
        own = np.full_like(numbers, np.nan)
        if errors is not None:
            own = np.asarray(errors.values, np.float64) / 10.0**exponent
        _write(axes, numbers, own, scale, colors)
    return figure


def _draw_bar(figure: Figure, axes: Axes, label: str) -> None:
    bar = figure.colorbar(axes.images[0], ax=axes, aspect=30)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _colors(numbers: Float[np.ndarray, "row column"]) -> tuple[Normalize, str]:
    finite = numbers[np.isfinite(numbers)]
    if not finite.size or finite.min() < 0:
        return centred_scale(numbers), DIVERGING
    return Normalize(0, float(np.quantile(finite, 0.99)) or 1.0, clip=True), SEQUENTIAL


def _exponent(numbers: Float[np.ndarray, "row column"]) -> int:
    """Give the power of ten, a multiple of three, that makes small or large values readable."""
    largest = float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0))
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    return 0 if -2 <= exponent <= 3 else 3 * math.floor(exponent / 3)


def _write(
    axes: Axes,
    numbers: Float[np.ndarray, "row column"],
    errors: Float[np.ndarray, "row column"],
    scale: Normalize,
    colors: str,
) -> None:
    backgrounds = colormaps[colors](scale(numbers))[..., :3]
    is_known = np.isfinite(numbers)
    is_dark = is_known & (backgrounds @ np.array([0.299, 0.587, 0.114]) < 0.5)
    is_small = is_known & np.isfinite(errors) & (np.abs(numbers) < 2 * errors)
    for (row, column), number in np.ndenumerate(numbers):
        text = "nan"
        if is_known[row, column]:
            text = with_error(float(number), float(errors[row, column]))
        text = f"({text})" if is_small[row, column] else text
        ink = "white" if is_dark[row, column] else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    if is_small.any():
        axes.set_xlabel("in brackets: within two standard errors of zero", fontsize=8, color=MUTED)
