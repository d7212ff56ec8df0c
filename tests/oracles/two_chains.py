"""Susceptibilities of a Gaussian posterior: every term of the two chains in closed form."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._types import Array


class Quadratics(NamedTuple):
    """Functions ½δᵀA_kδ + b_kᵀδ of the displacement δ = w − w*, in nats.

    Args:
        matrices: A_k, shape (k, d, d).
        slopes: b_k, shape (k, d).
    """

    matrices: Array
    slopes: Array

    def mean(self) -> "Quadratics":
        """The mean over k, as a single function."""
        return Quadratics(self.matrices.mean(0, keepdims=True), self.slopes.mean(0, keepdims=True))

    def among(self, moving: Sequence[int]) -> "Quadratics":
        """The same functions of the weights that move, the others at w*."""
        index = np.asarray(moving)
        return Quadratics(self.matrices[:, index[:, None], index], self.slopes[:, index])

    def minus(self, other: "Quadratics") -> "Quadratics":
        """All functions less one."""
        return Quadratics(self.matrices - other.matrices, self.slopes - other.slopes)

    def expectation(self, mean: Array, covariance: Array) -> Array:
        """E[q_k] = ½tr(A_kΣ) + ½μᵀA_kμ + b_kᵀμ for δ ~ N(μ, Σ), shape (k,)."""
        second = covariance + np.outer(mean, mean)
        return 0.5 * np.einsum("kij,ij->k", self.matrices, second) + self.slopes @ mean

    def covariance(self, other: "Quadratics", mean: Array, covariance: Array) -> Array:
        """Cov(q_k, p) = ½tr(A_kΣAΣ) + (A_kμ + b_k)ᵀΣ(Aμ + b) for one function p, shape (k,)."""
        matrix, slope = other.matrices[0], other.slopes[0]
        traces = np.einsum("kij,ji->k", self.matrices @ covariance, matrix @ covariance)
        return 0.5 * traces + (self.matrices @ mean + self.slopes) @ covariance @ (
            matrix @ mean + slope
        )


def squared_errors(inputs: Array, targets: Array, weights: Array) -> Quadratics:
    """The losses ½(y_k − x_kᵀw)² less their values at w*, as functions of w − w*.

    Args:
        inputs: x_k, shape (k, d).
        targets: y_k, shape (k,).
        weights: w*, shape (d,).
    """
    residuals = targets - inputs @ weights
    return Quadratics(inputs[:, :, None] * inputs[:, None, :], -inputs * residuals[:, None])


class Tempered(NamedTuple):
    """The density exp(−nβL − (γ/2)|δ|²) of the weights that move: a Gaussian.

    Args:
        mean: μ, shape (d,).
        covariance: Σ, shape (d, d).
        log_partition: the logarithm of its integral, up to a constant that only depends on d.
    """

    mean: Array
    covariance: Array
    log_partition: float


def tempered(loss: Quadratics, n_beta: float, localization: float) -> Tempered:
    """Sample this: Σ⁻¹ = nβA + γI, μ = −Σ nβ b, for a single function L.

    Args:
        loss: L, one function.
        n_beta: nβ.
        localization: γ, 1/weight².
    """
    dimension = loss.slopes.shape[1]
    precision = n_beta * loss.matrices[0] + localization * np.eye(dimension)
    pull = n_beta * loss.slopes[0]
    covariance = np.linalg.inv(precision)
    log_determinant = np.linalg.slogdet(precision)[1]
    log_partition = 0.5 * pull @ covariance @ pull - 0.5 * log_determinant
    return Tempered(-covariance @ pull, covariance, float(log_partition))


class TwoChains(NamedTuple):
    """The exact susceptibility χ and its parts, shape (k,) each but for ``gap``.

    Args:
        value: χ = −[Cov_C(g, ℓ̃) + E_C[g](E_C[ℓ̃] − E_full[ℓ̃])], nats².
        covariance: −Cov_C(g, ℓ̃).
        full_mean: E_full[ℓ̃], relative to w*, nats.
        gap: E_C[g], nats.
    """

    value: Array
    covariance: Array
    full_mean: Array
    gap: float


def two_chains(
    sampled: Quadratics,
    probes: Quadratics,
    moving: Sequence[int],
    n_beta: float,
    localization: float,
) -> TwoChains:
    """The susceptibility of the weights ``moving`` to each of the probes.

    Args:
        sampled: losses of the sampling data.
        probes: losses of the probes.
        moving: numbers of the weights of the component.
        n_beta: nβ of the chains.
        localization: γ.
    """
    loss, relative = sampled.mean(), probes.minus(sampled.mean())
    full = tempered(loss, n_beta, localization)
    own = tempered(loss.among(moving), n_beta, localization)
    gap = loss.among(moving)
    inside = relative.among(moving)
    covariance = inside.covariance(gap, own.mean, own.covariance)
    mean_gap = float(gap.expectation(own.mean, own.covariance)[0])
    full_mean = relative.expectation(full.mean, full.covariance)
    shift = inside.expectation(own.mean, own.covariance) - full_mean
    return TwoChains(-(covariance + mean_gap * shift), -covariance, full_mean, mean_gap)


def perturbed_gap(
    sampled: Quadratics,
    probes: Sequence[Quadratics],
    moving: Sequence[int],
    n_beta: float,
    localization: float,
    shares: Sequence[float],
) -> float:
    """⟨δ(u − u*) g⟩ under the data (1 − Σh_j)q + Σ_j h_j q_j, in units of Z_C/Z_full at h = 0.

    Its derivative in h_j is nβχ_j: the full posterior, whose weights u outside the component are
    held at u* by the observable, not the posterior, weighs configurations by Z_full(h).

    Args:
        sampled: losses of the sampling data q; g is the gap of their mean.
        probes: losses of the data sets q_j.
        moving: numbers of the weights of the component.
        n_beta: nβ.
        localization: γ.
        shares: h_j.
    """

    def of(scale: float) -> tuple[Tempered, Tempered]:
        weights = scale * np.asarray(shares)
        means = [data.mean() for data in probes]
        loss = Quadratics(
            (1 - weights.sum()) * sampled.mean().matrices
            + sum(h * mean.matrices for h, mean in zip(weights, means, strict=True)),
            (1 - weights.sum()) * sampled.mean().slopes
            + sum(h * mean.slopes for h, mean in zip(weights, means, strict=True)),
        )
        return (
            tempered(loss.among(moving), n_beta, localization),
            tempered(loss, n_beta, localization),
        )

    (own, full), (own_before, full_before) = of(1.0), of(0.0)
    factor = np.exp(
        own.log_partition
        - full.log_partition
        - (own_before.log_partition - full_before.log_partition)
    )
    gap = sampled.mean().among(moving).expectation(own.mean, own.covariance)[0]
    return float(factor * gap)
