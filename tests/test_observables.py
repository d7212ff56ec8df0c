"""Observables: measured at the right draws, on the right examples, relative to w*."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.observables import GapPair, over_probe
from tests.helpers import (
    BATCHES,
    DATA,
    KEY,
    NUM_CHAINS,
    NUM_EXAMPLES,
    PARAMS,
    PROBE,
    assert_close,
    compiled_programs,
    network_loss,
    sample,
    unchecked_annotations,
)

LARGE = 1000.0
MASK = np.asarray([1, 1, 0, 1, 0.5], np.float32)
EVERY_EXAMPLE = slt.Probe(DATA)


def offset_output(params, examples):
    """A quantity far from zero: its spread is lost in float32 unless a pivot is taken off."""
    return LARGE + params["output"]


def output_and_loss(params, examples):
    return params["output"][:3], network_loss(params, examples)


def mean_and_losses(params, examples):
    losses = network_loss(params, examples)
    return {"losses": losses, "squares": losses**2}


@pytest.fixture(scope="module")
def run():
    """One run that measures everything this file is about."""
    cut = slt.Probe(PROBE.examples, MASK, batch_size=2)
    return sample(
        num_draws=60,
        observables={
            "offset": slt.Observable(offset_output, PROBE, slt.Variance(batch_length=1)),
            "covariance": slt.Observable(output_and_loss, PROBE, slt.Covariance(batch_length=1)),
            "tree": slt.Observable(mean_and_losses, PROBE, slt.Trace(), every=7),
            "masked": slt.LossValues(cut, slt.Trace(), every=2),
            "mean": slt.MeanLoss(cut),
            "whole": slt.MeanLoss(EVERY_EXAMPLE),
            "fresh": GapPair(every=3),
        },
    )


def weights_of(run):
    """Every draw's weights w* + δ in float64, ``[chain, draw, ...]``."""
    return {
        name: (PARAMS[name] + draws[0].astype(np.float64)) for name, draws in run.positions.items()
    }


def losses_of(weights, examples):
    """Losses ``[chain, draw, example]`` by NumPy."""
    hidden = np.tanh(np.einsum("ei,cdih->cdeh", examples[0], weights["attention"]))
    return (np.einsum("cdeh,cdh->cde", hidden, weights["output"]) - examples[1]) ** 2


def gaps_of(run, examples):
    """Losses minus losses at w*, ``[chain, draw, example]``."""
    center = {name: leaf[None, None].astype(np.float64) for name, leaf in PARAMS.items()}
    return losses_of(weights_of(run), examples) - losses_of(center, examples)


def test_values_are_taken_relative_to_the_center(run):
    draws = run.positions["output"][0].astype(np.float64)
    found = run.statistics["offset"]
    # LARGE + δ is rounded to 6e-5 before the statistic sees it; without a pivot sums of 1e6 would
    # leave an error of the order of the variance itself.
    np.testing.assert_allclose(found.value[0], draws.var(axis=1), rtol=0.02)
    assert run.centers["offset"].shape == (12,)


def test_covariances_of_two_quantities(run):
    output = run.positions["output"][0, :, :, :3].astype(np.float64)
    losses = gaps_of(run, PROBE.examples)
    output, losses = output - output.mean(1)[:, None], losses - losses.mean(1)[:, None]
    expected = np.einsum("cdi,cdj->cij", output, losses) / output.shape[1]
    np.testing.assert_allclose(
        run.statistics["covariance"].value[0], expected, atol=1e-3 * np.abs(expected).max()
    )


def test_an_interval_starts_at_the_first_draw(run):
    gaps = gaps_of(run, PROBE.examples)
    tree = run.statistics["tree"].value
    assert tree["losses"].shape == (1, NUM_CHAINS, 9, 5)
    np.testing.assert_allclose(tree["losses"][0], gaps[:, ::7], atol=1e-5)


def test_masked_losses_are_zero_and_means_are_weighted(run):
    gaps = gaps_of(run, PROBE.examples)
    masked = run.statistics["masked"].value[0]
    assert np.all(masked[..., 2] == 0)
    np.testing.assert_allclose(masked, gaps[:, ::2] * (MASK > 0), atol=1e-5)
    expected = (gaps * MASK).sum(axis=-1) / MASK.sum()
    np.testing.assert_allclose(run.statistics["mean"].value[0], expected, atol=1e-5)


