"""Sums over batches of draws: a monoid, with the errors of the ratio estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax._tree import on_device
from slt_jax.estimators.moments import Gaps, ProbeGaps, Products, Shifts, ratio_error
from slt_jax.estimators.probes import Probes, flatten, resolutions
from slt_jax.observables import LossValues, MeanLoss

NUM_BATCHES, LENGTH, ENTRIES = 30, 4, 5


@pytest.fixture(scope="module", params=[Products, Shifts], ids=["products", "shifts"])
def stream(request):
    """Finished sums of one component and two chains, with unequal weights, batch by batch."""
    rng, statistic = np.random.default_rng(0), request.param(LENGTH)
    batches = []
    for _ in range(NUM_BATCHES):
        sums = statistic.empty(Gaps(np.zeros(()), np.zeros(()), np.zeros(ENTRIES)))
        sums = jax.tree.map(lambda leaf: np.zeros((2, *leaf.shape), np.float32), sums)
        for _ in range(LENGTH):
            gap, losses = rng.gamma(2, size=2), rng.normal(size=(2, ENTRIES))
            value = Gaps(gap, gap**2, losses + gap[:, None])
            weight = rng.uniform(0.5, 1.5, 2)
            sums = jax.vmap(statistic.update)(sums, value, weight)
        batches.append(jax.tree.map(lambda leaf: np.asarray(leaf)[None], sums))
    return statistic, batches


def total_of(statistic, batches):
    total = None
    for sums in batches:
        total = statistic.merge(total, statistic.contribution(sums, finished=True))
    return total


def test_totals_do_not_depend_on_how_they_are_grouped(stream):
    statistic, batches = stream
    whole = total_of(statistic, batches)
    parts = total_of(statistic, batches[:7]), total_of(statistic, batches[7:])
    before = jax.tree.map(np.copy, parts[0])
    together = statistic.merge(*parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole, together)
    # A run may be continued twice: what was summed up before stays as it is.
    jax.tree.map(np.testing.assert_array_equal, parts[0], before)


def test_an_unfinished_batch_counts_for_the_mean_only(stream):
    statistic, batches = stream
    total = total_of(statistic, batches)
    rest = statistic.contribution(batches[0], finished=False)
    assert total["batches"] == NUM_BATCHES
    merged = statistic.merge(total, rest)
    assert merged["batches"] == NUM_BATCHES
    np.testing.assert_array_equal(merged["together"].term, total["together"].term)
    assert np.all(merged["sums"]["weight"] > total["sums"]["weight"])


def test_the_error_is_that_of_the_ratio_of_two_sums(stream):
    """From the sums alone, the same as from the batches one by one."""
    statistic, batches = stream
    total = total_of(statistic, batches)
    other = "gap" if isinstance(statistic, Products) else None
    shift = np.linspace(-1, 1, ENTRIES)

    def term(sums):
        if other:
            return sums["product"] - sums["square"][..., None] - sums["gap"][..., None] * shift
        return sums["loss"] - sums["gap"][..., None]

    each = [jax.tree.map(lambda leaf: np.float64(leaf)[0].sum(axis=0), sums) for sums in batches]
    terms, weights = np.stack([term(s) for s in each]), np.stack([s["weight"] for s in each])
    mean = terms.sum(axis=0) / weights.sum()
    residuals = terms - mean * weights[:, None]
    scale = NUM_BATCHES / (NUM_BATCHES - 1)
    expected = np.sqrt(scale * np.square(residuals).sum(axis=0)) / weights.sum()
    coefficients = {"weight": mean} | ({"gap": shift} if other else {})
    squares = jax.tree.map(lambda leaf: leaf[0], total["together"])
    np.testing.assert_allclose(ratio_error(squares, coefficients, NUM_BATCHES), expected, rtol=1e-6)
    assert np.isnan(ratio_error(squares, coefficients, 1)).all()
    estimate = statistic.finalize(total)
    assert estimate.value.shape == estimate.standard_error.shape == (1, 2, ENTRIES)


def test_a_dead_row_adds_nothing(stream):
    statistic, _ = stream
    empty = statistic.empty(Gaps(np.zeros(()), np.zeros(()), np.zeros(ENTRIES, np.float32)))
    infinite = jnp.full((), jnp.inf)
    bad = Gaps(infinite, infinite, jnp.full((ENTRIES,), jnp.inf))
    sums = statistic.update(empty, bad, jnp.zeros(()))
    jax.tree.map(np.testing.assert_array_equal, sums, empty)


def probes(shape, weights=None):
    rng = np.random.default_rng(1)
    losses = rng.uniform(1, 2, shape).astype(np.float32)
    weights = np.ones(shape, np.float32) if weights is None else weights
    return Probes(
        slt.Probe(np.zeros(shape, np.float32)), ("a", "b"), (2, shape[0] - 2), losses, weights
    )


def test_masked_tokens_are_left_out_and_weights_weigh():
    weights = np.asarray([[1, 0, 2], [1, 1, 1], [0, 0, 0], [3, 0, 0]], np.float32)
    made = probes((4, 3), weights)
    found = resolutions(made, tokens=True)
    assert list(found) == ["token", "sequence", "dataset"]
    tokens, rows, datasets = (one.entries for one in found.values())
    assert tokens.position.tolist() == [0, 2, 0, 1, 2, 0]
    assert tokens.sequence.tolist() == [0, 0, 1, 1, 1, 1]
    assert tokens.dataset.tolist() == ["a"] * 5 + ["b"]
    assert rows.sequence.tolist() == [0, 1, 1]
    assert datasets.weight.tolist() == [6, 3]
    change = np.where(weights > 0, made.losses, 0)
    flat = np.asarray(flatten((made.counts, True), jnp.asarray(change), jnp.asarray(weights)))
    np.testing.assert_allclose(flat[found["token"].numbers], tokens.loss, rtol=1e-6)
    np.testing.assert_allclose(flat[found["sequence"].numbers], rows.loss, rtol=1e-6)
    np.testing.assert_allclose(flat[found["dataset"].numbers], datasets.loss, rtol=1e-6)
    np.testing.assert_allclose(
        datasets.loss[0], np.average(made.losses[:2], weights=weights[:2]), rtol=1e-6
    )


def test_losses_of_examples_are_their_own_tokens():
    made = probes((5,))
    found = resolutions(made, tokens=True)
    assert found["token"].entries.position.tolist() == [0] * 5
    np.testing.assert_array_equal(found["token"].numbers, found["sequence"].numbers)
    flat = np.asarray(flatten((made.counts, True), *map(jnp.asarray, (made.losses, made.weights))))
    assert flat.shape == (7,)
    np.testing.assert_allclose(flat[found["token"].numbers], made.losses, rtol=1e-6)
    assert list(resolutions(made, tokens=False)) == ["sequence", "dataset"]


def test_products_of_different_minibatches():
    """The mean over all pairs of different ones, and nothing of their squares."""
    probe = slt.Probe(np.zeros((3, 2), np.float32))
    gaps = np.asarray([1.0, 2.0, 5.0], np.float32)
    observable = ProbeGaps(
        losses=LossValues(probe=probe),
        statistic=Products(),
        evaluation=None,
        names=("a",),
        counts=(3,),
        batches_per_draw=3,
    )
    losses, weights = jnp.ones((3, 2)), jnp.ones((3, 2))
    center = (jnp.zeros((3, 2)), weights), jnp.zeros(3)
    value = observable.relative(((losses, weights), jnp.asarray(gaps)), center)
    assert float(value.gap) == pytest.approx(8 / 3)
    assert float(value.square) == pytest.approx((1 * 2 + 1 * 5 + 2 * 5) / 3)
    assert observable.num_fresh == 3


def test_an_evaluation_set_is_measured_together_with_probes_that_are_like_it():
    """One pass for both, with the numbers of two; measured in other batches it is by itself."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=(11, 3)).astype(np.float32)
    posterior = slt.LocalPosterior(
        lambda params, x: (x - params["w"]) ** 2, {"w": np.ones(3, np.float32)}, 10.0, 1.0
    )
    displacement = (jnp.asarray(rng.normal(size=3), jnp.float32),)

    def gaps(batch_size, prepared):
        observable = on_device(
            ProbeGaps(
                losses=LossValues(probe=slt.Probe(data[:7], batch_size=4)),
                statistic=Products(),
                evaluation=MeanLoss(probe=slt.Probe(data[7:], batch_size=batch_size)),
                names=("a", "b"),
                counts=(3, 4),
            )
        )
        if prepared:
            observable = observable.prepare(posterior, True)
            assert (observable.together is not None) == (batch_size == 4)
        values = [observable.measure(posterior, at, None) for at in (displacement, zeros)]
        return observable.relative(*values)

    zeros = posterior.restriction.zeros()
    apart = gaps(2, False)
    change = (data - 1 - displacement[0]) ** 2 - (data - 1) ** 2
    np.testing.assert_allclose(apart.gap, change[7:].mean(), rtol=1e-5)
    np.testing.assert_allclose(apart.losses[-21:], change[:7].ravel(), rtol=1e-4, atol=1e-5)
    for batch_size, prepared in ((2, True), (4, False), (4, True)):
        found = gaps(batch_size, prepared)
        for one, other in zip(found, apart, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
