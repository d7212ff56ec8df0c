"""What a minibatch adds to the gradient: its second moments, for sampling without replacement."""

from typing import NamedTuple

import numpy as np

from ._types import Array


class GradientNoise(NamedTuple):
    """Second moments of the minibatch error e = (H_b − H) w + s_b.

    Args:
        additive: S = Cov(s_b), shape (d, d), nats²/weight².
        multiplicative: V as a matrix on row-major vectorised X, shape (d², d²);
            None where every example has the same Hessian.
    """

    additive: Array
    multiplicative: Array | None = None

    def covariance(self, second_moment: Array) -> Array:
        """Cov(e) = S + V[E wwᵀ], shape (d, d)."""
        if self.multiplicative is None:
            return self.additive
        spread = self.multiplicative @ second_moment.ravel()
        return self.additive + spread.reshape(self.additive.shape)


def finite_population_factor(batch_size: int, num_examples: int) -> float:
    """(1/m)(N − m)/(N − 1): variance of the mean of m of N drawn without replacement.

    Cochran, "Sampling Techniques" (1977), theorem 2.2, for a population variance with
    divisor N.

    >>> finite_population_factor(batch_size=2, num_examples=5)
    0.375
    """
    return (num_examples - batch_size) / (batch_size * (num_examples - 1))


def no_noise(dimension: int) -> GradientNoise:
    """Full-batch gradients: S = 0, V = 0."""
    return GradientNoise(np.zeros((dimension, dimension)))


def additive_noise(covariance: Array, batch_size: int, num_examples: int) -> GradientNoise:
    """Noise of a uniform batch of m out of N examples that share one Hessian.

        S = (C/m)(N − m)/(N − 1)

    Args:
        covariance: C, of the per-example gradients (divisor N), (d, d), nats²/weight².
        batch_size: m, 1 ≤ m ≤ N.
        num_examples: N.
    """
    return GradientNoise(finite_population_factor(batch_size, num_examples) * covariance)


def finite_population_noise(hessians: Array, gradients: Array, batch_size: int) -> GradientNoise:
    """Noise of a uniform batch of m out of N examples, without replacement.

    S and V are f = (1/m)(N − m)/(N − 1) times the population second moments of the
    deviations g_i − ḡ and (H_i − H) ⊗ (H_i − H).

    Args:
        hessians: H_i, shape (N, d, d), nats/weight².
        gradients: g_i at w*, shape (N, d), nats/weight; their mean must vanish.
        batch_size: m, 1 ≤ m ≤ N.

    Returns:
        The noise; its multiplicative part is None if all H_i agree.

    Raises:
        ValueError: w* is not stationary, so that the laws below do not apply.
    """
    num_examples, dimension = gradients.shape
    if np.abs(gradients.mean(0)).max() > 1e-9 * (1.0 + np.abs(gradients).max()):
        raise ValueError(
            f"expected per-example gradients that sum to zero at w*, got mean "
            f"{gradients.mean(0)}: centre the chain at the minimum"
        )
    factor = finite_population_factor(batch_size, num_examples)
    additive = factor * gradients.T @ gradients / num_examples
    deviations = hessians - hessians.mean(0)
    if not deviations.any():
        return GradientNoise(additive)
    size = dimension**2
    pairs = np.einsum("nij,nkl->ikjl", deviations, deviations).reshape(size, size)
    return GradientNoise(additive, factor * pairs / num_examples)
