"""Every law against its simulation, its closed form and its limits.

The simulations hold 30 000 to 40 000 independent chains, so a variance is known to 0.8 %, and
each compares the three distinct entries of a 2×2 matrix at 4.5 standard errors: all of
this file together fails by chance in about 4e-4 of seeds, and the seeds are constants.
"""

from collections.abc import Callable

import numpy as np
import pytest

from . import simulation
from ._types import Array
from .discrete_laws import (
    control_variance,
    covariance_after,
    gap_long_run_variance,
    gap_shift_after_step,
    learning_coefficient,
    localized_gaussian,
    multiplicative_variance,
    stationary_covariance,
)
from .gradient_noise import (
    GradientNoise,
    additive_noise,
    finite_population_factor,
    finite_population_noise,
    no_noise,
)
from .linear_chains import (
    LinearChain,
    Quadratic,
    adam_chain,
    noise_averaged_sgld_chain,
    sghmc_chain,
    sgld_chain,
)

Kernel = Callable[..., LinearChain]

NUM_CHAINS = 40_000
TARGET = Quadratic(np.array([[3.0, 1.0], [1.0, 1.0]]), n_beta=30.0, localization=10.0)
EXACT = np.linalg.inv(TARGET.precision)
METRIC = np.array([0.5, 1.5])
STEP_SIZE = 0.01
# Strong enough to double or triple the variance: a wrong factor cannot hide.
NOISE = additive_noise(np.array([[4.0, 1.0], [1.0, 2.0]]), batch_size=8, num_examples=50)


def scalar(h: float, n_beta: float, localization: float) -> Quadratic:
    return Quadratic(np.array([[h]]), n_beta, localization)


def test_simulated_sgld():
    rng = np.random.default_rng(10)
    error = simulation.gaussian_error(NOISE.additive, rng)
    draws = simulation.run_sgld(TARGET, STEP_SIZE * METRIC, error, NUM_CHAINS, 80, rng)
    chain = sgld_chain(TARGET, STEP_SIZE, METRIC)
    simulation.assert_second_moment(draws, stationary_covariance(chain, NOISE))


def test_simulated_transient():
    rng = np.random.default_rng(11)
    error = simulation.gaussian_error(NOISE.additive, rng)
    draws = simulation.run_sgld(TARGET, STEP_SIZE * METRIC, error, NUM_CHAINS, 3, rng)
    chain = sgld_chain(TARGET, STEP_SIZE, METRIC)
    simulation.assert_second_moment(draws, covariance_after(chain, NOISE, 3))
    assert covariance_after(chain, NOISE, 3)[1, 1] < 0.8 * stationary_covariance(chain, NOISE)[1, 1]


@pytest.mark.parametrize("num_steps", [3, 80])
def test_simulated_noise_averaging(num_steps: int):
    rng = np.random.default_rng(12)
    error = simulation.gaussian_error(NOISE.additive, rng)
    steps = 2 * STEP_SIZE * METRIC
    draws = simulation.run_noise_averaged_sgld(TARGET, steps, error, NUM_CHAINS, num_steps, rng)
    chain = noise_averaged_sgld_chain(TARGET, 2 * STEP_SIZE, METRIC)
    simulation.assert_second_moment(draws, covariance_after(chain, NOISE, num_steps))


@pytest.mark.parametrize(("friction", "num_steps"), [(2.0, 4), (2.0, 80), (20.0, 80)])
def test_simulated_sghmc(friction: float, num_steps: int):
    rng = np.random.default_rng(13)
    error = simulation.gaussian_error(NOISE.additive, rng)
    draws = simulation.run_sghmc(TARGET, STEP_SIZE, friction, error, NUM_CHAINS, num_steps, rng)
    chain = sghmc_chain(TARGET, STEP_SIZE, friction)
    simulation.assert_second_moment(draws, covariance_after(chain, NOISE, num_steps))


@pytest.mark.parametrize(("decay", "num_steps"), [(0.5, 4), (0.5, 100), (0.9, 150)])
def test_simulated_adam(decay: float, num_steps: int):
    rng = np.random.default_rng(14)
    error = simulation.gaussian_error(NOISE.additive, rng)
    steps = 0.5 * STEP_SIZE * METRIC
    draws = simulation.run_adam(TARGET, steps, decay, error, NUM_CHAINS, num_steps, rng)
    chain = adam_chain(TARGET, 0.5 * STEP_SIZE, decay, METRIC)
    simulation.assert_second_moment(draws, covariance_after(chain, NOISE, num_steps))


