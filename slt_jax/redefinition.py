"""A loss that is defined anew for every call, and is therefore compiled anew."""

import sys
import types
import warnings
import weakref
from typing import Any

import jax
import numpy as np

# Holds on to nothing: a function goes when its compiled programs go.
_last_used: weakref.WeakKeyDictionary[types.CodeType, weakref.ref[types.FunctionType]] = (
    weakref.WeakKeyDictionary()
)
_warned: weakref.WeakSet[types.CodeType] = weakref.WeakSet()


def note_use(loss_fn: Any) -> None:
    """Warn once if a loss is another function object than last time, though of the same code.

    Compiled programs are found by the function object: a fresh lambda or closure in every call is
    compiled in every call. Closures that hold other objects are other functions, and no mistake;
    arrays of the same shape could have been arguments, and count as the same.

    Args:
        loss_fn: a function, or a pytree with functions in it.
    """
    for function in jax.tree.leaves(loss_fn):
        if not isinstance(function, types.FunctionType):
            continue
        code = function.__code__
        last = _last_used.get(code)
        previous = None if last is None else last()
        _last_used[code] = weakref.ref(function)
        if previous is None or code in _warned or not _is_copy(function, previous):
            continue
        _warned.add(code)
        warnings.warn(
            f"the loss {function.__qualname__!r} is a new function object of the same code as the "
            "one before, so everything was compiled again for it. Define the loss once, outside "
            "of loops and calls; give it what changes as equinox.Partial(loss, arrays)",
            stacklevel=_level_of_caller(sys._getframe()),
        )


def _is_copy(function: types.FunctionType, other: types.FunctionType) -> bool:
    """Tell whether two functions of equal code are distinct, from one place, and hold the same."""
    if function is other or function.__code__.co_filename != other.__code__.co_filename:
        return False
    mine, its = _held(function), _held(other)
    return len(mine) == len(its) and all(map(_alike, mine, its))


def _held(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _alike(here: Any, there: Any) -> bool:
    if here is there:
        return True
    if isinstance(here, (jax.Array, np.ndarray)) and isinstance(there, (jax.Array, np.ndarray)):
        return here.shape == there.shape and here.dtype == there.dtype
    if isinstance(here, types.FunctionType) and isinstance(there, types.FunctionType):
        return here.__code__ == there.__code__ and _is_copy(here, there)
    plain = (bool, int, float, complex, str, bytes, type(None))
    return isinstance(here, plain) and type(here) is type(there) and here == there


def _level_of_caller(frame: types.FrameType) -> int:
    """Count the frames from this one to the code that called this package."""
    level = 1
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    # Annotations that are checked put frames of their own between ours.
    return module.partition(".")[0] in (__name__.partition(".")[0], "jaxtyping", "beartype")
