"""A short name for what a run was made from: settings, code, selection, weights and data."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from slt_jax._tree import is_array, path_table
from slt_jax.data import Batches

_SAMPLED_ROWS = 64
_WHOLE_DATA_BYTES = 2**31
_SPREAD_ROWS = 2**16
_ROWS_AT_ONCE = 4096


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


def name_of(code: Any) -> str:
    """Name a function or an object by where its code stands."""
    named = code if hasattr(code, "__qualname__") else type(code)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def fingerprint(settings: dict[str, Any], selections: list[int], batches: Batches) -> str:
    """Hash settings, selected weights, and rows of data.

    Args:
        settings: plain values by name, digests of weights and other arrays among them.
        selections: one hash per component.
        batches: the data; 64 evenly spread rows and all weights are hashed.

    Returns:
        16 hexadecimal digits.
    """
    digest = _new_digest()
    digest.update(json.dumps([settings, selections], default=str).encode())
    rows = np.linspace(0, batches.num_examples - 1, min(_SAMPLED_ROWS, batches.num_examples))
    for leaf in jax.tree.leaves(batches.rows(rows.astype(np.int64))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    if batches.weights is not None:
        digest.update(batches.weights.tobytes())
    return digest.hexdigest()


def digest_of_arrays(tree: Any, sums: UInt32[np.ndarray, "leaf 2"]) -> str:
    """Hash paths, shapes, dtypes and checksums of the arrays of a pytree, as 16 hex digits.

    Args:
        tree: the pytree.
        sums: from ``checksums``, of its arrays in order.
    """
    structure = [
        (path, tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in path_table(tree).items()
        if is_array(leaf)
    ]
    digest = _new_digest()
    digest.update(json.dumps(structure).encode())
    digest.update(np.ascontiguousarray(sums).tobytes())
    return digest.hexdigest()


def digest_of_data(batches: Batches) -> str:
    """Hash a data set and its weights, as 16 hex digits.

    Every row is read of data up to 2 GiB; of larger data 65,536 evenly spread rows.
    """
    digest = _new_digest()
    total = batches.num_examples
    count = total if batches.num_bytes <= _WHOLE_DATA_BYTES else min(_SPREAD_ROWS, total)
    numbers = np.linspace(0, total - 1, count).round().astype(np.int64)
    digest.update(json.dumps([total, count, batches.weights is None]).encode())
    for first in range(0, count, _ROWS_AT_ONCE):
        examples = batches.rows(numbers[first : first + _ROWS_AT_ONCE])
        for path, leaf in path_table(examples).items():
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _new_digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=8)
