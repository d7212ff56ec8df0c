"""Estimators of the loss gradient on a minibatch: plain, and anchored at w*."""

import abc
from typing import ClassVar

import equinox as eqx
import jax

from slt_jax._types import Displacement, Scalar
from slt_jax.minibatch import Minibatch
from slt_jax.posterior import LocalPosterior


class AbstractGradient(eqx.Module):
    """An estimator of ∇L_n(w) from one minibatch, without the localization term."""

    needs_anchor: ClassVar[bool]

    @abc.abstractmethod
    def __call__(
        self, target: LocalPosterior, displacement: Displacement, batch: Minibatch
    ) -> tuple[Scalar, Displacement, Displacement]:
        """Give the paired gap, the gradient for the drift, and the plain minibatch gradient."""

    def prepare(self, target: LocalPosterior, batch: Minibatch) -> Minibatch:
        """Attach losses, and whatever else is needed, at w*."""
        return batch.with_center(target.center(batch))


class PlainGradient(AbstractGradient):
    """See ``plain``."""

    needs_anchor = False

    def __call__(self, target, displacement, batch):
        gap, gradient = jax.value_and_grad(target.gap)(displacement, batch)
        return gap, gradient, gradient


class AnchoredGradient(AbstractGradient):
    """See ``anchored``."""

    needs_anchor = True

    def __call__(self, target, displacement, batch):
        if target.anchor is None:
            raise ValueError(
                "anchored gradients need the full-data gradient at w*: slt.sample computes it; "
                "outside of it, use posterior.with_anchor(gradient)"
            )
        gap, gradient = jax.value_and_grad(target.gap)(displacement, batch)
        center = batch.center
        at_center = (
            center.gradient
            if center is not None and center.gradient is not None
            else jax.grad(target.gap)(target.restriction.zeros(), batch)
        )
        anchored = tuple(
            g - c + a.reshape(g.shape)
            for g, c, a in zip(gradient, at_center, target.anchor, strict=True)
        )
        return gap, anchored, gradient

    def prepare(self, target, batch):
        batch = super().prepare(target, batch)
        assert batch.center is not None
        gradient = jax.grad(target.gap)(target.restriction.zeros(), batch)
        return batch.with_center(batch.center._replace(gradient=gradient))


def plain() -> PlainGradient:
    """Estimate the gradient by the minibatch alone: ∇L_b(w).

    >>> plain().needs_anchor
    False
    """
    return PlainGradient()


def anchored() -> AnchoredGradient:
    """Estimate the gradient with a control variate at w*: ∇L_b(w) − ∇L_b(w*) + ∇L_n(w*).

    Unbiased, and with less variance near w* where minibatch gradients at w* are not zero; far from
    w* it can have more (Baker et al., "Control variates for stochastic gradient MCMC", Statistics
    and Computing 29, 2019). Costs a second gradient per minibatch, shared by all chains that share
    the minibatch. Preconditioner moments still use ∇L_b(w).

    >>> anchored().needs_anchor
    True
    """
    return AnchoredGradient()
