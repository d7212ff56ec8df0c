"""Statistics: right against NumPy in float64, a monoid, with errors that are calibrated.

Calibrations compare the mean of squared standard errors over 500 rows with the true variance of the
estimate. Their tolerances, the known bias of batch means taken off, are 4.5 standard deviations of
that comparison or more: right statistics fail with probability 1e-5 each, 5e-5 together.
"""

import functools
import pickle

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.statistics import host_rows
from tests.helpers import OBSERVABLES, assert_same, sample

STATISTICS = [slt.Mean, slt.Variance, slt.Covariance]


@functools.partial(jax.jit, static_argnames="statistic")
def device_sums(statistic, values, weights):
    """Sums of one batch ``[draw, row, ...]``, added up as the loop does it."""
    first = jax.tree.map(lambda leaf: leaf[0, 0], values)
    empty = jax.tree.map(
        lambda leaf: jax.numpy.zeros((weights.shape[1], *leaf.shape), leaf.dtype),
        statistic.empty(first),
    )
    step = jax.vmap(statistic.update)
    return jax.lax.scan(lambda sums, draw: (step(sums, *draw), None), empty, (values, weights))[0]


def contributions(statistic, values, weights=None):
    """The contribution of every batch of ``values``, the last one unfinished if draws are left."""
    count, rows = jax.tree.leaves(values)[0].shape[:2]
    weights = np.ones((count, rows), np.float32) if weights is None else weights
    parts = []
    for first in range(0, count, statistic.batch_length):
        cut = slice(first, first + statistic.batch_length)
        own = jax.tree.map(lambda leaf, cut=cut: leaf[cut], values)
        sums = device_sums(statistic, own, weights[cut])
        finished = count - first >= statistic.batch_length
        on_host = jax.tree.map(lambda leaf: host_rows(leaf, 1), sums)
        parts.append(statistic.contribution(on_host, finished))
    return parts


