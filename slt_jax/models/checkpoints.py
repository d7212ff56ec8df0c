"""A training run as a sequence of (step, weights), of which at most two are in memory."""

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, overload

import jax

from slt_jax._tree import path_table
from slt_jax._types import Params
from slt_jax.models.base import Model
from slt_jax.models.checkpoint_sources import Options, few, open_source, shapes_of
from slt_jax.models.hf_weights import PlacesParameters

Source: TypeAlias = str | os.PathLike[str] | Mapping[int, Any] | Callable[[int], Params]
"""A folder of ``step*`` folders, a hub id, a mapping of steps, or a function of the step."""


class Checkpoints:
    """Checkpoints in the order of their steps: ``for step, params in checkpoints``.

    Nothing is loaded until it is reached, and it can be gone through any number of times. While one
    checkpoint is loaded, only the one before it is still in memory. That all have one tree (the
    same names, shapes and dtypes) is checked here, before anything is loaded, and again as each is
    loaded: one compiled program then serves them all.

    Args:
        source: a folder with one Hugging Face folder per step (``step0``, ``step1000``, …); a hub
            id with revisions of such names; a mapping of steps to weights or to folders; or a
            function ``load(step) -> params``.
        steps: which steps; None for all. A function needs them.
        like: the tree that every checkpoint has, as arrays or ``jax.ShapeDtypeStruct``. None looks
            at them all: at the headers of files, and at what a mapping or a function gives for each
            step once. With it, a function is called only for weights that are wanted.
        dtype, layout, compute_dtype: as for ``from_hf``; for the checkpoints that it would read.

    Attributes:
        steps: the steps, in numerical order.
        structure: the tree that all checkpoints have, as ``jax.ShapeDtypeStruct``.
        model: of Hugging Face checkpoints, the model with shapes for weights: its ``loss_fn``,
            ``axes`` and ``components`` hold for all of them. None for others.

    Raises:
        FileNotFoundError: no such folder, no steps in it, no weights.
        ValueError: checkpoints that differ in architecture or tree, damaged headers, two of one
            step, a step that is not there.
        TypeError: a generator, which could be read only once; steps that are no integers.

    >>> import numpy as np
    >>> checkpoints = Checkpoints({10: {"w": np.ones(3)}, 2: {"w": np.zeros(3)}})
    >>> [(step, float(params["w"].sum())) for step, params in checkpoints]
    [(2, 0.0), (10, 3.0)]
    >>> len(checkpoints), checkpoints[-1][0], checkpoints[:1].steps
    (2, 10, (2,))
    """

    steps: tuple[int, ...]
    structure: Params
    model: Model | None

    def __init__(
        self,
        source: Source,
        *,
        steps: Iterable[int] | None = None,
        like: Params | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        layout: PlacesParameters | None = None,
        compute_dtype: jax.typing.DTypeLike | None = None,
    ):
        wanted = None if steps is None else _sorted_steps(steps)
        self._source = open_source(source, wanted, Options(dtype, layout, compute_dtype))
        self.steps = _present(self._source.steps, wanted)
        looked_at = self.steps if like is None or self._source.has_headers else ()
        if like is None:
            self._reference = f"step {self.steps[0]}"
            self.structure = self._source.structure(self.steps[0])
            looked_at = looked_at[1:]
        else:
            self._reference, self.structure = "the tree given as like", shapes_of(like)
        for step in looked_at:
            self._check_equal(step, self._source.structure(step))
        self.model = self._source.model(self.structure)

    def load(self, step: int) -> Params:
        """Load the weights of one step.

        Raises:
            ValueError: there is no such step, or its tree is no longer the one that was checked.
        """
        if step not in self.steps:
            raise ValueError(f"there is no step {step!r}; there are {few(self.steps)}")
        params = self._source.load(step)
        self._check_equal(step, shapes_of(params))
        return params

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, Params]]:
        for step in self.steps:
            # No name here may hold the weights: they would stay while the next ones are loaded.
            yield step, self.load(step)

    @overload
    def __getitem__(self, index: int) -> tuple[int, Params]: ...

    @overload
    def __getitem__(self, index: slice) -> "Checkpoints": ...

    def __getitem__(self, index: int | slice) -> "tuple[int, Params] | Checkpoints":
        if not isinstance(index, slice):
            step = self.steps[index]
            return step, self.load(step)
        part = object.__new__(Checkpoints)
        vars(part).update(vars(self) | {"steps": self.steps[index]})
        return part

    def __repr__(self) -> str:
        return f"Checkpoints({self._source}; {len(self)} steps: {few(self.steps)})"

    def _check_equal(self, step: int, found: Params) -> None:
        if jax.tree.leaves(found) == jax.tree.leaves(self.structure) and (
            jax.tree.structure(found) == jax.tree.structure(self.structure)
        ):
            return
        here, there = path_table(found), path_table(self.structure)
        other = sorted(path for path in here.keys() & there.keys() if here[path] != there[path])
        differences = [
            *(f"{path!r} is missing" for path in sorted(there.keys() - here.keys())),
            *(f"{path!r} is new" for path in sorted(here.keys() - there.keys())),
            *(f"{path!r} is {_text(here[path])} instead of {_text(there[path])}" for path in other),
        ]
        raise ValueError(
            f"step {step} has another tree than {self._reference}: "
            f"{few(differences) or 'the containers differ'}. All checkpoints must have the same "
            "names, shapes and dtypes"
        )


def _text(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _sorted_steps(steps: Iterable[int]) -> list[int]:
    found: list[int] = []
    for step in steps:
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError(f"steps must be integers, got {step!r}")
        found.append(operator.index(step))
    twice = sorted({step for step in found if found.count(step) > 1})
    if twice:
        raise ValueError(f"steps are given twice: {few(twice)}")
    if not found:
        raise ValueError("steps is empty: name at least one, or leave it out for all")
    return sorted(found)


def _present(there: Iterable[int], wanted: list[int] | None) -> tuple[int, ...]:
    present = sorted(there)
    absent = sorted(set(wanted or ()) - set(present))
    if absent:
        raise ValueError(f"there is no step {few(absent)}; there are {few(present)}")
    return tuple(present if wanted is None else wanted)
