"""Covariance, correlation and partial correlation of traces, entry by entry with their errors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slt_jax.estimators.trace_moments import (
    Batching,
    Moments,
    Standardized,
    batch_moments,
    between_chains,
    moments,
)

Matrix = Float[np.ndarray, "row other"]


class CrossCovariance(NamedTuple):
    """What two sets of traces share, each ``[row, other]``, NaN where a trace never changes.

    ``covariance`` and ``between_covariance`` are in units of the traces,
    correlations are dimensionless; ``*_error`` are standard errors.
    """

    covariance: Matrix
    covariance_error: Matrix
    between_covariance: Matrix
    correlation: Matrix
    correlation_error: Matrix
    partial_correlation: Matrix
    partial_correlation_error: Matrix


def cross_covariance(
    x: Standardized, y: Standardized, common: Standardized, batches: Batching, symmetric: bool
) -> CrossCovariance:
    """Give everything about every pair of a row of x and a row of y.

    Errors are by the delta method over batch means: a covariance, correlation or partial
    correlation changes with the moments by the mean over draws of

        dC = xy − C,    dr = xy − (r/2)(x² + y²),    dr_p = e_x e_y − (r_p/2)(e_x² + e_y²)

    with x, y standardized and e their standardized residuals given the common mode. The scatter of
    these over batches gives the error.

    Args:
        x: standardized traces.
        y: likewise; the same as x if ``symmetric``.
        common: the sum of all traces that x is a part of, standardized, one row. The common mode
            of a pair is this sum without the pair's own x, and without its y if ``symmetric``.
        batches: of the draws.
        symmetric: whether y is part of that sum as well.
    """
    whole = moments(x, y, common, batches)
    own = _Pair.of(x, y, common, symmetric)
    partial = _partial(whole, own)
    sums = [_Scatter() for _ in range(3)]
    for part in batch_moments(x, y, common, batches):
        products = _residual_products(part, own, partial)
        linear = (
            part.xy,
            part.xy - 0.5 * whole.xy * (part.xx + part.yy),
            products[0] - 0.5 * partial.correlation * (products[1] + products[2]),
        )
        for scatter, value in zip(sums, linear, strict=True):
            scatter.add(value)
    covariance, correlation, partial_error = (scatter.error() for scatter in sums)
    scale = x.deviation[:, None] * y.deviation[None, :]
    known = np.where(scale > 0, 1.0, np.nan)
    return CrossCovariance(
        covariance=scale * whole.xy,
        covariance_error=scale * covariance,
        between_covariance=scale * between_chains(x, y),
        correlation=known * whole.xy,
        correlation_error=known * correlation,
        partial_correlation=known * partial.correlation,
        partial_correlation_error=known * partial_error,
    )


class _Scatter:
    """Sums of values and of their squares, for the error of their mean."""

    def __init__(self):
        self.count = 0
        self.first: np.ndarray | float = 0.0
        self.second: np.ndarray | float = 0.0

    def add(self, value: np.ndarray) -> None:
        self.count += 1
        self.first = self.first + value
        self.second = self.second + value**2

    def error(self) -> np.ndarray:
        scatter = self.second - np.square(self.first) / self.count
        return np.sqrt(np.maximum(scatter, 0.0) / (self.count * (self.count - 1)))


class _Pair(NamedTuple):
    """The common mode of a pair, z = common − own·x − other·y, in units of the traces."""

    common: float
    own: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, x: Standardized, y: Standardized, s: Standardized, symmetric: bool) -> "_Pair":
        other = y.deviation if symmetric else np.zeros_like(y.deviation)
        return cls(float(s.deviation[0]), x.deviation[:, None], other[None, :])

    def moments(self, m: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the moments xz, yz and zz from those with the whole sum: z is linear in x, y, s."""
        xz = self.common * m.xs - self.own * m.xx - self.other * m.xy
        yz = self.common * m.ys - self.own * m.xy - self.other * m.yy
        sz = self.common * m.ss - self.own * m.xs - self.other * m.ys
        return xz, yz, self.common * sz - self.own * xz - self.other * yz


class _Partial(NamedTuple):
    """Partial correlation, slopes of x and y on z, and 1/deviation of the residuals."""

    correlation: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray
    scale_x: np.ndarray
    scale_y: np.ndarray


def _partial(whole: Moments, pair: _Pair) -> _Partial:
    xz, yz, zz = pair.moments(whole)
    # Without other examples, or where they never change, there is no common mode to take out of.
    known = np.where(zz > 1e-12 * pair.common**2, zz, np.nan)
    slope_x, slope_y = xz / known, yz / known
    residual_x, residual_y = whole.xx - slope_x * xz, whole.yy - slope_y * yz
    with np.errstate(divide="ignore", invalid="ignore"):
        scale_x = np.where(residual_x > 0, 1 / np.sqrt(residual_x), np.nan)
        scale_y = np.where(residual_y > 0, 1 / np.sqrt(residual_y), np.nan)
    correlation = (whole.xy - slope_x * yz) * scale_x * scale_y
    return _Partial(correlation, slope_x, slope_y, scale_x, scale_y)


def _residual_products(
    m: Moments, pair: _Pair, partial: _Partial
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the mean products e_x e_y, e_x² and e_y² of the standardized residuals in a batch."""
    xz, yz, zz = pair.moments(m)
    a, b = partial.slope_x, partial.slope_y
    return (
        (m.xy - a * yz - b * xz + a * b * zz) * partial.scale_x * partial.scale_y,
        (m.xx - 2 * a * xz + a**2 * zz) * partial.scale_x**2,
        (m.yy - 2 * b * yz + b**2 * zz) * partial.scale_y**2,
    )