def estimate(statistic, values, weights=None):
    return statistic.finalize(
        functools.reduce(statistic.merge, contributions(statistic, values, weights), None)
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def observed(kind, draws):
    """Values for a statistic, from ``[draw, row, entry]``: a pair for a covariance."""
    return (draws[..., :2], draws[..., 1:]) if kind is slt.Covariance else draws


def by_numpy(kind, draws, weights):
    """The statistic of ``[draw, row, entry]`` by its definition, in float64."""
    draws = draws.astype(np.float64)
    share = (weights / weights.sum(axis=0)).astype(np.float64)[..., None]
    mean = np.sum(share * draws, axis=0)
    if kind is slt.Mean:
        return mean
    centered = draws - mean
    if kind is slt.Variance:
        return np.sum(share * centered**2, axis=0)
    return np.einsum("tr,tri,trj->rij", share[..., 0], centered[..., :2], centered[..., 1:])


@pytest.mark.parametrize("kind", STATISTICS)
@pytest.mark.parametrize("count", [60, 57], ids=["whole batches", "a partial batch"])
@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_agree_with_numpy(kind, count, weighted):
    draws = normal(count, 3, 4)
    draws[..., 1] += 0.5 * draws[..., 2]
    weights = np.ones((count, 3), np.float32)
    if weighted:
        weights = np.random.default_rng(1).uniform(0.2, 2, (count, 3)).astype(np.float32)
    found = estimate(kind(batch_length=6), observed(kind, draws), weights)
    np.testing.assert_allclose(found.value[0], by_numpy(kind, draws, weights), atol=3e-6)
    assert found.num_batches == count // 6


@pytest.mark.parametrize("kind", STATISTICS)
def test_a_weight_is_a_number_of_repetitions(kind):
    draws = normal(12, 2, 4)
    counts = np.tile(np.asarray([1, 3, 2], np.float32), 4)[:, None] * np.ones((1, 2), np.float32)
    repeated = np.repeat(draws, counts[:, 0].astype(int), axis=0)
    weighted = estimate(kind(batch_length=3), observed(kind, draws), counts)
    plain = estimate(kind(batch_length=6), observed(kind, repeated))
    np.testing.assert_allclose(weighted.value, plain.value, atol=1e-6)
    np.testing.assert_allclose(weighted.standard_error, plain.standard_error, atol=1e-6)


@pytest.mark.parametrize("kind", STATISTICS)
def test_a_row_without_weight_gives_zero_and_no_nan_for_the_others(kind):
    draws, weights = normal(12, 2, 4), np.ones((12, 2), np.float32)
    weights[:, 0] = 0
    found = estimate(kind(batch_length=3), observed(kind, draws), weights)
    assert np.all(np.asarray(found.value)[0, 0] == 0)
    expected = by_numpy(kind, draws[:, 1:], weights[:, 1:])
    np.testing.assert_allclose(found.value[0, 1:], expected, atol=1e-6)


@pytest.mark.parametrize("kind", STATISTICS)
def test_merging_is_associative(kind):
    statistic = kind(batch_length=5)
    parts = contributions(statistic, observed(kind, normal(43, 2, 4)))
    total = functools.reduce(statistic.merge, parts, None)
    for cut in (1, 4, 8):
        left = functools.reduce(statistic.merge, parts[:cut], None)
        right = functools.reduce(statistic.merge, parts[cut:], None)
        for grouped, whole in zip(
            jax.tree.leaves(statistic.merge(left, right)), jax.tree.leaves(total), strict=True
        ):
            np.testing.assert_allclose(grouped, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", STATISTICS)
def test_sums_are_added_in_float64(kind):
    statistic = kind(batch_length=1)
    parts = contributions(statistic, observed(kind, normal(2, 1, 4)))
    for leaf in jax.tree.leaves(statistic.merge(*parts)):
        assert np.asarray(leaf).dtype in (np.float64, np.int64)


@pytest.mark.parametrize("kind", STATISTICS)
def test_errors_need_two_finished_batches(kind):
    draws = normal(9, 2, 4)
    for length, known in ((9, False), (5, False), (4, True)):
        found = estimate(kind(batch_length=length), observed(kind, draws))
        assert np.isfinite(found.standard_error).all() == known


def autoregressive(rho, count, rows):
    """A stationary AR(1) series of unit variance, ``[draw, row, 1]``."""
    noise = np.random.default_rng(5).normal(size=(count, rows))
    series = np.empty_like(noise)
    series[0] = noise[0]
    for draw in range(1, count):
        series[draw] = rho * series[draw - 1] + np.sqrt(1 - rho**2) * noise[draw]
    return series[..., None].astype(np.float32)


@pytest.mark.parametrize(("rho", "length", "tolerance"), [(0.0, 10, 0.06), (0.6, 40, 0.12)])
def test_error_of_a_mean_is_calibrated(rho, length, tolerance):
    count = 25 * length
    found = estimate(slt.Mean(batch_length=length), autoregressive(rho, count, 500))
    lags = np.arange(1, count)
    variance = (1 + 2 * np.sum((1 - lags / count) * rho**lags)) / count
    assert np.mean(found.standard_error**2) == pytest.approx(variance, rel=tolerance)


@pytest.mark.parametrize(("rho", "length", "tolerance"), [(0.0, 20, 0.12), (0.6, 40, 0.15)])
def test_error_of_a_variance_is_calibrated(rho, length, tolerance):
    count = 25 * length
    # Off the pivot by some deviations, where the error of the mean matters.
    draws = autoregressive(rho, count, 500) + np.float32(3)
    found = estimate(slt.Variance(batch_length=length), draws)
    lags = np.arange(1, count)
    # Var(s²) = (2/T) Σ_k ρ_k² for a Gaussian series of unit variance.
    variance = 2 * (1 + 2 * np.sum((1 - lags / count) * rho ** (2 * lags))) / count
    assert np.mean(found.standard_error**2) == pytest.approx(variance, rel=tolerance)


def test_error_of_a_covariance_is_calibrated():
    draws = normal(500, 500, 2)
    draws[..., 1] = 0.6 * draws[..., 0] + 0.8 * draws[..., 1]
    # Off the pivot by ten deviations, the terms in the means of x and y matter.
    pair = (draws[..., :1] + 10, draws[..., 1:] - 10)
    found = estimate(slt.Covariance(batch_length=20), pair)
    variance = (1 + 0.6**2) / 500
    assert np.mean(found.standard_error**2) == pytest.approx(variance, rel=0.12)
    assert np.mean(found.value) == pytest.approx(0.6, abs=0.02)


def test_a_trace_keeps_every_value_in_order():
    draws = normal(5, 3, 2)
    found = estimate(slt.Trace(), {"x": draws})
    assert np.array_equal(found.value["x"][0], draws.swapaxes(0, 1))
    assert found.num_batches == 5


def test_going_on_from_a_trace_leaves_it_as_it_was():
    trace = slt.Trace()
    parts = [trace.contribution(np.float32(number), True) for number in range(6)]
    begun = functools.reduce(trace.merge, parts[:3], None)
    one, other = trace.merge(begun, parts[3]), trace.merge(begun, parts[4])
    assert [list(kept) for kept in (begun, one, other)] == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4]]
    grouped = trace.merge(parts[0], trace.merge(parts[1], parts[2]))
    assert list(grouped) == list(begun)
    assert list(trace.merge([0, 1], parts[2])) == [0, 1, 2]
    assert begun[-1] == 2
    assert begun[1:] == [1, 2]
    with pytest.raises(IndexError):
        _ = begun[3]
    restored = pickle.loads(pickle.dumps(begun))
    assert list(restored) == [0, 1, 2]
    assert jax.tree.leaves(begun) == [0, 1, 2]


def test_keeping_draws_does_not_copy_those_before():
    """A list that is copied at every merge takes n²/2 steps for n draws."""
    trace, total, copied = slt.Trace(), None, 0
    for number in range(2**12):
        before = total
        total = trace.merge(total, trace.contribution(np.float32(number), True))
        copied += before is not None and total._observations is not before._observations
    assert len(total) == 2**12
    assert copied == 0


def finished(draws, every, length):
    """The draws of finished batches, among those at which was measured."""
    measured = draws[:, :, ::every].astype(np.float64)
    return measured[:, :, : measured.shape[2] // length * length]


def test_a_run_accumulates_what_its_draws_say():
    run = sample(num_draws=36)
    output = finished(run.positions["output"], 2, 3)
    found = run.statistics["output"]
    np.testing.assert_allclose(found.value, output.var(axis=2), rtol=2e-4)
    assert found.num_batches == 36 // 2 // 3
    assert np.all(found.standard_error > 0)


def test_a_run_counts_the_draws_of_an_unfinished_batch():
    run = sample(num_draws=40)
    everything = run.positions["output"][:, :, ::2].astype(np.float64)
    assert everything.shape[2] % OBSERVABLES["output"].statistic.batch_length
    np.testing.assert_allclose(run.statistics["output"].value, everything.var(axis=2), rtol=2e-4)


def test_a_run_shorter_than_a_batch_has_its_statistics():
    run = sample(num_draws=3)
    assert set(run.statistics) == {*OBSERVABLES, "positions"}


def test_cutting_a_run_changes_no_total():
    whole = sample(num_draws=33)
    cut = slt.extend(sample(num_draws=13), 20, progress=False)
    assert_same(dict(whole.totals), dict(cut.totals))
