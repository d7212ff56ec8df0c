"""What a loss sees, and how its values become one mean with masks and weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slt_jax._types import Displacement, Examples, Scalar


class Losses(NamedTuple):
    """Losses with weights, for a loss function that knows where nothing is predicted.

    ``values`` is float32 ``[batch, *pos]`` in nats and finite even where ``weights``, of the same
    shape or ``[batch]``, is 0.
    """

    values: Float[Array, "batch *pos"]
    weights: Float[Array, "batch *pos"]


class Center(NamedTuple):
    """What is known at w* on one minibatch.

    ``losses`` are not reduced; ``gradient`` is there if the kernel needs it; ``prefix`` is what the
    loss function computes of these examples whatever the displacement, if it says so.
    """

    losses: Float[Array, "batch *pos"]
    gradient: Displacement | None = None
    prefix: Any = None


class Minibatch(eqx.Module):
    """Examples, their weights, and the fixed denominator of their mean.

    The mean loss of a data set of n examples is L_n = Σ w ℓ / Σ w. A minibatch of m examples
    estimates it without bias by ``Σ_batch w ℓ / (m · mean_weight)``, where ``mean_weight`` is
    Σ w / n over the whole data set, not over the batch.

    Args:
        examples: pytree of arrays with leading axis ``batch``.
        weights: float32 ``[batch]`` or ``[batch, *pos]``, 0 where masked; None for all ones.
        mean_weight: total weight per example of the data set; None takes the batch's own, which
            is right when the batch is the whole data set.
        center: what is known at w* on these examples, when it was computed before.
    """

    examples: Examples
    weights: Float[Array, "batch *pos"] | None = None
    mean_weight: Scalar | None = None
    center: Center | None = None

    def with_center(self, center: Center | None) -> "Minibatch":
        """Give the same minibatch with what is known of it at w*."""
        return Minibatch(self.examples, self.weights, self.mean_weight, center)


def values_and_weights(losses: Any, batch: Minibatch) -> tuple[Array, Array | None]:
    """Split what a loss function returned into values and combined weights of equal shape.

    Returns:
        float32 ``[batch, *pos]`` values, and weights of that shape or None when all are one.
    """
    if isinstance(losses, Losses):
        weights = _expand(losses.weights, losses.values)
        if batch.weights is not None:
            weights = weights * _expand(batch.weights, losses.values)
        return losses.values, weights
    if batch.weights is None:
        return losses, None
    return losses, _expand(batch.weights, losses)


def _expand(weights: Array, values: Array) -> Array:
    missing = values.ndim - weights.ndim
    shaped = weights.reshape(weights.shape + (1,) * missing)
    return jnp.broadcast_to(shaped, values.shape).astype(values.dtype)


def weighted_mean(values: Array, weights: Array | None, batch: Minibatch) -> Scalar:
    """Average ``values`` over a minibatch with the data set's denominator.

    Equation: Σ_batch w v / (m · mean_weight), unbiased for Σ w v / Σ w over the data set.

    Args:
        values: float32 ``[batch, *pos]``.
        weights: of the same shape, or None for all ones.
        batch: the minibatch, for its denominator.
    """
    if weights is None:
        return jnp.mean(values)
    total = jnp.sum(values * weights)
    if batch.mean_weight is None:
        return total / jnp.sum(weights)
    return total / (values.shape[0] * batch.mean_weight.astype(values.dtype))


def leading_axis(examples: Examples) -> int:
    """Give the number of examples of a pytree whose leaves share their leading axis."""
    return jax.tree.leaves(examples)[0].shape[0]


def over_minibatches(fn: Callable[[Minibatch], Any], batches: Minibatch) -> Any:
    """Apply ``fn`` to minibatches stacked along a leading axis, one after the other.

    A loop, so that the model is compiled once however many minibatches there are.
    """

    def one(parts: tuple[Any, Any, Any]) -> Any:
        examples, weights, center = parts
        return fn(Minibatch(examples, weights, batches.mean_weight, center))

    return jax.lax.map(one, (batches.examples, batches.weights, batches.center))


def in_batches(fn: Callable[[Any], Any], inputs: Any, batch_size: int) -> Any:
    """Apply ``fn`` to examples, ``batch_size`` of them at a time, and join the results.

    The last batch is filled up with its last example: the model is compiled once.

    Args:
        fn: gives a pytree of arrays with one entry per example along the leading axis.
        inputs: pytree of arrays that share their leading axis.
        batch_size: examples at a time; all at once if there are no more than that.

    Raises:
        ValueError: results without one entry per example.
    """
    size = leading_axis(inputs)
    if batch_size >= size:
        return fn(inputs)
    num_batches = -(-size // batch_size)
    padding = num_batches * batch_size - size

    def cut(leaf: Array) -> Array:
        padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, axis=0)])
        return padded.reshape(num_batches, batch_size, *leaf.shape[1:])

    def join(leaf: Array) -> Array:
        if leaf.shape[1:2] != (batch_size,):
            raise ValueError(
                f"batch_size={batch_size} needs values with one entry per example, got shape "
                f"{leaf.shape[1:]}: leave it out of the probe to measure anything else"
            )
        return leaf.reshape(-1, *leaf.shape[2:])[:size]

    return jax.tree.map(join, jax.lax.map(fn, jax.tree.map(cut, inputs)))
