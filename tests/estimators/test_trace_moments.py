"""Moments of correlated traces: unbiased in short chains, errors that match their scatter.

Traces are autoregressions of order one with known covariance, 300 replicas of few draws. A mean of
300 fails at 4.5 of its standard errors in 7e-6 of seeds; entries are bounded together.
"""

import numpy as np
import pytest

from slt_jax.estimators.cross_covariance import cross_covariance
from slt_jax.estimators.trace_moments import batching, between_chains, moments, standardize

RHO = 0.5
TIME = (1 + RHO) / (1 - RHO)
MIXING = np.array([[1.0, 0.0], [0.6, 0.8], [-0.3, 0.5]])
COVARIANCE = MIXING @ MIXING.T
NUM_REPLICAS = 300


def traces(seed: int, num_chains: int, num_draws: int) -> np.ndarray:
    """Give stationary AR(1) traces ``[chain, draw, 3]`` of covariance ``COVARIANCE``."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(num_chains, 2))
    values = np.empty((num_chains, num_draws, 2))
    for draw in range(num_draws):
        values[:, draw] = state
        state = RHO * state + np.sqrt(1 - RHO**2) * rng.normal(size=state.shape)
    return values @ MIXING.T


def estimates(num_chains: int, num_draws: int, by_chain: bool, time: float = TIME):
    for seed in range(NUM_REPLICAS):
        own = traces(seed, num_chains, num_draws)
        batches = batching(np.ones(num_draws), time, by_chain)
        x = standardize(own, batches)
        common = standardize(own.sum(axis=2, keepdims=True), batches)
        yield cross_covariance(x, x, common, batches, symmetric=True)


def test_short_chains_give_the_whole_covariance():
    """Within 60 draws the raw covariance is 1 − τ/T = 0.95 of the true one."""
    draws = np.stack([e.covariance for e in estimates(2, 60, by_chain=True)])
    error = draws.std(axis=0) / np.sqrt(NUM_REPLICAS)
    # Batches of 5τ see all but a twentieth of τ/T.
    assert np.max(np.abs(draws.mean(axis=0) - COVARIANCE) / (error + 0.005)) < 4.5
    raw = np.mean([np.cov(traces(s, 1, 60)[0].T, bias=True)[0, 0] for s in range(NUM_REPLICAS)])
    assert raw < 0.97


def test_nothing_is_left_between_chains_of_one_law():
    draws = np.stack([e.between_covariance for e in estimates(4, 100, by_chain=True)])
    error = draws.std(axis=0) / np.sqrt(NUM_REPLICAS)
    assert np.max(np.abs(draws.mean(axis=0)) / error) < 4.5


def test_what_lies_between_chains_stays_between_them():
    shifts = np.array([[1.0, -1.0], [0.0, 0.0], [-2.0, 2.0]]).T
    own = traces(0, 2, 2000)
    batches = batching(np.ones(2000), TIME, by_chain=True)
    apart, together = (standardize(t, batches) for t in (own + shifts[:, None], own))
    np.testing.assert_allclose(apart.values, together.values, atol=1e-9)
    between = between_chains(apart, apart) * np.outer(apart.deviation, apart.deviation)
    means = own.mean(axis=1) + shifts
    expected = np.cov(means.T)
    np.testing.assert_allclose(between, expected, atol=0.02)


@pytest.mark.parametrize("by_chain", [False, True])
def test_errors_are_the_scatter_of_the_estimates(by_chain):
    """Root mean square of reported errors over scatter, within 12 % of 1 for every entry."""
    found = list(estimates(4, 400, by_chain))
    for value, error in (
        ("covariance", "covariance_error"),
        ("correlation", "correlation_error"),
    ):
        scatter = np.std([getattr(e, value) for e in found], axis=0)
        reported = np.sqrt(np.mean([np.square(getattr(e, error)) for e in found], axis=0))
        apart = ~np.eye(3, dtype=bool) if value == "correlation" else np.ones((3, 3), bool)
        np.testing.assert_allclose((reported / scatter)[apart], 1.0, atol=0.15)


def test_errors_count_what_chains_share():
    """Four copies of one chain: as good as one, and only ``by_chain`` would believe in four."""
    own = np.repeat(traces(0, 1, 4000), 4, axis=0)
    shared, separate = (batching(np.ones(4000), TIME, flag) for flag in (False, True))
    together, apart = (
        cross_covariance(x, x, x, b, False).covariance_error
        for b in (shared, separate)
        for x in (standardize(own[:, :, :1], b),)
    )
    assert together[0, 0] == pytest.approx(2 * apart[0, 0], rel=0.2)


def test_weights_are_repeated_draws():
    """Draws that weigh twice count twice in the moments."""
    own = traces(3, 2, 60)
    twice = np.repeat(own, np.tile([1, 2], 30), axis=1)
    weights = np.tile([1.0, 2.0], 30)
    light, heavy = batching(weights, 2.0, False), batching(np.ones(90), 3.0, False)
    assert light.num_batches == heavy.num_batches
    first, second = (standardize(t, b) for t, b in ((own, light), (twice, heavy)))
    np.testing.assert_allclose(first.deviation, second.deviation, rtol=1e-12)
    np.testing.assert_allclose(
        moments(first, first, first, light).xy,
        moments(second, second, second, heavy).xy,
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("draws", "time", "by_chain", "count"),
    [(1000, 1.0, False, 32), (1000, 10.0, False, 20), (1000, 40.0, False, 5), (9, 50.0, True, 2)],
)
def test_batches_are_five_times_the_correlation_or_longer(draws, time, by_chain, count):
    batches = batching(np.ones(draws), time, by_chain)
    assert batches.num_batches == count
    assert batches.edges[0] == 0
    assert batches.edges[-1] == draws
    assert batches.counted(4) == (4 * count if by_chain else count)
