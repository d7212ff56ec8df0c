"""The fast path for one attention head: what the other heads of its layer add is computed once.

Heads add to the residual stream side by side, so that a displaced head changes it by the difference
of what that head adds now and at w*:

    x' = x + Σ_h a_h(x)   becomes   x'(δ) = x'(0) + a(x; w* + δ) − a(x; w*)

with x'(0) known for all chains and heads. Where the MLP reads x, as in parallel layers, its part is
known as well; where it reads x', it is computed anew. At δ = 0 the difference is exactly zero.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slt_jax._types import Displacement
from slt_jax.models.config import DecoderConfig
from slt_jax.models.layout import parameter_axes
from slt_jax.restriction import Block, Restriction

if TYPE_CHECKING:
    from slt_jax.models.decoder import Decoder
    from slt_jax.models.tokens import Sequences

_OF_HEADS = ("attn.q", "attn.k", "attn.v", "attn.o", "attn.q_b", "attn.k_b", "attn.v_b")


class HeadStreams(NamedTuple):
    """Residual streams at w* around the attention of the layer in which a head moves.

    ``after`` is that after attention, or after the whole layer where its MLP does not read what
    attention adds. ``added`` is what every head adds, if that was asked for.
    """

    entering: Float[Array, "batch pos d"]
    after: Float[Array, "batch pos d"]
    added: Float[Array, "batch head pos d"] | None = None


def moves_one_head(config: DecoderConfig, restriction: Restriction) -> bool:
    """Tell whether the blocks, which lie in one layer, are those of one head and no other's.

    A key-value head that several heads read moves all of them, and a norm of what all heads add
    mixes them: there the layer is computed whole.
    """
    return (
        restriction.is_column
        and config.num_heads == config.num_kv_heads
        and "attn_post" not in config.norms
        and all(_is_of_one_head(config, block) for block in restriction.blocks)
    )


def _is_of_one_head(config: DecoderConfig, block: Block) -> bool:
    if block.path not in _OF_HEADS:
        return False
    axis = _head_axis(config, block.path)
    stacked = len(block.view) == len(parameter_axes(config)[block.path])
    return stacked and block.view[axis] == config.num_heads and block.size[axis] == 1


def _head_axis(config: DecoderConfig, path: str) -> int:
    letters = parameter_axes(config)[path]
    return next(axis for axis, letter in enumerate(letters) if letter in "hg")


def streams(
    decoder: "Decoder",
    params: Mapping[str, Array],
    layer: Int[Array, ""],
    entering: Float[Array, "batch pos d"],
    leaving: Float[Array, "batch pos d"] | None,
    sequences: "Sequences",
    every_head: bool,
) -> HeadStreams:
    """Give the residual streams around a layer's attention at w*.

    Args:
        decoder: the model.
        params: w*.
        layer: the number of the layer.
        entering: the residual stream that enters it.
        leaving: that which leaves it; None where its MLP reads what attention adds.
        sequences: what ``decoder.sequences`` gave.
        every_head: give also what each head adds, which takes as much memory as there are heads.
    """
    weights = decoder.layer_weights(params, layer)

    def added(number: Array) -> Array:
        own = _head(decoder.config, weights, number)
        return decoder.attended({**weights, **own}, layer, entering, sequences)

    numbers = jnp.arange(decoder.config.num_heads, dtype=jnp.int32)
    apart = jnp.moveaxis(jax.lax.map(added, numbers), 0, 1) if every_head else None
    if leaving is None:
        leaving = entering + decoder.attended(weights, layer, entering, sequences)
    return HeadStreams(entering, leaving, apart)


def through_layer(
    decoder: "Decoder",
    params: Mapping[str, Array],
    restriction: Restriction,
    displacement: Displacement,
    layer: Int[Array, ""],
    known: HeadStreams,
    sequences: "Sequences",
) -> Float[Array, "batch pos d"]:
    """Give the residual stream after the layer in which one head is displaced.

    Args:
        decoder: the model.
        params: w*.
        restriction: blocks of one head, as ``moves_one_head`` tells.
        displacement: float32, one array per block.
        layer: the number of the layer.
        known: what ``streams`` gave for these sequences.
        sequences: what ``decoder.sequences`` gave.
    """
    config, weights = decoder.config, decoder.layer_weights(params, layer)
    first = restriction.blocks[0]
    number = first.start[_head_axis(config, first.path)]
    center = _head(config, weights, number)
    moved = dict(center)
    for block, delta in zip(restriction.blocks, displacement, strict=True):
        size = block.size[1:]
        moved[block.path] = Block(block.path, size).insert(center[block.path], delta.reshape(size))

    def added(own: Mapping[str, Array]) -> Array:
        return decoder.attended({**weights, **own}, layer, known.entering, sequences)

    before = added(center) if known.added is None else known.added[:, number]
    x = known.after + (added(moved) - jax.lax.stop_gradient(before))
    return decoder.with_mlp(weights, x) if mlp_reads_attention(config) else x


def _head(
    config: DecoderConfig, weights: Mapping[str, Array], number: Int[Array | np.ndarray, ""]
) -> dict[str, Array]:
    """Cut one head out of a layer's weights; the sum has one term, so it is exact.

    A slice at a traced offset would make the partitioner gather weights that are sharded by heads.
    """

    def cut(name: str) -> Array:
        axis, leaf = _head_axis(config, name) - 1, weights[name]
        own = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) == number
        return jnp.sum(jnp.where(own, leaf, jnp.zeros_like(leaf)), axis=axis, keepdims=True)

    return {name: cut(name) for name in _OF_HEADS if name in weights}


def mlp_reads_attention(config: DecoderConfig) -> bool:
    """Tell whether the MLP of a layer reads what its attention adds."""
    return bool(config.mlp_width) and not config.parallel
