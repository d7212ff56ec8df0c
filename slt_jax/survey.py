"""What is known at w* before sampling: mean loss, gradient, and their variation over batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, join, on_device, split
from slt_jax._types import Displacement
from slt_jax.data import Batches
from slt_jax.minibatch import Losses, Minibatch, values_and_weights
from slt_jax.posterior import LocalPosterior


class Survey(NamedTuple):
    """The loss at w* over the data set, or over the part of it that was looked at.

    ``loss`` is L_n(w*) in nats; ``gradient`` is ∇L_n(w*), block by block ``[component, ...]``, on
    the device. ``gradient_norm_squared`` is |∇L_n|² without the part that comes from not having
    seen all examples, ``subset_noise`` that part, ``batch_noise`` tr Cov(∇L_b) over batches of the
    run's size, all ``[component]``. ``mean_weight`` is the total weight per example.
    """

    loss: float
    gradient: Displacement
    gradient_norm_squared: np.ndarray
    batch_noise: np.ndarray
    subset_noise: np.ndarray
    mean_weight: float
    num_examples: int
    is_whole: bool


class _Sums(NamedTuple):
    loss: Array
    weight: Array
    gradient: Displacement
    batch_square: Array
    first_bad: Array


@functools.partial(jax.jit, static_argnames="static", donate_argnames="sums")
def _accumulate(
    static: Static, arrays: Any, sums: _Sums, batch: Any, valid: Array, is_full: Array
) -> _Sums:
    """Add one batch of losses and gradients at w*; ``valid`` masks the rows that pad it."""
    target: LocalPosterior
    target, starts = join(arrays, static)
    examples, weights = batch

    def total(displacement: Displacement, at: LocalPosterior) -> tuple[Array, Any]:
        masked = (
            valid
            if weights is None
            else weights * valid.reshape(valid.shape + (1,) * (weights.ndim - 1))
        )
        losses = target.loss_fn(at.params_at(displacement), examples)
        values, combined = values_and_weights(losses, Minibatch(examples, masked))
        assert combined is not None
        finite = jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=1)
        return jnp.sum(values * combined), (jnp.sum(combined), finite)

    def at_component(own_starts: Any) -> tuple[Any, Displacement]:
        at = target.at_starts(own_starts)
        return jax.value_and_grad(total, has_aux=True)(at.restriction.zeros(), at)

    (loss, (weight, finite)), gradient = (
        jax.tree.map(lambda leaf: leaf[None], at_component(None))
        if starts is None
        else jax.lax.map(at_component, starts)
    )
    square = sum(
        jnp.sum(jnp.square(g).reshape(g.shape[0], -1), axis=1, dtype=jnp.float32) for g in gradient
    )
    bad = jnp.where(jnp.all(finite[0]), -1, jnp.argmin(finite[0])).astype(jnp.int32)
    return _Sums(
        loss[0],
        weight[0],
        tuple(s + g for s, g in zip(sums.gradient, gradient, strict=True)),
        sums.batch_square + jnp.where(is_full, square, jnp.zeros_like(square)),
        bad,
    )


def take_survey(
    posterior: LocalPosterior, batches: Batches, starts: Any, num_examples: int | None
) -> Survey:
    """Measure loss and gradient at w* over the data, or over its first ``num_examples`` rows drawn.

    Args:
        posterior: the target.
        batches: the data.
        starts: block offsets per component, or None for the posterior's own restriction.
        num_examples: examples to look at; None for all, up to 64 batches or 8192 examples.

    Raises:
        ValueError: a non-finite loss at w*.
    """
    order = _survey_order(batches, num_examples)
    arrays, static = split((posterior, starts))
    sums = _empty_sums(posterior, starts)
    loss = weight = 0.0
    size, num_full = batches.batch_size, len(order) // batches.batch_size
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        is_full = len(numbers) == size
        padded = np.concatenate([numbers, np.repeat(numbers[-1:], size - len(numbers))])
        valid = (np.arange(size) < len(numbers)).astype(np.float32)
        sums = _accumulate(
            static,
            arrays,
            sums,
            on_device(batches.rows(padded)),
            jax.device_put(valid),
            jax.device_put(np.bool_(is_full)),
        )
        batch_loss, batch_weight, bad = jax.device_get((sums.loss, sums.weight, sums.first_bad))
        if bad >= 0:
            raise ValueError(
                f"the loss at w* is not finite for example {padded[bad]}: sampling needs finite "
                "losses for every example and position, masked ones included"
            )
        loss, weight = loss + float(batch_loss), weight + float(batch_weight)
    return _summarize(sums, loss, weight, len(order), num_full, batches)


def _survey_order(batches: Batches, num_examples: int | None) -> np.ndarray:
    limit = max(64 * batches.batch_size, 8192) if num_examples is None else num_examples
    if limit < 1:
        raise ValueError(f"survey_examples must be at least 1, got {limit}")
    if limit >= batches.num_examples:
        return np.arange(batches.num_examples)
    # A fixed, evenly spread subset: the same for every run on the same data.
    return np.linspace(0, batches.num_examples - 1, limit).astype(np.int64)


def _empty_sums(posterior: LocalPosterior, starts: Any) -> _Sums:
    count = 1 if starts is None else starts[0].shape[0]
    gradient = tuple(
        np.zeros((count, *block.size), np.float32) for block in posterior.restriction.blocks
    )
    zero = np.float32(0)
    sums: Any = (zero, zero, gradient, np.zeros(count, np.float32), np.int32(-1))
    return _Sums(*on_device(sums))


def _summarize(
    sums: _Sums, loss: float, weight: float, count: int, num_full: int, batches: Batches
) -> Survey:
    size, total = batches.batch_size, batches.num_examples
    gradient = tuple(
        np.asarray(leaf) / np.float32(weight) for leaf in jax.device_get(sums.gradient)
    )
    square = np.stack(
        [np.sum(np.square(g, dtype=np.float64).reshape(g.shape[0], -1), axis=1) for g in gradient]
    ).sum(axis=0)
    per_batch = weight / count * size
    batch_square = np.asarray(jax.device_get(sums.batch_square), np.float64) / per_batch**2
    noise = np.full_like(square, np.nan)
    if num_full > 1:
        noise = np.maximum(batch_square / num_full - square, 0) * num_full / (num_full - 1)
    share = (total - count) / max(total - size, 1) * size / count
    subset_noise = np.nan_to_num(noise) * max(share, 0.0)
    return Survey(
        loss / weight,
        on_device(gradient),
        np.maximum(square - subset_noise, 0),
        noise,
        subset_noise,
        weight / count,
        count,
        count == total,
    )


def mean_weight(posterior: LocalPosterior, batches: Batches, survey: Survey) -> float | None:
    """Give the total weight per example over the whole data set; None if every weight is one.

    Weights that the loss function returns (``slt.Losses``) are summed over all the data, in the
    survey or in a pass of their own from which the compiler drops the model.
    """
    structure = jax.eval_shape(posterior.loss_fn, posterior.params, batches.example_structure)
    if batches.weights is None and not isinstance(structure, Losses):
        return None
    if survey.is_whole:
        return survey.mean_weight
    if isinstance(structure, Losses):
        return _sum_of_loss_weights(posterior, batches) / batches.num_examples
    assert batches.weights is not None
    positions = np.prod(structure.shape[batches.weights.ndim :])
    return float(batches.weights.sum(dtype=np.float64) * positions / batches.num_examples)


@functools.partial(jax.jit, static_argnames="static")
def _loss_weights(static: Static, arrays: Any, batch: Any, valid: Array) -> Array:
    posterior: LocalPosterior = join(arrays, static)
    examples, weights = batch
    _, combined = values_and_weights(
        posterior.loss_fn(posterior.params, examples), Minibatch(examples, weights)
    )
    assert combined is not None
    return jnp.sum(combined.reshape(combined.shape[0], -1) * valid[:, None])


def _sum_of_loss_weights(posterior: LocalPosterior, batches: Batches) -> float:
    arrays, static = split(posterior)
    size, total = batches.batch_size, 0.0
    for first in range(0, batches.num_examples, size):
        numbers = np.arange(first, first + size)
        valid = (numbers < batches.num_examples).astype(np.float32)
        rows = on_device(batches.rows(np.minimum(numbers, batches.num_examples - 1)))
        total += float(_loss_weights(static, arrays, rows, jax.device_put(valid)))
    return total
