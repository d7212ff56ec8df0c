"""The root of a store: what its run was made from, how far it is, and whether it is complete."""

import datetime
from pathlib import Path
from typing import Any

from slt_jax.persistence import Contents, Identity, StoreDamaged, StoreMismatch
from slt_jax.storage.comparison import as_attributes, check_identity
from slt_jax.storage.files import require, writing

FORMAT = "slt_jax run"
VERSION = 1


class Root:
    """The zarr group of a store, and its attributes.

    Args:
        path: the folder of the store.
    """

    def __init__(self, path: Path):
        self.path = path
        self.zarr_path = path / "run.zarr"
        self._group: Any = None

    @property
    def exists(self) -> bool:
        """Whether there is a run in the store."""
        return (self.zarr_path / "zarr.json").exists()

    @property
    def group(self) -> Any:
        """The ``zarr.Group``.

        Raises:
            StoreDamaged: there is one, but it cannot be read.
        """
        if self._group is None:
            zarr = require("zarr")
            try:
                self._group = zarr.open_group(self.zarr_path, mode="r+")
            except (OSError, ValueError, KeyError) as error:
                raise StoreDamaged(
                    f"the store {self.path} cannot be read: its zarr.json is damaged ({error}). "
                    "Delete the store, or choose another path"
                ) from error
        return self._group

    @property
    def attributes(self) -> dict[str, Any]:
        """Everything that is written at the root."""
        return dict(self.group.attrs)

    @property
    def status(self) -> str:
        """How far the run is."""
        if not self.exists:
            return "empty"
        held = self.attributes
        if held["completed"]:
            return f"complete: {held['num_draws']} draws, made {held['completed_at']}"
        return f"incomplete: at step {held['step']} of {held['num_steps']}"

    def open(self, identity: Identity, contents: Contents) -> None:
        """Make the root if there is none; refuse it if it belongs to something else.

        Raises:
            StoreMismatch: it was made from something else, or by a newer version.
            StoreDamaged: it cannot be read.
        """
        if not self.exists:
            self._make(identity, contents)
            return
        for stray in self.zarr_path.rglob("*.partial"):
            stray.unlink()
        held = self.attributes
        if held.get("format") != FORMAT:
            raise StoreMismatch(f"{self.path} is not a run kept by slt_jax: choose another path")
        if held["format_version"] > VERSION:
            raise StoreMismatch(
                f"the store {self.path} was written by a newer slt_jax (format "
                f"{held['format_version']}, this version knows up to {VERSION}): upgrade slt_jax, "
                "or choose another path"
            )
        check_identity(self.path, held["identity"], identity)

    def _make(self, identity: Identity, contents: Contents) -> None:
        known = {"lock", "runs", self.zarr_path.name}
        strangers = sorted({path.name for path in self.path.iterdir()} - known)
        if strangers:
            raise StoreMismatch(
                f"{self.path} holds {strangers[0]} and no run of slt_jax: choose another path"
            )
        attributes = {
            "format": FORMAT,
            "format_version": VERSION,
            "completed": False,
            "ended_early": False,
            "step": 0,
            "num_steps": contents.num_steps,
            "num_draws": 0,
            "components": list(contents.components),
            "identity": as_attributes(identity),
            "sessions": [],
        }
        with writing(self.path, "Nothing was sampled."):
            zarr = require("zarr")
            self._group = zarr.open_group(self.zarr_path, mode="a", attributes=attributes)

    def update(self, **attributes: Any) -> None:
        """Change attributes at the root."""
        self.group.attrs.update(attributes)


def now() -> str:
    """Give the time, to the second, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
