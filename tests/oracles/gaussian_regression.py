"""Linear regression: the model whose posterior, gradients and influences are exact."""

from typing import NamedTuple

import numpy as np

from ._types import Array


class LinearRegression(NamedTuple):
    """Examples (x_i, y_i) with the loss ℓ_i(w) = (y_i − x_iᵀw)²/(2σ²), in nats.

    Args:
        inputs: X, shape (N, d).
        targets: y, shape (N,).
        noise_scale: σ; 1 gives ½(y − xᵀw)².
    """

    inputs: Array
    targets: Array
    noise_scale: float = 1.0

    def losses(self, weights: Array) -> Array:
        """ℓ_i(w), shape (N,), nats."""
        residuals = self.targets - self.inputs @ weights
        return residuals**2 / (2 * self.noise_scale**2)

    def gradients(self, weights: Array) -> Array:
        """∇ℓ_i(w) = −x_i (y_i − x_iᵀw)/σ², shape (N, d), nats/weight."""
        residuals = self.targets - self.inputs @ weights
        return -self.inputs * residuals[:, None] / self.noise_scale**2

    @property
    def hessians(self) -> Array:
        """H_i = x_i x_iᵀ/σ², shape (N, d, d), nats/weight²."""
        return self.inputs[:, :, None] * self.inputs[:, None, :] / self.noise_scale**2

    @property
    def hessian(self) -> Array:
        """H = XᵀX/(Nσ²), the Hessian of the mean loss, shape (d, d), nats/weight²."""
        return self.inputs.T @ self.inputs / (len(self.targets) * self.noise_scale**2)

    @property
    def optimum(self) -> Array:
        """w*, the least-squares solution of least norm, shape (d,)."""
        return np.linalg.lstsq(self.inputs, self.targets, rcond=None)[0]

    @property
    def gradient_covariance(self) -> Array:
        """C = mean_i ∇ℓ_i ∇ℓ_iᵀ at w* (divisor N), shape (d, d), nats²/weight²."""
        gradients = self.gradients(self.optimum)
        return gradients.T @ gradients / len(self.targets)


def random_regression(
    rng: np.random.Generator,
    num_examples: int,
    scales: Array,
    noise_scale: float = 1.0,
) -> LinearRegression:
    """A regression with independent Gaussian inputs and Gaussian target noise.

    Args:
        rng: source of inputs, true weights and noise.
        num_examples: N.
        scales: standard deviation of each input, shape (d,); a zero makes a direction
            the loss does not see, so that λ = ½ rank X < d/2.
        noise_scale: σ, of the noise in y and in the loss; 0 is refused.

    Returns:
        The regression.

    Raises:
        ValueError: σ ≤ 0.
    """
    if noise_scale <= 0:
        raise ValueError(f"expected noise_scale > 0, got {noise_scale}")
    inputs = rng.standard_normal((num_examples, scales.size)) * scales
    truth = rng.standard_normal(scales.size)
    noise = noise_scale * rng.standard_normal(num_examples)
    return LinearRegression(inputs, inputs @ truth + noise, noise_scale)


def posterior(
    regression: LinearRegression,
    n_beta: float,
    localization: float,
    center: Array | None = None,
) -> tuple[Array, Array]:
    """Mean and covariance of exp(−nβL_n(w) − (γ/2)|w − c|²), a Gaussian.

        Σ⁻¹ = nβH + γI,    μ = c − Σ nβ∇L_n(c)

    Args:
        regression: the examples.
        n_beta: nβ, examples; β = 1 is nβ = N.
        localization: γ, 1/weight².
        center: c, shape (d,); the optimum w* if omitted, and then μ = w*.

    Returns:
        μ, shape (d,), and Σ, shape (d, d).
    """
    center = regression.optimum if center is None else center
    dimension = regression.inputs.shape[1]
    precision = n_beta * regression.hessian + localization * np.eye(dimension)
    covariance = np.linalg.inv(precision)
    gradient = regression.gradients(center).mean(0)
    return center - n_beta * covariance @ gradient, covariance


def loss_covariance(regression: LinearRegression, mean: Array, covariance: Array) -> Array:
    """Cov(ℓ_i, ℓ_j) for w ~ N(μ, Σ): minus the Bayesian influence of i on j.

        Cov(ℓ_i, ℓ_j) = [ r_i r_j k_ij + ½ k_ij² ]/σ⁴,
        r_i = y_i − x_iᵀμ,    k_ij = x_iᵀΣx_j

    from Isserlis' theorem; the influence function is that of Kreer et al., arXiv
    2509.26544.

    Args:
        regression: the examples.
        mean: μ, shape (d,).
        covariance: Σ, shape (d, d): the exact posterior's or a discrete chain's.

    Returns:
        The covariances, shape (N, N), nats².
    """
    residuals = regression.targets - regression.inputs @ mean
    kernel = regression.inputs @ covariance @ regression.inputs.T
    return (np.outer(residuals, residuals) * kernel + 0.5 * kernel**2) / regression.noise_scale**4
