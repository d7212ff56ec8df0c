"""What is known at w* of all examples of small data: computed once per chunk, not at every step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import bytes_made
from slt_jax._types import Examples
from slt_jax.minibatch import Center, Minibatch, leading_axis
from slt_jax.posterior import LocalPosterior

# Every batch is one pass forwards per chunk; a step takes one per minibatch, and three for every
# chain. A chunk has 32 steps or more unless a user asks for fewer.
_MOST_BATCHES = 8
_MOST_BYTES = 2**26


def centers(
    posterior: LocalPosterior, examples: Examples, weights: Array | None, batch_size: int
) -> Center | None:
    """Give what is known at w* of all examples, or None where it is not worth its time or memory.

    Whether it is depends on the data and the batch size alone: a run that is cut into other chunks,
    or that goes on later, has the same numbers.

    Args:
        posterior: for the losses at w*, and for what they share with all others.
        examples: pytree of arrays with leading axis ``batch``.
        weights: of the same leading axis, or None for all ones.
        batch_size: how many are looked at together, as in the minibatches that are cut from them.

    Returns:
        arrays with one entry per example along the leading axis, without ``prefix`` if that takes
        too much memory.
    """
    count = leading_axis(examples)
    num_batches = -(-count // batch_size)
    if num_batches > _MOST_BATCHES:
        return None
    # The last batch is filled up with the first examples: all have one shape, and one program.
    numbers = np.arange(num_batches * batch_size, dtype=np.int32) % count

    def look(chosen: Array) -> Center:
        return posterior.center(
            Minibatch(*jax.tree.map(lambda leaf: leaf[chosen], (examples, weights)))
        )

    def look_without_prefix(chosen: Array) -> Center:
        return look(chosen)._replace(prefix=None)

    def of_all(look: Callable[[Array], Center]) -> Center:
        found = jax.lax.map(look, jnp.asarray(numbers.reshape(num_batches, batch_size)))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)

    for kept in (look, look_without_prefix):
        if bytes_made(functools.partial(of_all, kept)) <= _MOST_BYTES:
            return of_all(kept)
    return None
