"""The interface of a kernel: two pure functions over pytrees, for one chain on one device."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from slt_jax._types import ChainKey, Displacement, Scalar
from slt_jax.minibatch import Minibatch
from slt_jax.posterior import LocalPosterior


class Info(NamedTuple):
    """What a step reports, every field a float32 scalar.

    ``gap`` is ℓ_b(w) − ℓ_b(w*) in nats at the position *before* the step, on the batch about to
    be used: after the step the batch has already moved the chain and the gap is biased by about
    −ε(nβ)² tr C/(2m) in λ̂. The norms are of the parts of the update as applied, in weight units.
    ``acceptance`` is 1 for kernels that do not reject. ``weight`` is the time a draw stands for
    (the step size under a schedule), 1 otherwise.
    """

    gap: Scalar
    gradient_norm: Scalar
    noise_norm: Scalar
    localization_norm: Scalar
    acceptance: Scalar
    weight: Scalar


class BiasFactors(NamedTuple):
    """How the biases of a kernel compare with those of SGLD of the same ε, to first order.

    ``step_size`` multiplies the relative variance bias εa/4 of the discretisation, ``minibatch``
    the inflation ε(nβ)²C/(4m) by gradient noise.
    """

    step_size: float
    minibatch: float


class AbstractKernel(eqx.Module):
    """A transition kernel, with its settings as array leaves so that new values compile nothing.

    A kernel is written for one chain; the sampling loop adds the row axis, batches, keys, storage
    and progress. Its state is a pytree of arrays with a field ``position``: the displacement.
    """

    full_batch: ClassVar[bool] = False
    """Whether ``step`` needs the whole data set as its minibatch."""

    adjusted: ClassVar[bool] = False
    """Whether a Metropolis step removes the bias of the step size."""

    needs_anchor: ClassVar[bool] = False
    """Whether ``step`` reads the full-data gradient ∇L_n(w*) from ``target.anchor``."""

    @abc.abstractmethod
    def init(self, target: LocalPosterior, position: Displacement | None = None) -> Any:
        """Give the state at ``position``, or at w* (zero displacement)."""

    @abc.abstractmethod
    def step(
        self, key: ChainKey, target: LocalPosterior, state: Any, batch: Minibatch
    ) -> tuple[Any, Info]:
        """Give the next state, and what the step did.

        Args:
            key: a typed key, fresh for every (row, step).
            target: the density to sample.
            state: as returned by ``init`` or ``step``.
            batch: the minibatch of this step, independent of the state.
        """

    def prepare(self, target: LocalPosterior, batch: Minibatch) -> Minibatch:
        """Attach what all rows that share a minibatch need to know of it at w*."""
        return batch.with_center(target.center(batch))

    def freeze_after(self, num_steps: jax.Array) -> "AbstractKernel":
        """Give the kernel that stops adapting after that many steps; itself if it never adapts."""
        return self

    @abc.abstractmethod
    def step_sizes(self, state: Any) -> Displacement:
        """Give the step size ε_i of every weight: drift ε_i/2 and noise √ε_i."""

    @property
    def adapts(self) -> bool:
        """Whether the kernel changes its metric until it is frozen."""
        return False

    def relaxation_steps(self, step_size: float, precision: float) -> float:
        """Give the steps after which a direction of this precision has forgotten all but 1/e.

        Equation: 2/(εγ) for SGLD, whose autocorrelation per step is 1 − εγ/2.

        Args:
            step_size: the smallest ε_i, in weight².
            precision: γ > 0, that of the flattest direction, in 1/weight².
        """
        return 2 / (step_size * precision)

    def bias_factors(self) -> BiasFactors:
        """Give the kernel's biases in units of those of SGLD with the same ε."""
        return BiasFactors(1.0, 1.0)

    def control_variance(self, step_size: Array, localization: Scalar, step: Scalar) -> Array:
        """Give the variance per weight at nβ = 0 after ``step`` steps from w*, exactly.

        Equation: (1 − ρ^{2t})/(γ(1 − ε_iγ/4)), ρ = 1 − ε_iγ/2, that of an AR(1) process with noise
        variance ε_i. Kernels with another update override it.
        """
        rho = 1 - 0.5 * step_size * localization
        stationary = 1 / (localization * jnp.maximum(1 - 0.25 * step_size * localization, 1e-6))
        return stationary * (1 - jnp.abs(rho) ** (2 * step))
