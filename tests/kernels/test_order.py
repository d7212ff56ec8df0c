"""Kernels without an exact discrete law: which continuous law they approach, and how fast.

Adaptive ``rms`` and ``adam`` (num_burnin_steps=0: the metric is never frozen) move by
δ' = δ − (ε/2) D (nβ ĝ + γδ) + √(εD) ξ with D = 1/(√v + a) a function of recent gradients. As
ε → 0 two limits have to be told apart:

- The decay b is held fixed. The window of v shrinks to a point on the scale on which δ moves,
  so D = D(δ) and the limit is the Itô equation dδ = −½ E[D(nβĝ + γδ)] dt + √E[D] dW. Without
  the Γ term (½∇D) it does not leave the posterior invariant: in one dimension the law is
  exp(−∫ E[D(nβĝ + γδ)]/E[D])/E[D], for full batches (|∇L| + a) exp(−U). The bias has a limit
  of order one (here + 57 % of λ̂ with full batches, + 86 % with minibatches), which is
  approached at first order in ε.
- The window grows in the time of the dynamics: 1 − b = κε². Then D becomes a constant, and the
  law tends to the posterior at first order in ε, with full batches and with minibatches.

``sgnht`` approaches the posterior at least at first order in ε = h²: without gradient noise its
bias is below 1 % at half the largest stable step; gradient noise alike in all directions costs
O(ε), not a factor.

Every comparison is by the spread of 256 independent chains. The file fails in 5e-6 of seeds if
nothing is wrong; the bounds on the orders are five or more of their errors away.
"""

from itertools import combinations

import numpy as np
import pytest

import slt_jax as slt
from tests.kernels.agreement import assert_agrees, second_moments, upper_triangle
from tests.kernels.least_squares import (
    BATCH_SIZE,
    DIMENSION,
    EPS,
    LOCALIZATION,
    N_BETA,
    NUM_EXAMPLES,
    LeastSquares,
    additive,
    mixed,
    positions_of,
    sample,
)
from tests.kernels.potentials import sample_potential
from tests.oracles.discrete_laws import localized_gaussian
from tests.oracles.quadrature import scaled_moments

STANDARD_ERRORS = 5.5


def alike(data: LeastSquares) -> LeastSquares:
    """Examples that are all the same: every minibatch has the gradient of the full batch."""
    maps, targets = data.maps.mean(0), data.targets.mean(0)
    return LeastSquares(
        np.repeat(maps[None], NUM_EXAMPLES, 0), np.repeat(targets[None], NUM_EXAMPLES, 0)
    )


def separate() -> LeastSquares:
    """Diagonal maps: in a diagonal metric every weight is a chain of its own."""
    rng = np.random.default_rng(3)
    scales = np.sqrt([0.5, 1.0, 2.0, 3.0]) * rng.uniform(0.5, 1.5, (NUM_EXAMPLES, DIMENSION))
    targets = 0.7 * rng.standard_normal((NUM_EXAMPLES, DIMENSION))
    return LeastSquares(scales[:, :, None] * np.eye(DIMENSION), targets)


def isotropic() -> LeastSquares:
    """One Hessian, and gradient noise of the same variance in all directions."""
    data, rng = additive(), np.random.default_rng(5)
    noise = rng.standard_normal((NUM_EXAMPLES, DIMENSION))
    noise -= noise.mean(0)
    noise @= np.linalg.inv(np.linalg.cholesky(noise.T @ noise / NUM_EXAMPLES)).T
    return data._replace(targets=np.linalg.solve(data.maps[0].T, noise.T).T)


