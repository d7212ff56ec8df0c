"""Errors of means of correlated series: long-run variance, autocorrelation time, drift."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_MIN_BLOCKS = 10


class MeanError(NamedTuple):
    """The standard error of a mean and the degrees of freedom it rests on."""

    standard_error: float
    degrees_of_freedom: int


class Drift(NamedTuple):
    """How far the mean moved over the whole series, by linear regression, and its error."""

    change: float
    standard_error: float


def long_run_variance(series: Float[np.ndarray, " draw"], time: float = 1.0) -> float:
    """Estimate σ∞² = Σ_k Cov(x_t, x_{t+k}), the variance of √T times the mean, by batch means.

    Lugsail batch means 2σ̂²_b − σ̂²_{b/3} with b = ⌊√T⌋ or more (Vats & Flegal, arXiv 1809.04541):
    the bias of plain batch means, which is downward, is more than removed.

    Args:
        series: float64 values in draw order, at least 2.
        time: an autocorrelation time in draws, if one is known: batches are at least as long, as
            far as 8 of them allow.

    Returns:
        σ̂∞², in squared units of the series; NaN below 4 draws.

    >>> round(long_run_variance(np.random.default_rng(0).normal(size=100_000)), 1)
    1.0
    """
    length = math.isqrt(len(series))
    if length < 2:
        return math.nan
    length = max(length, min(math.ceil(time), len(series) // 8))
    plain = _batch_means(series, length)
    lugsail = 2 * plain - _batch_means(series, max(length // 3, 1))
    return lugsail if lugsail > 0 else plain


def _batch_means(series: np.ndarray, length: int) -> float:
    return float(length * _block_means(series, length).var(ddof=1))


def autocorrelation_time(series: Float[np.ndarray, " draw"]) -> float:
    """Estimate τ, in draws, of the slow part of a series.

    A paired gap is a slow signal plus the independent noise of its batch, which would hide a long
    autocorrelation time in σ∞²/Var and from the first lags. Means over blocks of 2, 4, 8, … draws
    are therefore compared with what white noise would give, until they vary more than that by 3.5
    standard deviations. At that scale the signal's variance is extrapolated from the lags above
    zero and Geyer's initial positive sequence (Statistical Science 7, 1992) is summed.

    >>> round(autocorrelation_time(np.random.default_rng(0).normal(size=10_000)), 1)
    1.0
    """
    size, block = len(series), 2
    total = float(np.var(series, ddof=1)) if size > 1 else 0.0
    while total > 0 and size // block >= _MIN_BLOCKS:
        ratio = _batch_means(series, block) / total
        if ratio > 1 + 3.5 * math.sqrt(2 / (size // block - 1)):
            fine = max(1, block // 4)
            covariance = _autocovariance(_block_means(series, fine))
            slow = _slow_time(covariance) if covariance[1] > 0 else 4.0
            return max(1.0, fine * slow)
        block *= 2
    return 1.0


def autocovariance_time(series: Float[np.ndarray, "chain row draw"]) -> float:
    """Estimate τ, in draws, of the average autocovariance of many series without added noise.

    Geyer's initial positive sequence, on autocovariances about the mean of each chain averaged
    over chains and rows.

    >>> noise = np.random.default_rng(0).normal(size=(4, 5, 1000))
    >>> autocovariance_time(noise) < 1.2
    True
    """
    size = series.shape[-1]
    covariance = np.zeros(size)
    for one in series.reshape(-1, size):
        covariance += _autocovariance(one)
    if not covariance[0] > 0 or size < 4:
        return 1.0
    pairs = covariance[: size // 2 * 2].reshape(-1, 2).sum(axis=1)
    ended = np.flatnonzero(pairs <= 0)
    tail = float(pairs[: ended[0] if ended.size else len(pairs)].sum())
    return max(1.0, 2 * tail / float(covariance[0]) - 1)


def _block_means(series: np.ndarray, length: int) -> np.ndarray:
    count = len(series) // length
    return series[len(series) - count * length :].reshape(count, length).mean(axis=1)


def _autocovariance(series: np.ndarray) -> np.ndarray:
    centered = series - series.mean()
    spectrum = np.fft.rfft(centered, 2 * len(series))
    return np.fft.irfft(spectrum * spectrum.conj())[: len(series)] / len(series)


def _slow_time(covariance: np.ndarray) -> float:
    """Give the autocorrelation time of the part of a series that is not white."""
    odd = covariance[1 : len(covariance) - 1 : 2]
    pairs = odd + covariance[2::2][: len(odd)]
    ended = np.flatnonzero(pairs <= 0)
    tail = float(pairs[: ended[0] if ended.size else len(pairs)].sum())
    # An AR(1) signal has variance γ₁²/γ₂; noise may push γ₂ anywhere, so keep it in bounds.
    signal = float(covariance[1] ** 2 / max(covariance[2], 1e-300))
    signal = float(np.clip(signal, covariance[1], covariance[0]))
    return (signal + 2 * max(tail, float(covariance[1]))) / signal


def mean_error(gap: Float[np.ndarray, "chain draw"], independent_batches: bool) -> MeanError:
    """Give the standard error of the mean over chains and draws (definition D4).

    SE² = σ∞²(ḡ)/T with ḡ_t the mean over chains: right whether or not chains share minibatches.
    With independent batches and at least 4 chains the spread of chain means, s²/C, is an
    alternative; the larger is given.

    Args:
        gap: float64, in any unit.
        independent_batches: whether every chain draws its own batches.
    """
    num_chains, num_draws = gap.shape
    series = gap.mean(axis=0)
    time = autocorrelation_time(series)
    variance = long_run_variance(series, time) / num_draws
    length = max(math.isqrt(num_draws), min(math.ceil(time), num_draws // 8), 1)
    freedom = max(num_draws // length - 1, 1)
    if independent_batches and num_chains >= 4:
        between = gap.mean(axis=1).var(ddof=1) / num_chains
        if not between <= variance:
            return MeanError(math.sqrt(between), num_chains - 1)
    return MeanError(math.sqrt(variance), freedom)


def drift(series: Float[np.ndarray, " draw"]) -> Drift:
    """Fit a line to a series; give its change from first to last draw with its standard error.

    The error is √(12 σ∞²/T), σ∞² that of the residuals.

    >>> round(drift(np.linspace(0.0, 1.0, 100)).change, 6)
    1.0
    """
    size = len(series)
    if size < 8:
        return Drift(math.nan, math.nan)
    time = np.linspace(-0.5, 0.5, size)
    slope = float(time @ series / (time @ time))
    residuals = series - series.mean() - slope * time
    variance = long_run_variance(residuals, autocorrelation_time(residuals))
    return Drift(slope, math.sqrt(12 * variance / size))
