"""A regression problem on which every part of an estimate has a known value."""

import functools
from typing import Any

import jax
import numpy as np

import slt_jax as slt
from tests.oracles.gaussian_regression import LinearRegression, random_regression

NUM_EXAMPLES, BATCH_SIZE, DIMENSION = 64, 16, 4
N_BETA, LOCALIZATION = 50.0, 5.0
KEY = jax.random.key(3)
REGRESSION: LinearRegression = random_regression(
    np.random.default_rng(0), NUM_EXAMPLES, np.array([1.0, 1.0, 0.5, 0.5])
)
DATA = (REGRESSION.inputs.astype(np.float32), REGRESSION.targets.astype(np.float32))
BATCHES = slt.Batches(DATA, BATCH_SIZE)
PROBE = slt.Probe(DATA)


def squared_error(params: Any, examples: Any) -> jax.Array:
    """Half the squared residual of a linear model, nats per example."""
    inputs, targets = examples
    return 0.5 * (inputs @ params["w"] - targets) ** 2


def posterior(**settings: Any) -> slt.LocalPosterior:
    """Give the posterior around the optimum, or around it plus ``shift``."""
    shift = settings.pop("shift", 0.0)
    params = {"w": (REGRESSION.optimum + shift).astype(np.float32)}
    return slt.LocalPosterior(
        squared_error, params, **({"n_beta": N_BETA, "localization": LOCALIZATION} | settings)
    )


@functools.cache
def run(step_size: float = 5e-3, **settings: Any) -> slt.Run:
    """Sample 8 chains for 600 draws with everything that the estimator can use."""
    return slt.sample(
        posterior(**settings),
        slt.sgld(step_size),
        BATCHES,
        KEY,
        num_chains=8,
        num_draws=600,
        num_burnin_steps=200,
        progress=False,
    )
