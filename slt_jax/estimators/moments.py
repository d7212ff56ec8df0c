"""Streamed moments of the loss on sampling data together with losses on probes.

With g = L(w) − L(w*) and x = (ℓ_xy − L)(w) − (ℓ_xy − L)(w*), a susceptibility needs E[g x] and E[g]
from the chains of a component, and E[x] from chains of all weights. L is measured on minibatches
drawn afresh at every draw; a product g·L takes its two factors from different ones, for the square
of one minibatch's loss would add the variance of minibatches.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slt_jax._types import Scalar
from slt_jax.estimators.probes import flatten, structure_of
from slt_jax.minibatch import over_minibatches
from slt_jax.observables import AbstractObservable, LossValues, MeanLoss, check_every
from slt_jax.statistics import AbstractStatistic, Estimate


class Gaps(NamedTuple):
    """What one draw says, in nats and nats², all relative to w*.

    ``gap`` is g; ``square`` an unbiased product of two g; ``losses`` the change of the loss of
    every sequence, data set and token of the probes.
    """

    gap: Scalar
    square: Scalar
    losses: Float[Array, " entry"]


class ProbeGaps(AbstractObservable):
    """The loss on the sampling data and the losses on probes, at one draw.

    Args:
        losses: of the probes, all data sets one after the other.
        statistic: ``Products()`` for the chains of components, ``Shifts()`` for those of all
            weights.
        evaluation: the loss on fixed examples of the sampling data; None for minibatches.
        names, counts: names of the data sets and their numbers of examples.
        batches_per_draw: minibatches per draw, at least 2.
        tokens: whether every loss is kept by itself, besides means of sequences and data sets.
        every: measure at every so many draws.
        together: ``losses`` and ``evaluation`` on all examples at once, as ``prepare`` attaches it.
    """

    losses: LossValues
    statistic: AbstractStatistic
    evaluation: MeanLoss | None
    names: tuple[str, ...] = eqx.field(static=True)
    counts: tuple[int, ...] = eqx.field(static=True)
    batches_per_draw: int = eqx.field(static=True, default=2)
    tokens: bool = eqx.field(static=True, default=True)
    every: int = eqx.field(static=True, default=1)
    together: LossValues | None = None

    def __check_init__(self):
        check_every(self.every)
        if self.batches_per_draw < 2:
            raise ValueError(
                "batches_per_draw must be at least 2, for the loss and the losses relative to it "
                f"come from different minibatches; got {self.batches_per_draw}"
            )

    @property
    def num_fresh(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0 if self.evaluation is not None else self.batches_per_draw

    def prepare(self, target, in_full):
        together = _together(self.losses, self.evaluation)
        if together is not None:
            return dataclasses.replace(self, together=together.prepare(target, in_full))
        parts = (self.losses, self.evaluation)
        prepared = tuple(None if part is None else part.prepare(target, in_full) for part in parts)
        return eqx.tree_at(
            lambda o: (o.losses, o.evaluation), self, prepared, is_leaf=lambda node: node is None
        )

    def measure(self, target, displacement, fresh):
        together = self.together or _together(self.losses, self.evaluation)
        if together is not None:
            count = self.losses.probe.num_examples
            found = together.measure(target, displacement, None)
            return tuple(zip(*(jnp.split(leaf, [count]) for leaf in found), strict=True))
        losses = self.losses.measure(target, displacement, None)
        if self.evaluation is not None:
            return losses, self.evaluation.measure(target, displacement, None)
        assert fresh is not None
        return losses, over_minibatches(lambda batch: target.gap(displacement, batch), fresh)

    def relative(self, value, center):
        (_, weights), sampled = value
        change = self.losses.relative(value[0], center[0])
        flat = flatten((self.counts, self.tokens), change, weights)
        if self.evaluation is not None:
            gap = self.evaluation.relative(sampled, center[1])
            return Gaps(gap, gap**2, flat)
        # A run may draw more of them, for another observable.
        count = self.batches_per_draw
        gaps = sampled[:count]
        pairs = jnp.where(jnp.eye(count, dtype=bool), 0.0, gaps[:, None] * gaps[None, :])
        return Gaps(jnp.mean(gaps), jnp.sum(pairs) / (count * (count - 1)), flat)


def _together(losses: LossValues, evaluation: MeanLoss | None) -> LossValues | None:
    """Join the probes and the evaluation set, so that one pass of the model measures both.

    None if there is no such set, or if it is not like the probes or measured in other batches.
    """
    if evaluation is None:
        return None
    probes = (losses.probe, evaluation.probe)
    kinds = [(probe.batch_size, structure_of((probe.examples, probe.weights))) for probe in probes]
    if kinds[0] != kinds[1]:
        return None
    return LossValues(probe=jax.tree.map(lambda *parts: jnp.concatenate(parts), *probes))


class AbstractMoments(AbstractStatistic):
    """Sums that are large: what is added to them becomes the total, and no third copy is made."""

    def merge(self, total, contribution):
        if total is None:
            return contribution

        def add(old: Any, new: Any) -> Any:
            return np.add(old, new, out=new) if isinstance(new, np.ndarray) else old + new

        return jax.tree.map(add, total, contribution)


class Products(AbstractMoments):
    """Sums of g, g², ℓ, gℓ and ℓ² over the draws of a component's chains; the estimate is E[g x].

    Args:
        batch_length: observations per batch; at least 5 autocorrelation times for a right error.
    """

    batch_length: int = eqx.field(static=True, default=10)

    def empty(self, value):
        zero, zeros = jnp.zeros((), jnp.float32), jnp.zeros_like(value.losses)
        scalars = dict.fromkeys(("weight", "gap", "square"), zero)
        return scalars | dict.fromkeys(("loss", "product", "power"), zeros)

    def update(self, sums, value, weight):
        gap, square, losses = _of_the_living(value, weight)
        terms = {
            "weight": weight,
            "gap": weight * gap,
            "square": weight * square,
            "loss": weight * losses,
            "product": weight * gap * losses,
            "power": weight * losses**2,
        }
        return {name: sums[name] + term for name, term in terms.items()}

    def contribution(self, sums, finished):
        sums = _float64(sums)
        term = sums["product"] - sums["square"][..., None]
        return _with_squares(sums, term, ("gap", "weight"), finished)

    def finalize(self, total):
        sums = total["sums"]
        return _estimate(total, sums["product"] - sums["square"][..., None])


class Shifts(AbstractMoments):
    """Sums of g and ℓ over the draws of the chains of all weights; the estimate is E[x].

    Args:
        batch_length: observations per batch; at least 5 autocorrelation times for a right error.
    """

    batch_length: int = eqx.field(static=True, default=10)

    def empty(self, value):
        zero = jnp.zeros((), jnp.float32)
        return {"weight": zero, "gap": zero, "loss": jnp.zeros_like(value.losses)}

    def update(self, sums, value, weight):
        gap, _, losses = _of_the_living(value, weight)
        terms = {"weight": weight, "gap": weight * gap, "loss": weight * losses}
        return {name: sums[name] + term for name, term in terms.items()}

    def contribution(self, sums, finished):
        sums = _float64(sums)
        return _with_squares(sums, sums["loss"] - sums["gap"][..., None], ("weight",), finished)

    def finalize(self, total):
        sums = total["sums"]
        return _estimate(total, sums["loss"] - sums["gap"][..., None])


def _of_the_living(value: Gaps, weight: Scalar) -> Gaps:
    """Give the value, or zeros if its row is dead: what a dead row reports may be infinite."""
    return Gaps(*(jnp.where(weight > 0, leaf, jnp.zeros_like(leaf)) for leaf in value))


def _float64(sums: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float64) for name, leaf in sums.items()}


class Squares(NamedTuple):
    """Sums over batches of draws of products of their sums: of a term, and of numbers beside it.

    ``term`` is Σ a², ``mixed[k]`` Σ a v_k, ``other[k, l]`` Σ v_k v_l, and ``weight`` Σ W.
    """

    term: np.ndarray
    mixed: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    weight: np.ndarray


def _squares(term: np.ndarray, beside: dict[str, np.ndarray]) -> Squares:
    mixed = {name: term * number[..., None] for name, number in beside.items()}
    other = {f"{a} {b}": beside[a] * beside[b] for a in beside for b in beside}
    return Squares(term * term, mixed, other, beside["weight"])


def _with_squares(
    sums: dict[str, np.ndarray], term: np.ndarray, names: tuple[str, ...], finished: bool
) -> dict[str, Any]:
    """Give the contribution of one batch: its sums and, if it is finished, their squares.

    Squares are taken of every chain by itself and of all together. The latter give the error of the
    mean over chains, whether or not chains share minibatches.
    """
    beside = {name: sums[name].copy() for name in names}
    together = {name: number.sum(axis=1) for name, number in beside.items()}
    # What a chain measured on the way to its death may be infinite; it is never read.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = {
            "per chain": _squares(term, beside),
            "together": _squares(term.sum(axis=1), together),
        }
    if not finished:
        squares = jax.tree.map(np.zeros_like, squares)
    return {"sums": sums, "batches": int(finished)} | squares


def ratio_error(
    squares: Squares, coefficients: dict[str, np.ndarray], num_batches: int
) -> np.ndarray:
    """Give the standard error of Σ(a − Σ_k c_k v_k)/ΣW, whose sum over all batches is zero.

    Equation: SE² = B/(B − 1) Σ_b e_b²/(ΣW)², e_b = a_b − Σ_k c_k v_kb: the delta method for the
    ratio of two sums, from the scatter of B non-overlapping batches of draws.

    Args:
        squares: sums over batches.
        coefficients: name → c_k, of the shape of the term; the one of ``weight`` is the estimate.
        num_batches: B; below 2 the error is NaN.
    """
    total = squares.term.copy()
    for name, c in coefficients.items():
        total -= 2 * c * squares.mixed[name]
        for other, d in coefficients.items():
            total += c * d * squares.other[f"{name} {other}"][..., None]
    if num_batches < 2:
        return np.full(total.shape, np.nan)
    weight = np.maximum(squares.weight, np.finfo(np.float64).tiny)[..., None]
    return np.sqrt(np.maximum(total, 0) * num_batches / (num_batches - 1)) / weight


def _estimate(total: dict[str, Any], term: np.ndarray) -> Estimate:
    """Give the mean of a term over the draws of every chain."""
    mean = term / np.maximum(total["sums"]["weight"], np.finfo(np.float64).tiny)[..., None]
    count = int(total["batches"])
    return Estimate(mean, ratio_error(total["per chain"], {"weight": mean}, count), count)
