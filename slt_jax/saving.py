"""Results as files: ``save`` and ``load``."""

import os
from pathlib import Path
from typing import Any

from slt_jax.estimators.influence_result import BIFResult
from slt_jax.estimators.loss_kernel import LossKernel
from slt_jax.estimators.refined import RefinedLLC
from slt_jax.estimators.result import LLCResult
from slt_jax.estimators.susceptibility_result import Susceptibilities
from slt_jax.persistence import StoreMismatch
from slt_jax.storage.results import write_result
from slt_jax.storage.runs import RUN, read

_RESULTS: tuple[type[Any], ...] = (
    BIFResult,
    LLCResult,
    LossKernel,
    RefinedLLC,
    Susceptibilities,
)
_CLASSES = {result.__name__: result for result in _RESULTS}


def save(result: Any, path: str | os.PathLike[str]) -> None:
    """Write a result to a folder, as zarr (version 3), which ``load`` and xarray read.

    Args:
        result: of an estimator, as ``slt.llc``.
        path: the folder; an older result there is replaced, anything else is left alone.

    Raises:
        TypeError: not a result of an estimator.
        StoreMismatch: something else is at the path.
        OSError: it cannot be written, as on a full disk; an older result stays.
    """
    kind = type(result).__name__
    if not isinstance(result, _RESULTS):
        raise TypeError(f"a {kind} cannot be saved; what can be is {', '.join(_CLASSES)}")
    write_result(Path(path), kind, result.to_tree())


def load(path: str | os.PathLike[str]) -> Any:
    """Give back a result: from where ``save`` wrote it, or from the ``slt.Store`` of its runs.

    It equals the result that was written, to the bit, and prints alike. Only its runs are not with
    it: ``result.run`` is an error that says how to get at them.

    Args:
        path: the folder.

    Returns:
        The result. For a store in which ``slt.sample`` kept a run, and no estimator a result, an
        ``xarray.DataTree`` of its traces, statistics and observations.

    Raises:
        StoreIncomplete: the runs in the store have not come to their end.
        StoreMismatch: nothing of slt_jax is there, or it was written by a newer version.
        StoreDamaged: it cannot be read.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    slt_jax.persistence.StoreMismatch: there is no result of slt_jax at no/such/folder
    """
    kind, tree, _ = read(Path(path))
    if kind == RUN:
        return tree
    if kind not in _CLASSES:
        raise StoreMismatch(
            f"{path} holds a {kind}, which this version of slt_jax does not know: upgrade slt_jax"
        )
    return _CLASSES[kind].from_tree(tree)
