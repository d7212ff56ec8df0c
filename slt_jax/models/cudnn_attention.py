"""Attention on NVIDIA GPUs by cuDNN's flash attention: no scores ever leave the chip."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slt_jax.models.attention import AbstractAttention, by_window
from slt_jax.models.config import DecoderConfig

MAX_HEAD_DIM = 256
"""Of Hopper and later chips; 128 before, which JAX checks where it knows the chip."""


@dataclass(frozen=True)
class CudnnAttention(AbstractAttention):
    """Causal attention by ``jax.nn.dot_product_attention(implementation="cudnn")``.

    Bfloat16 and float16, heads of a multiple of 8 up to 128 (256 on Hopper and later), grouped
    heads and windows; neither soft caps nor padding, for which cuDNN would be handed a bias of
    positions × positions. Needs ``pip install 'slt-jax[cuda13]'``.
    """

    def check(self, config: DecoderConfig, dtype: np.dtype) -> None:
        """Raise ValueError for dtypes, sizes of heads and soft caps that cuDNN does not know."""
        wrong = []
        if dtype not in (jnp.bfloat16, jnp.float16):
            wrong.append(f"computes in bfloat16 or float16, got {dtype} (see compute_dtype)")
        if config.head_dim % 8 or config.head_dim > MAX_HEAD_DIM:
            wrong.append(
                f"takes heads of a multiple of 8 up to {MAX_HEAD_DIM}, got {config.head_dim}"
            )
        if config.attn_softcap is not None:
            wrong.append(f"has no soft cap, got attn_softcap {config.attn_softcap}")
        if wrong:
            raise ValueError(
                f"CudnnAttention {'; '.join(wrong)}. BlockwiseAttention() takes every model"
            )

    def check_devices(self, devices: Collection[Any]) -> None:
        """Raise ValueError unless the weights are on GPUs."""
        others = sorted({device.platform for device in devices} - {"gpu"})
        if others:
            raise ValueError(
                f"CudnnAttention runs on NVIDIA GPUs, and the weights are on {', '.join(others)}; "
                "use SplashAttention() on TPU and BlockwiseAttention() anywhere"
            )

    def __call__(
        self,
        q: Float[Array, "batch pos h k"],
        k: Float[Array, "batch pos g k"],
        v: Float[Array, "batch pos g k"],
        *,
        scale: float | Float[Array, ""],
        windows: tuple[int | None, ...] = (),
        layer: Int[Array, ""] | int = 0,
        softcap: float | None = None,
        is_key: Bool[Array, "batch pos"] | None = None,
    ) -> Float[Array, "batch pos h k"]:
        """Mix values as ``attention`` does.

        Raises:
            ValueError: a mask of padding.
        """
        if is_key is not None:
            raise ValueError(
                "CudnnAttention knows no padding, and the batch has an attention_mask; give "
                "sequences of one length without it, or use BlockwiseAttention()"
            )
        if not isinstance(scale, float):
            # cuDNN is compiled for one scale.
            q, scale = (q * scale).astype(q.dtype), 1.0
        length, heads, groups = q.shape[1], q.shape[2], k.shape[2]
        narrow = tuple(w if w is not None and w < length else None for w in windows)
        # JAX's rule for vmap wants all three or none batched, which parts of one array are.
        together = jnp.concatenate([q, k, v], axis=2)
        q, k, v = jnp.split(together, (heads, heads + groups), axis=2)
        return by_window(partial(_mix, scale), narrow, layer, q, k, v)


def _mix(scale: float, window: int | None, q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
