"""Checkpoints: the last two states of a run, each whole, and known by the digests of its files."""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from slt_jax.persistence import StoreMismatch
from slt_jax.storage.files import digests, require, write_json

_KEPT = 2
_MANIFEST = "manifest.json"


class Checkpoint(NamedTuple):
    """A checkpoint that was found whole: its step, its arrays, and how long its series were.

    ``series`` maps names to the number of draws and the digest of what they held.
    """

    step: int
    arrays: dict[str, Any]
    series: dict[str, tuple[int, str]]


class Checkpoints:
    """The checkpoints of one run, a folder each, named by step.

    Args:
        folder: where they are; it is made at the first save.
    """

    def __init__(self, folder: Path):
        # Orbax takes no other paths; and the process may change its folder while it samples.
        self.folder = folder.absolute()

    def save(
        self, step: int, arrays: Mapping[str, Any], series: Mapping[str, tuple[int, str]]
    ) -> None:
        """Write a checkpoint, then forget all but the last two.

        It comes into being by the renaming of its folder: a process killed before leaves none.
        """
        orbax = require("orbax.checkpoint")
        unfinished = self.folder / f"unfinished-{step}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        # Arrays are numbered: their names may hold what a path must not, and orbax refuses empties.
        keys = {name: f"{number:06d}" for number, name in enumerate(arrays)}
        tree = {keys[name]: _array(leaf) for name, leaf in arrays.items() if np.size(leaf)}
        try:
            with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(unfinished / "arrays", args=orbax.args.StandardSave(tree))
            described = {name: _describe(leaf, keys[name]) for name, leaf in arrays.items()}
            manifest = {
                "step": step,
                "arrays": described,
                "series": series,
                "files": digests(unfinished),
            }
            write_json(unfinished / _MANIFEST, manifest)
            finished = self.folder / f"{step:012d}"
            shutil.rmtree(finished, ignore_errors=True)
            unfinished.rename(finished)
        except BaseException:
            # On a full disk, what was begun stands in the way of what could still be done.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for old in self._finished()[_KEPT:] + sorted(self.folder.glob("damaged-*")):
            shutil.rmtree(old, ignore_errors=True)

    def newest_first(self, placed: Mapping[str, Any]) -> Iterator[Checkpoint]:
        """Give the checkpoints that are whole, warning of those that are not.

        Args:
            placed: device arrays by name: the arrays of these names are put where they are.
        """
        for stray in self.folder.glob("unfinished-*"):
            shutil.rmtree(stray, ignore_errors=True)
        for folder in self._finished():
            reason = _damage(folder)
            if reason:
                self.set_aside(int(folder.name), reason)
            else:
                yield _read(folder, placed)

    def set_aside(self, step: int, reason: str) -> None:
        """Leave a damaged checkpoint out from now on, with a warning."""
        warnings.warn(
            f"the checkpoint at step {step} in {self.folder} is damaged ({reason}): going back "
            "to the one before it",
            stacklevel=2,
        )
        damaged = self.folder / f"damaged-{step}"
        shutil.rmtree(damaged, ignore_errors=True)
        (self.folder / f"{step:012d}").rename(damaged)

    @property
    def has_damaged(self) -> bool:
        """Whether damaged checkpoints were left out."""
        return any(self.folder.glob("damaged-*"))

    def _finished(self) -> list[Path]:
        names = (path for path in self.folder.glob("*") if path.name.isdigit())
        return sorted(names, key=lambda path: int(path.name), reverse=True)


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _describe(leaf: Any, key: str) -> dict[str, Any]:
    array = _array(leaf)
    return {"key": key, "shape": list(array.shape), "dtype": str(array.dtype)}


def _damage(folder: Path) -> str:
    """Say what is wrong with the files of a checkpoint, or nothing."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    found = digests(folder)
    found.pop(_MANIFEST)
    if missing := sorted(set(expected) - set(found)):
        return f"{missing[0]} is missing"
    changed = sorted(name for name, digest in expected.items() if found[name] != digest)
    return f"{changed[0]} has changed" if changed else ""


def _read(folder: Path, placed: Mapping[str, Any]) -> Checkpoint:
    orbax = require("orbax.checkpoint")
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    described = manifest["arrays"]
    _check_structure(described, placed)
    targets = {name: _target(entry, placed.get(name)) for name, entry in described.items()}
    tree = {
        entry["key"]: targets[name] for name, entry in described.items() if np.size(targets[name])
    }
    with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(folder / "arrays", args=orbax.args.StandardRestore(tree))
    arrays = {
        name: restored.get(entry["key"], placed.get(name, targets[name]))
        for name, entry in described.items()
    }
    series = {name: (int(count), digest) for name, (count, digest) in manifest["series"].items()}
    return Checkpoint(int(manifest["step"]), arrays, series)


def _target(entry: Mapping[str, Any], like: Any) -> Any:
    """Give what tells orbax where an array goes: to the host, or to the devices of another."""
    if like is None:
        return np.empty(entry["shape"], np.dtype(entry["dtype"]))
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=like.sharding)


def _check_structure(described: Mapping[str, Any], placed: Mapping[str, Any]) -> None:
    for name, leaf in placed.items():
        here = (tuple(leaf.shape), str(leaf.dtype))
        entry = described.get(name)
        there = None if entry is None else (tuple(entry["shape"]), entry["dtype"])
        if here != there:
            raise StoreMismatch(
                f"the checkpoint holds {name} as {there}, and this version of slt_jax makes it "
                f"{here}: go on with the version that began the run, or choose another path"
            )
