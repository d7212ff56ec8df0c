"""Random access to examples: arrays, pytrees of arrays, memory maps, and sequences of rows."""

import abc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from slt_jax._tree import path_table
from slt_jax._types import Examples


class Dataset(abc.ABC):
    """Examples by number: what ``Batches`` draws from."""

    num_examples: int

    @abc.abstractmethod
    def rows(self, indices: np.ndarray) -> Examples:
        """Give the examples with these numbers as a pytree of NumPy arrays."""

    @abc.abstractmethod
    def whole(self) -> Examples:
        """Give all examples, as arrays that may already lie on a device."""

    @property
    @abc.abstractmethod
    def num_bytes(self) -> int:
        """The size of all examples in bytes, as placed on a device."""


class ArrayDataset(Dataset):
    """A pytree of arrays (or memory maps) that share their leading axis."""

    def __init__(self, arrays: Examples):
        table = path_table(arrays)
        lengths = {path: np.shape(leaf)[:1] for path, leaf in table.items()}
        if len(set(lengths.values())) != 1 or () in lengths.values():
            shapes = ", ".join(
                f"{path or 'data'}: {np.shape(leaf)}" for path, leaf in table.items()
            )
            raise ValueError(
                f"ragged data: all arrays must share their leading axis (one entry per example), "
                f"got {shapes}"
            )
        for leaf in table.values():
            check_numeric(leaf.dtype)
        self.arrays = arrays
        self.num_examples = next(iter(lengths.values()))[0]

    @property
    def num_bytes(self) -> int:
        return sum(
            int(np.prod(np.shape(leaf))) * canonical_dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(self.arrays)
        )

    def rows(self, indices: np.ndarray) -> Examples:
        return jax.tree.map(
            lambda leaf: canonical(np.asarray(jax.device_get(leaf)[indices])), self.arrays
        )

    def whole(self) -> Examples:
        return jax.tree.map(
            lambda leaf: leaf if isinstance(leaf, jax.Array) else canonical(np.asarray(leaf)),
            self.arrays,
        )


class RowDataset(Dataset):
    """Anything with ``__len__`` and ``__getitem__``, one pytree of arrays per example.

    A Hugging Face data set, a grain source, a torch-style map data set or a plain list of rows.
    """

    def __init__(self, sequence: Any):
        self.sequence = sequence
        self.num_examples = len(sequence)
        if self.num_examples:
            self.rows(np.zeros(1, np.int32))
        # What lies in memory is looked at whole; anything else may have to be fetched.
        if isinstance(sequence, list):
            _check_alike((number, _as_arrays(row)) for number, row in enumerate(sequence))

    @property
    def num_bytes(self) -> int:
        row = self.rows(np.zeros(1, np.int32))
        return self.num_examples * sum(leaf.nbytes for leaf in jax.tree.leaves(row))

    def rows(self, indices: np.ndarray) -> Examples:
        numbers = [int(index) for index in indices]
        if hasattr(self.sequence, "__getitems__"):
            examples = self.sequence.__getitems__(numbers)
        else:
            examples = [self.sequence[number] for number in numbers]
        arrays = [_as_arrays(example) for example in examples]
        _check_alike(zip(numbers, arrays, strict=True))
        return jax.tree.map(lambda *leaves: canonical(np.stack(leaves)), *arrays)

    def whole(self) -> Examples:
        return self.rows(np.arange(self.num_examples))


def _as_arrays(example: Any) -> Examples:
    """Read one row: lists of numbers (token ids) are arrays, not pytrees."""
    return jax.tree.map(np.asarray, example, is_leaf=lambda node: isinstance(node, list))


def _check_alike(examples: Iterable[tuple[int, Examples]]) -> None:
    """Raise ValueError unless numbered examples have the same arrays of the same shapes."""
    first: tuple[int, Any] | None = None
    for number, example in examples:
        shapes = jax.tree.map(np.shape, example)
        first = (number, shapes) if first is None else first
        if shapes != first[1]:
            raise ValueError(
                f"ragged data: example {first[0]} has shapes {first[1]} and example {number} has "
                f"{shapes}; pad them to one length and give weights that are 0 on the padding"
            )


def open_dataset(source: Any) -> Dataset:
    """Recognise a source of examples.

    Args:
        source: an array ``[n, ...]``, a pytree (dict, tuple, …) of such arrays, a memory map, or
            an object with ``__len__`` and ``__getitem__``.

    Raises:
        TypeError: neither of these; a one-shot iterator among them; text.
        ValueError: no example, arrays of unequal length, a list of rows of unequal shape.
    """
    if isinstance(source, Iterator):
        raise TypeError(
            f"data must be indexed, got {type(source).__name__}: an iterator can be read only "
            "once; turn it into a list first"
        )
    if isinstance(source, list) and source and all(hasattr(item, "shape") for item in source):
        raise TypeError(
            "a list of arrays could be columns or rows: pass tuple(...) if its items are the "
            "columns (inputs, targets), or np.stack(...) if its items are examples"
        )
    leaves = jax.tree.leaves(source)
    is_columns = not isinstance(source, list) and leaves and all(map(_is_array, leaves))
    if is_columns:
        dataset: Dataset = ArrayDataset(source)
    elif isinstance(source, (Mapping, tuple)) and leaves:
        raise TypeError(
            f"the columns of a data set must be arrays with one entry per example, got "
            f"{', '.join(sorted({type(leaf).__name__ for leaf in leaves}))}: use np.asarray on "
            "lists, and one split of a data set that has several"
        )
    elif hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        dataset = RowDataset(source)
    else:
        raise TypeError(
            f"data must be arrays with one entry per example, a pytree of them, or an object with "
            f"__len__ and __getitem__; got {type(source).__name__}"
        )
    if dataset.num_examples == 0:
        raise ValueError("the data set is empty: got 0 examples")
    return dataset


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array))


def canonical_dtype(dtype: Any) -> np.dtype:
    """Give the dtype in which JAX holds data of this dtype (int32 for int64 without x64)."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def check_numeric(dtype: Any) -> None:
    """Raise TypeError for text and other objects, which no device holds."""
    if isinstance(dtype, np.dtype) and dtype.kind not in "biufcV":
        raise TypeError(
            f"data of dtype {dtype} cannot be put on a device: tokenize text, pad rows of unequal "
            "length, and keep only numeric columns, as in dataset.select_columns(['input_ids'])"
        )


def canonical(array: np.ndarray) -> np.ndarray:
    """Cast an array to JAX's dtype for it; integers that would not fit are an error.

    >>> canonical(np.asarray([1, 2], np.int64)).dtype
    dtype('int32')
    """
    check_numeric(array.dtype)
    dtype = canonical_dtype(array.dtype)
    if array.dtype == dtype:
        return array
    if np.issubdtype(dtype, np.integer) and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(
                f"{array.dtype} data with values up to {array.max()} do not fit {dtype}; "
                "enable jax_enable_x64 or renumber them"
            )
    return array.astype(dtype)
