"""A linear model in blocks of weights, on sequences, whose susceptibilities are exact."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import slt_jax as slt
from tests.oracles.two_chains import Quadratics, TwoChains, squared_errors, two_chains

NUM_BLOCKS, WIDTH, LENGTH = 16, 2, 3
NUM_WEIGHTS = NUM_BLOCKS * WIDTH
NUM_SEQUENCES, BATCH_SIZE = 24, 6
N_BETA, LOCALIZATION = 40.0, 4.0
KEY = jax.random.key(11)


class PositionState(NamedTuple):
    position: Any


class IndependentDraws(slt.AbstractKernel):
    """Exact draws from a posterior whose loss is quadratic, each independent of the one before."""

    full_batch = True

    def init(self, target, position=None):
        return PositionState(target.restriction.zeros() if position is None else position)

    def step_sizes(self, state):
        return tuple(jnp.ones_like(delta) for delta in state.position)

    def control_variance(self, step_size, localization, step):
        return jnp.full_like(step_size, 1 / localization)

    def step(self, key, target, state, batch):
        flat, unravel = ravel_pytree(state.position)

        def energy(flat: jax.Array) -> jax.Array:
            return -target.log_density(unravel(flat), batch)

        center = jnp.zeros_like(flat)
        root = jnp.linalg.cholesky(jax.hessian(energy)(center))
        slope = jax.scipy.linalg.solve_triangular(root, jax.grad(energy)(center), lower=True)
        noise = jax.random.normal(key, flat.shape) - slope
        drawn = unravel(jax.scipy.linalg.solve_triangular(root.T, noise, lower=False))
        zero, one = jnp.zeros(()), jnp.ones(())
        gap = target.gap(drawn, batch)
        return PositionState(drawn), slt.Info(gap, zero, zero, zero, one, one)


KERNEL = IndependentDraws()


def loss(params: Any, examples: Any) -> jax.Array:
    """Half the squared residual of every position, nats, ``[batch, pos]``."""
    inputs, targets = examples
    return 0.5 * (inputs @ params["w"].reshape(-1) - targets) ** 2


class Data(NamedTuple):
    """Inputs ``[n, pos, d]`` and targets ``[n, pos]``."""

    inputs: np.ndarray
    targets: np.ndarray

    def quadratics(self, weights: np.ndarray) -> Quadratics:
        """The losses of all positions, row by row, as functions of w − w*."""
        inputs = self.inputs.reshape(-1, NUM_WEIGHTS).astype(np.float64)
        return squared_errors(inputs, self.targets.reshape(-1).astype(np.float64), weights)


def _data(seed: int, count: int, scale: float = 1.0) -> Data:
    generator = np.random.default_rng(seed)
    truth = np.random.default_rng(0).normal(size=NUM_WEIGHTS)
    inputs = scale * generator.normal(size=(count, LENGTH, NUM_WEIGHTS))
    targets = inputs @ truth + generator.normal(size=(count, LENGTH))
    return Data(inputs.astype(np.float32), targets.astype(np.float32))


SAMPLED = _data(1, NUM_SEQUENCES)
PROBES = {"like": _data(2, 4), "large": _data(3, 3, 1.5), "small": _data(4, 5, 0.5)}
# A little off the optimum: a mean that is not w*, and slopes that count.
WEIGHTS = (
    np.linalg.lstsq(
        SAMPLED.inputs.reshape(-1, NUM_WEIGHTS), SAMPLED.targets.reshape(-1), rcond=None
    )[0]
    + 0.03 * np.random.default_rng(5).normal(size=NUM_WEIGHTS)
).astype(np.float32)
PARAMS = {"w": WEIGHTS.reshape(1, NUM_BLOCKS, WIDTH)}
BATCHES = slt.Batches(tuple(SAMPLED), BATCH_SIZE)


def block(number: int) -> slt.Restriction:
    """The weights of one block; all blocks have one signature and lie in one layer."""
    view, size = (1, NUM_BLOCKS, WIDTH), (1, 1, WIDTH)
    return slt.Restriction([slt.Block("w", view, size, (0, number, 0))])


COMPONENTS = {f"block {number}": block(number) for number in range(NUM_BLOCKS)}


def posterior(n_beta: float = N_BETA, localization: float = LOCALIZATION) -> slt.LocalPosterior:
    return slt.LocalPosterior(loss, PARAMS, n_beta=n_beta, localization=localization)


def measure(**settings: Any) -> Any:
    """Susceptibilities of all blocks, with the options that most tests share."""
    target = settings.pop("posterior", posterior())
    kernel, key = settings.pop("kernel", KERNEL), settings.pop("key", KEY)
    shared = {
        "components": COMPONENTS,
        "probes": {name: tuple(data) for name, data in PROBES.items()},
        "num_chains": 4,
        "num_draws": 500,
        "num_burnin_steps": 0,
        "survey_examples": BATCH_SIZE,
        "progress": False,
    }
    return slt.susceptibilities(
        target, kernel, settings.pop("batches", BATCHES), key, **(shared | settings)
    )


@functools.cache
def exact(n_beta: float = N_BETA, localization: float = LOCALIZATION) -> list[TwoChains]:
    """The exact answers, one per block, for every token of the probes in order."""
    weights = WEIGHTS.astype(np.float64)
    parts = [data.quadratics(weights) for data in PROBES.values()]
    probes = Quadratics(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    sampled = SAMPLED.quadratics(weights)
    return [
        two_chains(sampled, probes, range(WIDTH * k, WIDTH * (k + 1)), n_beta, localization)
        for k in range(NUM_BLOCKS)
    ]


def matrix(answers: list[TwoChains], field: str = "value") -> np.ndarray:
    return np.stack([getattr(answer, field) for answer in answers])
