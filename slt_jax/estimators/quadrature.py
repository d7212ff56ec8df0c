"""Gauss quadrature for quadratic forms of the Hessian from Lanczos coefficients."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def quadratic_form(
    diagonal: Float[np.ndarray, " step"],
    off_diagonal: Float[np.ndarray, " step"],
    norm_squared: float,
    function: Callable[[np.ndarray], np.ndarray],
) -> float:
    """Give gᵀ f(H) g from the Lanczos tridiagonal matrix of H started at g.

    Equation: |g|² Σ_k (first component of eigenvector k)² f(θ_k) (Golub & Meurant, "Matrices,
    Moments and Quadrature", 2010, chapter 6). Steps after an invariant subspace was found carry no
    information and are cut off.

    Args:
        diagonal: Lanczos coefficients α_k, in nats/weight².
        off_diagonal: β_k, the last one closing the recurrence.
        norm_squared: |g|².
        function: f, applied to the Ritz values, in nats/weight².

    >>> quadratic_form(np.array([2.0]), np.array([0.0]), 3.0, lambda h: 1 / h)
    1.5
    """
    ritz, vectors = np.linalg.eigh(tridiagonal(diagonal, off_diagonal))
    return float(norm_squared * np.sum(vectors[0] ** 2 * function(ritz)))


def tridiagonal(
    diagonal: Float[np.ndarray, " step"], off_diagonal: Float[np.ndarray, " step"]
) -> Float[np.ndarray, "size size"]:
    """Give Lanczos's matrix, in float64, up to the first vanishing off-diagonal entry.

    >>> tridiagonal(np.array([2.0, 5.0]), np.array([0.0, 1.0])).tolist()
    [[2.0]]
    """
    scale = np.abs(diagonal[0]) + np.abs(off_diagonal[0]) + 1e-300
    ended = np.flatnonzero(off_diagonal <= 1e-5 * scale)
    size = int(ended[0]) + 1 if ended.size else len(diagonal)
    inner = off_diagonal[: size - 1].astype(np.float64)
    return np.diag(diagonal[:size].astype(np.float64)) + np.diag(inner, 1) + np.diag(inner, -1)
