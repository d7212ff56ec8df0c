"""Estimates of a run in progress, as a group of its zarr hierarchy."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slt_jax.storage.files import replace_folder

_GROUP = "statistics"


def write_statistics(hierarchy: Path, workshop: Path, estimates: Mapping[str, np.ndarray]) -> None:
    """Put the values and errors of all statistics so far in the place of those before.

    Args:
        hierarchy: folder of the zarr hierarchy.
        workshop: folder outside it, on the same disk, where the new group is made.
        estimates: arrays ``[component, chain, ...]`` named ``statistic/value/…`` and
            ``statistic/standard_error/…``.
    """
    if not estimates:
        return
    import xarray

    groups: dict[str, dict[str, Any]] = {}
    for name, array in estimates.items():
        group, variable = _cut(name)
        leaf = variable.removeprefix("standard_error").removeprefix("value").removeprefix(".")
        # An error has the axes of its value; one of another shape would have its own.
        own = tuple(
            f"{leaf or 'value'}_dim_{k}_of_{extent}" for k, extent in enumerate(array.shape[2:])
        )
        groups.setdefault(f"/{group}", {})[variable] = (("component", "chain", *own), array)
    tree = xarray.DataTree.from_dict(
        {group: xarray.Dataset(variables) for group, variables in groups.items()}
    )
    new = workshop / f"unfinished-{_GROUP}"
    shutil.rmtree(new, ignore_errors=True)
    tree.to_zarr(new, zarr_format=3, consolidated=False)
    replace_folder(new, hierarchy / _GROUP, workshop / f"unfinished-old-{_GROUP}")


def _cut(name: str) -> tuple[str, str]:
    """Cut ``statistic/value/leaf`` into its group and the name of a variable in it."""
    for kind in ("value", "standard_error"):
        group, found, leaf = name.partition(f"/{kind}")
        if found:
            return group, f"{kind}{leaf.replace('/', '.')}"
    raise ValueError(f"{name} is neither a value nor a standard error")