def finite_population() -> tuple[Array, Array]:
    """Six examples of rank-one curvature whose gradients at w* sum to zero."""
    rng = np.random.default_rng(20)
    factors = rng.standard_normal((6, 2, 1))
    gradients = 0.5 * rng.standard_normal((6, 2))
    return 2 * factors @ factors.swapaxes(1, 2), gradients - gradients.mean(0)


def simulate_population(
    kernel: str, target: Quadratic, error: simulation.GradientError, rng: np.random.Generator
) -> tuple[LinearChain, Array]:
    steps = 0.02 * METRIC
    match kernel:
        case "sgld":
            draws = simulation.run_sgld(target, steps, error, 30_000, 80, rng)
            return sgld_chain(target, 0.02, METRIC), draws
        case "noise_averaged":
            draws = simulation.run_noise_averaged_sgld(target, steps, error, 30_000, 80, rng)
            return noise_averaged_sgld_chain(target, 0.02, METRIC), draws
        case "sghmc":
            draws = simulation.run_sghmc(target, 0.02, 10.0, error, 30_000, 80, rng)
            return sghmc_chain(target, 0.02, 10.0), draws
        case _:
            draws = simulation.run_adam(target, steps, 0.5, error, 30_000, 80, rng)
            return adam_chain(target, 0.02, 0.5, METRIC), draws


@pytest.mark.parametrize("kernel", ["sgld", "noise_averaged", "sghmc", "adam"])
def test_simulated_minibatches_of_unlike_examples(kernel: str):
    hessians, gradients = finite_population()
    target = Quadratic(hessians.mean(0), n_beta=30.0, localization=5.0)
    noise = finite_population_noise(hessians, gradients, batch_size=2)
    rng = np.random.default_rng(16)
    error = simulation.subset_error(hessians, gradients, 2, rng)
    chain, draws = simulate_population(kernel, target, error, rng)
    expected = stationary_covariance(chain, noise)
    simulation.assert_second_moment(draws, expected)
    frozen = stationary_covariance(chain, GradientNoise(noise.additive))
    # The multiplicative part must matter, or the comparison says nothing about it.
    assert np.trace(expected) > 1.1 * np.trace(frozen)


@pytest.mark.parametrize("kernel", [sgld_chain, noise_averaged_sgld_chain])
def test_long_transients_reach_the_stationary_law(kernel: Kernel):
    hessians, gradients = finite_population()
    target = Quadratic(hessians.mean(0), n_beta=10.0, localization=5.0)
    for noise in (NOISE, finite_population_noise(hessians, gradients, 2)):
        chain = kernel(target, 0.02, METRIC)
        stationary = stationary_covariance(chain, noise)
        np.testing.assert_allclose(covariance_after(chain, noise, 3000), stationary, rtol=1e-9)


@pytest.mark.parametrize(
    ("step_size", "n_beta", "localization", "h", "c", "batch_size", "expected"),
    [(0.02, 30.0, 10.0, 3.0, 4.0, 8, 0.0650), (1e-3, 100.0, 1.0, 1.0, 50.0, 8, 0.1689)],
)
def test_scalar_sgld_closed_form(
    step_size: float,
    n_beta: float,
    localization: float,
    h: float,
    c: float,
    batch_size: int,
    expected: float,
):
    chain = sgld_chain(scalar(h, n_beta, localization), step_size)
    noise = GradientNoise(np.array([[c / batch_size]]))
    variance = stationary_covariance(chain, noise)[0, 0]
    a = n_beta * h + localization
    inflation = 1 + step_size * n_beta**2 * c / (4 * batch_size)
    assert variance == pytest.approx(inflation / (a * (1 - step_size * a / 4)), rel=1e-12)
    assert round(variance, 4) == expected
    rho = 1 - step_size * a / 2
    after = covariance_after(chain, noise, 7)[0, 0]
    assert after == pytest.approx(variance * (1 - rho**14), rel=1e-12)


@pytest.mark.parametrize(
    ("scaled_step", "plain"), [(0.1, 0.513), (1.0, 0.667), (2.0, 1.0), (3.0, 2.0)]
)
def test_step_size_bias_of_the_energy(scaled_step: float, plain: float):
    target = scalar(1.0, 1.0, 0.0)
    plain_variance = stationary_covariance(sgld_chain(target, scaled_step), no_noise(1))
    averaged = stationary_covariance(noise_averaged_sgld_chain(target, scaled_step), no_noise(1))
    assert round(0.5 * plain_variance[0, 0], 3) == plain
    assert averaged[0, 0] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("step_size", [1e-3, 1e-2, 3e-2])
