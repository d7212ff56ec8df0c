"""The localized, tempered posterior around trained weights: the target of every kernel."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from slt_jax._tree import inner, on_device, path_table
from slt_jax._types import Displacement, Params, Scalar, as_float, host_float, setting
from slt_jax.minibatch import Center, Minibatch, values_and_weights, weighted_mean
from slt_jax.restriction import Restriction

LossFn = Callable[[Params, Any], Any]
"""``loss_fn(params, examples)`` gives float32 nats ``[batch, *pos]``, unreduced, or ``Losses``.

If it has a ``provenance``, a mapping from names to texts, that goes into the metadata of runs. If
it has a method ``check_examples(examples)``, that may raise TypeError or ValueError for values that
it cannot read, such as token ids outside a vocabulary, before anything compiles.
"""

_HOST_CHECK_BYTES = 2**28


class LocalPosterior(eqx.Module):
    """The density around trained weights w* that the chains sample.

    Equation: p(w | w*) ∝ exp(−nβ L_n(w) − (γ/2)|w − w*|²) (Lau et al., "The Local Learning
    Coefficient", arXiv 2308.12108, section 4). A chain's position is the displacement δ = w − w*
    in float32, so steps far below the resolution of bfloat16 weights are not lost.

    Args:
        loss_fn: ``loss_fn(params, examples) -> [batch, *pos]``, float32 nats, never reduced, or
            ``slt.Losses(values, weights)``. Arrays inside a pytree of code (``eqx.Partial``, a
            module) are traced; arrays captured in a closure are baked in. Define it once: another
            function object is another program.
        params: w*, a pytree of floating-point arrays of any dtype, shared by all chains.
        n_beta: nβ ≥ 0, dimensionless; multiplies the mean loss. See ``slt.default_n_beta``.
        localization: γ ≥ 0, in 1/weight².
        restriction: the weights that move; None for all.
        weight_decay: precision λ ≥ 0, in 1/weight², of an additional Gaussian prior
            (λ/2)|w|² centred at zero; None for none.
        bounding_box: half-width b > 0, in weight units, of the box |δ_i| ≤ b to which positions
            are clipped after every step; None for none.

    Raises:
        TypeError: leaves that are not floating-point arrays, a loss that cannot be called.
        ValueError: a negative setting, non-finite weights, a restriction that does not fit.

    >>> posterior = LocalPosterior(
    ...     lambda params, x: (x @ params["w"]) ** 2, {"w": np.zeros(3, np.float32)},
    ...     n_beta=100.0, localization=1.0)
    >>> posterior.restriction.num_params
    3
    """

    loss_fn: Any
    params: Params
    restriction: Restriction
    n_beta: Scalar
    localization: Scalar
    weight_decay: Scalar | None
    bounding_box: Scalar | None
    anchor: Displacement | None

    def __init__(
        self,
        loss_fn: LossFn,
        params: Params,
        n_beta: Any,
        localization: Any,
        restriction: Restriction | None = None,
        weight_decay: Any = None,
        bounding_box: Any = None,
    ):
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn must be callable as loss_fn(params, examples), got {loss_fn!r}"
            )
        _check_params(params)
        self.loss_fn = on_device(loss_fn)
        self.params = on_device(params)
        self.restriction = Restriction.full(params) if restriction is None else restriction
        self.restriction.check(params)
        self.n_beta = _at_least_zero("n_beta", n_beta)
        self.localization = _at_least_zero("localization", localization)
        self.weight_decay = (
            None if weight_decay is None else _at_least_zero("weight_decay", weight_decay)
        )
        self.bounding_box = (
            None if bounding_box is None else _at_least_zero("bounding_box", bounding_box)
        )
        self.anchor = None

    def restrict(self, restriction: Restriction) -> "LocalPosterior":
        """Give the same posterior with other weights moving, as the refined LLC does.

        Source: Wang et al., arXiv 2410.02984, section 3: λ̂(w*; V, q′) samples v ∈ V only.
        """
        restriction.check(self.params)
        return eqx.tree_at(
            lambda p: (p.restriction, p.anchor),
            self,
            (restriction, None),
            is_leaf=lambda node: node is None or isinstance(node, Restriction),
        )

    def with_anchor(self, anchor: Displacement) -> "LocalPosterior":
        """Give the same posterior with ∇L_n(w*) attached, for anchored gradients."""
        return eqx.tree_at(lambda p: p.anchor, self, anchor, is_leaf=lambda node: node is None)

    def at_starts(self, starts: Any) -> "LocalPosterior":
        """Give the same posterior for the component at these offsets; None keeps its own."""
        if starts is None:
            return self
        return eqx.tree_at(lambda p: p.restriction, self, self.restriction.at(starts))

    def params_at(self, displacement: Displacement) -> Params:
        """Give the weights w* + δ."""
        return self.restriction.insert(self.params, displacement)

    @property
    def prior_precision(self) -> Scalar:
        """The curvature of the prior, γ plus the weight decay, in 1/weight²."""
        if self.weight_decay is None:
            return self.localization
        return self.localization + self.weight_decay

    @property
    def host_precision(self) -> float:
        """The same as a Python float, without compiling a program for the sum."""
        decay = 0.0 if self.weight_decay is None else host_float(self.weight_decay)
        return host_float(self.localization) + decay

    def prior_mean(self) -> Displacement:
        """Give the displacement at which the prior is largest: 0 without weight decay."""
        zeros = self.restriction.zeros()
        if self.weight_decay is None:
            return zeros
        share = self.weight_decay / jnp.maximum(self.prior_precision, jnp.finfo(jnp.float32).tiny)
        return tuple(
            -share * center.astype(jnp.float32) for center in self.restriction.read(self.params)
        )

    def prefix(self, examples: Any, in_full: bool = False) -> Any:
        """Give what no displacement changes of the losses of these examples, or None.

        A loss function says so by a method ``losses_prefix(params, restriction, examples)``. What
        it gives has one entry per example along the leading axis of every array.

        Args:
            examples: pytree of arrays with leading axis ``batch``.
            in_full: also what pays only where the losses are taken at many displacements, by a
                method ``losses_prefix_in_full`` if there is one.
        """
        own = getattr(self.loss_fn, "losses_prefix", None)
        own = getattr(self.loss_fn, "losses_prefix_in_full", own) if in_full else own
        return None if own is None else own(self.params, self.restriction, examples)

    def losses_at(self, displacement: Displacement, examples: Any, prefix: Any = None) -> Any:
        """Give what the loss function returns at w* + δ.

        A loss function with a method ``losses_at(params, restriction, displacement, examples)`` is
        asked through it: a model that knows its layers can leave the part below the moving weights
        unbatched. If it has a ``losses_prefix`` too, what that gave is the fifth argument.

        Args:
            displacement: δ, one array per block.
            examples: pytree of arrays with leading axis ``batch``.
            prefix: what ``prefix`` gave for these examples; None if it is not known.
        """
        own = getattr(self.loss_fn, "losses_at", None)
        if own is None:
            return self.loss_fn(self.params_at(displacement), examples)
        known = () if prefix is None else (prefix,)
        return own(self.params, self.restriction, displacement, examples, *known)

    def center(self, batch: Minibatch) -> Center:
        """Give the unreduced losses at w* on a minibatch, and what they share with all others.

        What the minibatch brings of it is not computed again.
        """
        known = batch.center
        prefix = None if known is None else known.prefix
        if prefix is None:
            prefix = self.prefix(batch.examples)
        if known is not None:
            return Center(known.losses, prefix=prefix)
        if prefix is None:
            losses = self.loss_fn(self.params, batch.examples)
        else:
            losses = self.losses_at(self.restriction.zeros(), batch.examples, prefix)
        values, _ = values_and_weights(losses, batch)
        return Center(values, prefix=prefix)

    def gap(self, displacement: Displacement, batch: Minibatch) -> Scalar:
        """Give the paired gap ℓ_b(w* + δ) − ℓ_b(w*) in nats, averaged over one minibatch.

        The difference is taken per example before averaging: its rounding error is that of a
        small number, not that of two losses.
        """
        center = self.center(batch) if batch.center is None else batch.center
        losses = self.losses_at(displacement, batch.examples, center.prefix)
        values, weights = values_and_weights(losses, batch)
        gap = weighted_mean(values - jax.lax.stop_gradient(center.losses), weights, batch)
        return gap.astype(jnp.float32)

    def prior_gradient(self, displacement: Displacement) -> Displacement:
        """Give the gradient of the localization and weight-decay terms, in 1/weight."""
        gradient = tuple(self.localization * delta for delta in displacement)
        if self.weight_decay is None:
            return gradient
        weights = tuple(
            (center + delta.astype(center.dtype)).astype(delta.dtype)
            for center, delta in zip(self.restriction.read(self.params), displacement, strict=True)
        )
        return tuple(g + self.weight_decay * w for g, w in zip(gradient, weights, strict=True))

    def log_prior(self, displacement: Displacement) -> Scalar:
        """Give the log density of localization, weight decay and box, up to a constant."""
        value = -0.5 * self.localization * inner(displacement, displacement)
        if self.weight_decay is not None:
            center = tuple(c.astype(jnp.float32) for c in self.restriction.read(self.params))
            quadratic = 2 * inner(center, displacement) + inner(displacement, displacement)
            value = value - 0.5 * self.weight_decay * quadratic
        if self.bounding_box is not None:
            inside = jnp.stack([jnp.all(jnp.abs(d) <= self.bounding_box) for d in displacement])
            value = jnp.where(jnp.all(inside), value, -jnp.inf)
        return value

    def log_density(self, displacement: Displacement, batch: Minibatch) -> Scalar:
        """Give log p(w* + δ) − log p(w*), with L_n estimated on one minibatch."""
        return self.log_prior(displacement) - self.n_beta * self.gap(displacement, batch)

    def clip(self, displacement: Displacement) -> Displacement:
        """Move a displacement back into the bounding box, if there is one."""
        if self.bounding_box is None:
            return displacement
        return tuple(jnp.clip(d, -self.bounding_box, self.bounding_box) for d in displacement)


def _at_least_zero(name: str, value: Any) -> Array:
    number = as_float(name, value)
    if number is not None and not (np.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return setting(value)


def _check_params(params: Params) -> None:
    table = path_table(params)
    if len(table) != len(jax.tree.leaves(params)):
        raise ValueError(
            "two leaves of params have the same path: a name contains '/' where nesting gives the "
            f"same path; the paths are {', '.join(table)}"
        )
    if not table:
        raise ValueError("params has no leaves: there is nothing to sample")
    for path, leaf in table.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(f"params leaf {path!r} is not an array: got {type(leaf).__name__}")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params leaf {path!r} has dtype {dtype}: only floating-point weights can be "
                "sampled. Keep integers, PRNG keys and buffers inside the loss, for example as "
                "equinox.Partial(loss, buffers)"
            )
    if sum(leaf.size * leaf.dtype.itemsize for leaf in table.values()) > _HOST_CHECK_BYTES:
        return
    for path, leaf in table.items():
        if isinstance(leaf, Tracer):
            continue
        finite = np.isfinite(jax.device_get(leaf).astype(np.float32))
        if not finite.all():
            raise ValueError(
                f"params leaf {path!r} has {(~finite).sum()} non-finite entries of {finite.size}"
            )
