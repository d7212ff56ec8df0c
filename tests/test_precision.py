"""Positions in float32 around weights of any precision, and losses that round them away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.preparation import prepare
from tests.helpers import (
    BATCHES,
    DATA,
    KEY,
    PARAMS,
    assert_same,
    make_posterior,
    network_loss,
    numbers,
    sample,
)

NARROW = {name: jnp.asarray(leaf).astype(jnp.bfloat16) for name, leaf in PARAMS.items()}
WIDE = {name: leaf.astype(jnp.float32) for name, leaf in NARROW.items()}


def begin(posterior, step_size):
    """All that ``sample`` does before its first step, the check of the loss among it."""
    return prepare(posterior, slt.sgld(step_size), BATCHES, KEY, {"num_chains": 4})


def test_bfloat16_weights_give_the_float32_answer():
    # Steps of 1e-5 around weights whose neighbours are 4e-3 apart.
    kernel = slt.sgld(1e-10)
    narrow, wide = (
        sample(make_posterior(params=params), kernel, num_burnin_steps=0)
        for params in (NARROW, WIDE)
    )
    assert_same(numbers(narrow), numbers(wide))
    assert np.max(np.abs(narrow.positions["output"])) < 1e-3
    # The first gap is that of w*, zero for every chain; no later one is lost to rounding.
    later = narrow.traces["gap"][..., 1:]
    assert len(np.unique(later)) == later.size
    assert narrow.posterior.params["output"].dtype == jnp.bfloat16


def rounding_loss(params, batch):
    """A model that casts w* + δ to bfloat16, as one with ``param_dtype=bfloat16`` does."""
    rounded = {name: leaf.astype(jnp.bfloat16) for name, leaf in params.items()}
    return network_loss(rounded, batch)


def test_a_model_that_rounds_the_displacement_away_is_refused_with_advice():
    target = make_posterior(rounding_loss, localization=1e6)
    with pytest.raises(ValueError, match=r"does not follow its own gradient") as raised:
        begin(target, 1e-7)
    assert "in float32" in str(raised.value)
    assert "rounds the displacement away" in str(raised.value)


def test_a_step_that_is_rounded_away_is_warned_of():
    # The posterior is a hundredth wide, which bfloat16 resolves; one step is not.
    target = make_posterior(rounding_loss, n_beta=0.0, localization=4.0)
    with pytest.warns(UserWarning, match=r"one step, √ε.*rounds the displacement away"):
        begin(target, 1e-9)


def quartic_loss(params, batch):
    """Strongly curved, and hardly any slope at w*: a naive finite difference misses by far."""
    return 1e3 * jnp.sum(params["w"] ** 4) + 0.0 * batch[1]


def oscillating_loss(params, batch):
    """A wave of which the posterior at the lower temperature sees most of a period."""
    return 0.3 * jnp.sin(jnp.sum(params["w"]) * 20.0) + 0.0 * batch[1]


@pytest.mark.parametrize("n_beta", [1.0, 1e4])
@pytest.mark.parametrize("loss", [quartic_loss, oscillating_loss])
def test_smooth_but_curved_losses_are_not_refused(loss, n_beta):
    target = slt.LocalPosterior(
        loss, {"w": np.full(4, 0.01, np.float32)}, n_beta=n_beta, localization=100.0
    )
    begin(target, 1e-6)


def test_large_losses_are_not_mistaken_for_rounding():
    """A gap below the resolution of the loss itself says nothing about the weights."""

    def offset_loss(params, batch):
        return 1e4 + network_loss(params, batch)

    begin(make_posterior(offset_loss), 1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_in_a_narrow_dtype_are_refused(dtype):
    def narrow_loss(params, batch):
        return network_loss(params, batch).astype(dtype)

    with pytest.raises(TypeError, match=r"must return float32 nats, got .*float16"):
        begin(make_posterior(narrow_loss), 1e-3)


def test_positions_stay_float32_around_float16_weights():
    params = jax.tree.map(lambda leaf: leaf.astype(np.float16), PARAMS)
    target = make_posterior(params=params)
    assert {leaf.dtype for leaf in target.restriction.zeros()} == {np.dtype(np.float32)}
    at_center = target.params_at(target.restriction.zeros())
    assert {leaf.dtype for leaf in at_center.values()} == {np.dtype(np.float32)}
    assert DATA[0].dtype == np.float32
