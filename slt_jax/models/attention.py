"""Causal attention with grouped heads, windows and soft caps: its interface, and by blocks.

Every way to compute it gives the same numbers up to rounding. A decoder is told which one to use;
none replaces another unasked, and one that does not fit is an error before anything compiles.
"""

import abc
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slt_jax.models.config import DecoderConfig

MAX_SCORES = 2**24
"""Most attention scores (batch × heads × queries × keys) held at once per chain: 64 MiB."""

MAX_QUERIES = 512
"""Most queries per block: from twice that length on, no positions × positions array exists."""


class AbstractAttention(abc.ABC):
    """A way to compute attention; hashable, since it chooses code and holds no arrays."""

    @abc.abstractmethod
    def check(self, config: DecoderConfig, dtype: np.dtype) -> None:
        """Raise ValueError if attention of this architecture cannot be computed in this dtype."""

    @abc.abstractmethod
    def check_devices(self, devices: Collection[Any]) -> None:
        """Raise ValueError if attention cannot be computed on these devices."""

    @abc.abstractmethod
    def __call__(
        self,
        q: Float[Array, "batch pos h k"],
        k: Float[Array, "batch pos g k"],
        v: Float[Array, "batch pos g c"],
        *,
        scale: float | Float[Array, ""],
        windows: tuple[int | None, ...] = (),
        layer: Int[Array, ""] | int = 0,
        softcap: float | None = None,
        is_key: Bool[Array, "batch pos"] | None = None,
    ) -> Float[Array, "batch pos h c"]:
        """Mix values as ``attention`` does, with the window of one of the layers.

        Args:
            q: queries, rotated.
            k: keys, rotated, with a number of heads that divides that of the queries.
            v: values.
            scale: factor of the inner products, dimensionless; may be traced.
            windows: number of positions that each layer sees, None for all; empty if all see all.
            layer: number of the layer, which may be traced.
            softcap: bound on the scores' magnitude; None for no bound.
            is_key: False at padding, which no other position attends to.
        """


@dataclass(frozen=True)
class BlockwiseAttention(AbstractAttention):
    """Attention in blocks of queries by ``attention``: any dtype, any mask, any device."""

    def check(self, config: DecoderConfig, dtype: np.dtype) -> None:
        """Accept every architecture."""

    def check_devices(self, devices: Collection[Any]) -> None:
        """Accept every device."""

    def __call__(self, q, k, v, *, scale, windows=(), layer=0, softcap=None, is_key=None):
        """Mix values with the layer's window; equal layers share code whatever their windows."""
        length, window = q.shape[1], None
        if any(seen is not None and seen < length for seen in windows):
            sizes = [length if seen is None else seen for seen in windows]
            window = jnp.asarray(sizes, jnp.int32)[layer]
        return attention(q, k, v, scale=scale, window=window, softcap=softcap, is_key=is_key)


def by_window(
    mix: Callable[..., Array],
    windows: tuple[int | None, ...],
    layer: Int[Array, ""] | int,
    *operands: Array,
) -> Array:
    """Call ``mix(window, *operands)`` for a kernel that is compiled for one window.

    There is a branch for every window that occurs, of which the layer's alone is computed: the
    layer index has no batch axis, so none is added to the condition by ``jax.vmap``.

    Args:
        mix: takes the number of positions seen as an int, or None for all, and the operands.
        windows: one for each layer; empty if all see all.
        layer: number of the layer, which may be traced.
        operands: queries, keys and values.
    """
    occurring = list(dict.fromkeys(windows)) or [None]
    if len(occurring) == 1:
        return mix(occurring[0], *operands)
    branch = jnp.asarray([occurring.index(window) for window in windows], jnp.int32)[layer]
    return jax.lax.switch(branch, [partial(mix, window) for window in occurring], *operands)


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
