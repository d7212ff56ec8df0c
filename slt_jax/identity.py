"""What a run was made from, item by item, so that a difference can be named."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._tree import is_array
from slt_jax.fingerprint import digest_of_data, name_of
from slt_jax.persistence import PLACE, Identity
from slt_jax.run import Run

_VERSIONS = ("slt_jax", "jax", "python", "device")
_APART = ("fingerprint", "weights", *PLACE)


def identity_of(run: Run) -> Identity:
    """Give what the numbers of a run depend on, apart from how many draws there are.

    Reads the whole data set (see ``digest_of_data``), which a run that is not kept is spared.
    """
    metadata = run.metadata
    settings = {
        name: value
        for name, value in metadata.items()
        if name not in (*_VERSIONS, *_APART) and name != "num_draws"
    }
    settings["survey_examples"] = run.settings.survey_examples
    for name, restriction in run.components.items():
        settings[f"selection of {name}"] = restriction.selection_hash
    # Arrays of the loss may be large weights: those the device has summed up (`loss_arrays`).
    settings |= describe(run.posterior.loss_fn, "loss function", digest=False)
    settings |= describe(run.batches.order, "batch order")
    for name, observable in run.observables.items():
        settings |= describe(observable, f"observable {name}")
    return Identity(
        weights=metadata["weights"],
        data=digest_of_data(run.batches),
        settings=settings,
        init_loss=run.survey.loss,
        versions={name: str(metadata[name]) for name in _VERSIONS},
        fingerprint=metadata["fingerprint"],
    )


def describe(value: Any, name: str = "", *, digest: bool = True) -> dict[str, Any]:
    """Write a pytree of settings, arrays and code as plain values by dotted name.

    Functions are named by where they stand and by what they closed over; arrays by dtype, shape
    and, with ``digest``, a digest of their bytes. The same in every process.

    >>> describe({"every": 3, "fn": len}, "observable")
    {'observable.every': 3, 'observable.fn': 'builtins.len'}
    """
    return dict(_walk(value, name, digest, ()))


def _walk(value: Any, name: str, digest: bool, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, (bool, int, float, str)):
        yield name, value
    elif is_array(value):
        yield name, _describe_array(value, digest)
    elif id(value) not in above:
        kind, parts = _take_apart(value)
        if kind:
            yield name, kind
        # What a closure captured is small (see ``check_loss``) and no leaf that was summed up.
        inner = digest or inspect.isfunction(value)
        for key, part in parts.items():
            path = f"{name}.{key}" if name else str(key)
            yield from _walk(part, path, inner, (*above, id(value)))


def _take_apart(value: Any) -> tuple[str, dict[str, Any]]:
    """Give the name of what a value is, and its parts by name."""
    if isinstance(value, Mapping):
        return "", {str(key): part for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return type(value).__name__, value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, (tuple, list)):
        return "", {str(number): part for number, part in enumerate(value)}
    if isinstance(value, functools.partial):
        return "partial", {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, type):
        return name_of(value), {}
    if inspect.ismethod(value):
        return name_of(value), {"self": value.__self__}
    if inspect.isfunction(inspect.unwrap(value)):
        code = inspect.unwrap(value)
        return name_of(code), dict(inspect.getclosurevars(code).nonlocals)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return name_of(value), {n: getattr(value, n) for n in names if hasattr(value, n)}
    return name_of(value), {}


def _describe_array(array: Any, digest: bool) -> str:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    shape = ",".join(map(str, array.shape))
    described = f"{array.dtype}[{shape}]"
    if not digest:
        return described
    content = np.ascontiguousarray(jax.device_get(array)).tobytes()
    return f"{described} {hashlib.blake2b(content, digest_size=8).hexdigest()}"
