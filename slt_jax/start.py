"""The first program of a run: keys and states of rows, values at w*, and a check of the loss."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, inner, join, noise_like
from slt_jax._types import ChainKey, Displacement, Scalar
from slt_jax.carry import Carry, Rows
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.minibatch import Minibatch
from slt_jax.observables import AbstractObservable
from slt_jax.posterior import LocalPosterior

# Three-point Gauss–Legendre nodes and weights on [0, 1]: exact for cubic gradients and beyond, so
# that a curved loss is not mistaken for one that rounds.
_NODES = (0.5 - 0.5 * 0.6**0.5, 0.5, 0.5 + 0.5 * 0.6**0.5)
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)
_NUM_DIRECTIONS = 4


class Feeling(NamedTuple):
    """Whether the loss feels a displacement: changes of the loss against integrated gradients.

    ``change`` and ``integral`` are float32 ``[component, direction]`` in nats; ``size`` is the
    displacement per weight, ``scale`` the size of the loss, for its rounding error.
    """

    change: Array
    integral: Array
    size: Array
    scale: Array


class Start(NamedTuple):
    """What the first program gives."""

    rows: Rows
    carry: Carry
    centers: dict[str, Any]
    at_step: Feeling
    at_stationary: Feeling
    weight_sums: Array


@functools.partial(jax.jit, static_argnames=("static", "num_chains", "dispersed"))
def start(
    static: Static,
    arrays: Any,
    key: ChainKey,
    selections: Array,
    batch: Minibatch,
    *,
    num_chains: int,
    dispersed: bool,
) -> Start:
    """Set up all rows and look at the loss around w*.

    Args:
        static: the code of (posterior, kernel, observables, starts).
        arrays: their arrays.
        key: the run's key.
        selections: int32 ``[component]``, folded into the keys of a component's rows.
        batch: examples for the check of the loss.
        num_chains: chains per component.
        dispersed: start from N(w*, I/γ).
    """
    posterior: LocalPosterior
    kernel: AbstractKernel
    posterior, kernel, observables, starts = join(arrays, static)
    rows = _rows(key, selections, starts, num_chains)

    def init(row: Rows) -> Any:
        target = posterior.at_starts(row.starts)
        return kernel.init(target, _dispersed(row.key, target) if dispersed else None)

    batch = batch.with_center(posterior.center(batch))

    def feel(own_starts: Any) -> tuple[Feeling, Feeling]:
        return _feel(posterior.at_starts(own_starts), kernel, key, batch)

    feelings = (
        jax.tree.map(lambda leaf: leaf[None], feel(None))
        if starts is None
        else jax.lax.map(feel, starts)
    )
    centers = {
        name: _center(observable, posterior, batch) for name, observable in observables.items()
    }
    sums = jnp.stack(
        [
            jnp.stack([jnp.sum(leaf, dtype=jnp.float32), jnp.sum(jnp.abs(leaf), dtype=jnp.float32)])
            for leaf in jax.tree.leaves(posterior.params)
        ]
    )
    carry = _carry(jax.vmap(init)(rows), rows, observables, centers)
    at_step, at_stationary = feelings
    return Start(rows, carry, centers, at_step, at_stationary, sums)


def _rows(key: ChainKey, selections: Array, starts: Any, num_chains: int) -> Rows:
    num_components = selections.shape[0]
    component = jnp.repeat(jnp.arange(num_components), num_chains)
    chain = jnp.tile(jnp.arange(num_chains, dtype=jnp.int32), num_components)
    keys = jax.vmap(
        lambda selection, number: jax.random.fold_in(jax.random.fold_in(key, selection), number)
    )(selections[component], chain)
    own = None if starts is None else jax.tree.map(lambda leaf: leaf[component], starts)
    return Rows(keys, chain, own)


def _carry(
    states: Any, rows: Rows, observables: dict[str, AbstractObservable], centers: dict[str, Any]
) -> Carry:
    num_rows = rows.chain.shape[0]
    zero = jnp.zeros((num_rows,), jnp.float32)
    partials = {}
    for name, observable in observables.items():
        sums = observable.statistic.empty(observable.relative(centers[name], centers[name]))
        partials[name] = jax.tree.map(
            lambda leaf: jnp.zeros((num_rows, *leaf.shape), leaf.dtype), sums
        )
    return Carry(
        step=jnp.zeros((), jnp.int32),
        state=states,
        alive=jnp.ones((num_rows,), bool),
        died_at=jnp.full((num_rows,), -1, jnp.int32),
        info=Info(*(zero for _ in Info._fields)),
        partials=partials,
        counts={name: jnp.zeros((), jnp.int32) for name in observables},
    )


def _dispersed(key: ChainKey, target: LocalPosterior) -> Displacement:
    noise = noise_like(
        jax.random.fold_in(key, -1 & 0x7FFFFFFF),
        target.restriction.zeros(),
        target.restriction.labels,
    )
    return target.clip(tuple(xi / jnp.sqrt(target.localization) for xi in noise))


def _center(observable: AbstractObservable, posterior: LocalPosterior, batch: Minibatch) -> Any:
    fresh = (batch,) * observable.num_fresh
    return observable.measure(posterior, posterior.restriction.zeros(), fresh)


def _feel(
    target: LocalPosterior, kernel: AbstractKernel, key: ChainKey, batch: Minibatch
) -> tuple[Feeling, Feeling]:
    zeros = target.restriction.zeros()
    sizes = kernel.step_sizes(kernel.init(target))
    directions = [
        noise_like(jax.random.fold_in(key, number), zeros, target.restriction.labels)
        for number in range(_NUM_DIRECTIONS)
    ]
    mean_size = inner(tuple(jnp.sqrt(s) for s in sizes), tuple(jnp.ones_like(s) for s in sizes))
    mean_size = mean_size / target.restriction.num_params
    at_step, curvature = _feel_at(target, directions, mean_size, batch)
    precision = target.localization + target.n_beta * jnp.maximum(jnp.mean(curvature), 0)
    stationary = jax.lax.rsqrt(jnp.maximum(precision, jnp.finfo(jnp.float32).tiny))
    stationary = jnp.where(precision > 0, stationary, mean_size)
    at_stationary, _ = _feel_at(target, directions, stationary, batch)
    return at_step, at_stationary


def _feel_at(
    target: LocalPosterior, directions: list[Displacement], size: Scalar, batch: Minibatch
) -> tuple[Feeling, Array]:
    """Compare ℓ(w* + ηu) − ℓ(w*) with ∫ ∇ℓ·dw along the way; also give the curvature along u."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)

    def along(direction: Displacement) -> tuple[Array, Array, Array]:
        shift = tuple(size * u for u in direction)
        slopes = [
            inner(jax.grad(target.gap)(tuple(node * s for s in shift), batch), shift)
            for node in _NODES
        ]
        integral = sum(w * slope for w, slope in zip(_WEIGHTS, slopes, strict=True))
        square = jnp.maximum(inner(shift, shift), jnp.finfo(jnp.float32).tiny)
        curvature = (slopes[2] - slopes[0]) / ((_NODES[2] - _NODES[0]) * square)
        return target.gap(shift, batch), jnp.asarray(integral), curvature

    change, integral, curvature = jax.lax.map(along, stacked)
    assert batch.center is not None
    scale = jnp.max(jnp.abs(batch.center.losses)).astype(jnp.float32)
    return Feeling(change, integral, size, scale), curvature


