"""Standard normal noise for every moving weight, one random stream per leaf."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, Key, UInt32

from slt_jax._apart import apart
from slt_jax._types import ChainKey, Counter, Displacement

_ROW = 128
_LARGE = 2**18
_BLOCK = 2**16


def stream_of(label: str) -> int:
    """Number the random stream of a name: a 31-bit checksum, the same in every process.

    >>> stream_of("layers/0/attn/q") == stream_of("layers/0/attn/q")
    True
    """
    return zlib.crc32(label.encode()) & 0x7FFFFFFF


def noise_like(key: ChainKey, displacement: Displacement, labels: tuple[str, ...]) -> Displacement:
    """Draw standard normal noise of the displacement's shapes, one stream per label.

    The noise of a leaf depends on the key, its label and its shape only: it does not change when
    other leaves come or go, nor with the devices over which the leaf is laid out.

    Small leaves are drawn together, in rows of 128 numbers with a key each. The generator is long
    and is compiled once for all of them instead of once per leaf: a two-layer transformer has 28
    leaves and spent 25 of its 27 seconds of compilation there. A large leaf has a generator of
    its own, which stays sharded as the leaf is.

    Args:
        key: a typed key.
        displacement: gives shapes and dtypes.
        labels: one name per leaf, unique.
    """
    sizes = [leaf.size for leaf in displacement]
    streams = np.asarray([stream_of(label) for label in labels], np.uint32)
    keys = jax.vmap(lambda stream: jax.random.fold_in(key, stream))(streams)
    small = [index for index, size in enumerate(sizes) if size <= _LARGE]
    noise = _small(keys, [sizes[index] for index in small], small)
    leaves = dict(zip(small, noise, strict=True))
    leaves |= {
        index: _normal(keys[index : index + 1], size).reshape(-1)
        for index, size in enumerate(sizes)
        if size > _LARGE
    }
    return tuple(
        leaves[index].reshape(leaf.shape).astype(leaf.dtype)
        for index, leaf in enumerate(displacement)
    )


def _small(
    keys: Key[Array, " leaf"], sizes: list[int], numbers: list[int]
) -> list[Float[Array, " weight"]]:
    """Draw ``sizes[i]`` numbers from the stream of leaf ``numbers[i]``, for all i at once."""
    if not sizes:
        return []
    rows = [math.ceil(size / _ROW) for size in sizes]
    leaf_of_row = np.repeat(numbers, rows)
    row_of_leaf = np.concatenate([np.arange(count) for count in rows]).astype(np.uint32)
    row_keys = jax.vmap(jax.random.fold_in)(keys[leaf_of_row], row_of_leaf)
    drawn = _normal(row_keys, _ROW)
    offsets = np.concatenate([[0], np.cumsum(rows)])
    return [
        jax.lax.slice_in_dim(drawn, int(first), int(last)).reshape(-1)[:size]
        for size, first, last in zip(sizes, offsets[:-1], offsets[1:], strict=True)
    ]


def _normal(keys: Key[Array, " stream"], count: int) -> Float[Array, "stream weight"]:
    """Draw ``count`` numbers from every stream.

    XLA for CPUs puts a copy of the generator, some 300 operations, into everything that reads a
    part of the numbers, and computes them as often. Apart, a block of them is made once, while what
    it is made of is still in the cache. Elsewhere a device would wait for the host at every loop.
    """

    def draw(words: Array) -> Array:
        streams = jax.random.wrap_key_data(words, impl=jax.random.key_impl(keys))
        if streams.size == 1:
            # Without an axis of streams: a large leaf is sharded as the numbers are.
            return jax.random.normal(streams[0], (count,), jnp.float32)[None]
        return jax.vmap(lambda key: jax.random.normal(key, (count,), jnp.float32))(streams)

    def in_blocks(words: Array) -> Array:
        num_rows = words.shape[0]
        if num_rows == 1 and _BLOCK < count < 2**31 and _counts():
            return _counted(words[0], count)[None]
        num_blocks = min(num_rows, math.ceil(num_rows * count / _BLOCK))
        size = math.ceil(num_rows / num_blocks)
        padding = num_blocks * size - num_rows
        blocks = jnp.pad(words, ((0, padding), (0, 0))).reshape(num_blocks, size, -1)
        once = jax.lax.optimization_barrier(jnp.int32(1))

        def fill(number: Counter, drawn: Array) -> Array:
            block = apart(lambda words, _: draw(words), once, blocks[number], drawn[number])
            return drawn.at[number].set(block)

        empty = jnp.zeros((num_blocks, size, count), jnp.float32)
        drawn = jax.lax.fori_loop(0, num_blocks, fill, empty)
        return drawn.reshape(-1, count)[:num_rows]

    return jax.lax.platform_dependent(jax.random.key_data(keys), cpu=in_blocks, default=draw)


def _counts() -> bool:
    """Whether a number depends on the key and its place alone: JAX can be told otherwise."""
    return jax.threefry_partitionable.value


def _counted(words: UInt32[Array, "2"], count: int) -> Float[Array, " weight"]:
    """Draw ``jax.random.normal(key, (count,))`` for a large count, a block at a time.

    The generator turns the number of a weight into its bits, whatever stands beside it.
    """
    num_blocks = math.ceil(count / _BLOCK)
    once = jax.lax.optimization_barrier(jnp.int32(1))

    def draw(first: Counter, _: Array) -> Array:
        numbers = first.astype(jnp.uint32) + jnp.arange(_BLOCK, dtype=jnp.uint32)
        high, low = threefry2x32_p.bind(*words, jnp.zeros_like(numbers), numbers)
        # The steps of ``jax.random.normal``: 23 bits make a number in [1, 2), then one in (-1, 1).
        bits = (high ^ low) >> jnp.uint32(9) | jnp.uint32(0x3F800000)
        above = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0
        lowest = np.nextafter(np.float32(-1), np.float32(0))
        uniform = jnp.maximum(lowest, above * (np.float32(1) - lowest) + lowest)
        return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)

    def fill(number: Counter, drawn: Array) -> Array:
        return drawn.at[number].set(apart(draw, once, number * _BLOCK, drawn[number]))

    drawn = jax.lax.fori_loop(0, num_blocks, fill, jnp.zeros((num_blocks, _BLOCK), jnp.float32))
    return drawn.reshape(-1)[:count]
