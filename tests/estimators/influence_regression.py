"""A linear regression whose influences, correlations and removals are known exactly."""

import functools
from typing import Any

import jax
import numpy as np

import slt_jax as slt
from tests.estimators.regression import squared_error
from tests.oracles.gaussian_regression import (
    LinearRegression,
    loss_covariance,
    posterior,
    random_regression,
)

NUM_TRAIN, NUM_QUERY, DIMENSION = 48, 12, 32
N_BETA, LOCALIZATION = 48.0, 4.0
WHOLE = random_regression(np.random.default_rng(5), NUM_TRAIN + NUM_QUERY, np.full(DIMENSION, 0.35))
INPUTS, TARGETS = WHOLE.inputs.astype(np.float32), WHOLE.targets.astype(np.float32)
TRAIN, QUERY = (
    (INPUTS[:NUM_TRAIN], TARGETS[:NUM_TRAIN]),
    (INPUTS[NUM_TRAIN:], TARGETS[NUM_TRAIN:]),
)
REGRESSION = LinearRegression(WHOLE.inputs[:NUM_TRAIN], WHOLE.targets[:NUM_TRAIN])
MEAN, COVARIANCE = posterior(REGRESSION, N_BETA, LOCALIZATION)
LOSS_COVARIANCE = loss_covariance(WHOLE, MEAN, COVARIANCE)
"""Cov(ℓ_i, ℓ_j) of all examples, training first."""

POSTERIOR = slt.LocalPosterior(
    squared_error, {"w": MEAN.astype(np.float32)}, n_beta=N_BETA, localization=LOCALIZATION
)
KERNEL = slt.sgld(0.05, noise_averaging=True)
"""Noise averaging has no step-size bias on a quadratic, so that the posterior's law is exact."""
BATCHES = slt.Batches(TRAIN, NUM_TRAIN, per_chain=True)
OPTIONS: dict[str, Any] = {
    "num_chains": 8,
    "num_draws": 1000,
    "num_burnin_steps": 200,
    "num_steps_bw_draws": 2,
    "progress": False,
}


def predictions(params: Any, examples: Any) -> jax.Array:
    """Give xᵀw, an output that is no loss."""
    return examples[0] @ params["w"]


@functools.cache
def run(seed: int = 0) -> slt.Run:
    """Sample with the losses of training and query examples and the predictions kept."""
    observables = {
        "train": slt.LossValues(slt.Probe(TRAIN), slt.Trace()),
        "query": slt.LossValues(slt.Probe(QUERY), slt.Trace()),
        "predictions": slt.Observable(predictions, slt.Probe(QUERY), slt.Trace()),
    }
    return slt.sample(
        POSTERIOR, KERNEL, BATCHES, jax.random.key(seed), observables=observables, **OPTIONS
    )


def correlation(covariance: np.ndarray) -> np.ndarray:
    """Give the correlations of a covariance matrix."""
    deviation = np.sqrt(np.diagonal(covariance))
    return covariance / np.outer(deviation, deviation)
