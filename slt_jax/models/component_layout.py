"""Parameter leaves whose axes have names, and rectangles cut from them."""

import fnmatch
import functools
from collections.abc import Mapping

import numpy as np

from slt_jax._tree import path_table
from slt_jax._types import Params
from slt_jax.models.component_grammar import Term
from slt_jax.restriction import Block


class Layout:
    """The leaves of a model: their shapes, and the axes of those whose axes are named.

    A leaf is known by its path, with dots for slashes: ``attn.q``. The axes that matter here are
    ``l`` (layer), ``h`` (head) and ``g`` (key-value head); any others may have any name.

    Args:
        params: pytree of arrays or of ``jax.ShapeDtypeStruct``.
        axes: path → names of the axes of the leaf, separated by blanks, such as ``"l d h k"``.

    Raises:
        ValueError: a path that is not in ``params``, or a wrong number of axes.

    >>> layout = Layout({"attn.q": np.zeros((2, 8, 4, 3))}, {"attn.q": "l d h k"})
    >>> layout.num_layers, layout.num_heads
    (2, 4)
    """

    def __init__(self, params: Params, axes: Mapping[str, str]):
        self.shapes = {path: tuple(np.shape(leaf)) for path, leaf in path_table(params).items()}
        self.axes = {path: tuple(names.split()) for path, names in axes.items()}
        self.paths = {path.replace("/", "."): path for path in self.shapes if path in self.axes}
        for path, names in self.axes.items():
            if path not in self.shapes:
                raise ValueError(
                    f"axes are given for {path!r}, which is not among the paths of the parameters: "
                    f"{', '.join(self.shapes)}"
                )
            if len(names) != len(self.shapes[path]):
                raise ValueError(
                    f"axes of {path!r}: {' '.join(names)!r} names {len(names)} axes of a leaf of "
                    f"shape {self.shapes[path]}; separate the names by blanks, as in 'l d h k'"
                )

    @functools.cached_property
    def num_layers(self) -> int:
        """The extent of the axis ``l``; 0 if no leaf has it."""
        return self._extent("l")

    @functools.cached_property
    def num_heads(self) -> int:
        """The extent of the axis ``h``; 0 if no leaf has it."""
        return self._extent("h")

    @functools.cached_property
    def num_groups(self) -> int:
        """The extent of the axis ``g``, or the number of heads if no leaf has it."""
        groups = self._extent("g") or self.num_heads
        if groups and self.num_heads % groups:
            raise ValueError(
                f"{self.num_heads} heads (axis h) cannot share {groups} key-value heads (axis g): "
                "give the axes of the weights, such as 'l d h k' for queries and 'l d g k' for keys"
            )
        return groups

    def whole(self, path: str) -> Block:
        """Give a whole leaf."""
        return Block(path, self.shapes[path])

    def cut(self, term: Term) -> list[Block]:
        """Give the rectangles that a term selects, in the order of the leaves; maybe none.

        Raises:
            ValueError: a layer, head or group that the model does not have.
        """
        if term.layer is not None and not self.num_layers:
            return []
        self._check_range(term)
        return [
            block
            for name, path in self.paths.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in term.leaves)
            and (block := self._rectangle(path, term)) is not None
        ]

    def _rectangle(self, path: str, term: Term) -> Block | None:
        cuts: dict[str, tuple[int, int]] = {}
        per_group = self.num_heads // self.num_groups if self.num_groups else 1
        if term.layer is not None:
            cuts["l"] = (term.layer, 1)
        if term.head is not None:
            cuts |= {"h": (term.head, 1), "g": (term.head // per_group, 1)}
        if term.group is not None:
            cuts |= {"h": (term.group * per_group, per_group), "g": (term.group, 1)}
        names, shape = self.axes[path], self.shapes[path]
        wants_heads = term.head is not None or term.group is not None
        if ("l" in cuts and "l" not in names) or (wants_heads and not {"h", "g"} & set(names)):
            return None
        begin = [cuts.get(name, (0, extent)) for name, extent in zip(names, shape, strict=True)]
        return Block(path, shape, [count for _, count in begin], [start for start, _ in begin])

    def _check_range(self, term: Term) -> None:
        for noun, number, count in (
            ("layer", term.layer, self.num_layers),
            ("head", term.head, self.num_heads),
            ("group", term.group, self.num_groups),
        ):
            if number is not None and number >= count:
                there = f"{noun}s 0 to {count - 1}" if count else f"no {noun}s"
                raise ValueError(f"{noun} {number} does not exist: the model has {there}")

    def _extent(self, letter: str) -> int:
        extents = {
            path: shape[names.index(letter)]
            for path, shape in self.shapes.items()
            if letter in (names := self.axes.get(path, ()))
        }
        if len(set(extents.values())) > 1:
            raise ValueError(f"the axis {letter!r} must have one extent in all leaves: {extents}")
        return next(iter(extents.values()), 0)
