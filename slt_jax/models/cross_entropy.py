"""Per-token cross-entropy over large vocabularies without holding all the logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

MAX_LOGITS = 2**24
"""Most logits (batch × positions × vocabulary) held at once per chain: 64 MiB in float32."""


def token_losses(
    logits_of: Callable[[Array], Array],
    hidden: Float[Array, "batch pos d"],
    targets: Int[Array, "batch pos"],
    vocab_size: int,
) -> Float32[Array, "batch pos"]:
    """Give −log p(target) in nats per token, from logits made a block of positions at a time.

    The backward pass recomputes each block's logits.

    Args:
        logits_of: maps hidden states ``[batch, block, d]`` to float32 ``[batch, block, vocab]``.
        hidden: final hidden states.
        targets: token ids; the loss is NaN where one is outside the vocabulary.
        vocab_size: number of tokens.
    """
    batch, length, width = hidden.shape
    size = min(length, max(1, MAX_LOGITS // (batch * vocab_size)))
    num_blocks = -(-length // size)
    if num_blocks == 1:
        return _losses(logits_of(hidden), targets)
    missing = num_blocks * size - length
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, missing)))
    blocks = (
        hidden.reshape(batch, num_blocks, size, width).swapaxes(0, 1),
        targets.reshape(batch, num_blocks, size).swapaxes(0, 1),
    )
    losses = jax.lax.map(
        jax.checkpoint(lambda block: _losses(logits_of(block[0]), block[1])), blocks
    )
    return losses.swapaxes(0, 1).reshape(batch, num_blocks * size)[:, :length]


def _losses(
    logits: Float32[Array, "batch pos vocab"], targets: Int[Array, "batch pos"]
) -> Float32[Array, "batch pos"]:
    # A select and a sum instead of a gather: a vocabulary split over devices stays in place.
    tokens = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2)
    chosen = jnp.sum(jnp.where(tokens == targets[..., None], logits, 0), axis=-1)
    inside = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(inside, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