def test_noise_averaging_and_sghmc_are_exact_without_gradient_noise(step_size: float):
    averaged = noise_averaged_sgld_chain(TARGET, step_size, METRIC)
    np.testing.assert_allclose(stationary_covariance(averaged, no_noise(2)), EXACT, rtol=1e-9)
    for friction in (0.1, 3.0, 1e3):
        momentum = sghmc_chain(TARGET, step_size, friction)
        np.testing.assert_allclose(stationary_covariance(momentum, no_noise(2)), EXACT, rtol=1e-9)


@pytest.mark.parametrize(
    "kernel",
    [
        sgld_chain,
        noise_averaged_sgld_chain,
        lambda target, step_size: sghmc_chain(target, step_size, friction=5.0 / np.sqrt(step_size)),
        lambda target, step_size: adam_chain(target, step_size, decay=0.8),
    ],
)
def test_small_steps_sample_the_posterior(kernel: Kernel):
    def bias(step_size: float) -> float:
        covariance = stationary_covariance(kernel(TARGET, step_size), NOISE)
        return float(np.abs(covariance - EXACT).max())

    # Minibatch noise leaves an error of first order in ε in all of them.
    assert bias(1e-6) / bias(5e-7) == pytest.approx(2.0, rel=0.01)
    assert bias(1e-6) < 1e-3 * EXACT.max()


def test_strong_friction_is_noise_averaged_sgld():
    for noise in (no_noise(2), NOISE):
        momentum = stationary_covariance(sghmc_chain(TARGET, STEP_SIZE, 1e4), noise)
        averaged = stationary_covariance(noise_averaged_sgld_chain(TARGET, STEP_SIZE), noise)
        np.testing.assert_allclose(momentum, averaged, rtol=1e-12)


def test_no_averaging_is_plain_sgld():
    adam = stationary_covariance(adam_chain(TARGET, STEP_SIZE, 0.0, METRIC), NOISE)
    plain = stationary_covariance(sgld_chain(TARGET, STEP_SIZE, METRIC), NOISE)
    np.testing.assert_allclose(adam, plain, rtol=1e-12)


def test_scalar_multiplicative_closed_form():
    curvatures = np.array([0.5, 1.0, 2.0, 6.0])
    noise = finite_population_noise(curvatures[:, None, None], np.zeros((4, 1)), batch_size=2)
    target = scalar(curvatures.mean(), 20.0, 5.0)
    solved = stationary_covariance(sgld_chain(target, 0.02), noise)[0, 0]
    closed = multiplicative_variance(curvatures, 20.0, 5.0, 0.02, 2)
    assert solved == pytest.approx(closed, rel=1e-12)
    full = stationary_covariance(sgld_chain(target, 0.02), no_noise(1))[0, 0]
    assert multiplicative_variance(curvatures, 20.0, 5.0, 0.02, 4) == pytest.approx(full)
    assert closed > 1.05 * full


def test_finite_population_factor_is_the_variance_of_subset_means():
    rng = np.random.default_rng(17)
    values = rng.standard_normal((6, 1))
    error = simulation.subset_error(np.zeros((6, 1, 1)), values, 4, rng)
    draws = error(np.zeros((200_000, 1)))
    expected = finite_population_factor(4, 6) * values.var(0)
    simulation.assert_second_moment(draws, expected[:, None])


def test_equal_curvatures_leave_additive_noise():
    _, gradients = finite_population()
    noise = finite_population_noise(np.ones((6, 2, 2)), gradients, batch_size=3)
    assert noise.multiplicative is None
    expected = additive_noise(gradients.T @ gradients / 6, 3, 6)
    np.testing.assert_allclose(noise.additive, expected.additive)


def test_learning_coefficient_of_the_exact_posterior():
    eigenvalues = np.linalg.eigvalsh(TARGET.hessian)
    exact = learning_coefficient(EXACT, TARGET.hessian, TARGET.n_beta)
    assert exact == pytest.approx(localized_gaussian(eigenvalues, 30.0, 10.0), rel=1e-12)
    assert localized_gaussian([2.0, 1.0, 0.0], 1e9, 1.0) == pytest.approx(1.0)
    assert localized_gaussian([2.0, 1.0], 1e-3, 10.0) == pytest.approx(1.5e-4, rel=1e-3)


