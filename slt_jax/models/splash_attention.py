"""Attention on TPU by the splash kernels that come with JAX: no scores ever leave the chip."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from slt_jax.models.attention import AbstractAttention, by_window
from slt_jax.models.config import DecoderConfig

LANES = 128
"""A block of queries or keys is a multiple of this long: the width of the TPU's registers."""


@dataclass(frozen=True)
class SplashAttention(AbstractAttention):
    """Causal attention by ``jax.experimental.pallas.ops.tpu.splash_attention``, for TPU.

    Scores live in blocks of ``block_size``² on the chip, forward and backward; blocks that a causal
    mask or a window hides are skipped. Float32 and bfloat16, grouped heads, windows, soft caps and
    padding. Three things differ from ``BlockwiseAttention``, within rounding or where nothing is
    predicted: the scale is multiplied into the queries; sequences are filled up to whole blocks,
    at most 127 positions for each; and padding attends to padding instead of to what precedes it.

    Args:
        block_size: most queries and keys of a block, a multiple of 128.
        mesh: devices over which the program is divided; needed as soon as there are several, since
            XLA cannot divide a kernel by itself. Axes of the mesh over which chains are divided
            (``jax.vmap(..., spmd_axis_name=...)``) are taken from there.
        head_axis: axis of the mesh over which heads of queries and keys are divided, or None.
        interpret: run the kernels without a TPU, thousands of times slower, to check them.

    Raises:
        ValueError: a block size that is no multiple of 128, an axis that the mesh does not have.

    >>> SplashAttention(block_size=100)
    Traceback (most recent call last):
    ValueError: block_size must be a positive multiple of 128, got 100
    """

    block_size: int = 512
    # Not shown: a run is the same run on other devices, and its settings are told apart by text.
    mesh: Mesh | None = field(default=None, repr=False)
    head_axis: str | None = None
    interpret: bool = False

    def __post_init__(self):
        if self.block_size < LANES or self.block_size % LANES:
            raise ValueError(
                f"block_size must be a positive multiple of {LANES}, got {self.block_size}"
            )
        axes = () if self.mesh is None else self.mesh.axis_names
        if self.head_axis is not None and self.head_axis not in axes:
            raise ValueError(f"head_axis must be an axis of the mesh, {axes}, got {self.head_axis}")

    def check(self, config: DecoderConfig, dtype: np.dtype) -> None:
        """Raise ValueError for other dtypes, or key heads that the devices cannot share evenly."""
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(
                f"SplashAttention computes in float32 or bfloat16, got {dtype}; choose another "
                "compute_dtype, or BlockwiseAttention()"
            )
        shares = 1 if self.mesh is None else dict(self.mesh.shape).get(self.head_axis, 1)
        if config.num_kv_heads % shares:
            raise ValueError(
                f"{config.num_kv_heads} key heads cannot be divided over the {shares} devices of "
                f"{self.head_axis!r}; leave head_axis out, or use BlockwiseAttention()"
            )

    def check_devices(self, devices: Collection[Any]) -> None:
        """Raise ValueError unless the weights are on one TPU, or on those of the mesh."""
        others = sorted({device.platform for device in devices} - {"tpu"})
        if others and not self.interpret:
            raise ValueError(
                f"SplashAttention runs on TPU, and the weights are on {', '.join(others)}; use "
                "CudnnAttention() on an NVIDIA GPU and BlockwiseAttention() anywhere"
            )
        meant = 1 if self.mesh is None else self.mesh.size
        if len(devices) > meant:
            raise ValueError(
                f"the weights are on {len(devices)} devices, and SplashAttention is for {meant}; "
                "give it the mesh, SplashAttention(mesh=mesh, head_axis=...)"
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
        """Mix values as ``attention`` does; see the class for what differs.

        Raises:
            ValueError: with ``jax_enable_x64``, under which the kernels of JAX cannot be built.
        """
        if jax.dtypes.canonicalize_dtype(np.int64) == np.int64:
            raise ValueError(
                "the kernels of SplashAttention cannot be built under jax_enable_x64; leave it "
                "off, or use BlockwiseAttention()"
            )
        length = q.shape[1]
        size, filled = block_and_length(length, self.block_size)
        q = (q * scale).astype(q.dtype)
        # What is added comes after every query that is kept, so the causal mask hides it.
        ends = ((0, 0), (0, filled - length), (0, 0), (0, 0))
        operands = [jnp.pad(x, ends).swapaxes(1, 2) for x in (q, k, v)]
        if is_key is not None:
            operands.append(jnp.pad(is_key, ends[:2]).astype(jnp.int32))
        narrow = tuple(w if w is not None and w < length else None for w in windows)
        mix = partial(self._mix, size, softcap)
        return by_window(mix, narrow, layer, *operands).swapaxes(1, 2)[:, :length]

    def _mix(
        self, size: int, softcap: float | None, window: int | None, *operands: Array
    ) -> Float[Array, "batch h filled k"]:
        mix = partial(_mix_here, size, softcap, window, self.interpret)
        if self.mesh is None:
            return mix(*operands)
        heads, whole = PartitionSpec(None, self.head_axis), PartitionSpec()
        places = (heads, heads, heads, whole)[: len(operands)]
        # The kernels do not say over which axes their results vary, so that cannot be checked.
        mapped = jax.shard_map(
            mix, mesh=self.mesh, in_specs=places, out_specs=heads, check_vma=False
        )
        return mapped(*operands)


def _mix_here(
    size: int,
    softcap: float | None,
    window: int | None,
    interpret: bool,
    q: Float[Array, "batch h filled k"],
    k: Float[Array, "batch g filled k"],
    v: Float[Array, "batch g filled k"],
    segment: Int[Array, "batch filled"] | None = None,
) -> Float[Array, "batch h filled k"]:
    """Mix values by the kernels, all on one device."""
    # Importing Pallas for TPU takes a second, which only those who use it should wait.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    square = (q.shape[2], q.shape[2])
    mask = masks.CausalMask(square)
    if window is not None:
        mask = masks.LocalMask(square, (window - 1, 0), 0)
    forward = ("block_q", "block_kv", "block_kv_compute")
    backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks = dict.fromkeys((*forward, *backward, "block_q_dq", "block_kv_dq"), size)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=splash.BlockSizes(**blocks),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = () if segment is None else (splash.SegmentIds(segment, segment),)
    return jax.vmap(kernel)(q, k, v, *segments)  # pyright: ignore[reportReturnType]


def block_and_length(length: int, block_size: int) -> tuple[int, int]:
    """Give the size of blocks and the length they fill up, for a number of positions.

    >>> block_and_length(8192, 512), block_and_length(513, 512), block_and_length(5, 512)
    ((512, 8192), (384, 768), (128, 128))
    """
    num_blocks = -(-length // block_size)
    size = LANES * -(-length // (num_blocks * LANES))
    return size, size * num_blocks
