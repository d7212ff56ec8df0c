"""What is measured at a draw: functions of the weights on a fixed probe or on fresh batches."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from slt_jax._types import Displacement
from slt_jax.data import Probe
from slt_jax.minibatch import (
    Minibatch,
    in_batches,
    leading_axis,
    over_minibatches,
    values_and_weights,
)
from slt_jax.posterior import LocalPosterior
from slt_jax.statistics import AbstractStatistic, Mean, Trace


class AbstractObservable(eqx.Module):
    """A quantity measured at every ``every``-th draw and handed to a statistic.

    A statistic takes ``relative(measure(w), measure(w*))``: the difference from w*, unless an
    observable says otherwise.
    """

    statistic: eqx.AbstractVar[AbstractStatistic]
    every: eqx.AbstractVar[int]

    num_fresh: ClassVar[int]
    """Independent minibatches, drawn afresh for every observation, that ``measure`` needs; they
    come stacked along a leading axis."""

    def compiled(self) -> "AbstractObservable":
        """Give what programs are compiled for: itself, or another if its interval is traced.

        Only observables on fresh batches, which share one interval, can have it traced. The
        interval of what is given bounds the number of observations in a chunk.
        """
        return self

    @abc.abstractmethod
    def measure(
        self, target: LocalPosterior, displacement: Displacement, fresh: Minibatch | None
    ) -> PyTree:
        """Give the value at w* + δ."""

    def relative(self, value: PyTree, center: PyTree) -> PyTree:
        """Give what the statistic takes, from the value at a draw and the value at w*."""
        return jax.tree.map(lambda a, b: a - b, value, center)

    def prepare(self, target: LocalPosterior, in_full: bool) -> "AbstractObservable":
        """Give the same observable with what no displacement changes attached, to be reused.

        Args:
            target: the posterior.
            in_full: attach all that can be reused, or only what takes little memory.
        """
        return self


class Observable(AbstractObservable):
    """A function of the weights and of a fixed probe, accumulated over draws.

    Args:
        fn: ``fn(params, examples)`` gives a float32 array (or a pytree of them), one entry per
            example on the leading axis if the probe has a ``batch_size``.
        probe: the examples, an ``slt.Probe``.
        statistic: ``slt.Mean()``, ``slt.Variance()``, ``slt.Covariance()`` or ``slt.Trace()``.
        every: measure at every so many draws.

    >>> import numpy as np
    >>> probe = Probe(np.ones((3, 2), np.float32))
    >>> Observable(lambda params, x: x @ params["w"], probe).every
    1
    """

    fn: Callable[[Any, Any], Any]
    probe: Probe
    statistic: AbstractStatistic = Mean()
    every: int = eqx.field(static=True, default=1)

    num_fresh = 0

    def __check_init__(self):
        check_every(self.every)

    def measure(self, target, displacement, fresh):
        params = target.params_at(displacement)
        return over_probe(lambda examples: self.fn(params, examples), self.probe)


class LossValues(AbstractObservable):
    """The model's own losses on a probe, unreduced ``[n, *pos]`` in nats, masked to 0.

    Args:
        probe: the examples, with weights where some positions are masked.
        statistic: what to accumulate.
        every: measure at every so many draws.
        prefix: what no displacement changes of the losses, as ``prepare`` attaches it.
    """

    probe: Probe
    statistic: AbstractStatistic = Mean()
    every: int = eqx.field(static=True, default=1)
    prefix: Any = None

    num_fresh = 0

    def __check_init__(self):
        check_every(self.every)

    def measure(self, target, displacement, fresh):
        def losses(part: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            inputs, weights, *prefix = part
            found = target.losses_at(displacement, inputs, *prefix)
            values, total = values_and_weights(found, Minibatch(inputs, weights))
            return values, jnp.ones_like(values) if total is None else total

        return over_probe(losses, self.probe, with_weights=True, prefix=self.prefix)

    def prepare(self, target, in_full):
        prefix = over_probe(lambda examples: target.prefix(examples, in_full), self.probe)
        return eqx.tree_at(lambda o: o.prefix, self, prefix, is_leaf=lambda node: node is None)

    def relative(self, value, center):
        losses, weights = value
        gap = losses - center[0]
        return jnp.where(weights > 0, gap, jnp.zeros_like(gap))


class MeanLoss(LossValues):
    """The gap of the model's weighted mean loss on a probe, in nats, kept draw by draw."""

    statistic: AbstractStatistic = Trace()

    def relative(self, value, center):
        losses, weights = value
        return jnp.sum(weights * (losses - center[0])) / jnp.sum(weights)


class GapPair(AbstractObservable):
    """Two paired gaps ℓ_b(w) − ℓ_b(w*) of one draw, on batches independent of it and each other.

    Their covariance over draws is Var_w(L_n) without the variance of the batches (D15).

    Args:
        statistic: what to accumulate.
        every: measure at every so many draws.
        at_least: all intervals from this one on share one compiled program.
    """

    statistic: AbstractStatistic = Trace()
    every: int = eqx.field(static=True, default=1)
    at_least: int = eqx.field(static=True, default=1)

    num_fresh = 2

    def __check_init__(self):
        check_every(self.at_least)
        check_every(self.every)
        if self.every < self.at_least:
            raise ValueError(f"every = {self.every} must not be below at_least = {self.at_least}")

    def compiled(self):
        return dataclasses.replace(self, every=self.at_least)

    def measure(self, target, displacement, fresh):
        assert fresh is not None
        return over_minibatches(lambda batch: target.gap(displacement, batch), fresh)


class Positions(AbstractObservable):
    """The draws themselves: the displacement δ = w − w* of every block, kept on the host.

    Args:
        every: keep every so many draws.

    >>> Positions(every=10).every
    10
    """

    every: int = eqx.field(static=True, default=1)
    statistic: AbstractStatistic = Trace()

    num_fresh = 0

    def __check_init__(self):
        check_every(self.every)

    def measure(self, target, displacement, fresh):
        return displacement


def check_every(every: int) -> None:
    """Raise ValueError unless an observation interval is at least 1."""
    if every < 1:
        raise ValueError(f"every must be at least 1 draw, got {every}")


def over_probe(
    fn: Callable[[Any], PyTree], probe: Probe, with_weights: bool = False, prefix: PyTree = None
) -> PyTree:
    """Apply ``fn`` to a probe, ``batch_size`` examples at a time, and join the results.

    Args:
        fn: a function of the examples, or of the tuple (examples, weights) or (examples, weights,
            prefix); it gives arrays with one entry per example if the probe has a ``batch_size``.
        probe: the examples.
        with_weights: whether ``fn`` takes the weights too, one per example if there are none.
        prefix: arrays with one entry per example that ``fn`` takes after the weights.
    """
    size = leading_axis(probe.examples)
    weights = jnp.ones((size,), jnp.float32) if probe.weights is None else probe.weights
    inputs = (probe.examples, weights) if with_weights else probe.examples
    inputs = inputs if prefix is None else (probe.examples, weights, prefix)
    return fn(inputs) if probe.batch_size is None else in_batches(fn, inputs, probe.batch_size)
