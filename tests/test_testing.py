"""The checks for other people's kernels and losses accept what is right and refuse what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.kernels.sgld import Sgld
from slt_jax.testing import check_kernel, check_model, gaussian_loss

KEY = jax.random.key(0)


class HalfNoise(Sgld):
    """SGLD with half the noise it needs."""

    def _noise(self, key, state, labels):
        return tuple(0.5 * leaf for leaf in super()._noise(key, state, labels))


class SameNoise(Sgld):
    """SGLD that ignores its key."""

    def step(self, key, target, state, batch):
        return super().step(jax.random.key(7), target, state, batch)


class LateGap(Sgld):
    """SGLD that reports the gap after the step."""

    def step(self, key, target, state, batch):
        state, info = super().step(key, target, state, batch)
        return state, info._replace(gap=target.gap(state.position, batch))


def remade(kernel: type[Sgld]) -> Sgld:
    """Give another class the settings of ``slt.sgld(1e-3)``."""
    original = slt.sgld(1e-3)
    fields = ("step_size", "preconditioner", "gradient", "adaptation_steps", "noise_averaging")
    return kernel(**{name: getattr(original, name) for name in fields})


def test_a_right_kernel_passes_and_says_what_was_measured():
    report = check_kernel(slt.sgld(1e-3), KEY, num_draws=1000)
    assert report.estimate == pytest.approx(report.exact, rel=0.15)
    assert "kernel ok" in str(report)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (HalfNoise, "does not sample its target"),
        (SameNoise, "does not use its key"),
        (LateGap, "gap before the step"),
    ],
)
def test_a_wrong_kernel_is_refused(kernel, message):
    with pytest.raises(AssertionError, match=message):
        check_kernel(remade(kernel), KEY, num_draws=1000)


def _with_dropout(params, inputs):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, inputs.shape)
    return gaussian_loss(params, jnp.where(kept, inputs, jnp.zeros_like(inputs)))


def _with_batch_statistics(params, inputs):
    return gaussian_loss(params, inputs - inputs.mean(axis=0))


def _in_bfloat16(params, inputs):
    return gaussian_loss({"w": params["w"].astype(jnp.bfloat16).astype(jnp.float32)}, inputs)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (_with_dropout, "evaluation mode"),
        (_with_batch_statistics, "depends on the other examples"),
        (_in_bfloat16, "does not follow its own gradient"),
    ],
)
def test_a_loss_that_is_no_function_of_weights_and_example_is_refused(loss, message):
    inputs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    params = {"w": np.full(3, 100.0, np.float32)}
    check_model(gaussian_loss, params, inputs)
    with pytest.raises(ValueError, match=message):
        check_model(loss, params, inputs)


def test_leaves_that_are_one_array_are_warned_about():
    shared = np.ones(3, np.float32)
    with pytest.warns(UserWarning, match="are one array"):
        check_model(
            lambda params, x: gaussian_loss({"w": params["w"] + params["tied"]}, x),
            {"w": shared, "tied": shared},
            np.eye(4, 3, dtype=np.float32),
        )