def test_fresh_gaps_are_unbiased_and_independent_of_each_other_and_of_the_step(run):
    pair = run.statistics["fresh"].value[0].astype(np.float64)
    assert pair.shape == (NUM_CHAINS, 20, 2)
    truth = run.statistics["whole"].value[0][:, ::3]
    noise = pair - truth[..., None]
    # All chains see the same batches: other draws, and the two of a pair, have others.
    assert len(np.unique(pair[0])) == 40
    # The gap of the next step is measured at the same position, on the batch of that step.
    following = run.traces["gap"][0][:, 1::3]
    assert np.min(np.abs(pair - following[..., None])) > 0
    # 20 pairs: a correlation beyond 0.85 has probability 2e-6 if they are independent.
    assert abs(np.corrcoef(noise[0].T)[0, 1]) < 0.85
    scale = noise.std() / np.sqrt(40)
    # The mean of 40 independent gaps is off by more than 5 of its errors once in 1e5.
    assert abs(noise.mean(axis=(1, 2))).max() < 5 * scale


def test_batches_of_a_probe_join_without_a_seam():
    def fn(examples):
        return {"sum": examples[0].sum(axis=1), "target": examples[1]}

    for size in (1, 2, 3, 5, 8):
        probe = jax.device_put(slt.Probe(PROBE.examples, batch_size=size))
        found = over_probe(fn, probe)
        assert np.array_equal(found["target"], PROBE.examples[1])
        np.testing.assert_allclose(found["sum"], PROBE.examples[0].sum(axis=1), atol=1e-6)


def test_values_that_are_not_per_example_cannot_be_joined():
    probe = slt.Probe(PROBE.examples, batch_size=2)
    with pytest.raises(ValueError, match="one entry per example"):
        over_probe(lambda examples: examples[0].sum(), jax.device_put(probe))
    with pytest.raises(ValueError, match="one entry per example"):
        sample(observables={"output": slt.Observable(lambda params, x: params["output"], probe)})


def test_draws_can_be_kept_at_intervals():
    every = sample()
    thinned = sample(observables=None, collect=slt.Positions(every=4))
    for name, draws in every.positions.items():
        assert thinned.positions[name].shape[2] == 8
        assert_close(thinned.positions[name], draws[:, :, ::4], 1e-6)
    with pytest.raises(ValueError, match="no draws were kept"):
        _ = dataclasses.replace(every, totals={}).positions


@pytest.mark.parametrize(
    "make",
    [
        lambda every: slt.Positions(every=every),
        lambda every: slt.MeanLoss(PROBE, every=every),
        lambda every: slt.Observable(output_and_loss, PROBE, every=every),
        lambda every: GapPair(every=every),
    ],
    ids=["positions", "mean loss", "observable", "pair"],
)
def test_intervals_are_at_least_one_draw(make):
    with pytest.raises(ValueError, match="at least 1 draw"):
        make(0)


def test_intervals_of_fresh_batches_share_a_program():
    def pairs(every, at_least):
        observables = {"fresh": GapPair(every=every, at_least=at_least)}
        run = sample(observables=observables, collect=None, num_draws=40)
        return run.statistics["fresh"].value

    first = pairs(3, at_least=2)
    with compiled_programs() as names:
        second = pairs(5, at_least=2)
    assert names == []
    assert first.shape[2] == 14
    assert second.shape[2] == 8
    # Observations are numbered, not draws: the first is that of the first draw in both.
    assert np.array_equal(first[:, :, 0], second[:, :, 0])
    assert_close(first, pairs(3, at_least=3), 1e-6)
    with pytest.raises(ValueError, match="must not be below at_least = 4"):
        GapPair(every=3, at_least=4)


def test_what_is_no_observable_is_refused():
    with (
        unchecked_annotations(),
        pytest.raises(TypeError, match=r"'mine' must be an slt.Observable"),
    ):
        sample(observables={"mine": lambda params: params})
    with pytest.raises(ValueError, match="'positions' is taken by collect"):
        sample(observables={"positions": slt.MeanLoss(PROBE)})
    pair = {"one": GapPair(every=2), "other": GapPair(every=3)}
    with pytest.raises(ValueError, match="one interval"):
        sample(observables=pair)


def test_probes_check_their_examples():
    with pytest.raises(ValueError, match="batch_size of a probe must be at least 1"):
        slt.Probe(DATA, batch_size=0)
    with pytest.raises(ValueError, match="ragged"):
        slt.Probe((DATA[0], DATA[1][:3]))
    assert slt.Probe(DATA).num_examples == NUM_EXAMPLES


def test_observables_do_not_touch_the_chain(run):
    plain = sample(num_draws=60)
    assert np.array_equal(plain.traces["noise_norm"], run.traces["noise_norm"])
    np.testing.assert_allclose(plain.traces["gap"], run.traces["gap"], atol=1e-5)
    assert jnp.issubdtype(run.statistics["whole"].value.dtype, np.floating)
    assert isinstance(BATCHES.indices(KEY, 0), jax.Array)
