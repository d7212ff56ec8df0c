"""What distinguishes one decoder architecture from another, as plain values."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope

FLOATING_DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that weights and activations may have."""

MAX_SIZE = 2**31 - 1
"""The largest size of an axis."""


@dataclass(frozen=True)
class DecoderConfig:
    """A causal decoder: sizes, and the choices in which the supported architectures differ.

    Hashable, so that two checkpoints of one architecture share one compiled program.

    Args:
        vocab_size: number of tokens v.
        width: size d of the residual stream.
        num_layers: number of layers l.
        num_heads: number of query heads h.
        num_kv_heads: number of key and value heads g, a divisor of h.
        head_dim: size k of a head; need not be d / h.
        mlp_width: size f of the hidden layer of the MLP; 0 for an attention-only model.
        norm: the normalisation of the residual stream.
        norms: where it is applied in a layer, of ``attn``, ``mlp`` (to what enters),
            ``attn_post``, ``mlp_post`` (to what is added). Without ``mlp`` in a parallel layer the
            MLP reads what attention reads.
        activation: nonlinearity of the MLP.
        gated: whether the MLP multiplies two projections.
        parallel: whether attention and MLP read the same residual stream.
        tied: whether the unembedding is the embedding.
        num_positions: number of learned positions; None for rotary or no positions.
        context_length: the longest sequence that the model was made for, as its ``config.json``
            says; None if it does not. Rotary positions beyond it exist, but were never trained on.
        ropes: rotary tables; none for learned positions.
        rope_of_layer: which table each layer uses, ``[num_layers]``; empty without tables.
        windows: how many positions each layer sees, its own included, ``[num_layers]``; None
            for all.
        attn_scale: factor of the attention scores, dimensionless.
        attn_scale_by_layer: whether scores are also divided by the layer's number, from 1.
        attn_softcap: bound on the attention scores, or None.
        logit_softcap: bound on the logits in nats, or None.
        qkv_clip: bound on queries, keys and values, or None.
        qk_norm: normalisation of queries and keys, or None.
        qk_norm_across_heads: whether it runs over all heads at once.
        qkv_bias: whether queries, keys and values have biases.
        attn_out_bias: whether the attention output has a bias.
        mlp_bias: whether the MLP has biases.
        unembed_bias: whether the logits have biases.
        embed_scale: factor of the token embeddings.
        source: the text of the ``config.json`` this was read from, kept for saving; not compared.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm: Norm
    norms: tuple[str, ...] = ("attn", "mlp")
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    gated: bool = True
    parallel: bool = False
    tied: bool = False
    num_positions: int | None = None
    context_length: int | None = None
    ropes: tuple[Rope, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    attn_scale: float = 1.0
    attn_scale_by_layer: bool = False
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_clip: float | None = None
    qk_norm: Norm | None = None
    qk_norm_across_heads: bool = False
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    embed_scale: float = 1.0
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self):
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            _check_size(name, getattr(self, name))
        _check_size("mlp_width", self.mlp_width, at_least=0)
        _check_size("num_positions", self.num_positions)
        _check_size("context_length", self.context_length)
        for window in self.windows:
            _check_size("windows", window)
        for name in ("attn_scale", "embed_scale", "attn_softcap", "logit_softcap", "qkv_clip"):
            _check_factor(name, getattr(self, name))
        for rope in self.ropes:
            if rope.dim > self.head_dim:
                raise ValueError(
                    f"{rope.dim} rotary coordinates do not fit heads of size {self.head_dim}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key heads evenly"
            )
        for name in ("windows", "rope_of_layer"):
            entries = getattr(self, name)
            if entries and len(entries) != self.num_layers:
                raise ValueError(
                    f"{name} needs one entry for each of the {self.num_layers} layers, "
                    f"got {len(entries)}"
                )

    @property
    def max_length(self) -> int | None:
        """The tokens of the longest sequence that the model can read; None if any will do."""
        return self.context_length if self.num_positions is None else self.num_positions

    @property
    def model_type(self) -> str:
        """The ``model_type`` of the ``config.json`` this was read from."""
        return str(self.raw().get("model_type", ""))

    def raw(self) -> dict[str, Any]:
        """Give the contents of the ``config.json`` this was read from; empty if there is none."""
        return json.loads(self.source) if self.source else {}


def floating_dtype(name: str, value: Any) -> np.dtype:
    """Give a dtype for weights or activations.

    Args:
        name: the argument that is read, for the error.
        value: anything that names a dtype.

    Raises:
        ValueError: none of ``FLOATING_DTYPES``.

    >>> floating_dtype("dtype", "bf16")
    Traceback (most recent call last):
    ValueError: dtype must be one of float16, bfloat16, float32, float64, got 'bf16'
    """
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in FLOATING_DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(FLOATING_DTYPES)}, got {value!r}")
    return dtype


def _check_size(name: str, size: int | None, *, at_least: int = 1) -> None:
    if size is not None and (type(size) is not int or not at_least <= size <= MAX_SIZE):
        raise ValueError(f"{name} must be an integer, at least {at_least}, got {size!r}")


def _check_factor(name: str, factor: float | None) -> None:
    if factor is not None and not (
        isinstance(factor, (int, float)) and factor is not True and 0 < factor < math.inf
    ):
        raise ValueError(f"{name} must be a positive number, got {factor!r}")
