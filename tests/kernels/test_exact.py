"""Kernels with a Metropolis step, against the posterior itself; and blackjax's SGLD against ours.

The comparisons rest on 256 independent chains and a tolerance of 5 standard errors, and fail by
chance in 1e-5 of seeds over this file; the errors are 0.2 % to 0.8 %.
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.noise import noise_like
from tests.kernels.agreement import assert_agrees
from tests.kernels.least_squares import mixed
from tests.kernels.potentials import example, posterior, potential, sample_potential
from tests.oracles.discrete_laws import localized_gaussian
from tests.oracles.quadrature import localized_crossing, scaled_moments

KERNELS = {
    "mala": (slt.mala, {"num_draws": 4000}),
    "hmc": (lambda step_size: slt.hmc(step_size, 10), {"num_draws": 1000}),
    "nuts": (lambda step_size: slt.nuts(step_size, 6), {"num_draws": 400}),
}

QUARTIC = {"x4": 1.0, "y4": 0.5}


@pytest.mark.parametrize("name", KERNELS)
def test_gaussian(name: str):
    """λ_γ = ½ Σ nβh/(nβh + γ), at a step size that SGLD would show: 1e-6 of seeds fail."""
    kernel_at, options = KERNELS[name]
    n_beta, localization = 30.0, 10.0
    found = sample_potential(
        kernel_at(0.02), {"x2": 1.0, "xy": 0.6, "y2": 0.3}, n_beta, localization, **options
    )
    hessian = np.array([[2.0, 0.6], [0.6, 0.6]])
    exact = localized_gaussian(np.linalg.eigvalsh(hessian), n_beta, localization)
    assert_agrees(found, exact, 5, "λ̂")


@pytest.mark.parametrize("name", KERNELS)
def test_quartic(name: str):
    """x⁴ + y⁴/2 by quadrature: 1e-6 of seeds fail."""
    kernel_at, options = KERNELS[name]
    found = sample_potential(kernel_at(0.03), QUARTIC, 30.0, 10.0, **options)
    exact = scaled_moments(potential(QUARTIC), 2, 30.0, 10.0).mean
    assert_agrees(found, exact, 5, "λ̂")


@pytest.mark.parametrize("name", KERNELS)
def test_crossing(name: str):
    """x²y² on the plane in closed form: 1e-6 of seeds fail."""
    kernel_at, options = KERNELS[name]
    found = sample_potential(kernel_at(0.03), {"x2y2": 1.0}, 30.0, 10.0, **options)
    exact = localized_crossing(30.0, 10.0)
    assert_agrees(found, exact, 5, "λ̂")


@pytest.mark.parametrize(
    "kernel", [slt.mala(0.05), slt.hmc(0.05, num_integration_steps=1)], ids=["mala", "hmc of 1"]
)
def test_one_step_of_mala(kernel: slt.AbstractKernel):
    """Acceptance, mean and second moments of a step from a given point, against their integrals.

    12 numbers at 6 standard errors of 20 000 steps: 2e-8 of seeds fail; the errors are 1 %.
    """
    target, start = posterior(30.0, 10.0), np.array([0.35, -0.3])
    (row, _) = example(QUARTIC).rows(np.zeros(1, np.int32))
    batch = kernel.prepare(target, slt.Minibatch(row))
    state = kernel.init(target, tuple(jnp.asarray([x], jnp.float32) for x in start))
    keys = jax.random.split(jax.random.key(0), 20_000)
    moved, info = jax.vmap(lambda key: kernel.step(key, target, state, batch))(keys)
    step = np.concatenate(moved.position, axis=1).astype(np.float64) - start
    measured = np.column_stack([info.acceptance, step, step**2, step[:, 0] * step[:, 1]])
    assert_agrees(measured, step_of_mala(start, 0.05), 6, "moments of a step")


def step_of_mala(start: np.ndarray, step_size: float) -> np.ndarray:
    """E[α], E[αs], E[αs²], E[αs₁s₂] of the proposal s = −(ε/2)∇U + √ε ξ, integrated over ξ."""

    def energy(w):
        return 30.0 * potential(QUARTIC)(w) + 5.0 * np.sum(w**2, axis=0)

    def slope(w):
        return 30.0 * np.stack([4 * w[0] ** 3, 2 * w[1] ** 3]) + 10.0 * w

    nodes = np.linspace(-7, 7, 701)
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij"))
    weights = np.exp(-0.5 * np.sum(noise**2, axis=0))
    origin = start[:, None, None]
    step = -0.5 * step_size * slope(origin) + np.sqrt(step_size) * noise
    end = origin + step
    back = np.sum((-step + 0.5 * step_size * slope(end)) ** 2, axis=0) / (2 * step_size)
    ratio = energy(origin) - energy(end) - back + 0.5 * np.sum(noise**2, axis=0)
    accepted = np.minimum(1, np.exp(ratio)) * weights / weights.sum()
    integrands = [np.ones_like(step[0]), *step, *step**2, step[0] * step[1]]
    return np.array([np.sum(accepted * integrand) for integrand in integrands])


def test_sgld_is_blackjax_sgld_of_half_the_step_size(monkeypatch):
    """Given its noise: to the bit where both round alike (nβ a power of two, γ = 0)."""
    data, kernel, key = mixed(), slt.sgld(2.0**-6), jax.random.key(1)
    (examples, _) = data.batches().rows(np.array([3, 7]))
    position = tuple(jnp.asarray(leaf, jnp.float32) for leaf in ([0.3, -0.7], [0.2, 0.5]))
    for n_beta, localization, tolerance in ((64.0, 0.0, 0.0), (10.0, 5.0, 1e-6)):
        target = data.posterior(n_beta, localization)
        noise = noise_like(key, position, target.restriction.labels)
        monkeypatch.setattr(
            "blackjax.sgmcmc.diffusions.generate_gaussian_noise",
            lambda key, position, noise=noise: noise,
        )
        batch = kernel.prepare(target, slt.Minibatch(examples))
        ours, _ = kernel.step(key, target, kernel.init(target, position), batch)
        other: Any = blackjax.sgld(jax.grad(target.log_density))
        theirs = other.step(key, position, batch, 2.0**-7)
        for mine, yours, start in zip(ours.position, theirs, position, strict=True):
            np.testing.assert_allclose(mine, yours, rtol=tolerance, atol=0)
            assert np.all(mine != start)
