"""What the pictures have in common: figures without windows, colours, and placing of names."""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

INK = "#1b1b1b"
MUTED = "#6b6b6b"
GREY = "#a9a9a9"
FAINT = "#c9c9c9"
MISSING = "#dddddd"
ACCENT = "#0072B2"

# Okabe and Ito's colours, without black and yellow, and a marker for each: eight groups in all.
GROUP_COLORS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6A3D9A",
    "#7A5C3E",
)
GROUP_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2}

DIVERGING = "RdBu_r"
SEQUENTIAL = "viridis"


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches that belongs to no window."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes) -> None:
    """Leave only the left and the lower spine."""
    axes.spines[["top", "right"]].set_visible(False)


def centred_scale(values: Float[np.ndarray, "*shape"], quantile: float = 0.99) -> Normalize:
    """Give a colour scale with zero in its middle; the few largest values share the last colour."""
    finite = np.abs(values[np.isfinite(values)])
    limit = float(np.quantile(finite, quantile)) if finite.size else 0.0
    limit = limit or float(finite.max(initial=0.0)) or 1.0
    return Normalize(-limit, limit, clip=True)


def with_error(value: float, error: float) -> str:
    """Write a value to the first digit of its error (two if that is a 1), or to three digits.

    >>> with_error(1.2345, 0.0678), with_error(-3.0, 0.12), with_error(2.0, float("nan"))
    ('1.23 ± 0.07', '−3.00 ± 0.12', '2')
    """
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}".replace("-", "−")
    decimals = -math.floor(math.log10(error))
    decimals += error * 10**decimals < 1.95
    if decimals > 4 or decimals < -3:
        return f"{value:.2e} ± {error:.0e}".replace("-", "−")
    decimals = max(0, decimals)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def name_and_unit(values: xr.DataArray, exponent: int = 0) -> str:
    """Describe an array by its ``long_name`` (or name) and ``units``, in units of 10^exponent."""
    name = str(values.attrs.get("long_name", values.name or ""))
    unit = str(values.attrs.get("units", "1")).replace("^2", "²")
    unit = "" if unit == "1" else unit
    factor = f"10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""
    inside = " ".join(part for part in (factor, unit) if part)
    return f"{name} ({inside})" if inside else name


def place_names(
    axes: Axes,
    points: Float[np.ndarray, "point 2"],
    names: Sequence[str],
    colors: Sequence[str],
    size: float = 7.5,
) -> None:
    """Write a name beside every point, on the side where it covers the least.

    The names are placed one after the other in the middle of the eight directions around their
    point that overlaps least with points and with names already placed. A line leads to a name
    that has to stand farther off. Limits of the axes must be final.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    spots = axes.transData.transform(points)
    unit = figure.dpi / 72
    boxes = [np.array([x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit]) for x, y in spots]
    room = axes.get_window_extent()
    frame = np.array([room.x0, room.y0, room.x1, room.y1])
    for number, name in enumerate(names):
        width, height = 0.62 * size * unit * len(name), 1.15 * size * unit
        candidates = _candidates(spots[number], width, height, 5 * unit)
        costs = [
            sum(_overlap(box, other) for other in boxes)
            + 4 * (width * height - _overlap(box, frame))
            for box in candidates
        ]
        # Rounding must not decide between places that are equally free: the first is the nearest.
        chosen = int(np.argmin(np.round(costs, 3)))
        best = candidates[chosen]
        boxes.append(best)
        x, y = (best[:2] + best[2:]) / 2
        offset = ((x - spots[number][0]) / unit, (y - spots[number][1]) / unit)
        axes.annotate(
            name,
            tuple(points[number]),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colors[number],
            arrowprops=None if chosen < len(_SIDES) else _LEADER,
        )


def _candidates(
    spot: Float[np.ndarray, "2"], width: float, height: float, gap: float
) -> list[Float[np.ndarray, "4"]]:
    boxes = []
    # Farther away where there is no room nearby: of equals the first is taken.
    for distance in (gap, 3 * gap):
        for right, up in _SIDES:
            x = spot[0] + right * (distance + width / 2)
            y = spot[1] + up * (distance + height / 2)
            boxes.append(np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]))
    return boxes


def _overlap(box: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> float:
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return float(max(wide, 0) * max(high, 0))
