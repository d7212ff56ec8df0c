"""Stochastic-gradient Hamiltonian Monte Carlo with exact friction."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._tree import norm
from slt_jax._types import Displacement, Scalar, as_float, host_float, setting
from slt_jax.kernels.base import AbstractKernel, BiasFactors, Info
from slt_jax.kernels.gradients import AbstractGradient, plain
from slt_jax.kernels.sgld import positive_step_size
from slt_jax.noise import noise_like


class SghmcState(NamedTuple):
    """Position and momentum, in weights and weights per time."""

    position: Displacement
    momentum: Displacement


class Sghmc(AbstractKernel):
    """See ``sghmc``."""

    step_size: Scalar
    friction: Scalar
    gradient: AbstractGradient

    @property
    def needs_anchor(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.gradient.needs_anchor

    def init(self, target, position=None):
        position = target.restriction.zeros() if position is None else position
        return SghmcState(position, tuple(jnp.zeros_like(delta) for delta in position))

    def prepare(self, target, batch):
        return self.gradient.prepare(target, batch)

    def step_sizes(self, state):
        return tuple(jnp.full_like(delta, self.step_size) for delta in state.position)

    def relaxation_steps(self, step_size, precision):
        return momentum_relaxation(self.friction, step_size, precision)

    def bias_factors(self):
        # One kick's noise is felt until friction has forgotten it: with c the momentum kept per
        # step, (1 + c)/(1 − c) times as strongly as in SGLD, where c is 0.
        return BiasFactors(0.0, momentum_inflation(self.friction, self.step_size))

    def control_variance(self, step_size, localization, step):
        # Long runs only: with momentum the transient has no simple closed form.
        return jnp.full_like(step_size, 1 / localization)

    def step(self, key, target, state, batch):
        time_step = jnp.sqrt(self.step_size)
        with jax.named_scope("gradient"):
            gap, drift, _ = self.gradient(target, state.position, batch)
        with jax.named_scope("noise"):
            noise = noise_like(key, state.position, target.restriction.labels)
        with jax.named_scope("update"):
            pull = tuple(time_step * target.n_beta * g for g in drift)
            prior = tuple(time_step * p for p in target.prior_gradient(state.position))
            kept = jnp.exp(-self.friction * time_step)
            # 1 − c² from expm1: c² rounds to one at the small frictions where it matters.
            amplitude = jnp.sqrt(-jnp.expm1(-2 * self.friction * time_step))
            position, momentum = [], []
            for delta, p, g, pr, xi in zip(
                state.position, state.momentum, pull, prior, noise, strict=True
            ):
                kicked = p - (g + pr)
                middle = delta + 0.5 * time_step * kicked
                refreshed = kept * kicked + amplitude * xi
                position.append(middle + 0.5 * time_step * refreshed)
                momentum.append(refreshed)
        info = Info(
            gap,
            time_step * norm(pull),
            time_step * amplitude * norm(noise),
            time_step * norm(prior),
            jnp.ones_like(gap),
            jnp.ones_like(gap),
        )
        return SghmcState(target.clip(tuple(position)), tuple(momentum)), info


def momentum_inflation(friction: Scalar, step_size: Scalar) -> float:
    """Give (1 + c)/(1 − c), c = exp(−friction·√ε): gradient noise relative to SGLD's."""
    kept = math.exp(-host_float(friction) * math.sqrt(host_float(step_size)))
    return (1 + kept) / (1 - kept)


def momentum_relaxation(friction: Scalar, step_size: float, precision: float) -> float:
    """Give −1/log of the spectral radius of one step on a quadratic of this precision."""
    time_step = math.sqrt(step_size)
    kept = math.exp(-host_float(friction) * time_step)
    step = np.array(
        [
            [1 - 0.5 * step_size * precision * (1 + kept), 0.5 * time_step * (1 + kept)],
            [-kept * time_step * precision, kept],
        ]
    )
    radius = float(np.abs(np.linalg.eigvals(step)).max())
    return -1 / math.log(radius) if radius < 1 else math.inf


def sghmc(step_size: Any, friction: Any, *, gradient: AbstractGradient | None = None) -> Sghmc:
    """Sample by Langevin dynamics with momentum (stochastic-gradient HMC).

    Equation (Chen, Fox & Guestrin, arXiv 1402.4102, equation 13, discretised as kick, then
    half drift, exact friction and noise, half drift), with time step h = √ε and unit mass:

        p ← p − h(nβ ĝ + γδ);  δ ← δ + (h/2)p;  p ← c p + √(1 − c²) ξ;  δ ← δ + (h/2)p,

    c = exp(−friction·h). One gradient per step. As friction → ∞ it becomes noise-averaged SGLD with
    step size ε. Stationary law on quadratics: the solution of the discrete Lyapunov equation of
    this linear map; without minibatch noise Var = 1/a for every stable step. Minibatch noise
    inflates it (1 + c)/(1 − c) times as much as in SGLD: low friction wants large batches.

    Args:
        step_size: ε > 0, in weight² (unit mass), so that the time step is √ε.
        friction: rate > 0 at which momentum is forgotten, in 1/time.
        gradient: ``slt.plain()`` or ``slt.anchored()``; None for plain.

    >>> float(sghmc(1e-4, friction=10.0).friction)
    10.0
    """
    number = as_float("friction", friction)
    if number is not None and not number > 0:
        raise ValueError(f"friction must be positive, got {number}")
    return Sghmc(
        positive_step_size(step_size), setting(friction), plain() if gradient is None else gradient
    )
