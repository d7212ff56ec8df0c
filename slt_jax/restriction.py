"""Which weights move: blocks of parameter leaves, and restrictions made of them."""

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from slt_jax._tree import path_table
from slt_jax._types import Displacement, Params
from slt_jax.selection import Axes, canonical_axes, describe, overlap

Start: TypeAlias = Sequence[Any] | Int[Array | np.ndarray, " rank"]
"""Where a block starts, one whole number per axis of its view."""


class Block(eqx.Module):
    """A rectangle of one parameter leaf, seen in another shape.

    The leaf at ``path`` is reshaped to ``view`` and cut from ``start`` with extent ``size``. Head
    ``h`` of a fused GPT-2 leaf ``(d, 3·H·k)`` is ``view=(d, 3, H, k)``, ``size=(d, 3, 1, k)``,
    ``start=(0, 0, h, 0)``. Only where it starts is traced, as one ``int32`` scalar in ``offsets``
    for every axis that is cut and None for an axis that is taken whole: blocks that differ in
    their offsets alone share one compiled program, and an axis can have an offset per row while
    the others have one for all rows.

    >>> Block("w", view=(4, 2), size=(1, 2), start=(3, 0)).num_params
    2
    """

    path: str = eqx.field(static=True)
    view: tuple[int, ...] = eqx.field(static=True)
    size: tuple[int, ...] = eqx.field(static=True)
    offsets: tuple[Int[Array | np.ndarray, ""] | None, ...]

    def __init__(
        self,
        path: str,
        view: Sequence[int],
        size: Sequence[int] | None = None,
        start: Start | None = None,
    ):
        self.path = path
        self.view = tuple(int(extent) for extent in view)
        self.size = self.view if size is None else tuple(int(extent) for extent in size)
        begin = tuple(map(_offset, (0,) * len(self.view) if start is None else start))
        _check_rectangle(path, self.view, self.size, begin)
        self.offsets = tuple(
            None if size == extent else offset
            for extent, size, offset in zip(self.view, self.size, begin, strict=True)
        )

    @property
    def start(self) -> tuple[Any, ...]:
        """Where the block starts along every axis of the view."""
        return tuple(np.int32(0) if offset is None else offset for offset in self.offsets)

    @property
    def is_whole(self) -> bool:
        """Whether the block is the whole leaf."""
        return self.size == self.view

    @property
    def num_params(self) -> int:
        """The number of weights in the block."""
        return math.prod(self.size)

    def canonical(self) -> tuple[str, Axes]:
        """Describe the selected weights by (extent, start, size) per axis, views merged.

        Two blocks that select the same weights through different reshapes describe themselves
        alike.
        """
        return self.path, canonical_axes(self.view, self._place(), self.size)

    def at(self, start: Start) -> "Block":
        """Give the block of the same shape at another place, this one's along axes with None."""
        places = zip(self.start, start, strict=True)
        moved = [own if other is None else other for own, other in places]
        return Block(self.path, self.view, self.size, moved)

    @property
    def is_traced(self) -> bool:
        """Whether the place of the block is an argument of a program that is being traced."""
        return any(isinstance(offset, Tracer) for offset in self.offsets)

    def _place(self) -> list[int]:
        return [int(offset) for offset in jax.device_get(self.start)]

    def _further_cuts(self) -> tuple[tuple[int, int, int], ...]:
        """Give offset and extents along every axis that is cut, but for the leading one."""
        axes = zip(self._place()[1:], self.size[1:], self.view[1:], strict=True)
        return tuple((start, size, extent) for start, size, extent in axes if size != extent)

    def read(self, leaf: Array) -> Array:
        """Give the block's weights as float32 of shape ``size``."""
        viewed = leaf.reshape(self.view)
        if not self.is_whole:
            viewed = jax.lax.dynamic_slice(
                viewed, self.start, self.size, allow_negative_indices=False
            )
        return viewed.astype(_sum_dtype(leaf.dtype))

    def insert(self, leaf: Array, displacement: Array) -> Array:
        """Give the leaf with the displacement added to the block, never rounded below float32."""
        dtype = _sum_dtype(leaf.dtype)
        viewed, shift = leaf.reshape(self.view).astype(dtype), displacement.astype(dtype)
        if self.is_whole:
            return (viewed + shift).reshape(leaf.shape)
        if any(1 < size < extent for size, extent in zip(self.size, self.view, strict=True)):
            shift = jax.lax.dynamic_update_slice(
                jnp.zeros_like(viewed), shift, self.start, allow_negative_indices=False
            )
        # A select keeps a leaf that is sharded along a cut axis in place. A slice of it, or into
        # it, at a traced offset makes the partitioner gather the leaf, and all layers with it.
        return jnp.where(self._inside(), viewed + shift, viewed).reshape(leaf.shape)

    def _inside(self) -> Array:
        inside = jnp.ones((1,) * len(self.view), dtype=bool)
        for axis, (extent, size) in enumerate(zip(self.view, self.size, strict=True)):
            if size != extent:
                place = jax.lax.broadcasted_iota(jnp.int32, self.view, axis) - self.start[axis]
                inside = inside & (place >= 0) & (place < size)
        return inside


