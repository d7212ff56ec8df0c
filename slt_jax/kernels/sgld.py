"""Stochastic-gradient Langevin dynamics, preconditioned and noise-averaged on request."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from slt_jax._tree import choose, norm
from slt_jax._types import ChainKey, Counter, Displacement, Scalar, as_float, setting
from slt_jax.kernels.base import AbstractKernel, BiasFactors, Info
from slt_jax.kernels.gradients import AbstractGradient, plain
from slt_jax.kernels.preconditioner import AbstractPreconditioner, identity
from slt_jax.noise import noise_like

NEVER = np.int32(2**31 - 1)


class SgldState(NamedTuple):
    """Position, the preconditioner's moments, steps taken, and the key of the last noise."""

    position: Displacement
    preconditioner: Any
    num_steps: Counter
    noise_key: UInt32[Array, " words"]


class Sgld(AbstractKernel):
    """See ``sgld``."""

    step_size: Scalar | Callable[[Any], Any]
    preconditioner: AbstractPreconditioner
    gradient: AbstractGradient
    adaptation_steps: Counter
    noise_averaging: bool = eqx.field(static=True)

    @property
    def needs_anchor(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.gradient.needs_anchor

    def init(self, target, position=None):
        position = target.restriction.zeros() if position is None else position
        return SgldState(
            position,
            self.preconditioner.init(position),
            jnp.zeros((), jnp.int32),
            jnp.zeros((2,), jnp.uint32),
        )

    def prepare(self, target, batch):
        return self.gradient.prepare(target, batch)

    def freeze_after(self, num_steps):
        return eqx.tree_at(lambda kernel: kernel.adaptation_steps, self, num_steps)

    def step_sizes(self, state):
        metric = self.preconditioner.metric(state.preconditioner)
        step_size = self._step_size(state.num_steps)
        if metric is None:
            return tuple(jnp.full_like(delta, step_size) for delta in state.position)
        return tuple(step_size * scale for scale in metric)

    @property
    def adapts(self) -> bool:
        return self.preconditioner.adapts

    def bias_factors(self):
        if self.noise_averaging:
            return BiasFactors(0.0, 1.0)
        return BiasFactors(self.preconditioner.step_size_bias(), 1.0)

    def control_variance(self, step_size, localization, step):
        if not self.noise_averaging:
            return super().control_variance(step_size, localization, step)
        # Noise averaged over neighbouring steps gives (1 − ρ^{2t−1})/γ: no step-size factor.
        rho = 1 - 0.5 * step_size * localization
        return (1 - jnp.sign(rho) * jnp.abs(rho) ** (2 * step - 1)) / localization

    def step(self, key, target, state, batch):
        with jax.named_scope("gradient"):
            gap, drift, gradient = self.gradient(target, state.position, batch)
        with jax.named_scope("preconditioner"):
            frozen = state.num_steps >= self.adaptation_steps
            direction, metric, moments = self.preconditioner.update(
                state.preconditioner, drift, gradient, frozen
            )
        step_size = self._step_size(state.num_steps)
        with jax.named_scope("noise"):
            noise = self._noise(key, state, target.restriction.labels)
            noise = _scaled(noise, jnp.sqrt(step_size), metric, jnp.sqrt)
        with jax.named_scope("update"):
            half = 0.5 * step_size
            pull = _scaled(direction, half * target.n_beta, metric)
            prior = _scaled(target.prior_gradient(state.position), half, metric)
            position = tuple(
                delta - (g + p) + xi
                for delta, g, p, xi in zip(state.position, pull, prior, noise, strict=True)
            )
        info = Info(
            gap, norm(pull), norm(noise), norm(prior), jnp.ones_like(gap), self._weight(state)
        )
        next_state = SgldState(
            target.clip(position), moments, state.num_steps + 1, jax.random.key_data(key)
        )
        return next_state, info

    def _step_size(self, count: Counter) -> Scalar:
        if callable(self.step_size):
            # Schedules of optax multiply counts by floats, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                return jnp.asarray(self.step_size(count), jnp.float32)
        return self.step_size

    def _weight(self, state: SgldState) -> Scalar:
        if callable(self.step_size):
            return self._step_size(state.num_steps)
        return jnp.ones((), jnp.float32)

    def _noise(self, key: ChainKey, state: SgldState, labels: tuple[str, ...]) -> Displacement:
        fresh = noise_like(key, state.position, labels)
        if not self.noise_averaging:
            return fresh
        # The previous step's noise is drawn again from its key instead of being kept: it would be
        # a third copy of the moving weights. The first step has no predecessor and makes one up.
        previous_key = jax.random.wrap_key_data(
            choose(
                state.num_steps == 0,
                jax.random.key_data(jax.random.fold_in(key, 1)),
                state.noise_key,
            ),
            impl=jax.random.key_impl(key),
        )
        previous = noise_like(previous_key, state.position, labels)
        return tuple(0.5 * (old + new) for old, new in zip(previous, fresh, strict=True))


def _scaled(
    tree: Displacement,
    factor: Scalar,
    metric: Displacement | None,
    power: Callable[[Array], Array] = lambda scale: scale,
) -> Displacement:
    if metric is None:
        return tuple(factor * leaf for leaf in tree)
    return tuple(factor * power(scale) * leaf for leaf, scale in zip(tree, metric, strict=True))


def sgld(
    step_size: Any,
    preconditioner: AbstractPreconditioner | None = None,
    *,
    gradient: AbstractGradient | None = None,
    noise_averaging: bool = False,
) -> Sgld:
    """Sample by stochastic-gradient Langevin dynamics.

    Equation (Welling & Teh, ICML 2011; Lau et al., arXiv 2308.12108, equation for Δw):

        δ ← δ − (ε/2) D (nβ ĝ + γδ) + √(εD) ξ,   ξ ~ N(0, I)

    with ĝ the gradient of the minibatch loss before the step. Stationary law on a quadratic with
    curvature h, a = nβh + γ, per-example gradient variance C, batch m of n and D = 1:

        Var = [1 + ε(nβ)² C (n−m)/(n−1) / (4m)] / [a(1 − εa/4)],   stable iff εa < 4.

    With ``noise_averaging`` the noise is ½(ξ_k + ξ_{k+1}) (Leimkuhler & Matthews, Applied
    Mathematics Research eXpress 2013) and the factor 1/(1 − εa/4) becomes 1: exact on quadratics.
    The minibatch term stays. It needs a constant step size and a fixed metric.

    Args:
        step_size: ε > 0, in weight²; or an optax schedule of the step count, in which case draws
            are weighted by ε.
        preconditioner: ``slt.identity()``, ``slt.rms()`` or ``slt.adam()``; None for the identity.
        gradient: ``slt.plain()`` or ``slt.anchored()``; None for plain.
        noise_averaging: use averaged noise; refused with a schedule or an adapting metric.

    Raises:
        ValueError: a step size that is not positive, or a combination that has no known law.

    >>> float(sgld(1e-3).step_size) == float(np.float32(1e-3))
    True
    """
    preconditioner = identity() if preconditioner is None else preconditioner
    if noise_averaging and (callable(step_size) or preconditioner.adapts):
        raise ValueError(
            "noise_averaging is exact for a constant step size and the identity metric only; "
            "drop the schedule and the preconditioner, or noise_averaging"
        )
    return Sgld(
        step_size if callable(step_size) else positive_step_size(step_size),
        preconditioner,
        plain() if gradient is None else gradient,
        setting_count(NEVER),
        noise_averaging,
    )


def positive_step_size(value: Any) -> jax.Array:
    """Give a step size as an array leaf, or raise ValueError if it is not positive and finite."""
    number = as_float("step_size", value)
    if number is not None and not (np.isfinite(number) and number > 0):
        raise ValueError(f"step_size must be positive and finite, got {number}")
    return setting(value)


def setting_count(value: Any) -> jax.Array:
    """Give a step count as an int32 array leaf, placed without compiling anything."""
    return jax.device_put(np.asarray(value, np.int32))
