"""Kernels whose update is linear in their state, against the exact law of the discrete chain.

Every comparison rests on 256 independent chains, or on 30 stretches of time where chains share
their minibatches. Summed over the file 5e-5 of seeds fail by chance. Covariances and λ̂ are right
to 1 % or 2 %; the laws at neighbouring step sizes differ by 10 % and more.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from tests.kernels.agreement import assert_agrees, second_moments, upper_triangle
from tests.kernels.least_squares import (
    EPS,
    LOCALIZATION,
    N_BETA,
    NUM_BURNIN_STEPS,
    additive,
    joined,
    mixed,
    multiplicative,
    positions_of,
    sample,
)
from tests.oracles.discrete_laws import (
    control_variance,
    covariance_after,
    learning_coefficient,
    stationary_covariance,
)
from tests.oracles.linear_chains import (
    LinearChain,
    adam_chain,
    noise_averaged_sgld_chain,
    sghmc_chain,
    sgld_chain,
)

# Adam and RMSprop freeze their metric at the end of the burn-in, at a law that is not theirs yet.
NUM_SETTLING_DRAWS = 50

FIRST_DECAY, SECOND_DECAY = 0.8, 0.9

DATA = {"additive": additive(), "multiplicative": multiplicative(), "mixed": mixed()}


class Case(NamedTuple):
    """A kernel, the same kernel as a linear map, and three step sizes to compare them at."""

    kernel: Callable[[float], slt.AbstractKernel]
    chain: Callable[..., LinearChain]
    step_sizes: tuple[float, float, float]
    metric: Callable[[slt.Run], np.ndarray] | None = None


def rms_metric(run: slt.Run) -> np.ndarray:
    """D = 1/(√v + a) of every chain as it was frozen, shape (chain, d)."""
    return 1 / (np.sqrt(joined(run.carry.state.preconditioner.nu)) + EPS)


def adam_metric(run: slt.Run) -> np.ndarray:
    """D = 1/(√v̂ + a), v̂ = v/(1 − b₂ᵗ) with t the step of the freeze, shape (chain, d)."""
    moment = joined(run.carry.state.preconditioner.second.nu)
    corrected = moment / (1 - SECOND_DECAY**NUM_BURNIN_STEPS)
    return 1 / (np.sqrt(corrected) + EPS)


CASES = {
    "sgld": Case(slt.sgld, sgld_chain, (0.01, 0.02, 0.03)),
    "noise-averaged sgld": Case(
        lambda step_size: slt.sgld(step_size, noise_averaging=True),
        noise_averaged_sgld_chain,
        (0.01, 0.02, 0.03),
    ),
    "frozen rms": Case(
        lambda step_size: slt.sgld(step_size, slt.rms(decay=SECOND_DECAY, eps=EPS)),
        sgld_chain,
        (0.005, 0.01, 0.02),
        rms_metric,
    ),
    "frozen adam": Case(
        lambda step_size: slt.sgld(step_size, slt.adam(FIRST_DECAY, SECOND_DECAY, EPS)),
        lambda target, step_size, metric: adam_chain(target, step_size, FIRST_DECAY, metric),
        (0.003, 0.006, 0.012),
        adam_metric,
    ),
    "sghmc of low friction": Case(
        lambda step_size: slt.sghmc(step_size, friction=3.0),
        lambda target, step_size: sghmc_chain(target, step_size, 3.0),
        (0.003, 0.006, 0.012),
    ),
    "sghmc of high friction": Case(
        lambda step_size: slt.sghmc(step_size, friction=20.0),
        lambda target, step_size: sghmc_chain(target, step_size, 20.0),
        (0.01, 0.02, 0.03),
    ),
}


def exact_law(case: Case, run: slt.Run, data, step_size: float):
    """Covariance and λ̂ of every chain, in its own metric if it has one."""
    target = data.target(N_BETA, LOCALIZATION)
    metrics = [()] if case.metric is None else [(metric,) for metric in case.metric(run)]
    covariances = [
        stationary_covariance(case.chain(target, step_size, *metric), data.noise())
        for metric in metrics
    ]
    coefficients = [
        learning_coefficient(covariance, target.hessian, N_BETA) for covariance in covariances
    ]
    return upper_triangle(covariances), np.array(coefficients)


@pytest.mark.parametrize("noise", ["additive", "multiplicative"])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", CASES)
def test_stationary_law(name: str, number: int, noise: str):
    """36 cases × 11 numbers at 5.5 standard errors of 256 chains: 4e-5 of seeds fail."""
    case, data = CASES[name], DATA[noise]
    step_size = case.step_sizes[number]
    run = sample(data, case.kernel(step_size), seed=number)
    settled = slice(NUM_SETTLING_DRAWS, None)
    covariance, coefficient = exact_law(case, run, data, step_size)
    measured = second_moments(positions_of(run)[:, settled])
    gap = run.traces["gap"][0][:, settled].mean(1, dtype=np.float64)
    assert_agrees(measured - covariance, 0, 5.5, "error of the covariance")
    assert_agrees(N_BETA * gap - coefficient, 0, 5.5, "error of λ̂")


@pytest.mark.parametrize("name", ["sgld", "sghmc of low friction"])
def test_stationary_law_with_shared_minibatches(name: str):
    """Each chain has the same law as alone; two chains are correlated, as the oracle says.

    The noise that chains share makes them dependent, so the error is that of 30 stretches of
    time. 2 cases × 21 numbers at 7 standard errors: 5e-6 of seeds fail.
    """
    case, data = CASES[name], DATA["mixed"]
    step_size = case.step_sizes[1]
    run = sample(data, case.kernel(step_size), num_draws=3000, per_chain=False)
    target = data.target(N_BETA, LOCALIZATION)
    chain = case.chain(target, step_size)
    own = stationary_covariance(chain, data.noise())
    # Without injected noise, what is left is the part of the law that the chains share.
    shared = stationary_covariance(
        chain._replace(injected=np.zeros_like(chain.injected)), data.noise()
    )
    draws = positions_of(run)
    measured = np.concatenate([second_moments(stretches(draws)), between(draws)], axis=1)
    assert_agrees(measured, upper_triangle([own, shared]).ravel(), 7, "covariance")
    gap = stretches(run.traces["gap"][0][..., None]).mean((1, 2), dtype=np.float64)
    coefficient = learning_coefficient(own, target.hessian, N_BETA)
    assert_agrees(N_BETA * gap, coefficient, 7, "λ̂")


def stretches(series: np.ndarray, count: int = 30) -> np.ndarray:
    """Cut time into stretches of all chains: (chain, draw, k) ↦ (stretch, draws, k)."""
    pieces = np.split(series, count, axis=1)
    return np.stack([piece.reshape(-1, series.shape[2]) for piece in pieces])


def between(draws: np.ndarray) -> np.ndarray:
    """Mean of w wᵀ over pairs of different chains: (chain, draw, d) ↦ (stretch, entries)."""
    num_chains = len(draws)
    total = second_moments(stretches(draws.sum(0, keepdims=True)))
    own = second_moments(stretches(draws)) * num_chains
    return (total - own) / (num_chains * (num_chains - 1))


def early_draws(data, kernel, num_draws: int, n_beta: float = N_BETA) -> np.ndarray:
    """The first draws of 8192 chains from w*, shape (chain, draw, d)."""
    runs = [
        sample(data, kernel, seed, n_beta=n_beta, num_draws=num_draws, num_burnin_steps=0)
        for seed in range(100, 132)
    ]
    return np.concatenate([positions_of(run) for run in runs])


@pytest.mark.parametrize("name", ["sgld", "noise-averaged sgld", "sghmc of low friction"])
def test_law_of_the_first_steps(name: str):
    """3 kernels × 5 times × 10 entries at 6 standard errors of 8192 chains: 3e-7 of seeds fail."""
    case, data = CASES[name], DATA["mixed"]
    step_size = case.step_sizes[2]
    draws = early_draws(data, case.kernel(step_size), num_draws=8)
    chain = case.chain(data.target(N_BETA, LOCALIZATION), step_size)
    if name.startswith("sghmc"):
        # The oracle starts from a random momentum, the engine from none.
        chain = chain._replace(start=np.zeros_like(chain.start))
    for steps in (1, 2, 3, 5, 8):
        exact = covariance_after(chain, data.noise(), steps)
        measured = second_moments(draws[:, steps - 1 : steps])
        assert_agrees(measured, upper_triangle(exact), 6, f"covariance after {steps} steps")


CONTROLS = {
    "sgld": slt.sgld(0.2),
    "noise-averaged sgld": slt.sgld(0.2, noise_averaging=True),
    # So slow an average that D = 1/(√0.25 + 0.2) from the first step to the last.
    "rms": slt.sgld(0.1, slt.rms(decay=1 - 2.0**-24, eps=EPS, initial=0.25)),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_law_without_data(name: str):
    """The variance that a kernel predicts for nβ = 0 is that of its chains at nβ = 0 (D6).

    3 kernels × 3 times × 4 weights at 6 standard errors of 8192 chains: 7e-8 of seeds fail.
    """
    kernel, data = CONTROLS[name], DATA["mixed"]
    draws = early_draws(data, kernel, num_draws=8, n_beta=0.0)
    (sizes, _) = kernel.step_sizes(kernel.init(data.posterior(0.0, LOCALIZATION)))
    for steps in (1, 2, 8):
        predicted = control_of(kernel, sizes, steps)
        if name != "noise-averaged sgld":
            exact = control_variance(LOCALIZATION, np.asarray(sizes), steps)
            np.testing.assert_allclose(predicted, exact, rtol=1e-5)
        measured = draws[:, steps - 1] ** 2
        assert_agrees(measured, np.tile(predicted, 2), 6, f"variance after {steps} steps")


def test_stationary_law_without_data_in_a_frozen_metric():
    """At nβ = 0 a frozen rms has the variance of its ε_i, weight by weight and chain by chain.

    4 weights at 6 standard errors of 256 chains: 3e-8 of seeds fail.
    """
    kernel = slt.sgld(0.1, slt.rms(decay=SECOND_DECAY, eps=EPS))
    run = sample(DATA["mixed"], kernel, n_beta=0.0)
    sizes = 0.1 * rms_metric(run)
    np.testing.assert_allclose(
        joined(jax.vmap(kernel.step_sizes)(run.carry.state)), sizes, rtol=1e-5
    )
    predicted = control_of(run.kernel, jnp.asarray(sizes, jnp.float32), 10**6)
    measured = np.mean(positions_of(run)[:, NUM_SETTLING_DRAWS:] ** 2, axis=1)
    assert_agrees(measured - predicted, 0, 6, "error of the variance")
    assert predicted.max() > 1.05 / LOCALIZATION


def control_of(kernel: slt.AbstractKernel, sizes: jax.Array, steps: int) -> np.ndarray:
    """The kernel's own prediction of the variance at nβ = 0 after so many steps."""
    localization, count = jnp.float32(LOCALIZATION), jnp.float32(steps)
    return np.asarray(kernel.control_variance(sizes, localization, count))