def _offset(value: Any) -> Any:
    if isinstance(value, Tracer):
        return value
    return np.asarray(jax.device_get(value), dtype=np.int32)


def _check_rectangle(
    path: str, view: tuple[int, ...], size: tuple[int, ...], start: tuple[Any, ...]
) -> None:
    fits = len(view) == len(size) == len(start) and all(
        0 <= offset <= extent - own
        for extent, own, offset in zip(view, size, start, strict=True)
        if not isinstance(offset, Tracer)
    )
    if not fits:
        raise ValueError(
            f"block of {path!r}: start ({', '.join(map(str, start))}) and size {size} must lie "
            f"inside the view {view}; give one entry per axis"
        )
    if min(size, default=1) < 1:
        raise ValueError(f"block of {path!r} is empty: size {size}")


def _sum_dtype(dtype: Any) -> Any:
    """The dtype in which w* + δ is formed: float32, or the leaf's own if that is wider."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


class Restriction(eqx.Module):
    """The weights that move, as disjoint blocks; all others stay at w*.

    Laws, for parameters p and a displacement d:

    - ``read(insert(p, d)) == read(p) + d`` in the float32 of the sum;
    - ``insert(p, 0) == p``, and every entry outside the blocks is untouched to the bit;
    - the sum is never rounded to the storage dtype: a touched bfloat16 leaf comes back as float32.

    Build one with ``Restriction.full``, ``Restriction.from_paths`` or from blocks.

    Args:
        blocks: the rectangles that move.
        is_level: whether all blocks begin at the same offset along their leading axis, as those of
            one layer of stacked weights do. It is static, so that a model can rely on it while the
            offsets are traced. None finds out where they are known, and says no where they are not.
        is_column: whether every block is cut along one more axis than the leading one, all of them
            at the same offset and of the same extents, as those of one head are. Also static.

    >>> import numpy as np
    >>> params = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    >>> restriction = Restriction.from_paths(params, ["w"])
    >>> restriction.labels, restriction.num_params
    (('w',), 6)
    """

    blocks: tuple[Block, ...]
    is_level: bool = eqx.field(static=True)
    is_column: bool = eqx.field(static=True)

    def __init__(
        self,
        blocks: Iterable[Block],
        is_level: bool | None = None,
        is_column: bool | None = None,
    ):
        self.blocks = tuple(blocks)
        if any(block.is_traced for block in self.blocks):
            self.is_level, self.is_column = bool(is_level), bool(is_column)
        else:
            leading = {tuple(block._place()[:1]) for block in self.blocks}
            further = {block._further_cuts() for block in self.blocks}
            self.is_level = len(leading) == 1 and is_level is not False
            is_one = len(further) == 1 and all(len(cuts) == 1 for cuts in further)
            self.is_column = is_one and is_column is not False

    def __check_init__(self):
        if not self.blocks:
            raise ValueError("a restriction needs at least one block; got none")
        if any(block.is_traced for block in self.blocks):
            return
        for index, block in enumerate(self.blocks):
            for other in self.blocks[:index]:
                if block.path == other.path and _overlap(block, other):
                    raise ValueError(
                        f"blocks of {block.path!r} overlap: {other.canonical()[1]} and "
                        f"{block.canonical()[1]} as (extent, start, size) per axis; "
                        "every weight may move once only, so merge them or drop one"
                    )

    @classmethod
    def full(cls, params: Params) -> "Restriction":
        """Select every weight of ``params``."""
        return cls.from_paths(params, ["*"])

    @classmethod
    def from_paths(cls, params: Params, patterns: Sequence[str]) -> "Restriction":
        """Select whole leaves by shell-style path patterns, such as ``"layers/*/attn/*"``.

        Args:
            params: pytree of floating-point arrays.
            patterns: each must match at least one path; ``*`` also matches ``/``.

        Raises:
            ValueError: a pattern matches nothing; the message lists the paths there are.
        """
        if isinstance(patterns, str):
            raise ValueError(f"patterns must be a list of strings, as in [{patterns!r}]")
        table = path_table(params)
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in table):
                raise ValueError(
                    f"no parameter matches {pattern!r}; the paths are {', '.join(table)}"
                )
        return cls(
            Block(path, np.shape(leaf))
            for path, leaf in table.items()
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """One unique name per block: its path, numbered where a leaf has several blocks."""
        paths = [block.path for block in self.blocks]
        return tuple(
            path if paths.count(path) == 1 else f"{path}#{paths[:index].count(path)}"
            for index, path in enumerate(paths)
        )

    @property
    def num_params(self) -> int:
        """The number of weights that move."""
        return sum(block.num_params for block in self.blocks)

    @property
    def signature(self) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
        """What two restrictions must share to run in one compiled program."""
        return tuple((block.path, block.view, block.size) for block in self.blocks)

    @property
    def selection_hash(self) -> int:
        """A 31-bit hash of the selected weights, the same however they are cut and reshaped."""
        rectangles: dict[str, list[Axes]] = {}
        for block in self.blocks:
            path, axes = block.canonical()
            rectangles.setdefault(path, []).append(axes)
        text = repr(sorted((path, describe(axes)) for path, axes in rectangles.items()))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) & 0x7FFFFFFF

    def check(self, params: Params) -> None:
        """Raise ValueError if a block names a path or a view that ``params`` does not have."""
        table = path_table(params)
        for block in self.blocks:
            if block.path not in table:
                raise ValueError(
                    f"unknown path {block.path!r} in the restriction; the paths are "
                    f"{', '.join(table)}"
                )
            shape = np.shape(table[block.path])
            if math.prod(shape) != math.prod(block.view):
                raise ValueError(
                    f"block of {block.path!r}: the view {block.view} does not hold the "
                    f"{math.prod(shape)} weights of the leaf of shape {shape}"
                )

    def zeros(self) -> Displacement:
        """Give the displacement of w* itself: float32 zeros, one array per block."""
        return tuple(jnp.zeros(block.size, jnp.float32) for block in self.blocks)

    def read(self, params: Params) -> Displacement:
        """Give the selected weights, one array per block."""
        table = path_table(params)
        return tuple(block.read(table[block.path]) for block in self.blocks)

    def insert(self, params: Params, displacement: Displacement) -> Params:
        """Give ``params`` with the displacement added to the selected weights.

        Args:
            params: pytree of arrays, any floating dtype.
            displacement: tuple of float32 arrays, one per block, in weight units.
        """
        table = path_table(params)
        for block, delta in zip(self.blocks, displacement, strict=True):
            table[block.path] = block.insert(table[block.path], delta)
        return jax.tree.unflatten(jax.tree.structure(params), list(table.values()))

    def at(self, starts: Sequence[Start]) -> "Restriction":
        """Give the restriction of the same signature with its blocks at other places.

        Args:
            starts: per block and axis an int32 scalar, or None for that of this restriction.
        """
        moved = (block.at(start) for block, start in zip(self.blocks, starts, strict=True))
        return Restriction(moved, self.is_level, self.is_column)


def _overlap(first: Block, second: Block) -> bool:
    if first.view == second.view:
        return all(
            a < b + m and b < a + n
            for a, n, b, m in zip(
                first._place(), first.size, second._place(), second.size, strict=True
            )
        )
    if math.prod(first.view) != math.prod(second.view):
        raise ValueError(
            f"blocks of {first.path!r} see it as {first.view} and {second.view}, which do not hold "
            "the same number of weights"
        )
    return overlap(first.canonical()[1], second.canonical()[1])
