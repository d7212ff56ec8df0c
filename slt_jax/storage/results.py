"""Results in files: an xarray tree as a zarr hierarchy that is there in full or not at all."""

import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slt_jax.persistence import StoreDamaged, StoreMismatch
from slt_jax.storage.files import replace_folder, require, writing
from slt_jax.storage.root import now

VERSION = 1
_KIND, _FORMAT, _MADE = "slt_jax_result", "slt_jax_result_format", "slt_jax_result_made"


class Written(NamedTuple):
    """A result as it was read: the name of its class, its tree, and when it was written."""

    kind: str
    tree: Any
    made: str


def write_result(path: Path, kind: str, tree: Any) -> None:
    """Write a result, in the place of one that was there before.

    Args:
        path: a folder of which nothing is there, or an older result.
        kind: name of the result's class.
        tree: an ``xarray.DataTree``, which is left as it is.

    Raises:
        StoreMismatch: something else is there.
        OSError: it could not be written; what was there before still is.
    """
    require("zarr")
    if path.exists() and not is_result(path) and (path.is_file() or any(path.iterdir())):
        raise StoreMismatch(f"{path} exists and is not a result of slt_jax: choose another path")
    marked = _with_strings(tree, np.dtypes.StringDType())
    marked.attrs = dict(marked.attrs) | {_KIND: kind, _FORMAT: VERSION, _MADE: now()}
    new, old = path.with_name(f".{path.name}.new"), _former(path)
    shutil.rmtree(new, ignore_errors=True)
    try:
        with writing(path, "What was there before still is."):
            marked.to_zarr(new, zarr_format=3, consolidated=False)
            replace_folder(new, path, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _former(path: Path) -> Path:
    return path.with_name(f".{path.name}.former")


def is_result(path: Path) -> bool:
    """Tell whether there is a result, or the ruins of one."""
    if _former(path).exists() and not path.exists():
        # A process was killed between the two renames that replace a result.
        _former(path).rename(path)
    root = path / "zarr.json"
    return root.is_file() and _KIND in root.read_text(encoding="utf-8")


def describe_result(path: Path) -> tuple[str, str]:
    """Give the name of a result's class and when it was written."""
    held = require("zarr").open_group(path, mode="r").attrs
    return str(held[_KIND]), str(held[_MADE])


def read_result(path: Path) -> Written:
    """Read a result that ``write_result`` wrote.

    Raises:
        StoreMismatch: not a result, or one of a newer version.
        StoreDamaged: it cannot be read.
    """
    require("zarr")
    import xarray

    if not is_result(path):
        raise StoreMismatch(f"{path} is not a result of slt_jax")
    try:
        with warnings.catch_warnings():
            # Files that a killed process or a file manager left behind are no part of it.
            warnings.filterwarnings("ignore", message=".*not recognized as a component")
            with xarray.open_datatree(
                path, engine="zarr", consolidated=False, decode_times=False
            ) as lazy:
                tree = lazy.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreDamaged(f"the result {path} cannot be read: {error}") from error
    kind, version, made = (tree.attrs.pop(name) for name in (_KIND, _FORMAT, _MADE))
    if version > VERSION:
        raise StoreMismatch(
            f"the result {path} was written by a newer slt_jax (format {version}, this version "
            f"knows up to {VERSION}): upgrade slt_jax"
        )
    return Written(kind, _with_strings(tree, np.str_), made)


def _with_strings(tree: Any, dtype: Any) -> Any:
    """Give a tree with all its text in one dtype: zarr has none for NumPy's fixed-length text."""

    def convert(dataset: Any) -> Any:
        texts = {
            name: (variable.dims, _as_text(variable.values, dtype), variable.attrs)
            for name, variable in dataset.variables.items()
            if variable.dtype.kind in "UT"
        }
        coordinates = {name: text for name, text in texts.items() if name in dataset.coords}
        variables = {name: text for name, text in texts.items() if name not in coordinates}
        return dataset.assign_coords(coordinates).assign(variables)

    return tree.map_over_datasets(convert)


def _as_text(values: np.ndarray, dtype: Any) -> np.ndarray:
    # By way of a list, which alone gives text of fixed length the length that it needs.
    return np.asarray(values.tolist(), dtype=dtype).reshape(values.shape)
