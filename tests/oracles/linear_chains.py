"""The samplers on a quadratic loss: linear in their state, driven by noise.

The loss gap is L(w) − L(0) = ½ wᵀHw, with w the displacement from w*, so the potential is
½ wᵀAw with A = nβH + γI. Every kernel with a frozen preconditioner then moves a state z,
whose first d coordinates are w, by

    z' = M z + G e + η,    e = (H_b − H) w + s_b,    Cov(η) = Q,

where e is the error of the minibatch gradient of the *mean* loss (`gradient_noise`) and η
the injected noise. A kernel is a constructor of (M, Q, G); `discrete_laws` takes it from
there.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._types import Array


class Quadratic(NamedTuple):
    """The localized tempered posterior of a quadratic loss.

    Args:
        hessian: H, symmetric, shape (d, d), nats/weight².
        n_beta: nβ, examples.
        localization: γ, 1/weight².
    """

    hessian: Array
    n_beta: float
    localization: float

    @property
    def precision(self) -> Array:
        """A = nβH + γI, the inverse covariance of the exact posterior, (d, d)."""
        return self.n_beta * self.hessian + self.localization * np.eye(self.dimension)

    @property
    def dimension(self) -> int:
        """d, the number of weights that move."""
        return self.hessian.shape[0]


class LinearChain(NamedTuple):
    """One kernel on one quadratic: z' = M z + G e + η.

    Args:
        transition: M, shape (k, k), with k ≥ d.
        injected: Q = Cov(η), shape (k, k).
        load: G, shape (k, d): how a gradient error enters the state.
        start: E[zzᵀ] of a fresh chain at w*, shape (k, k): w = 0, Adam's moment 0,
            the carried noise and the momentum drawn from N(0, I).
    """

    transition: Array
    injected: Array
    load: Array
    start: Array


def sgld_chain(target: Quadratic, step_size: float, metric: ArrayLike = 1.0) -> LinearChain:
    """SGLD with a fixed diagonal metric D (the identity, or a frozen preconditioner).

        w' = w − (ε/2) D (A w + nβ e) + √(εD) ξ

    Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics"
    (ICML 2011), equation 4.

    Args:
        target: the quadratic posterior.
        step_size: ε, weight².
        metric: diagonal of D, scalar or shape (d,), dimensionless.
    """
    d = target.dimension
    steps = step_size * np.broadcast_to(np.asarray(metric, dtype=float), (d,))
    return LinearChain(
        transition=np.eye(d) - 0.5 * steps[:, None] * target.precision,
        injected=np.diag(steps),
        load=-0.5 * target.n_beta * np.diag(steps),
        start=np.zeros((d, d)),
    )


def noise_averaged_sgld_chain(
    target: Quadratic, step_size: float, metric: ArrayLike = 1.0
) -> LinearChain:
    """SGLD with noise √(εD) ½(ξ_k + ξ_{k+1}), on the state (w_k, ξ_k).

    Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
    molecular sampling", AMRX 2013, arXiv 1203.5428. Without gradient noise the
    covariance of w is A⁻¹ at every stable step size.

    Args:
        target: the quadratic posterior.
        step_size: ε, weight².
        metric: diagonal of D, scalar or shape (d,), dimensionless.
    """
    d = target.dimension
    plain = sgld_chain(target, step_size, metric)
    half_noise = 0.5 * np.sqrt(plain.injected)
    zero, identity = np.zeros((d, d)), np.eye(d)
    return LinearChain(
        transition=np.block([[plain.transition, half_noise], [zero, zero]]),
        injected=np.block([[half_noise**2, half_noise], [half_noise, identity]]),
        load=np.vstack([plain.load, zero]),
        start=np.block([[zero, zero], [zero, identity]]),
    )


def sghmc_chain(target: Quadratic, step_size: float, friction: float) -> LinearChain:
    """Underdamped Langevin, full kick then A-O-A, on the state (q, p); h = √ε.

        p ← p − h (A q + nβ e);    q ← q + (h/2) p
        p ← c p + √(1 − c²) ξ;     q ← q + (h/2) p,    c = exp(−friction·h)

    Chen, Fox and Guestrin, arXiv 1402.4102, with the BAOAB splitting of Leimkuhler and
    Matthews (2013), its two half kicks merged. Without gradient noise the covariance of
    q is A⁻¹ at every stable step size and friction; friction → ∞ is noise-averaged SGLD.

    Args:
        target: the quadratic posterior.
        step_size: ε = h², weight².
        friction: damping rate per unit time, 1/weight.
    """
    d, h = target.dimension, np.sqrt(step_size)
    c = np.exp(-friction * h)
    zero, identity = np.zeros((d, d)), np.eye(d)

    def block(qq: Array, qp: Array, pq: Array, pp: Array) -> Array:
        return np.block([[qq, qp], [pq, pp]])

    kick = block(identity, zero, -h * target.precision, identity)
    drift = block(identity, 0.5 * h * identity, zero, identity)
    damp = block(identity, zero, zero, c * identity)
    noise = block(zero, zero, zero, (1 - c**2) * identity)
    after_kick = drift @ damp @ drift
    return LinearChain(
        transition=after_kick @ kick,
        injected=drift @ noise @ drift.T,
        load=after_kick @ np.vstack([zero, -h * target.n_beta * identity]),
        start=block(zero, zero, zero, identity),
    )


def adam_chain(
    target: Quadratic, step_size: float, decay: float, metric: ArrayLike = 1.0
) -> LinearChain:
    """SGLD driven by Adam's first moment, its second moment frozen into D; state (w, m).

        m' = b m + (1 − b)(H w + e)
        w' = w − (ε/2) D (γ w + nβ m') + √(εD) ξ

    Only the loss gradient is averaged, the localization is not. The bias correction
    1/(1 − bᵗ) is left out: it is one in the stationary law, and the transient law here
    is that of a chain which does not apply it.

    Args:
        target: the quadratic posterior.
        step_size: ε, weight².
        decay: b, Adam's β₁, 0 ≤ b < 1.
        metric: diagonal of D, scalar or shape (d,), dimensionless.
    """
    d = target.dimension
    steps = np.diag(step_size * np.broadcast_to(np.asarray(metric, dtype=float), (d,)))
    zero, identity = np.zeros((d, d)), np.eye(d)
    pull = -0.5 * target.n_beta * steps
    fresh = 1 - decay
    relax = identity - 0.5 * target.localization * steps
    return LinearChain(
        transition=np.block(
            [
                [relax + fresh * pull @ target.hessian, decay * pull],
                [fresh * target.hessian, decay * identity],
            ]
        ),
        injected=np.block([[steps, zero], [zero, zero]]),
        load=np.vstack([fresh * pull, fresh * identity]),
        start=np.zeros((2 * d, 2 * d)),
    )
