"""A folder that keeps a run while it is sampled, and from which the same call goes on."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slt_jax.persistence import Contents, Identity
from slt_jax.storage.files import locked, require, writing
from slt_jax.storage.results import describe_result, is_result, write_result
from slt_jax.storage.root import Root
from slt_jax.storage.session import Session
from slt_jax.storage.termination import notice_of_termination

RESULT = "result.zarr"
_RUNS = "runs"


class Store:
    """A folder that keeps a run while it is sampled; the same call goes on from where it was.

    Pass it as ``store=`` to ``slt.sample`` or to an estimator. Between chunks, traces are appended
    to zarr arrays and the whole state is saved with orbax. After a crash, or once the process was
    killed, the same call continues from the last checkpoint: on a CPU with numbers equal to the bit
    to those of an uninterrupted run. A complete store given the same call is read back; asked for
    more draws, it goes on. On SIGTERM a checkpoint is made, and the process ends with status 143.

    The store knows the weights, the data, the settings and the loss at w* that it was made from; a
    call that differs in any of them is refused. Two versions of a loss function under the same name
    are told apart only if their losses at w* differ by more than 0.1 %. How a run is laid out
    (``slt.Execution``) may change; with it, the last bits of its numbers.

    Args:
        path: a folder; it is made if it does not exist.
        every_draws: make a checkpoint after so many draws; None for none by draws.
        every_minutes: make a checkpoint after so much time; None for none by time.

    Raises:
        ValueError: an interval that is not above 0.

    >>> Store("runs/llc", every_draws=1000)
    Store('runs/llc', every_draws=1000, every_minutes=10.0)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_draws: int | None = None,
        every_minutes: float | None = 10.0,
    ):
        for name, value in {"every_draws": every_draws, "every_minutes": every_minutes}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.path = Path(path)
        self.every_draws = every_draws
        self.every_minutes = every_minutes
        self._around: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}, every_draws={self.every_draws}, "
            f"every_minutes={self.every_minutes})"
        )

    def __str__(self) -> str:
        return f"{self.path}: {self.status}"

    @property
    def status(self) -> str:
        """What is in the store: nothing, how far its runs are, or whose result it holds."""
        if is_result(self.path / RESULT):
            kind, made = describe_result(self.path / RESULT)
            return f"complete: {kind}, made {made}"
        if Root(self.path).exists:
            return Root(self.path).status
        inner = [Root(path).status for path in sorted((self.path / _RUNS).glob("*"))]
        if not inner:
            return "empty"
        done = sum(status.startswith("complete") for status in inner)
        return f"incomplete: {len(inner)} runs begun, {done} of them complete"

    def within(self, name: str) -> "Store":
        """Give the store, inside this one, of one of several runs.

        Args:
            name: of the run, as ``"l0h1"``.
        """
        folder = self.path / _RUNS / urllib.parse.quote(name, safe=" ")
        inner = Store(folder, every_draws=self.every_draws, every_minutes=self.every_minutes)
        inner._around = (*self._around, self.path)
        return inner

    def keep(self, kind: str, tree: Any) -> None:
        """Write the result of the runs in the store; the estimators do.

        Args:
            kind: the name of its class.
            tree: an ``xarray.DataTree``.

        Raises:
            OSError: it cannot be written.
        """
        with writing(self.path, "The runs it rests on are kept."):
            self.path.mkdir(parents=True, exist_ok=True)
        write_result(self.path / RESULT, kind, tree)

    @contextlib.contextmanager
    def record(self, identity: Identity, contents: Contents) -> Iterator[Session]:
        """Open the store for a run; the estimators do.

        Raises:
            StoreMismatch: it holds another run.
            StoreDamaged: it cannot be read.
            BlockingIOError: another process writes to it.
            OSError: it cannot be written.
        """
        require("orbax.checkpoint")
        with writing(self.path, "Nothing was sampled."):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path), notice_of_termination() as notice:
            root = Root(self.path)
            root.open(identity, contents)
            session = Session(root, identity, contents, notice)
            session.schedule(self.every_draws, self.every_minutes)
            # What rests on fewer draws than there will be is no longer the store's result.
            session.outdates = tuple(path / RESULT for path in (*self._around, self.path))
            yield session
