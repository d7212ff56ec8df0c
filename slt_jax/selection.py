"""Which weights of a leaf are selected, described alike however they are cut and reshaped."""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

Axes: TypeAlias = tuple[tuple[int, int, int], ...]
"""A rectangle: (extent, start, size) per axis of a view of the leaf, the outermost axis first."""

Runs: TypeAlias = tuple[Int64[np.ndarray, " run"], Int64[np.ndarray, " run"]]
"""Stretches of neighbouring weights in the flat leaf, in order: where they start, how long."""


def canonical_axes(view: Sequence[int], start: Sequence[int], size: Sequence[int]) -> Axes:
    """Describe a rectangle by as few axes as possible: alike for equal selections.

    An axis joins the one before it if it is taken whole, or that one only once, for then the two
    together are cut in one piece.

    >>> canonical_axes((2, 3, 4), (1, 0, 0), (1, 2, 4))
    ((24, 12, 8),)
    """
    axes: list[tuple[int, int, int]] = []
    for extent, first, count in zip(view, start, size, strict=True):
        if axes and (count == extent or axes[-1][2] == 1):
            outer = axes.pop()
            count = outer[2] * extent if count == extent else count
            axes.append((outer[0] * extent, outer[1] * extent + first, count))
        else:
            axes.append((extent, first, count))
    return tuple(axes)


def describe(rectangles: Sequence[Axes]) -> Any:
    """Describe disjoint rectangles of one leaf: alike for equal selections, however they are cut.

    Args:
        rectangles: as from ``canonical_axes``.

    Returns:
        The axes of the one rectangle that they are together, or a digest of their runs.

    >>> halves = [canonical_axes((4, 6), (first, 1), (2, 3)) for first in (0, 2)]
    >>> describe(halves) == canonical_axes((4, 6), (0, 1), (4, 3))
    True
    """
    if len(rectangles) == 1:
        return rectangles[0]
    starts, lengths = _joined(rectangles)
    extent = int(np.prod([extent for extent, _, _ in rectangles[0]], dtype=np.int64))
    axes = _as_rectangle(starts, lengths, extent)
    if axes is not None:
        return axes
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.stack([starts, lengths]).astype("<i8").tobytes())
    return "runs", extent, digest.hexdigest()


def overlap(first: Axes, second: Axes) -> bool:
    """Tell whether two rectangles of one leaf have weights in common."""
    starts, lengths = _sorted([first, second])
    return bool(np.any(starts[:-1] + lengths[:-1] > starts[1:]))


def _runs(axes: Axes) -> Runs:
    """Give the runs of a rectangle: one for every position along all axes but the last."""
    starts, stride = np.zeros(1, np.int64), 1
    for number, (extent, start, size) in enumerate(reversed(axes)):
        positions = np.arange(start, start + (size if number else 1), dtype=np.int64) * stride
        starts = (positions[:, None] + starts[None, :]).reshape(-1)
        stride *= extent
    return starts, np.full(starts.shape, axes[-1][2], np.int64)


def _sorted(rectangles: Sequence[Axes]) -> Runs:
    parts = [_runs(axes) for axes in rectangles]
    starts = np.concatenate([starts for starts, _ in parts])
    order = np.argsort(starts, kind="stable")
    return starts[order], np.concatenate([lengths for _, lengths in parts])[order]


def _joined(rectangles: Sequence[Axes]) -> Runs:
    """Give the longest runs of all rectangles together."""
    starts, lengths = _sorted(rectangles)
    ends = starts + lengths
    is_first = np.concatenate([[True], ends[:-1] != starts[1:]])
    is_last = np.concatenate([is_first[1:], [True]])
    return starts[is_first], ends[is_last] - starts[is_first]


def _as_rectangle(
    starts: Int64[np.ndarray, " run"], lengths: Int64[np.ndarray, " run"], extent: int
) -> Axes | None:
    """Give the canonical axes of runs that make one rectangle, from the last axis to the first."""
    inner: Axes = ()
    while len(starts) > 1:
        length, period = int(lengths[0]), int(starts[1] - starts[0])
        offset = int(starts[0]) % period
        fits = extent % period == 0 and offset + length <= period
        if not fits or np.any(lengths != length) or np.any(starts % period != offset):
            return None
        inner = ((period, offset, length), *inner)
        # The positions along the axes further out, in runs of their own.
        positions, extent = starts // period, extent // period
        is_first = np.concatenate([[True], np.diff(positions) != 1])
        starts = positions[is_first]
        lengths = np.diff(np.concatenate([np.flatnonzero(is_first), [len(positions)]]))
    return ((extent, int(starts[0]), int(lengths[0])), *inner)
