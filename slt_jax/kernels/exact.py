"""Metropolis-corrected full-batch kernels through blackjax: references without step-size bias."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from slt_jax._types import Displacement, Scalar
from slt_jax.kernels.base import AbstractKernel, BiasFactors, Info
from slt_jax.kernels.sgld import positive_step_size


class ExactState(NamedTuple):
    """The position alone: blackjax's cached density is rebuilt, so the target may change."""

    position: Displacement


class Exact(AbstractKernel):
    """A blackjax algorithm on the full-batch log density. See ``mala``, ``hmc`` and ``nuts``."""

    step_size: Scalar
    build: Callable[..., Any] = eqx.field(static=True)
    options: tuple[tuple[str, int], ...] = eqx.field(static=True)

    full_batch = True
    adjusted = True

    def init(self, target, position=None):
        return ExactState(target.restriction.zeros() if position is None else position)

    def step_sizes(self, state):
        return tuple(jnp.full_like(delta, self.step_size) for delta in state.position)

    def relaxation_steps(self, step_size, precision):
        # A trajectory of time t turns a direction of frequency √γ by the angle √γ t; one that turns
        # on its own (NUTS) is taken to reach a quarter turn.
        steps = dict(self.options).get("num_integration_steps")
        if self.options and steps is None:
            return 1.0
        angle = math.sqrt(precision * step_size) * (steps or 1)
        if steps is None:
            return super().relaxation_steps(step_size, precision)
        return max(1.0, -1 / math.log(max(abs(math.cos(min(angle, math.pi / 2))), 1e-9)))

    def bias_factors(self):
        return BiasFactors(0.0, 0.0)

    def control_variance(self, step_size, localization, step):
        return jnp.full_like(step_size, 1 / localization)

    def step(self, key, target, state, batch):
        def log_density(position: Displacement) -> Scalar:
            return target.log_density(position, batch)

        algorithm = self.build(log_density, self.step_size, state.position, **dict(self.options))
        proposal, report = algorithm.step(key, algorithm.init(state.position))
        acceptance = report.acceptance_rate
        zero = jnp.zeros((), jnp.float32)
        info = Info(
            target.gap(state.position, batch),
            zero,
            zero,
            zero,
            jnp.asarray(acceptance, jnp.float32),
            jnp.ones((), jnp.float32),
        )
        return ExactState(proposal.position), info


def _build_mala(log_density, step_size, position):
    import blackjax

    return blackjax.mala(log_density, 0.5 * step_size)


def _build_hmc(log_density, step_size, position, num_integration_steps):
    import blackjax

    return blackjax.hmc(
        log_density, jnp.sqrt(step_size), _unit_mass(position), num_integration_steps
    )


def _build_nuts(log_density, step_size, position, max_num_doublings):
    import blackjax

    return blackjax.nuts(
        log_density, jnp.sqrt(step_size), _unit_mass(position), max_num_doublings=max_num_doublings
    )


def _unit_mass(position: Displacement):
    return jnp.ones(sum(delta.size for delta in position), jnp.float32)


def mala(step_size: Any) -> Exact:
    """Sample exactly by the Metropolis-adjusted Langevin algorithm on the whole data set.

    Equation: the proposal is one full-batch SGLD step with step size ε, accepted by Metropolis and
    Hastings' rule (Roberts & Tweedie, Bernoulli 2, 1996). Stationary law: the posterior itself.

    Args:
        step_size: ε > 0, in weight²: drift ε/2, noise √ε.

    >>> mala(1e-3).full_batch
    True
    """
    return Exact(positive_step_size(step_size), _build_mala, ())


def hmc(step_size: Any, num_integration_steps: int = 10) -> Exact:
    """Sample exactly by Hamiltonian Monte Carlo on the whole data set.

    Equation: ``num_integration_steps`` leapfrog steps of time √ε from a fresh N(0, I) momentum,
    accepted by Metropolis' rule (Neal, arXiv 1206.1901). One step is ``mala(ε)``. Stationary law:
    the posterior itself.

    Args:
        step_size: ε > 0, in weight²; the leapfrog time step is √ε.
        num_integration_steps: leapfrog steps per draw, at least 1.

    >>> hmc(1e-3, 20).options
    (('num_integration_steps', 20),)
    """
    if num_integration_steps < 1:
        raise ValueError(f"num_integration_steps must be at least 1, got {num_integration_steps}")
    return Exact(
        positive_step_size(step_size),
        _build_hmc,
        (("num_integration_steps", num_integration_steps),),
    )


def nuts(step_size: Any, max_num_doublings: int = 8) -> Exact:
    """Sample exactly by the no-U-turn sampler on the whole data set.

    Equation: Hoffman & Gelman, arXiv 1111.4246, with multinomial sampling (Betancourt, arXiv
    1701.02434). Stationary law: the posterior itself.

    Args:
        step_size: ε > 0, in weight²; the leapfrog time step is √ε.
        max_num_doublings: the trajectory has at most 2 to this power leapfrog steps.

    >>> nuts(1e-3).options
    (('max_num_doublings', 8),)
    """
    if max_num_doublings < 1:
        raise ValueError(f"max_num_doublings must be at least 1, got {max_num_doublings}")
    return Exact(
        positive_step_size(step_size), _build_nuts, (("max_num_doublings", max_num_doublings),)
    )
