"""The stochastic-gradient Nosé–Hoover thermostat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slt_jax._tree import inner, norm
from slt_jax._types import Displacement, Scalar, as_float, setting
from slt_jax.kernels.base import AbstractKernel, BiasFactors, Info
from slt_jax.kernels.gradients import AbstractGradient, plain
from slt_jax.kernels.sghmc import momentum_inflation, momentum_relaxation
from slt_jax.kernels.sgld import positive_step_size
from slt_jax.noise import noise_like


class SgnhtState(NamedTuple):
    """Position, momentum, and the thermostat: one friction for all weights, in 1/time."""

    position: Displacement
    momentum: Displacement
    thermostat: Scalar


class Sgnht(AbstractKernel):
    """See ``sgnht``."""

    step_size: Scalar
    diffusion: Scalar
    thermostat_mass: Scalar
    gradient: AbstractGradient

    @property
    def needs_anchor(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.gradient.needs_anchor

    def init(self, target, position=None):
        position = target.restriction.zeros() if position is None else position
        momentum = tuple(jnp.zeros_like(delta) for delta in position)
        # The friction that balances the injected noise at unit temperature.
        return SgnhtState(position, momentum, jnp.asarray(self.diffusion, jnp.float32))

    def prepare(self, target, batch):
        return self.gradient.prepare(target, batch)

    def step_sizes(self, state):
        return tuple(jnp.full_like(delta, self.step_size) for delta in state.position)

    def relaxation_steps(self, step_size, precision):
        return momentum_relaxation(self.diffusion, step_size, precision)

    def bias_factors(self):
        # At most: the thermostat takes away the part of the gradient noise that is isotropic.
        return BiasFactors(0.0, momentum_inflation(self.diffusion, self.step_size))

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
            momentum = tuple(
                p - (g + r) for p, g, r in zip(state.momentum, pull, prior, strict=True)
            )
            position = _drift(state.position, momentum, 0.5 * time_step)
            thermostat = self._exchange(state.thermostat, momentum, 0.5 * time_step)
            amplitude = jnp.sqrt(2 * self.diffusion * _decay_integral(thermostat, time_step))
            kept = jnp.exp(-thermostat * time_step)
            momentum = tuple(
                kept * p + amplitude * xi for p, xi in zip(momentum, noise, strict=True)
            )
            thermostat = self._exchange(thermostat, momentum, 0.5 * time_step)
            position = _drift(position, momentum, 0.5 * time_step)
        info = Info(
            gap,
            time_step * norm(pull),
            time_step * amplitude * norm(noise),
            time_step * norm(prior),
            jnp.ones_like(gap),
            jnp.ones_like(gap),
        )
        return SgnhtState(target.clip(position), momentum, thermostat), info

    def _exchange(self, thermostat: Scalar, momentum: Displacement, time: Scalar) -> Scalar:
        size = sum(p.size for p in momentum)
        return thermostat + time * (inner(momentum, momentum) / size - 1) / self.thermostat_mass


def _drift(position: Displacement, momentum: Displacement, time: Scalar) -> Displacement:
    return tuple(delta + time * p for delta, p in zip(position, momentum, strict=True))


def _decay_integral(rate: Scalar, time: Scalar) -> Scalar:
    """Give ∫₀ᵗ exp(−2·rate·s) ds, which is t at rate 0 and grows at negative rates."""
    small = jnp.abs(rate) * time < 1e-4
    safe = jnp.where(small, jnp.ones_like(rate), rate)
    return jnp.where(small, time * (1 - rate * time), -jnp.expm1(-2 * safe * time) / (2 * safe))


def sgnht(
    step_size: Any,
    diffusion: Any = 1.0,
    thermostat_mass: Any = 1.0,
    *,
    gradient: AbstractGradient | None = None,
) -> Sgnht:
    """Sample by a Langevin dynamics whose friction adapts to unknown gradient noise.

    Equation (Ding et al., "Bayesian Sampling Using Stochastic Gradient Thermostats", NeurIPS 2014;
    splitting BADODAB of Leimkuhler & Shang, SIAM J. Sci. Comput. 38, 2016, with its two kicks at
    one position merged), with time step h = √ε and d moving weights:

        dp = −(nβ ĝ + γδ)dt − ζ p dt + √(2A) dW,   dδ = p dt,   dζ = (|p|²/d − 1)/μ dt.

    Stationary law: the density itself, with ζ ~ N(A, 1/(dμ)), up to a bias of second order in h
    (first in ε) without minibatch noise. ζ rises to absorb gradient noise that is the same in all
    directions, and only such noise: differences between directions remain.

    Args:
        step_size: ε > 0, in weight² (unit mass); the time step is √ε.
        diffusion: A > 0, the injected noise, in 1/time.
        thermostat_mass: μ > 0, the thermostat's inertia per weight, in time².
        gradient: ``slt.plain()`` or ``slt.anchored()``; None for plain.

    >>> float(sgnht(1e-4).diffusion)
    1.0
    """
    for name, value in (("diffusion", diffusion), ("thermostat_mass", thermostat_mass)):
        number = as_float(name, value)
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")
    return Sgnht(
        positive_step_size(step_size),
        setting(diffusion),
        setting(thermostat_mass),
        plain() if gradient is None else gradient,
    )
