"""Losses that are functions of two weights alone, whose posterior is known by quadrature."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import slt_jax as slt
from tests.oracles.quadrature import Potential

TERMS = ("x2", "xy", "y2", "x4", "y4", "x2y2", "x2y4")

# As good as no box: every potential below confines its chains to a fraction of it.
NO_BOX = 1e3


def polynomial(params, coefficients):
    """K(w) = Σ_k c_k t_k(x, y), the coefficients c being the example: one program for all K."""
    x, y = params["x"], params["y"]
    terms = (x**2, x * y, y**2, x**4, y**4, x**2 * y**2, x**2 * y**4)
    return coefficients @ jnp.concatenate(terms)


def potential(coefficients: Mapping[str, float]) -> Potential:
    """The same K for the oracles."""
    row = as_row(coefficients)

    def value(w):
        x, y = w
        terms = (x**2, x * y, y**2, x**4, y**4, x**2 * y**2, x**2 * y**4)
        return np.tensordot(row, np.stack(terms), axes=1)

    return value


def as_row(coefficients: Mapping[str, float]) -> np.ndarray:
    """The coefficients of all terms, in order."""
    assert set(coefficients) <= set(TERMS)
    return np.array([coefficients.get(term, 0.0) for term in TERMS])


def posterior(n_beta: float, localization: float, half_width: float = NO_BOX):
    """The posterior around the origin; two leaves of one shape, as in ``least_squares``."""
    origin = {"x": np.zeros(1, np.float32), "y": np.zeros(1, np.float32)}
    return slt.LocalPosterior(polynomial, origin, n_beta, localization, bounding_box=half_width)


def example(coefficients: Mapping[str, float]) -> slt.Batches:
    """A data set of one example: every batch is the full batch."""
    return slt.Batches(as_row(coefficients).astype(np.float32)[None], 1, per_chain=True)


def sample_potential(
    kernel: slt.AbstractKernel,
    coefficients: Mapping[str, float],
    n_beta: float,
    localization: float,
    half_width: float = NO_BOX,
    seed: int = 0,
    **options,
) -> np.ndarray:
    """λ̂ of every chain, shape (chain,)."""
    settings = {"num_chains": 256, "num_draws": 2000, "num_burnin_steps": 500, "progress": False}
    run = slt.sample(
        posterior(n_beta, localization, half_width),
        kernel,
        example(coefficients),
        jax.random.key(seed),
        **(settings | options),
    )
    assert run.health.alive.all()
    return n_beta * run.traces["gap"][0].mean(1, dtype=np.float64)
