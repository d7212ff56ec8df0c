"""Normalisation of activations: LayerNorm and RMSNorm in all the variants decoders use."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Norm:
    """Divide activations by their size over the trailing axes, computed in float32.

    Equation: y = (x − m) / √(mean((x − m)²) + eps) · (offset + scale) + bias, with m the mean of x
    for LayerNorm (Ba et al., arXiv 1607.06450) and 0 for RMSNorm (Zhang & Sennrich, arXiv
    1910.07467).

    Args:
        eps: added to the mean square, in units of x².
        centered: whether the mean is subtracted.
        offset: 1 where the learned scale is stored as its difference from 1, as in Gemma.
        scaled: whether there is a learned scale.
        biased: whether there is a learned bias.
    """

    eps: float
    centered: bool = False
    offset: float = 0.0
    scaled: bool = True
    biased: bool = False

    def __post_init__(self):
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps of a norm must be a number, at least 0, got {self.eps!r}")

    def __call__(
        self, x: Float[Array, "*axes"], scale: Array | None, bias: Array | None = None
    ) -> Float[Array, "*axes"]:
        """Normalise over the axes of ``scale``, or the last axis when there is none.

        Args:
            x: activations, any floating dtype.
            scale: learned scale over the last one or two axes, or None.
            bias: learned bias of the same shape, or None.

        Returns:
            activations of the shape and dtype of ``x``.
        """
        axes = tuple(range(-max(1, 0 if scale is None else scale.ndim), 0))
        y = x.astype(jnp.float32)
        if self.centered:
            y = y - jnp.mean(y, axis=axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axes, keepdims=True) + self.eps)
        if scale is not None:
            y = y * (scale.astype(jnp.float32) + self.offset)
        if bias is not None:
            y = y + bias.astype(jnp.float32)
        return y.astype(x.dtype)
