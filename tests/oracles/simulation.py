"""Brute force: many independent chains, moved by the update equations as published.

These loops share nothing with `linear_chains` but the symbols, so they check the algebra
that turned an update rule into (M, Q, G).
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from ._types import Array
from .linear_chains import Quadratic

GradientError = Callable[[Array], Array]
"""Positions (chain, d) ↦ a fresh minibatch error of the mean-loss gradient, (chain, d)."""


def gaussian_error(covariance: Array, rng: np.random.Generator) -> GradientError:
    """Additive noise s_b ~ N(0, S), with S of shape (d, d)."""
    root = np.linalg.cholesky(covariance)
    return lambda w: rng.standard_normal(w.shape) @ root.T


def subset_error(
    hessians: Array, gradients: Array, batch_size: int, rng: np.random.Generator
) -> GradientError:
    """(H_b − H) w + g_b − ḡ for a uniform subset, by listing every subset of N examples."""
    subsets = [list(chosen) for chosen in combinations(range(len(gradients)), batch_size)]
    curvature = np.stack([hessians[chosen].mean(0) for chosen in subsets]) - hessians.mean(0)
    force = np.stack([gradients[chosen].mean(0) for chosen in subsets]) - gradients.mean(0)

    def error(w: Array) -> Array:
        chosen = rng.integers(len(subsets), size=len(w))
        return np.einsum("cij,cj->ci", curvature[chosen], w) + force[chosen]

    return error


def run_sgld(
    target: Quadratic,
    step_sizes: Array,
    error: GradientError,
    num_chains: int,
    num_steps: int,
    rng: np.random.Generator,
) -> Array:
    """w' = w − (ε_i/2)(γw + nβ(Hw + e)) + √ε_i ξ from w = 0; returns (chain, d)."""
    w = np.zeros((num_chains, target.dimension))
    for _ in range(num_steps):
        loss_gradient = w @ target.hessian + error(w)
        drift = target.localization * w + target.n_beta * loss_gradient
        w = w - 0.5 * step_sizes * drift + np.sqrt(step_sizes) * rng.standard_normal(w.shape)
    return w


def run_noise_averaged_sgld(
    target: Quadratic,
    step_sizes: Array,
    error: GradientError,
    num_chains: int,
    num_steps: int,
    rng: np.random.Generator,
) -> Array:
    """The same with the noise √ε_i ½(ξ_k + ξ_{k+1})."""
    w = np.zeros((num_chains, target.dimension))
    old = rng.standard_normal(w.shape)
    for _ in range(num_steps):
        new = rng.standard_normal(w.shape)
        loss_gradient = w @ target.hessian + error(w)
        drift = target.localization * w + target.n_beta * loss_gradient
        w = w - 0.5 * step_sizes * drift + np.sqrt(step_sizes) * 0.5 * (old + new)
        old = new
    return w


def run_sghmc(
    target: Quadratic,
    step_size: float,
    friction: float,
    error: GradientError,
    num_chains: int,
    num_steps: int,
    rng: np.random.Generator,
) -> Array:
    """Full kick, half drift, Ornstein–Uhlenbeck, half drift, from q = 0, p ~ N(0, I)."""
    h = np.sqrt(step_size)
    c = np.exp(-friction * h)
    q = np.zeros((num_chains, target.dimension))
    p = rng.standard_normal(q.shape)
    for _ in range(num_steps):
        loss_gradient = q @ target.hessian + error(q)
        p = p - h * (target.localization * q + target.n_beta * loss_gradient)
        q = q + 0.5 * h * p
        p = c * p + np.sqrt(1 - c**2) * rng.standard_normal(p.shape)
        q = q + 0.5 * h * p
    return q


def run_adam(
    target: Quadratic,
    step_sizes: Array,
    decay: float,
    error: GradientError,
    num_chains: int,
    num_steps: int,
    rng: np.random.Generator,
) -> Array:
    """SGLD whose loss gradient is a running mean, without bias correction."""
    w = np.zeros((num_chains, target.dimension))
    moment = np.zeros_like(w)
    for _ in range(num_steps):
        moment = decay * moment + (1 - decay) * (w @ target.hessian + error(w))
        drift = target.localization * w + target.n_beta * moment
        w = w - 0.5 * step_sizes * drift + np.sqrt(step_sizes) * rng.standard_normal(w.shape)
    return w


def assert_second_moment(draws: Array, expected: Array, standard_errors: float = 4.5) -> None:
    """E[w wᵀ] of independent draws (chain, d) equals `expected` within its standard error.

    The errors come from the draws themselves, because multiplicative noise has heavier
    tails than a Gaussian. At 4.5 standard errors one entry fails by chance once in 150 000.
    """
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(0, ddof=1) / np.sqrt(len(draws))
    distance = np.abs(products.mean(0) - expected) / error
    assert distance.max() < standard_errors, (
        f"second moment {products.mean(0).tolist()} is {distance.max():.1f} standard errors "
        f"from the exact {expected.tolist()}"
    )
