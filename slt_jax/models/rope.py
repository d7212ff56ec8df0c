"""Rotary position embeddings: frequencies with their scalings, tables and the rotation."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


@dataclass(frozen=True)
class LinearScaling:
    """Divide every frequency by ``factor`` (Chen et al., arXiv 2306.15595, section 2.3)."""

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Give the scaled frequencies, in radians per position."""
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True)
class Llama3Scaling:
    """Divide low frequencies by ``factor``, keep high ones, and interpolate in between.

    Source: Llama 3.1 (arXiv 2407.21783) and its published code. With wavelength λ = 2π/f and
    original context C, f is kept for λ < C/high, becomes f/factor for λ > C/low, and in between
    (1 − s) f/factor + s f with s = (C/λ − low) / (high − low).
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Give the scaled frequencies, in radians per position."""
        low, high = self.low_frequency_factor, self.high_frequency_factor
        turns = self.original_positions * frequencies / np.float32(2 * math.pi)
        share = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
        scaled = frequencies / np.float32(self.factor)
        return ((1 - share) * scaled + share * frequencies).astype(np.float32)


@dataclass(frozen=True)
class Rope:
    """Rotation of the first ``dim`` coordinates of queries and keys by their position.

    Source: Su et al., arXiv 2104.09864; coordinate i is paired with i + dim/2.

    Args:
        theta: base of the geometric sequence of wavelengths, dimensionless.
        dim: number of rotated coordinates of a head, even.
        scaling: ``LinearScaling``, ``Llama3Scaling``, or None.
    """

    theta: float
    dim: int
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self):
        valid = self.dim >= 1 and 0 < self.theta < math.inf
        if not (valid and np.all(np.isfinite(self.frequencies()))):
            raise ValueError(
                f"rotary embeddings of {self.dim} coordinates with theta {self.theta} and scaling "
                f"{self.scaling} have no frequencies"
            )

    def frequencies(self) -> np.ndarray:
        """Give the float32 ``[dim / 2]`` frequencies in radians per position.

        >>> Rope(theta=100.0, dim=4).frequencies().tolist()
        [1.0, 0.10000000149011612]
        """
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        frequencies = 1 / np.power(np.float32(self.theta), exponents)
        return frequencies if self.scaling is None else self.scaling(frequencies)


def rotation_angles(ropes: tuple[Rope, ...], length: int) -> Float32[Array, "rope pos half"]:
    """Give the angle of every coordinate pair at every position, for each table.

    Args:
        ropes: one or more tables with the same number of rotated coordinates.
        length: number of positions, counted from 0.
    """
    frequencies = jnp.asarray(np.stack([rope.frequencies() for rope in ropes]))
    positions = jnp.arange(length, dtype=jnp.float32)
    return frequencies[:, None, :] * positions[None, :, None]


def rotate(
    x: Float[Array, "batch pos heads k"], angles: Float32[Array, "pos half"]
) -> Float[Array, "batch pos heads k"]:
    """Rotate the first ``2 · half`` coordinates of every head; the others pass unchanged."""
    half = angles.shape[-1]
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    left, right = (x[..., s].astype(jnp.float32) for s in (slice(half), slice(half, 2 * half)))
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
