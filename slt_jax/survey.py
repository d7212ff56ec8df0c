"""What is known at w* before sampling: mean loss, gradient, and their variation over batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._apart import apart
from slt_jax._tree import Static, inner, join, on_device, split
from slt_jax._types import Displacement, host_float
from slt_jax.data import Batches
from slt_jax.minibatch import Losses, Minibatch, values_and_weights
from slt_jax.posterior import LocalPosterior
from slt_jax.restriction import Block, Restriction

_NUM_BATCHES = 64
_SMALL_EXAMPLES, _SMALL_BYTES = 8192, 2**24
_ORDER_SEED = 20250801


class Survey(NamedTuple):
    """The loss at w* over the data set, or over the part of it that was looked at.

    ``loss`` is L_n(w*) in nats; ``gradient`` is ∇L_n(w*), block by block ``[component, ...]``, on
    the device. ``gradient_norm_squared`` is |∇L_n|² without the part that comes from not having
    seen all examples, ``subset_noise`` that part, ``batch_noise`` tr Cov(∇L_b) over batches of the
    run's size, all ``[component]``. ``mean_weight`` is the total weight per example of the whole
    data set, or None if every weight is one.
    """

    loss: float
    gradient: Displacement
    gradient_norm_squared: np.ndarray
    batch_noise: np.ndarray
    subset_noise: np.ndarray
    mean_weight: float | None
    num_examples: int
    is_whole: bool


class _Sums(NamedTuple):
    """Running means of loss and gradient, and what their spread is computed from.

    ``last_weight`` is the total weight of the last batch.
    """

    loss: Array
    weight: Array
    gradient: Displacement
    norm_squared: Array
    batch_square: Array
    first_bad: Array
    last_weight: Array


class _Visit(NamedTuple):
    """One batch of the survey, and what to do with it.

    ``valid`` masks the rows that pad it, ``is_full`` tells that there are none; ``times`` is 1, or
    0 if only its weights are wanted.
    """

    examples: Any
    weights: Array | None
    valid: Array
    is_full: Array
    times: Array


@functools.partial(jax.jit, static_argnames="static", donate_argnames="sums")
def _add(static: Static, arrays: Any, sums: _Sums, visit: _Visit) -> _Sums:
    """Add one batch of losses and gradients at w*, or only weigh it."""
    posterior: LocalPosterior
    posterior, starts = join(arrays, static)
    structure = jax.eval_shape(posterior.loss_fn, posterior.params, visit.examples)
    if not isinstance(structure, Losses):
        return _accumulate(posterior, starts, visit, sums)

    def measure(visit: _Visit, sums: _Sums) -> _Sums:
        return _accumulate(posterior, starts, visit, sums)

    # One program for both, so that a run compiles as many whether the survey sees all data or not.
    return apart(measure, visit.times, visit, sums)._replace(last_weight=_weigh(posterior, visit))


def _weigh(posterior: LocalPosterior, visit: _Visit) -> Array:
    """Sum the weights that the loss function gives; the compiler drops the model from this."""
    losses = posterior.loss_fn(posterior.params, visit.examples)
    _, weights = values_and_weights(losses, Minibatch(visit.examples, visit.weights))
    assert weights is not None
    return jnp.sum(weights * _per_example(visit.valid, weights)).astype(jnp.float32)


def _per_example(valid: Array, like: Array) -> Array:
    return valid.reshape(-1, *(1,) * (like.ndim - 1)).astype(like.dtype)


def _accumulate(posterior: LocalPosterior, starts: Any, visit: _Visit, sums: _Sums) -> _Sums:
    """Add one batch of losses and gradients at w*.

    One backward pass serves all components: the gradient is taken for the leaves they touch and
    every component reads its blocks from it.
    """
    leaves = _touched(posterior.restriction)
    loss, weight, finite, gradient = _batch_sums(posterior, leaves, visit)
    blocks = _read_blocks(posterior.restriction, leaves, gradient, starts)
    total = sums.weight + weight
    # A running mean, so that nothing large is left to be divided after the last batch.
    share = weight / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    own = tuple(block / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny) for block in blocks)
    mean = tuple(m + share * (g - m) for m, g in zip(sums.gradient, own, strict=True))
    square = jax.vmap(inner)(blocks, blocks)
    return _Sums(
        sums.loss + share * (loss / jnp.maximum(weight, 1e-30) - sums.loss),
        total,
        mean,
        jax.vmap(inner)(mean, mean),
        sums.batch_square + jnp.where(visit.is_full, square, jnp.zeros_like(square)),
        jnp.where(jnp.all(finite), -1, jnp.argmin(finite)).astype(jnp.int32),
        sums.last_weight,
    )


def _batch_sums(
    posterior: LocalPosterior, leaves: Restriction, visit: _Visit
) -> tuple[Array, Array, Array, Displacement]:
    """Give Σ wℓ, Σ w, which examples are finite, and ∂Σ wℓ for the touched leaves."""
    examples, weights, valid, _, _ = visit
    masked = valid if weights is None else weights * _per_example(valid, weights)

    def total(displacement: Displacement) -> tuple[Array, tuple[Array, Array]]:
        losses = posterior.restrict(leaves).losses_at(displacement, examples)
        values, combined = values_and_weights(losses, Minibatch(examples, masked))
        assert combined is not None
        finite = jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=1)
        loss, weight = jnp.sum(values * combined), jnp.sum(combined)
        return loss.astype(jnp.float32), (weight.astype(jnp.float32), finite)

    (loss, (weight, finite)), gradient = jax.value_and_grad(total, has_aux=True)(leaves.zeros())
    return loss, weight, finite, gradient


def _touched(restriction: Restriction) -> Restriction:
    """Select the leaves that the blocks lie in: whole, or cut to the level that all are in."""
    deepest: dict[str, Block] = {}
    for block in restriction.blocks:
        other = deepest.setdefault(block.path, block)
        deepest[block.path] = max(other, block, key=lambda block: block.size[:1])
    views = {(block.path, block.view) for block in restriction.blocks}
    if not restriction.is_level or len(views) > len(deepest):
        return Restriction(Block(block.path, block.view) for block in deepest.values())
    levels = (
        Block(
            block.path,
            block.view,
            (*block.size[:1], *block.view[1:]),
            (*block.start[:1], *(0 for _ in block.view[1:])),
        )
        for block in deepest.values()
    )
    return Restriction(levels, is_level=True)


def _read_blocks(
    restriction: Restriction, leaves: Restriction, gradient: Displacement, starts: Any
) -> Displacement:
    """Cut every component's blocks from the gradient of the leaves, ``[component, ...]``."""
    by_path = {
        leaf.path: (leaf, slope) for leaf, slope in zip(leaves.blocks, gradient, strict=True)
    }

    def read(block: Block) -> Array:
        leaf, slope = by_path[block.path]
        if not leaf.is_whole:
            # What is left of the leaf begins where its blocks do.
            block = Block(block.path, leaf.size, block.size, (0, *block.start[1:]))
        return block.read(slope)

    def cut(own_starts: Any) -> Displacement:
        own = restriction if own_starts is None else restriction.at(own_starts)
        return tuple(read(block) for block in own.blocks)

    if starts is None:
        return tuple(leaf[None] for leaf in cut(None))
    return jax.vmap(cut)(starts)


