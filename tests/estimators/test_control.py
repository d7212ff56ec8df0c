"""The control: independent draws that have the law of the kernel without data, step by step."""

import dataclasses

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.estimators.control import control_of
from tests.helpers import BATCHES, NUM_CHAINS, POSTERIOR, head

NUM_DRAWS, INTERVAL, BURN_IN = 400, 2, 3
GAMMA = float(POSTERIOR.localization)


def control(kernel):
    """A run of both heads, and its control."""
    run = slt.sample(
        POSTERIOR,
        kernel,
        BATCHES,
        jax.random.key(1),
        components={"first": head(0), "second": head(1)},
        num_chains=NUM_CHAINS,
        num_steps_bw_draws=INTERVAL,
        collect=slt.Positions(),
        num_draws=NUM_DRAWS,
        num_burnin_steps=BURN_IN,
        progress=False,
    )
    return run, control_of(run)


def scaled_squares(run, null):
    """δ²/Var of every draw and weight of the control, ``[draw, ...]``, by the step sizes it has."""
    steps = BURN_IN + INTERVAL * (1 + np.arange(NUM_DRAWS))
    sizes = np.asarray(null.carry.state.step_sizes[0], np.float64)
    shape = (2, NUM_CHAINS, 1, *sizes.shape[1:])
    rho = 1 - 0.5 * sizes.reshape(shape) * GAMMA
    time = steps.reshape(1, 1, -1, *(1,) * (sizes.ndim - 1))
    variance = (1 - rho ** (2 * time)) / (GAMMA * (1 - 0.25 * sizes.reshape(shape) * GAMMA))
    draws = next(iter(null.positions.values()))
    return draws**2 / variance


PLAIN = slt.sgld(1e-3)
UNEVEN = slt.sgld(1e-4, slt.rms(decay=0.3, eps=0.1, initial=0.0))


@pytest.mark.parametrize("kernel", [PLAIN, UNEVEN], ids=["plain", "rms"])
def test_every_draw_has_the_variance_of_its_step(kernel):
    """In ten stretches of the run, from one relaxation time to forty: 1e-5 of seeds fail.

    δ²/Var has mean 1 and variance 2; a stretch holds 40 draws of 48 weights in 4 chains.
    """
    run, null = control(kernel)
    squares = scaled_squares(run, null)
    stretches = np.moveaxis(squares, 2, 0).reshape(10, -1)
    error = np.sqrt(2 / stretches.shape[1])
    assert np.abs(stretches.mean(axis=1) - 1).max() < 5 * error


def test_the_step_sizes_are_those_of_the_run():
    """A frozen preconditioner differs between weights and components; chains are averaged."""
    run, null = control(UNEVEN)
    own = np.asarray(jax.vmap(run.kernel.step_sizes)(run.carry.state)[0])
    by_component = own.reshape(2, NUM_CHAINS, -1).mean(axis=1)
    given = np.asarray(null.carry.state.step_sizes[0]).reshape(2, NUM_CHAINS, -1)
    np.testing.assert_allclose(given, np.repeat(by_component[:, None], NUM_CHAINS, 1), rtol=1e-5)
    assert np.ptp(given[:, 0]) > 0.01 * given.mean()
    assert not np.allclose(given[0], given[1], rtol=1e-3)


def test_draws_are_independent_of_each_other_and_of_the_run():
    """Correlations of 9600 pairs are within 5 errors of zero: 1e-6 of seeds fail."""
    run, null = control(PLAIN)
    mine, theirs = (next(iter(one.positions.values())) for one in (null, run))
    scaled = mine / mine.std()
    for other in (scaled[:, :, 1:], theirs[:, :, 1:] / theirs.std()):
        products = scaled[:, :, :-1] * other
        assert abs(products.mean()) < 5 / np.sqrt(products.size)


def test_a_dispersed_run_has_a_control_at_rest():
    """Variance 1/(γ(1 − εγ/4)) from the first draw on: 1e-6 of seeds fail."""
    run, _ = control(PLAIN)
    dispersed = dataclasses.replace(run.settings, dispersed=True)
    null = control_of(dataclasses.replace(run, settings=dispersed))
    draws = next(iter(null.positions.values()))[:, :, :20]
    ratio = draws**2 * GAMMA * (1 - 0.25e-3 * GAMMA)
    assert abs(ratio.mean() - 1) < 5 * np.sqrt(2 / ratio.size)
