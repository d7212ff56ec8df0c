"""Series in zarr: arrays ``[component, chain, draw, ...]`` that are written draw after draw."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from slt_jax.persistence import StoreDamaged

_CHUNK_BYTES = 2**20
_DIMENSIONS = ("component", "chain", "draw")


class SeriesLog:
    """The series of one run, in arrays of their final length, NaN where nothing is written yet.

    ``ends`` maps names to the number of draws written and the digest of all of them.

    Args:
        group: an open ``zarr.Group``.
        shapes: the final shape of every series, by its path in the group.
    """

    def __init__(self, group: Any, shapes: Mapping[str, tuple[int, ...]]):
        self.arrays = {name: _open(group, name, shape) for name, shape in shapes.items()}
        self._lengths = dict.fromkeys(shapes, 0)
        self._digests = {name: _new_digest() for name in shapes}

    @property
    def ends(self) -> dict[str, tuple[int, str]]:
        return {
            name: (length, self._digests[name].hexdigest())
            for name, length in self._lengths.items()
        }

    def append(self, series: Mapping[str, np.ndarray]) -> None:
        """Write further draws of some of the series."""
        for name, draws in series.items():
            first, count = self._lengths[name], draws.shape[2]
            if count:
                self.arrays[name][:, :, first : first + count] = draws
                self._take_in(name, draws)

    def read(self, ends: Mapping[str, tuple[int, str]]) -> dict[str, np.ndarray]:
        """Give the series up to where they ended; what is appended then goes on from there.

        Raises:
            StoreDamaged: they are not what they were.
        """
        found = {}
        for name, (length, digest) in ends.items():
            try:
                found[name] = self.arrays[name][:, :, :length]
            except (KeyError, OSError, ValueError, RuntimeError) as error:
                raise StoreDamaged(f"series {name} cannot be read: {error}") from error
            self._lengths[name], self._digests[name] = 0, _new_digest()
            self._take_in(name, found[name])
            if self.ends[name] != (length, digest):
                raise StoreDamaged(f"series {name} has changed")
        return found

    def _take_in(self, name: str, draws: np.ndarray) -> None:
        # Draw by draw, so that the digest does not depend on how the run was cut.
        self._digests[name].update(np.moveaxis(draws, 2, 0).tobytes())
        self._lengths[name] += draws.shape[2]


def _open(group: Any, name: str, shape: tuple[int, ...]) -> Any:
    """Give an array of this many draws, made or cut to length where it is not."""
    if name in group:
        array = group[name]
        if array.shape != shape:
            array.resize(shape)
        return array
    draw_bytes = 4 * max(math.prod(shape) // max(shape[2], 1), 1)
    length = min(max(_CHUNK_BYTES // draw_bytes, 1), max(shape[2], 1))
    chunks = (shape[0], shape[1], length, *shape[3:])
    own = tuple(f"{name.rpartition('/')[2]}_dim_{k}" for k in range(len(shape) - 3))
    return group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(extent, 1) for extent in chunks),
        dtype="float32",
        fill_value=math.nan,
        dimension_names=(*_DIMENSIONS, *own),
        # What a chain reports is noise in all but a few bits: there is nothing to compress.
        compressors=None,
    )


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)
