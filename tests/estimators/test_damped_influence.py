"""Damped influence functions against dense linear algebra, and against sampled influence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slt_jax as slt
from tests.estimators.influence_regression import (
    BATCHES,
    LOCALIZATION,
    MEAN,
    N_BETA,
    NUM_TRAIN,
    POSTERIOR,
    QUERY,
    REGRESSION,
    WHOLE,
)

NUM_EXAMPLES, NUM_INPUTS, NUM_CLASSES = 20, 3, 4
RNG = np.random.default_rng(3)
PARAMS = {
    "first": RNG.normal(size=(NUM_INPUTS, 4)).astype(np.float32),
    "second": RNG.normal(size=(4, NUM_CLASSES)).astype(np.float32),
}
DATA = (
    RNG.normal(size=(NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32),
    RNG.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32),
)
PARTS = slt.GaussNewton(
    lambda params, examples: jnp.tanh(examples[0] @ params["first"]) @ params["second"],
    lambda outputs, examples: optax.softmax_cross_entropy_with_integer_labels(outputs, examples[1]),
)


def classifier_loss(params: Any, examples: Any) -> jax.Array:
    """Give the cross-entropy of a small network, nats per example."""
    return PARTS.output_loss(PARTS.network(params, examples), examples)


def classifier(localization: float) -> slt.LocalPosterior:
    return slt.LocalPosterior(
        classifier_loss, PARAMS, n_beta=10.0, localization=localization, weight_decay=0.5
    )


def test_linear_regression_is_solved_exactly():
    """Hessian and Gauss–Newton matrix are one there: −∇φᵀ(H + (γ/nβ)I)⁻¹∇ℓ."""
    damped = REGRESSION.hessian + LOCALIZATION / N_BETA * np.eye(len(MEAN))
    gradients = WHOLE.gradients(MEAN)
    exact = -gradients[:NUM_TRAIN] @ np.linalg.solve(damped, gradients[NUM_TRAIN:].T)
    found = slt.damped_influence(POSTERIOR, BATCHES, query=QUERY)
    np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


def test_it_is_the_limit_of_bayesian_influence():
    """−nβ Cov(ℓ_i, φ) of the exact posterior differs by the term ½k² only, which vanishes."""
    _, covariance = slt_posterior(1e4)
    kernel = WHOLE.inputs @ covariance @ WHOLE.inputs.T
    residuals = WHOLE.targets - WHOLE.inputs @ MEAN
    exact = np.outer(residuals, residuals) * kernel + 0.5 * kernel**2
    sharp = slt.LocalPosterior(
        POSTERIOR.loss_fn, POSTERIOR.params, n_beta=1e4, localization=1e4 * LOCALIZATION / N_BETA
    )
    found = slt.damped_influence(sharp, BATCHES, query=QUERY)
    limit = -1e4 * exact[:NUM_TRAIN, NUM_TRAIN:]
    np.testing.assert_allclose(found, limit, atol=3e-3 * np.abs(limit).max())


def slt_posterior(n_beta: float) -> tuple[np.ndarray, np.ndarray]:
    from tests.oracles.gaussian_regression import posterior

    return posterior(REGRESSION, n_beta, n_beta * LOCALIZATION / N_BETA, center=MEAN)


@pytest.mark.parametrize("batch_size", [20, 6])
def test_gauss_newton_matrix_of_a_network(batch_size):
    """Against the dense matrix Jᵀ(diag p − ppᵀ)J/n, whatever the batches that cut the data."""
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    jacobian = jax.jacrev(lambda w: PARTS.network(unravel(w), DATA))(flat)
    chances = jax.nn.softmax(PARTS.network(PARAMS, DATA))
    bend = jax.vmap(jnp.diag)(chances) - chances[:, :, None] * chances[:, None, :]
    matrix = jnp.einsum("nkp,nkl,nlq->pq", jacobian, bend, jacobian) / NUM_EXAMPLES
    gradients = jax.jacrev(lambda w: classifier_loss(unravel(w), DATA))(flat)
    damped = matrix + (2.0 + 0.5) / 10.0 * jnp.eye(len(flat))
    exact = np.asarray(-gradients @ jnp.linalg.solve(damped, gradients.T))
    found = slt.damped_influence(
        classifier(2.0), slt.Batches(DATA, batch_size), query=DATA, gauss_newton=PARTS
    )
    np.testing.assert_allclose(found, exact, atol=2e-3 * np.abs(exact).max())


def test_masked_positions_and_restrictions_count_for_nothing():
    """A loss per position with masks, and one weight frozen: against the dense solution."""
    tokens = RNG.normal(size=(6, 4, 2)).astype(np.float32)
    weights = RNG.integers(0, 2, (6, 4)).astype(np.float32)
    weights[:, 0] = 1
    posterior = slt.LocalPosterior(
        lambda params, x: 0.5 * (x @ params["w"] - 1.0) ** 2,
        {"w": np.array([0.3, -0.2], np.float32)},
        n_beta=4.0,
        localization=2.0,
        restriction=slt.Restriction([slt.Block("w", (2,), (1,), (1,))]),
    )
    slopes = (tokens @ posterior.params["w"] - 1.0) * tokens[..., 1]
    gradient = np.sum(weights * slopes, axis=1) / weights.sum(axis=1)
    curvature = np.sum(weights * tokens[..., 1] ** 2) / weights.sum()
    exact = -np.outer(gradient, gradient) / (curvature + 0.5)
    probe = slt.Probe(tokens, weights)
    found = slt.damped_influence(posterior, slt.Batches(tokens, 4, weights=weights), query=probe)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_solved_is_refused():
    batches = slt.Batches(DATA, NUM_EXAMPLES)
    free = slt.LocalPosterior(classifier_loss, PARAMS, n_beta=10.0, localization=0.0)
    with pytest.raises(ValueError, match="nothing damps"):
        slt.damped_influence(free, batches, query=DATA)
    weak = slt.LocalPosterior(classifier_loss, PARAMS, n_beta=10.0, localization=1e-3)
    with pytest.raises(ValueError, match="did not converge"):
        slt.damped_influence(weak, batches, query=DATA, gauss_newton=PARTS, max_iterations=2)
    other = slt.GaussNewton(PARTS.network, lambda o, x: 2 * PARTS.output_loss(o, x))
    with pytest.raises(ValueError, match="must equal loss_fn"):
        slt.damped_influence(classifier(2.0), batches, query=DATA, gauss_newton=other)
