"""Diagonal metrics for the step size of every weight, with moments kept by optax."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from slt_jax._tree import choose
from slt_jax._types import Counter, Displacement, Flag, Scalar, as_float, host_float, setting


class Preconditioned(NamedTuple):
    """The drift direction, the metric D (None for the identity), and the next state."""

    direction: Displacement
    metric: Displacement | None
    state: Any


class AbstractPreconditioner(eqx.Module):
    """A rule for the metric D in δ ← δ − (ε/2) D (nβ ĝ + γδ) + √(εD) ξ.

    Moments are updated with the plain minibatch gradient of the loss; nβ and the localization are
    left out of them, so the metric does not depend on the temperature.
    """

    adapts: ClassVar[bool]

    @abc.abstractmethod
    def init(self, like: Displacement) -> Any:
        """Give the state before any gradient was seen."""

    @abc.abstractmethod
    def update(
        self, state: Any, drift: Displacement, gradient: Displacement, frozen: Flag
    ) -> Preconditioned:
        """Take in one gradient.

        Args:
            state: from ``init`` or ``update``.
            drift: the gradient that the drift follows (it may be anchored).
            gradient: the plain minibatch gradient, for the second moment.
            frozen: whether the metric is to stay as it is.
        """

    def step_size_bias(self) -> float:
        """Give the first-order bias of the step size relative to that of SGLD."""
        return 1.0

    @abc.abstractmethod
    def metric(self, state: Any) -> Displacement | None:
        """Give D for a state, or None for the identity."""


class Identity(AbstractPreconditioner):
    """See ``identity``."""

    adapts = False

    def init(self, like):
        return ()

    def update(self, state, drift, gradient, frozen):
        return Preconditioned(drift, None, state)

    def metric(self, state):
        return None


class Rms(AbstractPreconditioner):
    """See ``rms``."""

    decay: Scalar
    eps: Scalar
    initial: Scalar

    adapts = True

    def _moments(self) -> Any:
        return optax.scale_by_rms(self.decay, self.eps, self.initial)

    def init(self, like):
        return self._moments().init(like)

    def update(self, state, drift, gradient, frozen):
        _, updated = self._moments().update(gradient, state)
        state = choose(frozen, state, updated)
        return Preconditioned(drift, self.metric(state), state)

    def metric(self, state):
        return tuple(1 / (jnp.sqrt(nu) + self.eps) for nu in state.nu)


class AdamState(NamedTuple):
    """First and second moment with their own counts: only the second is ever frozen."""

    first: optax.EmaState
    second: Any
    num_seconds: Counter


class Adam(AbstractPreconditioner):
    """See ``adam``."""

    first_decay: Scalar
    second_decay: Scalar
    eps: Scalar

    adapts = True

    # The moments are corrected for their start at zero here: optax raises the decay to an integer
    # power for that, which strict dtype promotion refuses.
    def _first(self) -> Any:
        return optax.ema(self.first_decay, debias=False)  # pyright: ignore[reportArgumentType]

    def _second(self) -> Any:
        return optax.scale_by_rms(self.second_decay, self.eps, 0.0)

    def init(self, like):
        zero = jnp.zeros((), jnp.int32)
        return AdamState(self._first().init(like), self._second().init(like), zero)

    def update(self, state, drift, gradient, frozen):
        mean, first = self._first().update(drift, state.first)
        direction = _corrected(mean, self.first_decay, first.count)
        _, second = self._second().update(gradient, state.second)
        updated = (second, state.num_seconds + 1)
        kept = choose(frozen, (state.second, state.num_seconds), updated)
        state = AdamState(first, *kept)
        return Preconditioned(direction, self.metric(state), state)

    def step_size_bias(self):
        # The averaged drift lags b/(1 − b) steps behind: relative bias εa/4 + ½ε nβh b/(1 − b).
        decay = host_float(self.first_decay)
        return 1.0 + 2.0 * decay / (1.0 - decay)

    def metric(self, state):
        second = _corrected(state.second.nu, self.second_decay, state.num_seconds)
        return tuple(1 / (jnp.sqrt(nu) + self.eps) for nu in second)


def _corrected(moment: Displacement, decay: Scalar, count: Counter) -> Displacement:
    """Divide a running mean that started at zero by 1 − decay^count."""
    weight = 1 - decay ** jnp.maximum(count, 1).astype(jnp.float32)
    return tuple(leaf / weight for leaf in moment)


def identity() -> Identity:
    """Give every weight the same step size: D = 1.

    >>> identity().metric(()) is None
    True
    """
    return Identity()


def rms(decay: Any = 0.99, eps: Any = 0.1, initial: Any = 1.0) -> Rms:
    """Scale steps by the root mean square of past gradients, as RMSprop does.

    Equation: v ← b v + (1 − b) ĝ², D = 1/(√v + a), v₋₁ = ``initial`` (Hitchcock & Hoogland,
    arXiv 2507.21449, Algorithm 3; Li et al., "Preconditioned SGLD", arXiv 1512.07666, without the
    Γ term). With v₋₁ = 1 a noise-free minimum does not start with the largest step there is.
    The sampler stops updating v after burn-in; from then on the kernel is Langevin in a fixed
    metric, without a Metropolis correction.

    Args:
        decay: b, dimensionless, in [0, 1).
        eps: a, in nats/weight, added to the root.
        initial: v₋₁, in (nats/weight)².

    >>> import numpy as np
    >>> kernel_metric = rms(eps=1.0).metric(rms().init((np.zeros(2, np.float32),)))
    >>> kernel_metric[0].tolist()
    [0.5, 0.5]
    """
    return Rms(_decay("decay", decay), _positive("eps", eps), _at_least_zero("initial", initial))


def adam(first_decay: Any = 0.9, second_decay: Any = 0.999, eps: Any = 0.1) -> Adam:
    """Scale steps as ``rms`` does, and let the drift follow the running mean of the gradient.

    Equation: m ← b₁ m + (1 − b₁) ĝ, v ← b₂ v + (1 − b₂) ĝ², both bias-corrected, D = 1/(√v̂ + a),
    drift D(nβ m̂ + γδ) (Hitchcock & Hoogland, arXiv 2507.21449, Algorithm 2). The sampler freezes v
    after burn-in; m goes on and lags behind, which adds about ½ε_i nβh_i b₁/(1 − b₁) to the
    relative bias of the variance: 19 times that of ``rms`` in all at b₁ = 0.9.

    Args:
        first_decay: b₁, dimensionless, in [0, 1).
        second_decay: b₂, dimensionless, in [0, 1).
        eps: a, in nats/weight, added to the root.

    >>> adam().adapts
    True
    """
    return Adam(
        _decay("first_decay", first_decay),
        _decay("second_decay", second_decay),
        _positive("eps", eps),
    )


def _decay(name: str, value: Any) -> jax.Array:
    number = as_float(name, value)
    if number is not None and not 0 <= number < 1:
        raise ValueError(f"{name} must be in [0, 1), got {number}")
    return setting(value)


def _at_least_zero(name: str, value: Any) -> jax.Array:
    number = as_float(name, value)
    if number is not None and not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return setting(value)


def _positive(name: str, value: Any) -> jax.Array:
    number = as_float(name, value)
    if number is not None and not number > 0:
        raise ValueError(f"{name} must be positive, got {number}")
    return setting(value)
