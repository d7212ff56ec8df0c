"""Deep linear teachers at the deepest point of their fibre."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ._types import Array


def partial_isometry(widths: Sequence[int], rank: int, rng: np.random.Generator) -> list[Array]:
    """Layers of y = W_L ⋯ W_1 x whose nonzero singular values are all one.

        W_k = Q_k[:, :r] Q_{k−1}[:, :r]ᵀ,    Q_k ∈ O(H_k) independent and uniform,

    so that W_L ⋯ W_1 = Q_L[:, :r] Q_0[:, :r]ᵀ. Every partial product has rank r,
    the least the fibre allows: the local λ is Aoyagi's
    (`learning_coefficients.deep_linear_network`). Unit singular values keep the
    Hessian well conditioned, which products of Gaussian blocks do not.

    Args:
        widths: H_0, …, H_L with H_0 the input, shape (L + 1,), L ≥ 1.
        rank: r, 0 ≤ r ≤ min H_k.
        rng: source of the frames.

    Returns:
        W_1, …, W_L with W_k of shape (H_k, H_{k−1}), dimensionless.

    Raises:
        ValueError: the rank does not fit into the widths.

    >>> [w.shape for w in partial_isometry([4, 3, 5], 2, np.random.default_rng(0))]
    [(3, 4), (5, 3)]
    """
    if not 0 <= rank <= min(widths):
        raise ValueError(f"expected 0 ≤ rank ≤ {min(widths)} for widths {list(widths)}, got {rank}")
    frames = [_uniform_frame(width, rank, rng) for width in widths]
    return [upper @ lower.T for lower, upper in pairwise(frames)]


def _uniform_frame(width: int, rank: int, rng: np.random.Generator) -> Array:
    """The first `rank` columns, shape (width, rank), of a uniform orthogonal matrix."""
    frame, triangle = np.linalg.qr(rng.standard_normal((width, rank)))
    # QR alone is not uniform: LAPACK fixes the signs of R's diagonal (Mezzadri, math-ph/0609050).
    return frame * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
