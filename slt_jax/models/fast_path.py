"""The fast path for components: what lies below the layer that moves is computed once for all.

A component that lies in one layer leaves the residual stream below that layer as it is at w*. The
loss at a displacement is therefore made of three parts:

    below   layers 0 … l − 1, frozen: no chain enters, so there is one residual stream for all
    layer   layer l, its weights replaced by those of the chain: one layer, not the stack of all
    above   layers l + 1 … L − 1, frozen: replayed backwards for the residual stream alone

Of a layer in which one head moves, ``head_path`` computes that head alone.

The number l is traced, so one compiled program serves every layer; under ``jax.vmap`` it must stay
without a batch axis, or every row repeats what lies below.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slt_jax._types import Displacement
from slt_jax.models.config import DecoderConfig
from slt_jax.models.head_path import (
    HeadStreams,
    mlp_reads_attention,
    moves_one_head,
    streams,
    through_layer,
)
from slt_jax.models.layout import parameter_axes
from slt_jax.models.tokens import token_arrays
from slt_jax.restriction import Block, Restriction

if TYPE_CHECKING:
    from slt_jax.models.decoder import Decoder
    from slt_jax.models.tokens import Sequences

ABOVE_LAYERS = ("final_norm", "final_norm_b", "unembed", "unembed_b")
"""Weights that come after the last layer."""


def moving_layer(config: DecoderConfig, restriction: Restriction) -> Int[Array, ""] | None:
    """Give the number of the one layer that moves, or None if something else does.

    The number may be traced. It is the number of layers if what moves comes after the last one.
    """
    axes = parameter_axes(config)
    blocks = restriction.blocks
    if all(block.path in ABOVE_LAYERS for block in blocks):
        return jnp.int32(config.num_layers)
    is_layer = restriction.is_level and all(
        axes.get(block.path, "").startswith("l")
        and block.view[0] == config.num_layers
        and block.size[0] == 1
        for block in blocks
    )
    return jnp.asarray(blocks[0].start[0], jnp.int32) if is_layer else None


def prefix(
    decoder: "Decoder",
    params: Mapping[str, Array],
    restriction: Restriction,
    examples: Any,
    every_head: bool,
) -> Float[Array, "batch pos d"] | HeadStreams | None:
    """Give the part of the losses that no displacement changes, or None if there is none.

    Args:
        decoder: the model.
        params: w*.
        restriction: the weights that move.
        examples: a batch, as for the decoder.
        every_head: if one head moves, give also what each head of its layer adds.
    """
    layer = moving_layer(decoder.config, restriction)
    if layer is None:
        return None
    ids, _, mask = token_arrays(examples)
    sequences = decoder.sequences(ids, mask)
    embedded, leaving = decoder.embed(params, ids), None
    one_head = moves_one_head(decoder.config, restriction)
    if one_head and not mlp_reads_attention(decoder.config):
        # One loop for what enters the layer and what leaves it: the layer is compiled once.
        entering, leaving = from_below(decoder, params, layer + 1, embedded, sequences)
    else:
        _, entering = from_below(decoder, params, layer, embedded, sequences)
    if not one_head:
        return entering
    return streams(decoder, params, layer, entering, leaving, sequences, every_head)


def from_below(
    decoder: "Decoder",
    params: Mapping[str, Array],
    count: Int[Array, ""],
    x: Float[Array, "batch pos d"],
    sequences: "Sequences",
) -> tuple[Float[Array, "batch pos d"], Float[Array, "batch pos d"]]:
    """Give the residual streams before and after the last of so many layers; not differentiable."""

    def step(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, x = state
        return x, decoder.block(decoder.layer_weights(params, number), number, x, sequences)

    return jax.lax.fori_loop(jnp.int32(0), count, step, (x, x))


def through(
    decoder: "Decoder",
    params: Mapping[str, Array],
    restriction: Restriction,
    displacement: Displacement,
    layer: Int[Array, ""],
    x: Float[Array, "batch pos d"] | HeadStreams,
    sequences: "Sequences",
) -> Float[Array, "batch pos d"]:
    """Give the residual stream after the last layer, with one layer displaced.

    Args:
        decoder: the model.
        params: w*.
        restriction: blocks in one layer, cut with extent 1 along the leading axis.
        displacement: float32, one array per block.
        layer: the number of that layer.
        x: residual stream that enters it, or those around its attention if one head moves, as
            ``prefix`` gives them.
        sequences: what ``decoder.sequences`` gave.
    """
    arguments = (decoder, params, restriction, displacement, layer)
    if isinstance(x, HeadStreams):
        leaving = through_layer(*arguments, x, sequences)
    else:
        leaving = _through_layer(*arguments, x, sequences)
    return _above(decoder, params, layer + 1, leaving, sequences)


def _through_layer(
    decoder: "Decoder",
    params: Mapping[str, Array],
    restriction: Restriction,
    displacement: Displacement,
    layer: Int[Array, ""],
    x: Float[Array, "batch pos d"],
    sequences: "Sequences",
) -> Float[Array, "batch pos d"]:
    # Into the weights of one layer: displacing the stack would give every chain a stack.
    inside = Restriction(
        Block(block.path, block.view[1:], block.size[1:], block.start[1:])
        for block in restriction.blocks
    )
    moved = tuple(delta.reshape(delta.shape[1:]) for delta in displacement)
    weights = inside.insert(decoder.layer_weights(params, layer), moved)
    return decoder.block(weights, layer, x, sequences)


@jax.custom_vjp
def _above(
    decoder: "Decoder",
    params: Mapping[str, Array],
    first: Int[Array, ""],
    x: Float[Array, "batch pos d"],
    sequences: "Sequences",
) -> Float[Array, "batch pos d"]:
    """Give the residual stream after the last layer, from the one that enters layer ``first``.

    Differentiable in ``x`` alone. The loop has as many rounds as there are layers left, which a
    loop that JAX differentiates by itself could not have; the way back keeps one residual stream
    per layer and recomputes the layers one by one.
    """

    def step(number: Array, x: Array) -> Array:
        return decoder.block(decoder.layer_weights(params, number), number, x, sequences)

    return jax.lax.fori_loop(first, jnp.int32(decoder.config.num_layers), step, x)


def _above_forward(decoder, params, first, x, sequences) -> tuple[Array, Any]:
    num_layers = decoder.config.num_layers

    def step(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, entering = state
        weights = decoder.layer_weights(params, number)
        return decoder.block(weights, number, x, sequences), entering.at[number].set(x)

    entering = jnp.zeros((num_layers, *x.shape), x.dtype)
    x, entering = jax.lax.fori_loop(first, jnp.int32(num_layers), step, (x, entering))
    return x, (decoder, params, first, entering, sequences)


def _above_backward(residuals: Any, slope: Array) -> tuple[Any, ...]:
    decoder, params, first, entering, sequences = residuals
    num_layers = decoder.config.num_layers

    def step(count: Array, slope: Array) -> Array:
        number = num_layers - 1 - count
        weights = decoder.layer_weights(params, number)
        _, pull_back = jax.vjp(
            lambda x: decoder.block(weights, number, x, sequences), entering[number]
        )
        return pull_back(slope)[0]

    slope = jax.lax.fori_loop(jnp.int32(0), num_layers - first, step, slope)
    return None, None, None, slope, None


_above.defvjp(_above_forward, _above_backward)