def take_survey(
    posterior: LocalPosterior, batches: Batches, starts: Any, num_examples: int | None
) -> Survey:
    """Measure loss and gradient at w* over the data, or over a fixed random part of it.

    Args:
        posterior: the target.
        batches: the data.
        starts: what differs between the block offsets of the components (see ``Rows``), or None
            for the posterior's own restriction.
        num_examples: examples to look at; None for 64 batches, or all of a small data set.

    Raises:
        ValueError: a non-finite loss at w*, or no weight at all.
    """
    order = survey_order(batches, num_examples)
    arrays, static = split((posterior, starts))
    arrays, sums = on_device(arrays), _empty_sums(posterior, starts)
    for numbers in _in_batches(order, batches.batch_size):
        sums = _add(static, arrays, sums, _visit(batches, numbers, times=1))
        bad = int(jax.device_get(sums.first_bad))
        if bad >= 0:
            raise ValueError(
                f"the loss at w* is not finite for example {numbers[bad]}: sampling needs finite "
                "losses for every example and position, masked ones included. Look at this example "
                "(token ids and labels outside the vocabulary give NaN)"
            )
    if host_float(sums.weight) <= 0:
        raise ValueError(
            f"no position of the {len(order)} examples that were looked at has weight: nothing is "
            "predicted. Are all labels -100, or all weights or the whole attention mask 0?"
        )
    loss_weight, is_whole = None, len(order) == batches.num_examples
    if _has_weights(posterior, batches) and not is_whole:
        loss_weight = 0.0
        for numbers in _in_batches(np.arange(batches.num_examples), batches.batch_size):
            sums = _add(static, arrays, sums, _visit(batches, numbers, times=0))
            loss_weight += host_float(sums.last_weight)
    return _summarize(sums, posterior, batches, len(order), loss_weight)


