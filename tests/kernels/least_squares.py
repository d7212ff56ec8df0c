"""A data set on which the kernels have exact laws, and how the engine and the oracles see it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import slt_jax as slt
from tests.oracles.gradient_noise import GradientNoise, finite_population_noise
from tests.oracles.linear_chains import Quadratic

NUM_EXAMPLES = 12
BATCH_SIZE = 2
DIMENSION = 4

N_BETA = 10.0
LOCALIZATION = 5.0
EPS = 0.2
NUM_CHAINS = 256
NUM_DRAWS = 600
NUM_BURNIN_STEPS = 100


def squared_error(params, examples):
    """ℓ_i(w) = ½|A_i w − y_i|²: the Hessian AᵀA may differ from example to example, or not.

    The weights come in two leaves of one shape, so that noise drawn from one key for both shows
    as a correlation between them.
    """
    maps, targets = examples
    weights = jnp.concatenate([params["first"], params["second"]])
    residuals = jnp.einsum("nij,j->ni", maps, weights) - targets
    return 0.5 * jnp.sum(residuals**2, axis=-1)


class LeastSquares(NamedTuple):
    """Examples (A_i, y_i): float64 for the oracles, float32 for the engine.

    Args:
        maps: A_i, shape (N, k, d).
        targets: y_i, shape (N, k).
    """

    maps: np.ndarray
    targets: np.ndarray

    @property
    def hessians(self):
        """H_i = A_iᵀA_i, shape (N, d, d), nats/weight²."""
        return np.einsum("nki,nkj->nij", self.maps, self.maps)

    @property
    def optimum(self):
        """w*, the minimiser of the mean loss, shape (d,)."""
        pull = np.einsum("nki,nk->i", self.maps, self.targets)
        return np.linalg.solve(self.hessians.sum(0), pull)

    @property
    def gradients(self):
        """∇ℓ_i(w*), shape (N, d), nats/weight."""
        residuals = np.einsum("nkj,j->nk", self.maps, self.optimum) - self.targets
        return np.einsum("nki,nk->ni", self.maps, residuals)

    def noise(self, batch_size: int = BATCH_SIZE) -> GradientNoise:
        """What a uniform minibatch adds to the gradient."""
        noise = finite_population_noise(self.hessians, self.gradients, batch_size)
        is_additive = np.ptp(self.hessians, axis=0).max() < 1e-12
        return noise._replace(multiplicative=None) if is_additive else noise

    def target(self, n_beta: float, localization: float) -> Quadratic:
        """The posterior around w*, for the oracles."""
        return Quadratic(self.hessians.mean(0), n_beta, localization)

    def posterior(self, n_beta: float, localization: float) -> slt.LocalPosterior:
        """The posterior around w*, for the engine."""
        first, second = np.split(self.optimum.astype(np.float32), 2)
        return slt.LocalPosterior(
            squared_error, {"first": first, "second": second}, n_beta, localization
        )

    def batches(self, batch_size: int = BATCH_SIZE, per_chain: bool = True) -> slt.Batches:
        """Uniform minibatches; one stream per chain makes the chains independent."""
        examples = self.maps.astype(np.float32), self.targets.astype(np.float32)
        return slt.Batches(examples, batch_size, per_chain=per_chain)


def additive(num_examples: int = NUM_EXAMPLES) -> LeastSquares:
    """ℓ_i = ½(w − z_i)ᵀH(w − z_i): one Hessian, so that the noise does not depend on w."""
    rng = np.random.default_rng(0)
    shared = _well_conditioned(rng, 1)
    return LeastSquares(
        np.repeat(shared, num_examples, axis=0),
        rng.standard_normal((num_examples, DIMENSION)),
    )


def multiplicative(num_examples: int = NUM_EXAMPLES) -> LeastSquares:
    """ℓ_i = ½(w − w*)ᵀH_i(w − w*): the noise vanishes at w* and grows away from it."""
    rng = np.random.default_rng(1)
    maps = _uneven(rng, num_examples)
    return LeastSquares(maps, np.einsum("nij,j->ni", maps, rng.standard_normal(DIMENSION)))


def mixed(num_examples: int = NUM_EXAMPLES) -> LeastSquares:
    """Both noises, and correlated with each other."""
    rng = np.random.default_rng(2)
    maps = _uneven(rng, num_examples)
    return LeastSquares(maps, rng.standard_normal((num_examples, DIMENSION)))


def _well_conditioned(rng: np.random.Generator, count: int) -> np.ndarray:
    """Maps I + noise: curvatures of order one in directions that are not the axes."""
    return np.eye(DIMENSION) + 0.35 * rng.standard_normal((count, DIMENSION, DIMENSION))


def _uneven(rng: np.random.Generator, count: int) -> np.ndarray:
    """The same, most of the curvature in a few examples: a minibatch may miss them."""
    scales = np.linspace(0.1, 1.9, count)
    return scales[:, None, None] * _well_conditioned(rng, count)


def joined(blocks) -> np.ndarray:
    """The two leaves of the weights as one axis: (*batch, 2) each ↦ (*batch, 4), in float64."""
    return np.concatenate([np.asarray(block, np.float64) for block in blocks], axis=-1)


def sample(data, kernel, seed=0, per_chain=True, n_beta=N_BETA, **options) -> slt.Run:
    """Run with the settings that all tests here share, so that they share their programs."""
    settings = {
        "num_chains": NUM_CHAINS,
        "num_draws": NUM_DRAWS,
        "num_burnin_steps": NUM_BURNIN_STEPS,
        "collect": slt.Positions(),
        "progress": False,
    }
    run = slt.sample(
        data.posterior(n_beta, LOCALIZATION),
        kernel,
        data.batches(per_chain=per_chain),
        jax.random.key(seed),
        **(settings | options),
    )
    assert run.health.alive.all()
    return run


def positions_of(run: slt.Run) -> np.ndarray:
    """The draws, shape (chain, draw, d)."""
    return joined(run.positions.values())[0]
