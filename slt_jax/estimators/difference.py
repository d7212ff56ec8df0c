"""The difference of two estimates, with the error of the pair."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from slt_jax.estimators.series import mean_error

if TYPE_CHECKING:
    from slt_jax.estimators.result import LLCResult


@dataclasses.dataclass(frozen=True)
class LLCDifference:
    """λ̂_a − λ̂_b, with the standard error of the pair if the two runs shared their randomness.

    ``variance_ratio`` is the paired variance over the sum of the two separate ones: below 1 the
    common random numbers helped. ``paired`` tells which of the two errors is given: the separate
    one if the runs did not share keys and draws, or if pairing made it larger.
    """

    mean: float
    standard_error: float
    paired: bool
    variance_ratio: float

    def __str__(self) -> str:
        how = (
            f"paired, variance ratio {self.variance_ratio:.2f}"
            if self.paired
            else "independent noise"
        )
        return f"ΔLLC {self.mean:.4g} ± {self.standard_error:.2g} ({how})"


def difference(first: "LLCResult", second: "LLCResult") -> LLCDifference:
    """Subtract two estimates.

    Runs share their randomness if they have the same key and counts, and either the same weights
    moved or both were sampled with ``paired=True``. Shared minibatches alone correlate them, too.
    """
    mean = first.mean - second.mean
    separate = first.standard_error**2 + second.standard_error**2
    shared = first.metadata.get("key") == second.metadata.get("key") and all(
        first.metadata.get(name) == second.metadata.get(name)
        for name in ("num_burnin_steps", "num_steps_bw_draws", "num_chains", "num_draws")
    )
    if not shared or first.gap.shape != second.gap.shape:
        return LLCDifference(mean, math.sqrt(separate), False, math.nan)
    series = _weighted(first) - _weighted(second)
    independent = first.independent_chains and second.independent_chains
    together = mean_error(series, independent).standard_error ** 2
    ratio = together / separate
    if not ratio < 1:
        return LLCDifference(mean, math.sqrt(separate), False, ratio)
    return LLCDifference(mean, math.sqrt(together), True, ratio)


def _weighted(result: "LLCResult") -> np.ndarray:
    """Give nβ·gap ``[chain, draw]``, scaled so that plain means are those of the weighted draws."""
    weights = result.draw_weights / np.mean(result.draw_weights)
    center = np.average(result.gap, axis=1, weights=weights)[:, None]
    return result.n_beta * (center + weights * (result.gap - center))