def test_control_is_the_chain_without_a_loss():
    target = Quadratic(np.zeros((2, 2)), n_beta=0.0, localization=10.0)
    chain = sgld_chain(target, STEP_SIZE, METRIC)
    for steps in (0, 1, 25):
        expected = np.diag(covariance_after(chain, no_noise(2), steps))
        actual = control_variance(10.0, STEP_SIZE * METRIC, steps)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
    limit = control_variance(10.0, 1e-4, 10**7)
    assert limit == pytest.approx(1 / (10.0 * (1 - 1e-3 / 4)), rel=1e-12)


def test_gap_after_the_step_is_shifted():
    rng = np.random.default_rng(18)
    draw_error = simulation.gaussian_error(NOISE.additive, rng)
    steps = STEP_SIZE * METRIC
    before = simulation.run_sgld(TARGET, steps, draw_error, NUM_CHAINS, 80, rng)
    error = draw_error(before)
    drift = before @ TARGET.precision + TARGET.n_beta * error
    after = before - 0.5 * steps * drift + np.sqrt(steps) * rng.standard_normal(before.shape)

    def gap(w: Array) -> Array:
        quadratic = 0.5 * np.einsum("ci,ij,cj->c", w, TARGET.hessian, w)
        return TARGET.n_beta * (quadratic + np.einsum("ci,ci->c", error, w))

    chain = sgld_chain(TARGET, STEP_SIZE, METRIC)
    shift = gap_shift_after_step(chain, NOISE, TARGET.n_beta)
    difference = gap(after) - gap(before)
    standard_error = difference.std(ddof=1) / np.sqrt(NUM_CHAINS)
    assert abs(difference.mean() - shift) < 4.5 * standard_error
    assert shift < -100 * standard_error
    closed = -STEP_SIZE * TARGET.n_beta**2 * np.trace(np.diag(METRIC) @ NOISE.additive) / 2
    assert shift == pytest.approx(closed, rel=1e-12)


def test_long_run_variance_of_the_scalar_gap():
    target = scalar(3.0, 30.0, 10.0)
    noise = GradientNoise(np.array([[0.5]]))
    chain = sgld_chain(target, 0.01)
    variance = stationary_covariance(chain, noise)[0, 0]
    rho = 1 - 0.01 * 100.0 / 2
    expected = 0.5 * (90.0 * variance) ** 2 * (1 + rho**2) / (1 - rho**2)
    assert gap_long_run_variance(chain, noise, target) == pytest.approx(expected, rel=1e-12)


def test_long_run_variance_of_time_averages():
    chain = sghmc_chain(TARGET, STEP_SIZE, 3.0)
    rng = np.random.default_rng(19)
    num_chains, num_draws = 4000, 600
    root_state = np.linalg.cholesky(chain.injected + 1e-12 * np.eye(4))
    root_noise = np.linalg.cholesky(NOISE.additive)
    state = np.zeros((num_chains, 4))
    total = np.zeros(num_chains)
    for step in range(100 + num_draws):
        error = rng.standard_normal((num_chains, 2)) @ root_noise.T
        injected = rng.standard_normal((num_chains, 4)) @ root_state.T
        state = state @ chain.transition.T + error @ chain.load.T + injected
        if step >= 100:
            q = state[:, :2]
            total += 0.5 * TARGET.n_beta * ((q @ TARGET.hessian) * q).sum(1)
    measured = num_draws * (total / num_draws).var(ddof=1)
    expected = gap_long_run_variance(chain, NOISE, TARGET)
    # A variance over 4000 chains has a relative error of √(2/4000) = 2.2 %; the finite
    # length adds τ/T ≈ 1 %.
    assert measured == pytest.approx(expected, rel=4.5 * 0.022 + 0.01)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: stationary_covariance(sgld_chain(TARGET, 0.04), no_noise(2)), "diverges"),
        (
            lambda: stationary_covariance(
                sgld_chain(scalar(2.0, 20.0, 1.0), 0.05),
                GradientNoise(np.zeros((1, 1)), np.array([[9.0]])),
            ),
            "diverges",
        ),
        (lambda: finite_population_noise(np.ones((3, 1, 1)), np.ones((3, 1)), 1), "sum to zero"),
        (
            lambda: gap_shift_after_step(
                sgld_chain(TARGET, 0.01), GradientNoise(np.eye(2), np.eye(4)), 30.0
            ),
            "additive",
        ),
    ],
)
def test_laws_that_do_not_exist_are_refused(call: Callable[[], object], reason: str):
    with pytest.raises(ValueError, match=reason):
        call()
