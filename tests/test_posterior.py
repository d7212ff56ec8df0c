"""The local posterior: its density, its gradient, its priors, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from tests.helpers import (
    DATA,
    KERNEL,
    KEY,
    PARAMS,
    POSTERIOR,
    head,
    make_posterior,
    network_loss,
    same_bits,
    sample,
    unchecked_annotations,
)

BATCH = slt.Minibatch(DATA)
PRIORS = {"n_beta": 20.0, "localization": 3.0, "weight_decay": 0.7, "bounding_box": 0.5}


def displacement(scale):
    generator = np.random.default_rng(9)
    return tuple(
        jnp.asarray(scale * generator.normal(size=leaf.shape).astype(np.float32))
        for leaf in PARAMS.values()
    )


def test_density_is_the_tempered_localized_posterior():
    delta = displacement(0.05)
    moved = {name: PARAMS[name] + np.asarray(d) for name, d in zip(PARAMS, delta, strict=True)}
    target = make_posterior(**PRIORS)
    value = float(target.log_density(delta, BATCH))

    def mean_loss(params):
        hidden = np.tanh(DATA[0].astype(np.float64) @ params["attention"])
        return np.mean((hidden @ params["output"] - DATA[1]) ** 2)

    def square(tree):
        return sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in tree)

    expected = (
        -20.0 * (mean_loss(moved) - mean_loss(PARAMS))
        - 1.5 * square(map(np.asarray, delta))
        - 0.35 * (square(moved.values()) - square(PARAMS.values()))
    )
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight_decay", [None, 0.7])
def test_prior_gradient_is_the_derivative_of_the_prior(weight_decay):
    target = make_posterior(localization=3.0, weight_decay=weight_decay)
    delta = displacement(0.05)
    derivative = jax.jit(jax.grad(target.log_prior))(delta)
    for gradient, slope in zip(target.prior_gradient(delta), derivative, strict=True):
        np.testing.assert_allclose(gradient, -np.asarray(slope), rtol=1e-5, atol=1e-5)


def test_prior_gradient_of_localization_and_weight_decay():
    target = make_posterior(localization=3.0, weight_decay=0.7).restrict(head(1))
    delta = (jnp.full((3, 3, 1, 2), 0.25),)
    weights = PARAMS["attention"].reshape(3, 3, 2, 2)[:, :, 1:2] + 0.25
    np.testing.assert_allclose(
        target.prior_gradient(delta)[0], 3.0 * 0.25 + 0.7 * weights, rtol=1e-6
    )


def test_density_is_zero_at_the_center_and_minus_infinity_outside_the_box():
    target = make_posterior(**PRIORS)
    zeros = target.restriction.zeros()
    assert float(target.log_density(zeros, BATCH)) == 0.0
    edge = (zeros[0].at[0, 0].set(0.5), zeros[1])
    assert np.isfinite(target.log_prior(edge))
    assert float(target.log_prior((zeros[0].at[0, 0].set(-0.51), zeros[1]))) == -np.inf


def test_chains_are_clipped_to_the_box_after_every_step():
    box = 0.02
    boxed, loose = (make_posterior(weight_decay=0.0, bounding_box=b) for b in (box, 1e6))
    run, free = sample(boxed, observables=None), sample(loose, observables=None)
    for name, draws in run.positions.items():
        assert np.max(np.abs(draws)) == np.float32(box), "reached, and not crossed"
        assert np.max(np.abs(free.positions[name])) > 2 * box
    # One step from w*: the box cuts it and changes nothing else.
    first, uncut = (
        sample(target, observables=None, num_draws=1, num_burnin_steps=0).positions
        for target in (boxed, loose)
    )
    for name, draws in first.items():
        assert same_bits(draws, np.clip(uncut[name], -np.float32(box), np.float32(box)))


def test_weight_decay_pulls_towards_zero():
    # With a decay that outweighs everything else, w goes to zero: δ → −w*.
    target = make_posterior(n_beta=0.0, localization=0.0, weight_decay=1e6, bounding_box=1e6)
    run = sample(target, slt.sgld(1e-7), observables=None, num_burnin_steps=200)
    pulled = run.positions["output"].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(pulled, -PARAMS["output"], atol=5e-3)


def test_gap_keeps_the_digits_of_a_small_difference():
    # Losses of a thousand nats with gaps of a millionth: lost if averages were subtracted.
    def loss(params, batch):
        return 1000.0 + batch[0][:, 0] * params["w"]

    target = slt.LocalPosterior(loss, {"w": np.float32(0.0)}, n_beta=1.0, localization=1.0)
    small = (jnp.float32(1e-2),)
    gap = float(target.gap(small, BATCH))
    values = (np.float32(1000.0) + DATA[0][:, 0] * np.float32(1e-2)).astype(np.float64) - 1000.0
    assert gap == pytest.approx(values.mean(), rel=1e-6)


def test_restricting_keeps_everything_else():
    target = make_posterior(**PRIORS).restrict(head(0))
    assert target.restriction.num_params == 18
    assert float(target.localization) == 3.0
    assert target.params is not None
    assert target.restrict(slt.Restriction.full(PARAMS)).restriction.num_params == 48


def test_weights_at_a_displacement():
    moved = POSTERIOR.restrict(head(1)).params_at((jnp.ones((3, 3, 1, 2)),))
    assert same_bits(moved["output"], PARAMS["output"])
    shift = np.asarray(moved["attention"]) - PARAMS["attention"]
    assert shift.sum() == pytest.approx(18, abs=1e-4)


def test_arrays_inside_the_loss_are_arguments_of_the_program():
    def scaled(scale, params, batch):
        return scale * network_loss(params, batch)

    target = make_posterior(eqx.Partial(scaled, np.float32(2.0)))
    assert any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(target.loss_fn))
    doubled, plain = (each.gap(displacement(0.05), BATCH) for each in (target, POSTERIOR))
    assert float(doubled) == pytest.approx(2 * float(plain), rel=1e-6)


@pytest.mark.parametrize("name", ["n_beta", "localization", "weight_decay", "bounding_box"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_settings_must_be_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
        make_posterior(**{name: value})


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (np.arange(3), "dtype int64"),
        (np.ones(3, bool), "dtype bool"),
        (jax.random.key(0), r"dtype key<fry>"),
        (np.ones(3, np.complex64), "dtype complex64"),
        (1.0, "got float"),
        ("relu", "got str"),
    ],
    ids=["integer", "bool", "key", "complex", "float", "str"],
)
def test_leaves_that_are_no_weights_are_refused(leaf, found):
    with pytest.raises(TypeError, match=f"params leaf 'extra/0' .*{found}"):
        make_posterior(params=PARAMS | {"extra": [leaf]})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    broken = PARAMS | {"output": np.where(np.arange(12) == 3, np.float32(value), PARAMS["output"])}
    with pytest.raises(ValueError, match=r"leaf 'output' has 1 non-finite entries of 12"):
        make_posterior(params=broken)


def test_a_loss_that_cannot_be_called_and_weights_without_leaves_are_refused():
    with unchecked_annotations(), pytest.raises(TypeError, match="loss_fn must be callable"):
        make_posterior(loss=3.0)
    with pytest.raises(ValueError, match="no leaves"):
        make_posterior(params={})


def test_zero_temperature_and_localization_are_allowed():
    run = sample(make_posterior(n_beta=0.0, localization=0.0), KERNEL, key=KEY)
    assert run.health.alive.all()
    assert np.all(run.traces["gradient_norm"] == 0)
    assert np.all(run.traces["localization_norm"] == 0)
