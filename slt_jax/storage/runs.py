"""Reading what a store holds: its result, or the series of a run that has none."""

import warnings
from pathlib import Path
from typing import Any

from slt_jax.persistence import StoreIncomplete, StoreMismatch
from slt_jax.storage.files import require
from slt_jax.storage.results import Written, is_result, read_result
from slt_jax.storage.root import Root
from slt_jax.storage.store import RESULT, Store

RUN = "run"


def read(path: Path) -> Written:
    """Read a result that was saved, the result of a store, or else the run in it.

    Raises:
        StoreIncomplete: the runs in the store have not come to their end.
        StoreMismatch: nothing of slt_jax is there.
        StoreDamaged: it cannot be read.
    """
    for candidate in (path, path / RESULT):
        if is_result(candidate):
            return read_result(candidate)
    status = Store(path).status
    if status.startswith("complete"):
        root = Root(path)
        return Written(RUN, _read_run(root), root.attributes["completed_at"])
    if status.startswith("incomplete"):
        raise StoreIncomplete(
            f"the store {path} is {status}. Make the call again that began it: it goes on from "
            f"there. What there is so far: xarray.open_datatree({str(path / 'run.zarr')!r}, "
            'engine="zarr", consolidated=False)'
        )
    raise StoreMismatch(f"there is no result of slt_jax at {path}")


def _read_run(root: Root) -> Any:
    """Give traces, statistics and observations as a tree, as far as they were written."""
    require("zarr")
    import xarray

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not recognized as a component")
        with xarray.open_datatree(root.zarr_path, engine="zarr", consolidated=False) as lazy:
            tree = lazy.load()
    names = list(tree.attrs["components"])
    return tree.map_over_datasets(
        lambda data: data.assign_coords(component=names) if "component" in data.dims else data
    )
