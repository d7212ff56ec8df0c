"""Noise of all weights: streams of their own, drawn in blocks on a CPU to the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax import noise
from slt_jax.noise import noise_like, stream_of

KEY = jax.random.key(0)
SHAPES = {"bias": (5,), "matrix": (40, 30), "stack": (3, 16, 48)}


def zeros(shapes):
    return tuple(jnp.zeros(shape) for shape in shapes.values())


def drawn(shapes, key=KEY):
    return jax.jit(lambda key: noise_like(key, zeros(shapes), tuple(shapes)))(key)


def in_rows(label, shape):
    """The numbers of a small leaf, row by row as they are defined."""
    stream = jax.random.fold_in(KEY, stream_of(label))
    count = -(-np.prod(shape) // 128)
    rows = [jax.random.normal(jax.random.fold_in(stream, row), (128,)) for row in range(count)]
    return np.concatenate(rows)[: np.prod(shape)].reshape(shape)


@pytest.mark.parametrize("block", [1, 200, 1000, 2**16])
def test_numbers_do_not_depend_on_the_blocks_in_which_they_are_made(monkeypatch, block):
    monkeypatch.setattr(noise, "_BLOCK", block)
    for (label, shape), leaf in zip(SHAPES.items(), drawn(SHAPES), strict=True):
        np.testing.assert_allclose(leaf, in_rows(label, shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [100, 2**16])
def test_a_large_leaf_has_a_generator_of_its_own(monkeypatch, block):
    monkeypatch.setattr(noise, "_LARGE", 2000)
    monkeypatch.setattr(noise, "_BLOCK", block)
    small, large = drawn(SHAPES)[1:]
    stream = jax.random.fold_in(KEY, stream_of("stack"))
    whole = jax.random.normal(stream, (3 * 16 * 48,)).reshape(3, 16, 48)
    np.testing.assert_allclose(large, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small, in_rows("matrix", (40, 30)), rtol=1e-5, atol=1e-6)


def test_a_large_leaf_follows_the_generator_that_jax_is_told_to_use(monkeypatch):
    """Where a number depends on how many there are, they are not made in blocks."""
    monkeypatch.setattr(noise, "_LARGE", 2000)
    monkeypatch.setattr(noise, "_BLOCK", 100)
    stream = jax.random.fold_in(KEY, stream_of("stack"))
    with jax.threefry_partitionable(False):
        large = drawn(SHAPES)[2]
        whole = jax.random.normal(stream, (3 * 16 * 48,)).reshape(3, 16, 48)
    np.testing.assert_allclose(large, whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(large, drawn(SHAPES)[2], atol=1e-2)


def test_a_leaf_does_not_notice_the_others():
    alone = drawn({"matrix": SHAPES["matrix"]})
    np.testing.assert_array_equal(alone[0], drawn(SHAPES)[1])


@pytest.mark.parametrize("largest", [2000, 2**18])
def test_chains_side_by_side_draw_what_each_draws_alone(monkeypatch, largest):
    monkeypatch.setattr(noise, "_LARGE", largest)
    monkeypatch.setattr(noise, "_BLOCK", 500)
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: noise_like(key, zeros(SHAPES), tuple(SHAPES)))(keys)
    for number, key in enumerate(keys):
        for leaf, alone in zip(together, drawn(SHAPES, key), strict=True):
            np.testing.assert_allclose(leaf[number], alone, rtol=1e-5, atol=1e-6)


def test_the_generator_is_in_the_program_once():
    """However many leaves read from it, and however often."""

    def programs(count):
        shapes = {f"leaf {number}": (300,) for number in range(count)}

        def step(key):
            leaves = noise_like(key, zeros(shapes), tuple(shapes))
            return leaves, sum(jnp.sum(leaf**2) for leaf in leaves)

        return jax.jit(step).lower(KEY).compile().as_text()

    assert programs(2).count(" log-plus-one(") == programs(20).count(" log-plus-one(") == 1
