"""Second moments of many correlated traces: unbiased within chains, between them, by batches.

Traces are standardized first: centred by chain and divided by their standard deviation. Every
moment of theirs is then a correlation, and the errors of all of them follow from the scatter of
products over batches of successive draws.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MIN_BATCHES = 20
BATCH_TIMES = 5


class Batching(NamedTuple):
    """How draws are cut into batches, ``edges`` int ``[batch + 1]``, and what they weigh.

    ``root_weights`` are √(w_t/mean w), float64 ``[draw]``. Unless ``by_chain``, one batch takes the
    same draws of all chains, so that what chains share (minibatches) counts for the error (D4).
    """

    edges: Int[np.ndarray, " edge"]
    root_weights: Float[np.ndarray, " draw"]
    by_chain: bool

    @property
    def num_batches(self) -> int:
        """Batches of draws, each in every chain."""
        return len(self.edges) - 1

    def counted(self, num_chains: int) -> int:
        """Give the number of batches that an error rests on."""
        return self.num_batches * (num_chains if self.by_chain else 1)


def batching(weights: Float[np.ndarray, " draw"], time: float, by_chain: bool) -> Batching:
    """Cut draws into batches of 5 autocorrelation times or more, 20 or more where that allows.

    Args:
        weights: of the draws, in any unit.
        time: the autocorrelation time τ in draws.
        by_chain: whether chains are independent.

    >>> batching(np.ones(400), time=2.0, by_chain=False).num_batches
    20
    >>> batching(np.ones(400), time=8.0, by_chain=False).num_batches
    10
    """
    size = len(weights)
    length = max(math.ceil(BATCH_TIMES * time), min(math.isqrt(size), size // MIN_BATCHES), 1)
    count = max(size // length, 2)
    edges = np.linspace(0, size, count + 1).astype(np.int64)
    return Batching(edges, np.sqrt(weights / weights.mean()), by_chain)


class Standardized(NamedTuple):
    """Traces with mean 0 in every chain and unbiased variance 1, times the root of their weight.

    Attributes:
        values: float64 ``[chain, draw, row]``; 0 in a row that never changes.
        batch_sums: weighted sums over batches, divided by the number of draws,
            ``[chain, batch, row]``.
        chain_means: means of the chains about the mean of all, ``[chain, row]``.
        deviation: the standard deviation that was divided by, ``[row]``, unit of the trace.
    """

    values: Float[np.ndarray, "chain draw row"]
    batch_sums: Float[np.ndarray, "chain batch row"]
    chain_means: Float[np.ndarray, "chain row"]
    deviation: Float[np.ndarray, " row"]


def standardize(traces: Float[np.ndarray, "chain draw row"], batches: Batching) -> Standardized:
    """Centre traces by chain and scale them to variance 1, the (1 − τ/T) correction included.

    Args:
        traces: any float dtype and unit.
        batches: of the draws.
    """
    root = batches.root_weights[None, :, None]
    num_draws = traces.shape[1]
    values = traces.astype(np.float64)
    means = np.sum(root**2 * values, axis=1, keepdims=True) / num_draws
    values = root * (values - means)
    sums = np.add.reduceat(root * values, batches.edges[:-1], axis=1) / num_draws
    chain_means = means[:, 0] - means[:, 0].mean(axis=0)
    unscaled = Standardized(values, sums, chain_means, np.ones(values.shape[2]))
    variance = np.mean(values**2, axis=(0, 1)) + noise_of_means(unscaled, unscaled, paired=True)
    deviation = np.sqrt(variance)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return Standardized(values * scale, sums * scale, chain_means * scale, deviation)


def noise_of_means(x: Standardized, y: Standardized, paired: bool = False) -> np.ndarray:
    """Give Γ_xy/T, the covariance of two chain means that their autocorrelation explains.

    By batch means, a/(a − 1)·Σ_k m_k m_kᵀ averaged over chains. The covariance within chains of T
    draws falls short of the true one by this: with Γ_xy = τ_xy Cov(x, y),

        E[W_xy] = Cov(x, y)(1 − τ_xy/T).

    Returns:
        ``[row, row of y]``, or ``[row]`` for rows in pairs.
    """
    num_chains, count, _ = x.batch_sums.shape
    factor = count / (count - 1) / num_chains
    if paired:
        return factor * np.sum(x.batch_sums * y.batch_sums, axis=(0, 1))
    return factor * _flat(x.batch_sums).T @ _flat(y.batch_sums)


def between_chains(x: Standardized, y: Standardized) -> Float[np.ndarray, "row other"]:
    """Give the covariance of chain means beyond what autocorrelation explains; NaN for one chain.

    It is 0 in expectation where all chains sample one law (law of total covariance).
    """
    num_chains = len(x.chain_means)
    if num_chains < 2:
        return np.full((x.values.shape[2], y.values.shape[2]), np.nan)
    return x.chain_means.T @ y.chain_means / (num_chains - 1) - noise_of_means(x, y)


class Moments(NamedTuple):
    """Second moments of rows x ``[row, 1]``, rows y ``[1, other]`` and one common trace s."""

    xy: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xs: np.ndarray
    ys: np.ndarray
    ss: np.ndarray


def moments(x: Standardized, y: Standardized, common: Standardized, batches: Batching) -> Moments:
    """Give the unbiased second moments within chains: those of the draws, plus Γ/T."""
    totals = [np.zeros(())] * len(Moments._fields)
    for part in batch_moments(x, y, common, batches):
        totals = [total + value for total, value in zip(totals, part, strict=True)]
    count = batches.counted(len(x.values))
    noise = Moments(
        noise_of_means(x, y),
        noise_of_means(x, x, paired=True)[:, None],
        noise_of_means(y, y, paired=True)[None, :],
        noise_of_means(x, common),
        noise_of_means(common, y),
        noise_of_means(common, common),
    )
    return Moments(*(total / count + part for total, part in zip(totals, noise, strict=True)))


def batch_moments(
    x: Standardized, y: Standardized, common: Standardized, batches: Batching
) -> Iterator[Moments]:
    """Give the products of every batch, scaled so that their mean is that of all draws."""
    num_chains, num_draws, _ = x.values.shape
    groups = [slice(c, c + 1) for c in range(num_chains)] if batches.by_chain else [slice(None)]
    cells = num_chains * num_draws / batches.counted(num_chains)
    for chains in groups:
        for first, last in zip(batches.edges[:-1], batches.edges[1:], strict=True):
            parts = (_flat(part.values[chains, first:last]) for part in (x, y, common))
            yield Moments(*(product / cells for product in _products(*parts)))


def _products(x: np.ndarray, y: np.ndarray, s: np.ndarray) -> Moments:
    return Moments(
        x.T @ y,
        np.sum(x * x, axis=0)[:, None],
        np.sum(y * y, axis=0)[None, :],
        x.T @ s,
        s.T @ y,
        s.T @ s,
    )


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])
