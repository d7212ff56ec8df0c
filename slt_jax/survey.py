"""What is known at w* before sampling: mean loss, gradient, and their variation over batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, inner, join, on_device, split
from slt_jax._types import Displacement
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
    """Running means of loss and gradient, and what their spread is computed from."""

    loss: Array
    weight: Array
    gradient: Displacement
    norm_squared: Array
    batch_square: Array
    first_bad: Array


@functools.partial(jax.jit, static_argnames="static", donate_argnames="sums")
def _accumulate(
    static: Static, arrays: Any, sums: _Sums, batch: Any, valid: Array, is_full: Array
) -> _Sums:
    """Add one batch of losses and gradients at w*; ``valid`` masks the rows that pad it.

    One backward pass serves all components: the gradient is taken for the leaves they touch and
    every component reads its blocks from it.
    """
    posterior: LocalPosterior
    posterior, starts = join(arrays, static)
    leaves = _touched(posterior)
    loss, weight, finite, gradient = _batch_sums(posterior, leaves, batch, valid)
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
        sums.batch_square + jnp.where(is_full, square, jnp.zeros_like(square)),
        jnp.where(jnp.all(finite), -1, jnp.argmin(finite)).astype(jnp.int32),
    )


def _batch_sums(
    posterior: LocalPosterior, leaves: Restriction, batch: Any, valid: Array
) -> tuple[Array, Array, Array, Displacement]:
    """Give Σ wℓ, Σ w, which examples are finite, and ∂Σ wℓ for the touched leaves."""
    examples, weights = batch
    masked = valid if weights is None else weights * valid.reshape(-1, *(1,) * (weights.ndim - 1))

    def total(displacement: Displacement) -> tuple[Array, tuple[Array, Array]]:
        losses = posterior.restrict(leaves).losses_at(displacement, examples)
        values, combined = values_and_weights(losses, Minibatch(examples, masked))
        assert combined is not None
        finite = jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=1)
        loss, weight = jnp.sum(values * combined), jnp.sum(combined)
        return loss.astype(jnp.float32), (weight.astype(jnp.float32), finite)

    (loss, (weight, finite)), gradient = jax.value_and_grad(total, has_aux=True)(leaves.zeros())
    return loss, weight, finite, gradient


def _touched(posterior: LocalPosterior) -> Restriction:
    """Select the leaves that the blocks of the restriction lie in, whole."""
    paths = dict.fromkeys(block.path for block in posterior.restriction.blocks)
    views = {block.path: block.view for block in posterior.restriction.blocks}
    return Restriction(Block(path, views[path]) for path in paths)


def _read_blocks(
    restriction: Restriction, leaves: Restriction, gradient: Displacement, starts: Any
) -> Displacement:
    """Cut every component's blocks from the gradient of whole leaves, ``[component, ...]``."""
    by_path = dict(zip((block.path for block in leaves.blocks), gradient, strict=True))

    def cut(own_starts: Any) -> Displacement:
        own = restriction if own_starts is None else restriction.at(own_starts)
        return tuple(block.read(by_path[block.path]) for block in own.blocks)

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
        ValueError: a non-finite loss at w*.
    """
    order = survey_order(batches, num_examples)
    arrays, static = split((posterior, starts))
    arrays, sums, size = on_device(arrays), _empty_sums(posterior, starts), batches.batch_size
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        padded = np.concatenate([numbers, np.repeat(numbers[-1:], size - len(numbers))])
        valid = (np.arange(size) < len(numbers)).astype(np.float32)
        sums = _accumulate(
            static,
            arrays,
            sums,
            on_device(batches.rows(padded)),
            jax.device_put(valid),
            jax.device_put(np.bool_(len(numbers) == size)),
        )
        bad = int(jax.device_get(sums.first_bad))
        if bad >= 0:
            raise ValueError(
                f"the loss at w* is not finite for example {padded[bad]}: sampling needs finite "
                "losses for every example and position, masked ones included"
            )
    return _summarize(sums, posterior, batches, len(order))


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
    sums: Any = (zero, zero, gradient, zeros, zeros.copy(), np.int32(-1))
    return _Sums(*on_device(sums))


def _summarize(sums: _Sums, posterior: LocalPosterior, batches: Batches, count: int) -> Survey:
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
    return Survey(
        float(loss),
        sums.gradient,
        np.maximum(square - subset_noise, 0),
        noise,
        subset_noise,
        _mean_weight(posterior, batches, float(weight) / count, count == total),
        count,
        count == total,
    )


def _mean_weight(
    posterior: LocalPosterior, batches: Batches, surveyed: float, is_whole: bool
) -> float | None:
    """Give the total weight per example over the whole data set; None if every weight is one.

    Weights that the loss function returns (``slt.Losses``) are summed over all the data, in the
    survey or in a pass of their own from which the compiler drops the model.
    """
    structure = jax.eval_shape(posterior.loss_fn, posterior.params, batches.example_structure)
    if batches.weights is None and not isinstance(structure, Losses):
        return None
    if is_whole:
        return surveyed
    if isinstance(structure, Losses):
        return _sum_of_loss_weights(posterior, batches) / batches.num_examples
    assert batches.weights is not None
    positions = np.prod(structure.shape[batches.weights.ndim :])
    return float(batches.weights.sum(dtype=np.float64) * positions / batches.num_examples)


@functools.partial(jax.jit, static_argnames="static")
def _loss_weights(static: Static, arrays: Any, batch: Any, valid: Array) -> Array:
    posterior: LocalPosterior = join(arrays, static)
    examples, weights = batch
    losses = posterior.loss_fn(posterior.params, examples)
    _, combined = values_and_weights(losses, Minibatch(examples, weights))
    assert combined is not None
    return jnp.sum(combined.reshape(combined.shape[0], -1) * valid[:, None])


def _sum_of_loss_weights(posterior: LocalPosterior, batches: Batches) -> float:
    arrays, static = split(posterior)
    arrays, size, total = on_device(arrays), batches.batch_size, 0.0
    for first in range(0, batches.num_examples, size):
        numbers = np.arange(first, first + size)
        valid = (numbers < batches.num_examples).astype(np.float32)
        rows = on_device(batches.rows(np.minimum(numbers, batches.num_examples - 1)))
        total += float(_loss_weights(static, arrays, rows, jax.device_put(valid)))
    return total
