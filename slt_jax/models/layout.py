"""The names, axes and shapes of a decoder's parameters.

Parameters are a flat dictionary of dotted names. Each array's axes are given by letters:

    l layer   d residual stream   h query head   g key/value head   k head dimension
    f MLP     v token             p position

so that sharding, components, loading and saving all follow from one table.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from slt_jax.models.config import DecoderConfig


def axis_sizes(config: DecoderConfig) -> dict[str, int]:
    """Map each axis letter to its size."""
    return {
        "l": config.num_layers,
        "d": config.width,
        "h": config.num_heads,
        "g": config.num_kv_heads,
        "k": config.head_dim,
        "f": config.mlp_width,
        "v": config.vocab_size,
        "p": config.num_positions or 0,
    }


def parameter_axes(config: DecoderConfig) -> dict[str, str]:
    """Map every parameter's name to its axis letters.

    >>> from slt_jax.models.norm import Norm
    >>> config = DecoderConfig(vocab_size=5, width=4, num_layers=2, num_heads=2, num_kv_heads=1,
    ...                        head_dim=3, mlp_width=0, norm=Norm(1e-5), norms=("attn",), tied=True)
    >>> parameter_axes(config)["attn.q"], parameter_axes(config)["attn.k"]
    ('ldhk', 'ldgk')
    """
    axes = {"embed.tok": "vd"}
    if config.num_positions is not None:
        axes["embed.pos"] = "pd"
    axes |= _attention_axes(config)
    if config.mlp_width:
        axes |= _mlp_axes(config)
    for site in config.norms:
        axes |= _norm_axes(config, f"norm.{site}", "ld")
    axes |= _norm_axes(config, "final_norm", "d")
    if not config.tied:
        axes["unembed"] = "vd"
    if config.unembed_bias:
        axes["unembed_b"] = "v"
    return axes


def _attention_axes(config: DecoderConfig) -> dict[str, str]:
    axes = {"attn.q": "ldhk", "attn.k": "ldgk", "attn.v": "ldgk", "attn.o": "lhkd"}
    if config.qkv_bias:
        axes |= {"attn.q_b": "lhk", "attn.k_b": "lgk", "attn.v_b": "lgk"}
    if config.attn_out_bias:
        axes["attn.o_b"] = "ld"
    if config.qk_norm is not None:
        across = config.qk_norm_across_heads
        names = [""] + (["_b"] if config.qk_norm.biased else [])
        axes |= {f"attn.q_norm{name}": "lhk" if across else "lk" for name in names}
        axes |= {f"attn.k_norm{name}": "lgk" if across else "lk" for name in names}
    return axes


def _mlp_axes(config: DecoderConfig) -> dict[str, str]:
    inputs = ["mlp.gate", "mlp.up"] if config.gated else ["mlp.up"]
    axes = dict.fromkeys(inputs, "ldf") | {"mlp.down": "lfd"}
    if config.mlp_bias:
        axes |= {f"{name}_b": "lf" for name in inputs} | {"mlp.down_b": "ld"}
    return axes


def _norm_axes(config: DecoderConfig, name: str, axes: str) -> dict[str, str]:
    scale = {name: axes} if config.norm.scaled else {}
    return scale | ({f"{name}_b": axes} if config.norm.biased else {})


def parameter_shapes(
    config: DecoderConfig, dtype: jax.typing.DTypeLike = jnp.float32
) -> dict[str, jax.ShapeDtypeStruct]:
    """Map every parameter's name to its shape, without allocating anything.

    A model of any size can be planned, lowered and compiled from this.
    """
    sizes = axis_sizes(config)
    return {
        name: jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in letters), jnp.dtype(dtype))
        for name, letters in parameter_axes(config).items()
    }


def entry(stack: Array, number: Array | int) -> Array:
    """Pick one entry of a stack by its number from 0, which may be traced."""
    # A number that may be negative takes five more operations for every leaf and loop.
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False, allow_negative_indices=False)
