"""What is known at w* of all examples of small data: computed once per chunk, not at every step."""

import functools

from jaxtyping import Array

from slt_jax._tree import bytes_made
from slt_jax._types import Examples
from slt_jax.minibatch import Center, Minibatch, in_batches, leading_axis
from slt_jax.posterior import LocalPosterior

# Every batch is one pass forwards per chunk, against one per minibatch at every step: less work
# wherever a chunk has more than so many minibatches, as those of the default length have.
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
    if leading_axis(examples) > _MOST_BATCHES * batch_size:
        return None

    def look(inputs: tuple[Examples, Array | None]) -> Center:
        return posterior.center(Minibatch(*inputs))

    def look_without_prefix(inputs: tuple[Examples, Array | None]) -> Center:
        return look(inputs)._replace(prefix=None)

    for one in (look, look_without_prefix):
        of_all = functools.partial(in_batches, one, (examples, weights), batch_size)
        if bytes_made(of_all) <= _MOST_BYTES:
            return of_all()
    return None
