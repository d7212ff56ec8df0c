"""A short name for what a run was made from: settings, code, selection, weights and data."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from slt_jax._tree import path_table
from slt_jax._types import Params
from slt_jax.data import Batches

_SAMPLED_ROWS = 64


def checksums(arrays: list[Array]) -> UInt32[Array, "leaf 2"]:
    """Sum the bits of every array modulo 2³², plainly and weighted by position.

    Whole numbers wrap around without rounding, so the result does not depend on the devices over
    which an array is laid out, nor on the order of summation, and large weights need not travel.
    """
    return jnp.stack([_checksum(array) for array in arrays])


def _checksum(array: Array) -> Array:
    # A loss may hold masks, keys or complex tables: give them bits that can be summed.
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag])
    if array.dtype in (jnp.bool_, jnp.int4, jnp.uint4):
        array = array.astype(jnp.uint8)
    size = array.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[size]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    weight = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        position = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        weight = weight * jnp.uint32(bits.shape[axis]) + position
    weighted = bits * (2 * weight + jnp.uint32(1))
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])


def name_of(code: Callable[..., Any]) -> str:
    """Name a function or an object by where its code stands."""
    named = code if hasattr(code, "__qualname__") else type(code)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def fingerprint(
    settings: dict[str, Any],
    selections: list[int],
    params: Params,
    sums: UInt32[np.ndarray, "leaf 2"],
    batches: Batches,
) -> str:
    """Hash settings, selected weights, checksums of weights and other arrays, and rows of data.

    Args:
        settings: plain values by name.
        selections: one hash per component.
        params: w*, for paths, shapes and dtypes.
        sums: from ``checksums``, of w*, the loss's own arrays and the kernel's settings.
        batches: the data; 64 evenly spread rows and all weights are hashed.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    structure = [
        (path, tuple(leaf.shape), str(leaf.dtype)) for path, leaf in path_table(params).items()
    ]
    digest.update(json.dumps([settings, selections, structure], default=str).encode())
    digest.update(np.ascontiguousarray(sums).tobytes())
    rows = np.linspace(0, batches.num_examples - 1, min(_SAMPLED_ROWS, batches.num_examples))
    for leaf in jax.tree.leaves(batches.rows(rows.astype(np.int64))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    if batches.weights is not None:
        digest.update(batches.weights.tobytes())
    return digest.hexdigest()
