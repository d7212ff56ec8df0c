"""Pictures of results. Every function returns a matplotlib figure and draws on nothing else."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "slt_jax.analysis.plots needs matplotlib: pip install 'slt-jax[plot]'"
    ) from error

CHAIN_COLOR = "#2a6f97"
REFERENCE_COLOR = "#1b1b1b"
MUTED_COLOR = "#6b6b6b"


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

    The height of the traces above the dashed line, times nβ, is the learning coefficient. The
    losses are means over minibatches, so each chain is shown as a running mean over draws.

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
    figure = Figure(figsize=(3.6 * len(results), 3.4), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (title, result) in zip(axes, results.items(), strict=True):
        _draw_traces(panel, title, result.to_xarray(), window)
    # Room below zero for the label of the dashed line, where no trace can cross it.
    top = axes[0].get_ylim()[1]
    axes[0].set_ylim(-0.1 * top, top)
    axes[0].set_ylabel(f"minibatch loss (nats), mean of {window} draws")
    return figure


def _draw_traces(panel: Axes, title: str, dataset: xr.Dataset, window: int) -> None:
    traces = dataset["loss_trace"].values
    window = min(window, traces.shape[-1])
    level = float(dataset["init_loss"])
    draws = np.arange(window, traces.shape[-1] + 1)
    panel.plot(draws, running_mean(traces, window).T, color=CHAIN_COLOR, linewidth=0.8, alpha=0.6)
    panel.axhline(level, color=REFERENCE_COLOR, linewidth=1.2, linestyle="--")
    panel.annotate(
        f"loss at w*: {level:.2g}",
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(-3, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=REFERENCE_COLOR,
        fontsize=8,
    )
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.set_title(_estimate_label(dataset), loc="right", fontsize=10, color=MUTED_COLOR)
    panel.set_xlabel("draw")
    panel.spines[["top", "right"]].set_visible(False)


def _estimate_label(dataset: xr.Dataset) -> str:
    estimate, error = float(dataset["llc"]), float(dataset["standard_error"])
    decimals = max(0, -math.floor(math.log10(error))) if error > 0 else 2
    return f"λ̂ = {estimate:.{decimals}f} ± {error:.{decimals}f}"
