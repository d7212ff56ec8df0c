"""The losses of the chains against the loss at w*: what a learning coefficient is read from."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from slt_jax.analysis.plots.style import (
    ACCENT,
    INK,
    MUTED,
    new_figure,
    tidy,
    with_error,
)


@runtime_checkable
class ShowsTraces(Protocol):
    """A result with ``to_xarray()``, as ``slt.llc`` returns it."""

    def to_xarray(self) -> xr.Dataset:
        """Give ``llc``, ``standard_error``, ``loss_trace`` (chain, draw) and ``init_loss``."""
        ...


def running_mean(
    trace: Float[np.ndarray, "chain draw"], window: int
) -> Float[np.ndarray, "chain kept"]:
    """Average every ``window`` successive draws of each chain.

    Args:
        trace: any unit, ``[chain, draw]``.
        window: draws per average, at least 1 and at most the number of draws.

    Returns:
        float64 ``[chain, draw − window + 1]``.

    Raises:
        ValueError: a window outside 1…draw.

    >>> running_mean(np.array([[1.0, 3.0, 5.0]]), 2).tolist()
    [[2.0, 4.0]]
    """
    num_draws = trace.shape[-1]
    if not 1 <= window <= num_draws:
        raise ValueError(f"window must be between 1 and the {num_draws} draws, got {window}")
    sums = np.cumsum(np.asarray(trace, np.float64), axis=-1)
    sums = np.concatenate([np.zeros((len(sums), 1)), sums], axis=-1)
    return (sums[:, window:] - sums[:, :-window]) / window


def plot_llc_traces(results: Mapping[str, ShowsTraces], *, window: int = 50) -> Figure:
    """Draw the loss of every chain against the loss at w*, one panel per result, at one scale.

    The distance from the dashed line, the loss at w*, to the solid one, the mean of all draws,
    times nβ, is the learning coefficient. The losses are means over minibatches, so each chain is
    shown as a running mean over draws.

    Args:
        results: results of ``slt.llc`` by title, at least one.
        window: draws in the running mean; fewer where a run is shorter.

    Returns:
        A figure that belongs to no window: show it in a notebook, or ``figure.savefig(path)``.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("plot_llc_traces needs at least one result, got none")
    figure = new_figure(max(4.5, 3.6 * len(results)), 3.6)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (title, result) in zip(panels, results.items(), strict=True):
        _draw_traces(panel, title, result.to_xarray(), window)
    # Room below the lowest level for the label of the dashed line, where no trace can cross it.
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(bottom - 0.08 * (top - bottom), top)
    panels[0].set_ylabel("minibatch loss (nats)")
    figure.legend(
        handles=[
            Line2D([], [], color=ACCENT, label=f"chains, mean of {window} draws"),
            Line2D([], [], color=INK, label="mean of all draws"),
            Line2D([], [], color=INK, linestyle="--", label="loss at w*"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def _draw_traces(panel: Axes, title: str, dataset: xr.Dataset, window: int) -> None:
    traces = dataset["loss_trace"].values
    window = min(window, traces.shape[-1])
    level, mean = float(dataset["init_loss"]), float(np.nanmean(traces))
    draws = np.arange(window, traces.shape[-1] + 1)
    panel.plot(draws, running_mean(traces, window).T, color=ACCENT, linewidth=0.8, alpha=0.5)
    panel.axhline(mean, color=INK, linewidth=1.2)
    panel.axhline(level, color=INK, linewidth=1.2, linestyle="--")
    panel.annotate(
        f"loss at w*: {level:.4g}",
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(-3, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=INK,
        fontsize=8,
    )
    estimate = with_error(float(dataset["llc"]), float(dataset["standard_error"]))
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.set_title(f"λ̂ = {estimate}", loc="right", fontsize=10, color=MUTED)
    panel.set_xlabel("draw")
    tidy(panel)
