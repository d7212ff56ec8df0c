"""Whether examples can be read by the loss or observable that they are given to."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from slt_jax._tree import Static, join, split
from slt_jax._types import Examples
from slt_jax.data import Batches
from slt_jax.dataset import ArrayDataset
from slt_jax.observables import AbstractObservable, LossValues
from slt_jax.posterior import LocalPosterior

_SMALL_BYTES = 2**24


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Let errors about values and types say what they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def check_examples(posterior: LocalPosterior, examples: Examples, name: str) -> None:
    """Let the loss look at the values of examples, if it can (see ``LossFn``).

    Args:
        posterior: whose loss.
        examples: a pytree of arrays.
        name: of the examples, for the error.

    Raises:
        TypeError, ValueError: what the loss says of them, after their name.
    """
    check = getattr(posterior.loss_fn, "check_examples", None)
    if check is not None:
        with about(name):
            check(examples)


def check_sampled(posterior: LocalPosterior, batches: Batches) -> None:
    """Let the loss look at the sampling data: all of it, or one batch if it is over 16 MB.

    Raises:
        TypeError, ValueError: what the loss says of them.
    """
    if isinstance(batches.dataset, ArrayDataset) and batches.num_bytes <= _SMALL_BYTES:
        examples = batches.dataset.whole()
    else:
        examples, _ = batches.rows(np.arange(batches.batch_size))
    check_examples(posterior, examples, "the sampling data")


def check_observables(
    posterior: LocalPosterior, batches: Batches, observables: Mapping[str, AbstractObservable]
) -> None:
    """Raise unless every observable can be measured on its fixed examples.

    Raises:
        TypeError, ValueError: examples that the loss or an observable cannot take.
    """
    for name, observable in observables.items():
        for place, part in _on_fixed_examples(name, observable):
            if isinstance(part, LossValues):
                check_examples(posterior, part.probe.examples, f"the examples of {place!r}")
            abstract_value(place, posterior, batches, part)


def _on_fixed_examples(
    name: str, observable: AbstractObservable
) -> Iterator[tuple[str, AbstractObservable]]:
    """Give by name what is measured on fixed examples: an observable, or parts of one."""

    def is_fixed(node: Any) -> bool:
        return isinstance(node, AbstractObservable) and not node.num_fresh

    for path, part in jax.tree_util.tree_leaves_with_path(observable, is_leaf=is_fixed):
        if is_fixed(part):
            yield name + jax.tree_util.keystr(path), part


@functools.partial(jax.jit, static_argnames="static")
def _value(static: Static, arrays: Any) -> Any:
    posterior: LocalPosterior
    observable: AbstractObservable
    posterior, observable = join(arrays, static)
    measured = observable.measure(posterior, posterior.restriction.zeros(), None)
    return observable.relative(measured, measured)


def abstract_value(
    name: str, posterior: LocalPosterior, batches: Batches, observable: AbstractObservable
) -> Any:
    """Give the shapes of what an observable on fixed examples says, without computing anything.

    Raises:
        ValueError: it cannot be evaluated on its examples.
    """
    arrays, static = split((posterior, observable))
    try:
        return _value.eval_shape(static, arrays)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        probe = getattr(observable, "probe", None)
        given = jax.tree.map(_shape, getattr(probe, "examples", None))
        sampled = jax.tree.map(_shape, batches.example_structure)
        raise ValueError(
            f"the examples of {name!r} cannot be evaluated: they have shapes {given}, a sampled "
            f"batch has {sampled} ({type(error).__name__}: {error})"
        ) from error


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