def estimates(data, kernel_at, step_sizes) -> list[np.ndarray]:
    """λ̂ of every chain, (chain,) at each step size; finer steps take more of them."""
    found = []
    for number, step_size in enumerate(step_sizes):
        num_draws = 600 * 2**number
        run = sample(data, kernel_at(step_size), number, num_draws=num_draws, num_burnin_steps=0)
        settled = run.traces["gap"][0][:, num_draws // 4 :]
        found.append(N_BETA * settled.mean(1, dtype=np.float64))
    return found


def assert_tends(found: list[np.ndarray], limit: float, most: float = 2.0) -> None:
    """λ̂ at ε, ε/2 and ε/4 tends to a limit, at first order in ε or up to the order ``most``.

    The quadratic through the three is extrapolated to ε = 0; the order is read off the two
    coarser ones, whose errors are large against their spread.
    """
    coarse, middle, fine = found
    assert_agrees((coarse - 6 * middle + 8 * fine) / 3, limit, STANDARD_ERRORS, "λ̂ at ε → 0")
    order = np.log2(abs(coarse.mean() - limit) / abs(middle.mean() - limit))
    assert 0.5 < order < most, f"order {order:.2f}"


def law_of_fast_adaptation(data: LeastSquares) -> float:
    """λ̂ as ε → 0 at decay 0, where D = 1/(|g_b| + a) knows the current batch only.

    Each weight has the density exp(−∫ E[D(nβg_b + γw)]/E[D])/E[D], averages over all batches.
    """
    batches = np.array(list(combinations(range(NUM_EXAMPLES), BATCH_SIZE)))
    curvature = data.hessians.diagonal(axis1=1, axis2=2)[batches].mean(1)
    force = data.gradients[batches].mean(1)
    grid = np.linspace(-3, 3, 6001)
    total = 0.0
    for h, s in zip(curvature.T, force.T, strict=True):
        gradient = h[:, None] * grid + s[:, None]
        metric = 1 / (np.abs(gradient) + EPS)
        diffusion = metric.mean(0)
        slope = (metric * (N_BETA * gradient + LOCALIZATION * grid)).mean(0) / diffusion
        energy = np.append(0, np.cumsum(slope[1:] + slope[:-1]) * (grid[1] - grid[0]) / 2)
        density = np.exp(energy.min() - energy) / diffusion
        total += 0.5 * N_BETA * h.mean() * np.average(grid**2, weights=density)
    return total


def posterior_value(data: LeastSquares) -> float:
    """λ_γ, the value of an exact sampler."""
    return localized_gaussian(np.linalg.eigvalsh(data.hessians.mean(0)), N_BETA, LOCALIZATION)


FAST = {
    "rms, full batch": (lambda step_size: slt.sgld(step_size, slt.rms(0.0, EPS)), True),
    "rms, minibatch": (lambda step_size: slt.sgld(step_size, slt.rms(0.0, EPS)), False),
    "adam, full batch": (lambda step_size: slt.sgld(step_size, slt.adam(0.5, 0.0, EPS)), True),
}


@pytest.mark.parametrize("name", FAST)
def test_fast_adaptation_tends_to_another_law(name: str):
    """3 extrapolations at 5.5 standard errors: 3e-7 of seeds fail."""
    kernel_at, is_full_batch = FAST[name]
    data = alike(separate()) if is_full_batch else separate()
    limit = law_of_fast_adaptation(data)
    assert limit > 1.4 * posterior_value(data)
    assert_tends(estimates(data, kernel_at, (0.016, 0.008, 0.004)), limit)


def slower(step_size: float) -> float:
    """The decay 1 − κε²: the window grows faster than the chain slows down."""
    return 1 - 250 * step_size**2


SLOW = {
    "rms": lambda step_size: slt.sgld(step_size, slt.rms(slower(step_size), EPS, initial=0.5)),
    "adam": lambda step_size: slt.sgld(step_size, slt.adam(0.5, slower(step_size), EPS)),
}


@pytest.mark.parametrize(
    ("name", "is_full_batch"), [("rms", False), ("rms", True), ("adam", False)]
)
def test_slow_adaptation_tends_to_the_posterior(name: str, is_full_batch: bool):
    """3 extrapolations at 5.5 standard errors: 3e-7 of seeds fail."""
    data = alike(mixed()) if is_full_batch else mixed()
    found = estimates(data, SLOW[name], (0.016, 0.008, 0.004))
    assert_tends(found, posterior_value(data))


def test_thermostat_absorbs_isotropic_gradient_noise():
    """What is left of the noise is O(ε), where friction alone would leave + 38 % and more.

    1 extrapolation at 5.5 standard errors: 1e-7 of seeds fail.
    """
    data = isotropic()
    found = estimates(data, lambda step_size: slt.sgnht(step_size, 3.0), (0.02, 0.01, 0.005))
    assert_tends(found, posterior_value(data), most=4)


def test_thermostat_without_gradient_noise_has_the_posterior_on_a_quadratic():
    """11 numbers at 5.5 standard errors: 1e-6 of seeds fail; the errors are 0.1 % to 1 %."""
    data = alike(additive())
    run = sample(data, slt.sgnht(0.04))
    covariance = np.linalg.inv(data.target(N_BETA, LOCALIZATION).precision)
    moments = second_moments(positions_of(run))
    assert_agrees(moments, upper_triangle(covariance), STANDARD_ERRORS, "covariance")
    estimate = N_BETA * run.traces["gap"][0].mean(1, dtype=np.float64)
    assert_agrees(estimate, posterior_value(data), STANDARD_ERRORS, "λ̂")


def test_thermostat_on_a_quartic():
    """With the true full batch; the bias at ε is below 1 % and vanishes as ε → 0.

    1 extrapolation at 5.5 standard errors: 1e-7 of seeds fail.
    """
    exact = scaled_moments(lambda w: w[0] ** 4 + 0.5 * w[1] ** 4, 2, 30.0, 1.0).mean
    coefficients = {"x4": 1.0, "y4": 0.5}
    found = [
        sample_potential(slt.sgnht(step_size), coefficients, 30.0, 1.0, num_draws=3000)
        for step_size in (0.02, 0.01)
    ]
    assert_agrees(2 * found[1] - found[0], exact, STANDARD_ERRORS, "λ̂ at ε → 0")
    assert abs(found[0].mean() / exact - 1) < 0.01
