"""Pytree helpers: paths of leaves, finiteness, norms, and the split into arrays and code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from slt_jax._types import Flag, Scalar


def path_table(tree: PyTree) -> dict[str, Any]:
    """Map the path of every leaf, such as ``"layers/0/attn/q"``, to the leaf, in tree order.

    >>> sorted(path_table({"dense": {"bias": 1.0, "kernel": 2.0}}))
    ['dense/bias', 'dense/kernel']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def all_finite(tree: PyTree) -> Flag:
    """Tell whether every floating-point entry of a pytree is finite."""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def inner(left: PyTree, right: PyTree) -> Scalar:
    """Sum the products of corresponding entries, in float32."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b, dtype=jnp.float32), left, right)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), jnp.float32))


def norm(tree: PyTree) -> Scalar:
    """Give the Euclidean norm over all entries of all leaves."""
    return jnp.sqrt(inner(tree, tree))


def num_bytes(tree: PyTree) -> int:
    """Give the memory that the arrays of a pytree take, in bytes; they may be traced."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if is_array(leaf))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def bytes_made(make: Callable[[], PyTree]) -> int:
    """Give the memory of the arrays that a function would make, in bytes, computing nothing."""
    shapes = jax.eval_shape(lambda: [leaf for leaf in jax.tree.leaves(make()) if is_array(leaf)])
    return sum(shape.size * shape.dtype.itemsize for shape in shapes)


def choose(keep_first: Flag, first: PyTree, second: PyTree) -> PyTree:
    """Select one of two pytrees of equal structure by a scalar condition."""
    return jax.tree.map(lambda a, b: jax.lax.select(keep_first, a, b), first, second)


class Static(NamedTuple):
    """The part of a pytree that is code or structure: hashable, so it can key a compiled program.

    ``leaves`` holds the leaves that are not arrays and ``None`` where an array goes.
    """

    treedef: Any
    leaves: tuple[Any, ...]
    is_array: tuple[bool, ...]


def is_array(leaf: Any) -> bool:
    """Tell whether a leaf is traced (an array) rather than compared (code)."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def split(tree: PyTree) -> tuple[tuple[Any, ...], Static]:
    """Split a pytree into its array leaves and everything else.

    Law: ``join(*split(tree))`` equals ``tree``.
    """
    leaves, treedef = jax.tree.flatten(tree)
    mask = tuple(is_array(leaf) for leaf in leaves)
    arrays = tuple(leaf for leaf, traced in zip(leaves, mask, strict=True) if traced)
    rest = tuple(None if traced else leaf for leaf, traced in zip(leaves, mask, strict=True))
    return arrays, Static(treedef, rest, mask)


def join(arrays: tuple[Any, ...], static: Static) -> Any:
    """Put back together what ``split`` took apart."""
    remaining = iter(arrays)
    leaves = [
        next(remaining) if traced else leaf
        for leaf, traced in zip(static.leaves, static.is_array, strict=True)
    ]
    return jax.tree.unflatten(static.treedef, leaves)


def on_device(tree: PyTree) -> Any:
    """Place NumPy leaves on the default device explicitly, as a transfer guard demands."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf,
        tree,
    )
