"""Causal attention with grouped heads, windows and soft caps, in blocks of queries."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MAX_SCORES = 2**24
"""Most attention scores (batch × heads × queries × keys) held at once per chain: 64 MiB."""

MAX_QUERIES = 512
"""Most queries per block: from twice that length on, no positions × positions array exists."""


def attention(
    q: Float[Array, "batch pos h k"],
    k: Float[Array, "batch pos g k"],
    v: Float[Array, "batch pos g c"],
    *,
    scale: float | Float[Array, ""],
    window: Int[Array, ""] | None = None,
    softcap: float | None = None,
    is_key: Bool[Array, "batch pos"] | None = None,
) -> Float[Array, "batch pos h c"]:
    """Mix values by causal softmax weights; scores and softmax are float32.

    Equation: out_i = Σ_{j ≤ i, i − j < window} softmax_j(cap(scale · q_i·k_j)) v_j, with
    cap(s) = softcap · tanh(s / softcap); query head h attends to key head ⌊h / (H/G)⌋.
    Queries are taken in blocks that the backward pass recomputes, so that memory grows with the
    length, not with its square.

    Args:
        q: queries, any floating dtype.
        k: keys, with a number of heads that divides that of the queries.
        v: values, which may be of another width.
        scale: factor of the inner products, dimensionless; may be traced.
        window: number of positions seen, the query's own included; may be traced. None for all.
        softcap: bound on the scores' magnitude; None for no bound.
        is_key: False at positions that nothing attends to, such as padding.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    size = block_size(batch * heads, length)
    num_blocks = -(-length // size)
    q = jnp.pad(q, ((0, 0), (0, num_blocks * size - length), (0, 0), (0, 0)))
    blocks = q.reshape(batch, num_blocks, size, groups, heads // groups, width).swapaxes(0, 1)

    def one(start_and_block: tuple[Array, Array]) -> Array:
        start, block = start_and_block
        scores = jnp.einsum("bqgrk,bsgk->bgrqs", block, k, preferred_element_type=jnp.float32)
        scores = scores * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        seen = _visible(start + jnp.arange(size, dtype=jnp.int32), length, window)[None, None, None]
        if is_key is not None:
            seen = seen & is_key[:, None, None, None, :]
        # A finite floor: a query that sees nothing gets even weights, not NaN.
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bgrqs,bsgk->bqgrk", weights, v)

    starts = size * jnp.arange(num_blocks, dtype=jnp.int32)
    if num_blocks == 1:
        mixed = one((starts[0], blocks[0]))[None]
    else:
        mixed = jax.lax.map(jax.checkpoint(one), (starts, blocks))
    mixed = mixed.swapaxes(0, 1).reshape(batch, num_blocks * size, heads, v.shape[3])
    return mixed[:, :length]


def block_size(rows: int, length: int) -> int:
    """Give the number of queries per block for ``rows`` = batch × heads."""
    return min(length, MAX_QUERIES, max(16, MAX_SCORES // (rows * length)))


def _visible(
    queries: Int[Array, " queries"], length: int, window: Array | None
) -> Bool[Array, "queries pos"]:
    distance = queries[:, None] - jnp.arange(length, dtype=jnp.int32)[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