def check_feeling(at_step: Feeling, at_stationary: Feeling) -> None:
    """Refuse a loss that does not feel displacements of the stationary size.

    Warns at the size of one step √ε.

    Raises:
        ValueError: finite differences miss the gradient by more than 10 % at 1/√(γ + nβh).
    """
    message = (
        "the loss does not follow its own gradient: over a displacement of {size:.1e} per weight "
        "({name}) it changes by {change:.2e} nats where the gradient says {integral:.2e}. A model "
        "that casts weights to a narrow dtype rounds the displacement away: compute w* + δ in "
        "float32 and cast activations instead, or keep the weights in float32"
    )
    for feeling, name, fatal in (
        (at_stationary, "the size of the posterior, 1/√(γ + nβh)", True),
        (at_step, "one step, √ε", False),
    ):
        change, integral = np.asarray(feeling.change), np.asarray(feeling.integral)
        rounding = 32 * np.finfo(np.float32).eps * np.maximum(np.asarray(feeling.scale), 1e-30)
        miss = np.sqrt(np.mean(np.square(change - integral), axis=-1))
        size = np.sqrt(np.mean(np.square(integral), axis=-1))
        for component in np.flatnonzero(miss > 0.1 * size + rounding):
            text = message.format(
                size=float(np.ravel(feeling.size)[component]),
                name=name,
                change=np.sqrt(np.mean(np.square(change[component]))),
                integral=size[component],
            )
            if fatal:
                raise ValueError(text)
            warnings.warn(text, stacklevel=4)
