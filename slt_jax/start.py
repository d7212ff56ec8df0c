"""The first program of a run: keys and states of rows, values at w*, and a check of the loss."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from slt_jax._tree import Static, all_finite, inner, is_array, join
from slt_jax._types import ChainKey, Displacement, Flag, Scalar
from slt_jax.carry import Carry, Rows
from slt_jax.fingerprint import checksums
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.minibatch import Minibatch
from slt_jax.noise import noise_like
from slt_jax.observables import AbstractObservable
from slt_jax.posterior import LocalPosterior

# Gauss–Legendre nodes and weights on [0, 1]: exact for gradients of degree 9, so that a strongly
# curved loss is not mistaken for one that rounds.
_NODES, _WEIGHTS = (array.astype(np.float32) for array in np.polynomial.legendre.leggauss(5))
_NODES, _WEIGHTS = 0.5 + 0.5 * _NODES, 0.5 * _WEIGHTS
_NUM_DIRECTIONS = 2
SCHEDULE_STEPS = (0, 1, 10, 100, 1000, 10_000)
"""Where schedules are looked at to tell them apart."""


class Feeling(NamedTuple):
    """Whether the loss feels a displacement: changes of the loss against integrated gradients.

    ``change`` and ``integral`` are float32 ``[component, 2, direction]`` in nats, first for one
    step √ε, then for the size of the posterior; ``size`` is the displacement per weight and
    ``scale`` the size of the loss, for its rounding error, both ``[component, 2]``.
    """

    change: Array
    integral: Array
    size: Array
    scale: Array


class Start(NamedTuple):
    """What the first program gives; ``schedules`` are their values at ``SCHEDULE_STEPS``."""

    rows: Rows
    carry: Carry
    centers: dict[str, Any]
    finite_centers: dict[str, Flag]
    feeling: Feeling
    checksums: Array
    schedules: list[Array]


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

    def feel(own_starts: Any) -> Feeling:
        return _feel(posterior.at_starts(own_starts), kernel, key, batch)

    feelings = (
        jax.tree.map(lambda leaf: leaf[None], feel(None))
        if starts is None
        else jax.lax.map(feel, starts)
    )
    centers = {
        name: _center(observable, posterior, batch) for name, observable in observables.items()
    }
    named = (posterior.params, posterior.loss_fn, kernel)
    sums = checksums([leaf for leaf in jax.tree.leaves(named) if is_array(leaf)])
    carry = _carry(jax.vmap(init)(rows), rows, observables, centers)
    values = [_values(schedule) for schedule in schedules_of(kernel)]
    finite = {name: all_finite(center) for name, center in centers.items()}
    return Start(rows, carry, centers, finite, feelings, sums, values)


def schedules_of(kernel: AbstractKernel) -> list[Callable[[Any], Any]]:
    """Give the settings of a kernel that are functions of the step."""
    return [leaf for leaf in jax.tree.leaves(kernel) if callable(leaf)]


def _values(schedule: Callable[[Any], Any]) -> Array:
    # Schedules of optax multiply counts by floats, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        values = [schedule(jnp.asarray(step, jnp.int32)) for step in SCHEDULE_STEPS]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])


def _rows(key: ChainKey, selections: Array, starts: Any, num_chains: int) -> Rows:
    num_components = selections.shape[0]
    component = jnp.repeat(jnp.arange(num_components), num_chains)
    chain = jnp.tile(jnp.arange(num_chains, dtype=jnp.int32), num_components)

    def fold(keys: Key[Array, " row"], numbers: Array) -> tuple[Any, None]:
        return jax.vmap(jax.random.fold_in)(keys, numbers), None

    # A loop, for the compiler unrolls every application of the generator.
    keys, _ = jax.lax.scan(
        fold, jnp.broadcast_to(key, component.shape), jnp.stack([selections[component], chain])
    )
    own = None if starts is None else jax.tree.map(lambda leaf: leaf[component], starts)
    return Rows(keys, chain, own)


def _carry(
    states: Any, rows: Rows, observables: dict[str, AbstractObservable], centers: dict[str, Any]
) -> Carry:
    num_rows = rows.chain.shape[0]
    zero = jnp.zeros((num_rows,), jnp.float32)
    partials = {}
    for name, observable in observables.items():
        zero_value = observable.relative(centers[name], centers[name])
        zero_value = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_value)
        sums = observable.statistic.empty(zero_value)
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
    fresh = None
    if observable.num_fresh:
        parts = (batch.examples, batch.weights, batch.center)
        examples, weights, center = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (observable.num_fresh, *leaf.shape)), parts
        )
        # The mean weight is one number for all minibatches, as in ``over_minibatches``.
        fresh = Minibatch(examples, weights, batch.mean_weight, center)
    return observable.measure(posterior, posterior.restriction.zeros(), fresh)


def _feel(
    target: LocalPosterior, kernel: AbstractKernel, key: ChainKey, batch: Minibatch
) -> Feeling:
    """Compare changes of the loss with integrated gradients, at one step and at stationary size.

    Returns:
        Every field with leading axis 2: the size √ε of one step, and 1/√(γ + nβh).
    """
    sizes = kernel.step_sizes(kernel.init(target))
    ones = tuple(jnp.ones_like(size) for size in sizes)
    total = inner(tuple(jnp.sqrt(size) for size in sizes), ones)
    step_size = total / target.restriction.num_params

    # Both sizes go through one loop: the model is compiled once, not once per size.
    def visit(precision: Scalar, is_first: Array) -> tuple[Scalar, Feeling]:
        stationary = jax.lax.rsqrt(jnp.maximum(precision, jnp.finfo(jnp.float32).tiny))
        size = jnp.where(is_first | (precision <= 0), step_size, stationary)
        feeling, curvature = _feel_at(target, key, size, batch)
        bent = target.n_beta * jnp.maximum(jnp.mean(curvature), 0)
        return target.prior_precision + bent, feeling

    start = jnp.ones((), jnp.float32)
    _, feelings = jax.lax.scan(visit, start, jnp.asarray([True, False]))
    return feelings


def _feel_at(
    target: LocalPosterior, key: ChainKey, size: Scalar, batch: Minibatch
) -> tuple[Feeling, Array]:
    """Compare ℓ(w* + ηu) − ℓ(w*) with ∫ ∇ℓ·dw along the way; also give the curvature along u."""
    zeros, labels = target.restriction.zeros(), target.restriction.labels

    def along(number: Array) -> tuple[Array, Array, Array]:
        direction = noise_like(jax.random.fold_in(key, number), zeros, labels)
        shift = tuple(size * u for u in direction)

        def look(node: Array) -> tuple[Array, Array]:
            gap, gradient = jax.value_and_grad(target.gap)(tuple(node * s for s in shift), batch)
            return gap, inner(gradient, shift)

        # The end of the way is one more node: the model is compiled once for gap and gradient.
        gaps, slopes = jax.lax.map(look, jnp.asarray([*_NODES, 1.0], jnp.float32))
        integral = jnp.sum(jnp.asarray(_WEIGHTS) * slopes[:-1])
        square = jnp.maximum(inner(shift, shift), jnp.finfo(jnp.float32).tiny)
        curvature = (slopes[-2] - slopes[0]) / (float(_NODES[-1] - _NODES[0]) * square)
        return gaps[-1], integral, curvature

    change, integral, curvature = jax.lax.map(along, jnp.arange(_NUM_DIRECTIONS))
    assert batch.center is not None
    scale = jnp.max(jnp.abs(batch.center.losses)).astype(jnp.float32)
    return Feeling(change, integral, size, scale), curvature


def check_centers(begun: Start) -> None:
    """Refuse observables that are not finite at w*: nothing relative to them would be, either.

    Raises:
        ValueError: which observable, and which entries of its leading axis.
    """
    for name, finite in jax.device_get(begun.finite_centers).items():
        if finite:
            continue
        leaves = jax.device_get(jax.tree.leaves(begun.centers[name]))
        leaf = next(np.atleast_1d(leaf) for leaf in leaves if not np.isfinite(leaf).all())
        bad = np.flatnonzero(~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1))
        raise ValueError(
            f"observable {name!r} is not finite at w* for {bad.size} of {len(leaf)} entries, the "
            f"first of them {bad[0]}. Look at these examples (token ids outside the vocabulary "
            "give NaN); where nothing is predicted the loss must be finite all the same, with "
            "weight 0"
        )


def check_feeling(feeling: Feeling) -> None:
    """Refuse a loss that does not feel displacements of the stationary size.

    Warns at the size of one step √ε.

    Raises:
        ValueError: finite differences miss the gradient by more than 10 % at 1/√(γ + nβh).
    """
    message = (
        "the loss does not follow its own gradient: over a displacement of {size:.1e} per weight "
        "({name}) it changes by {change:.2e} nats where the gradient says {integral:.2e}. A model "
        "that casts weights to a narrow dtype rounds the displacement away: compute w* + δ in "
        "float32 and cast activations instead, keep the weights in float32, or raise "
        "jax_default_matmul_precision; a loss that is not finite nearby needs a larger localization"
    )
    kinds = ((1, "the size of the posterior, 1/√(γ + nβh)", True), (0, "one step, √ε", False))
    rounding = 32 * np.finfo(np.float32).eps * np.maximum(feeling.scale, 1e-30)
    miss = np.sqrt(np.mean(np.square(feeling.change - feeling.integral), axis=-1))
    expected = np.sqrt(np.mean(np.square(feeling.integral), axis=-1))
    changed = np.sqrt(np.mean(np.square(feeling.change), axis=-1))
    for number, name, fatal in kinds:
        for component in np.flatnonzero(~(miss <= 0.1 * expected + rounding)[:, number]):
            at = (component, number)
            text = message.format(
                size=feeling.size[at], name=name, change=changed[at], integral=expected[at]
            )
            if fatal:
                raise ValueError(text)
            warnings.warn(text, stacklevel=5)
