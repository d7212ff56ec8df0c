"""Quadratic forms from Lanczos coefficients against dense linear algebra."""

import numpy as np
import pytest

from slt_jax.estimators.quadrature import quadratic_form


def lanczos(matrix: np.ndarray, start: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Run Lanczos with full reorthogonalisation, in float64."""
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    for _ in range(count):
        product = matrix @ basis[-1]
        alphas.append(product @ basis[-1])
        residual = product - np.array(basis).T @ (np.array(basis) @ product)
        betas.append(np.linalg.norm(residual))
        basis.append(residual / max(betas[-1], 1e-300))
    return np.array(alphas), np.array(betas)


def test_quadratic_form_matches_the_dense_one():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(12, 12))
    matrix, start = factor @ factor.T, rng.normal(size=12)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    for function in (lambda h: 1 / (h + 1.0), lambda h: (2 * h + 4) / (h + 2) ** 2):
        exact = np.sum((vectors.T @ start) ** 2 * function(eigenvalues))
        given = quadratic_form(*lanczos(matrix, start, 12), start @ start, function)
        assert given == pytest.approx(exact, rel=1e-6)


def test_steps_after_an_invariant_subspace_are_ignored():
    """What follows a vanishing residual is noise and may be anything."""
    matrix, start = np.diag([1.0, 2.0, 5.0]), np.array([1.0, 1.0, 0.0])
    alphas, betas = lanczos(matrix, start, 2)
    padded = np.append(alphas, 1e6), np.append([betas[0], 0.0], 1e6)
    form = quadratic_form(*padded, 2.0, lambda h: h**2)
    assert form == pytest.approx(5.0)