def _in_batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def _visit(batches: Batches, numbers: np.ndarray, times: int) -> _Visit:
    """Read a batch, the last example repeated if it is a short one."""
    missing = batches.batch_size - len(numbers)
    examples, weights = batches.rows(np.concatenate([numbers, np.repeat(numbers[-1:], missing)]))
    valid = (np.arange(batches.batch_size) < len(numbers)).astype(np.float32)
    visit: Any = (examples, weights, valid, np.bool_(missing == 0), np.int32(times))
    return _Visit(*on_device(visit))


def survey_order(batches: Batches, num_examples: int | None) -> np.ndarray:
    """Give the numbers of the examples that a survey looks at, in its order."""
    total = batches.num_examples
    small = total <= _SMALL_EXAMPLES and batches.num_bytes <= _SMALL_BYTES
    limit = total if small else _NUM_BATCHES * batches.batch_size
    limit = limit if num_examples is None else num_examples
    if limit < 1:
        raise ValueError(f"survey_examples must be at least 1, got {limit}")
    # In random order, the same for every run on the same data: batches of a sorted data set would
    # differ far more than the sampler's batches do, and hide the gradient at w*.
    generator = np.random.default_rng(_ORDER_SEED)
    return generator.permutation(total)[: min(limit, total)]


def _empty_sums(posterior: LocalPosterior, starts: Any) -> _Sums:
    count = 1 if starts is None else jax.tree.leaves(starts)[0].shape[0]
    gradient = tuple(
        np.zeros((count, *block.size), np.float32) for block in posterior.restriction.blocks
    )
    zero, zeros = np.float32(0), np.zeros(count, np.float32)
    sums: Any = (zero, zero, gradient, zeros, zeros.copy(), np.int32(-1), zero)
    return _Sums(*on_device(sums))


def _summarize(
    sums: _Sums,
    posterior: LocalPosterior,
    batches: Batches,
    count: int,
    loss_weight: float | None,
) -> Survey:
    size, total = batches.batch_size, batches.num_examples
    loss, weight, norm_squared, batch_square = jax.device_get(
        (sums.loss, sums.weight, sums.norm_squared, sums.batch_square)
    )
    square, num_full = norm_squared.astype(np.float64), count // size
    noise = np.full_like(square, np.nan)
    if num_full > 1:
        # Sums over a batch, divided as the sampler divides them: by what a batch weighs on average.
        mean_square = batch_square.astype(np.float64) / num_full / (weight / count * size) ** 2
        noise = np.maximum(mean_square - square, 0) * num_full / (num_full - 1)
    share = (total - count) / max(total - size, 1) * size / count
    subset_noise = np.nan_to_num(noise) * max(share, 0.0)
    surveyed = float(weight) / count if count == total else None
    return Survey(
        float(loss),
        sums.gradient,
        np.maximum(square - subset_noise, 0),
        noise,
        subset_noise,
        _mean_weight(posterior, batches, surveyed, loss_weight),
        count,
        count == total,
    )


def _mean_weight(
    posterior: LocalPosterior,
    batches: Batches,
    surveyed: float | None,
    loss_weight: float | None,
) -> float | None:
    """Give the total weight per example over the whole data set; None if every weight is one.

    Args:
        posterior: for the shape of the losses.
        batches: the data.
        surveyed: weight per example in a survey of the whole data set.
        loss_weight: weights that the loss function returns, summed over the whole data set.
    """
    if batches.weights is None and not _has_weights(posterior, batches):
        return None
    if surveyed is not None:
        return surveyed
    if loss_weight is not None:
        return loss_weight / batches.num_examples
    assert batches.weights is not None
    structure = jax.eval_shape(posterior.loss_fn, posterior.params, batches.example_structure)
    positions = np.prod(structure.shape[batches.weights.ndim :])
    return float(batches.weights.sum(dtype=np.float64) * positions / batches.num_examples)


def _has_weights(posterior: LocalPosterior, batches: Batches) -> bool:
    """Tell whether the loss function gives weights of its own."""
    examples = batches.example_structure
    return isinstance(jax.eval_shape(posterior.loss_fn, posterior.params, examples), Losses)
