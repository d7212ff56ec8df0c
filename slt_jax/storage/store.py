"""A folder that keeps a run while it is sampled, and from which the same call goes on."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from slt_jax.persistence import Identity, Layout
from slt_jax.storage.files import locked, require, writing
from slt_jax.storage.root import Root
from slt_jax.storage.session import Session
from slt_jax.storage.termination import notice_of_termination


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

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}, every_draws={self.every_draws}, "
            f"every_minutes={self.every_minutes})"
        )

    def __str__(self) -> str:
        return f"{self.path}: {self.status}"

    @property
    def status(self) -> str:
        """What is in the store: nothing, or how far its run is."""
        return Root(self.path).status

    def within(self, name: str) -> "Store":
        """Give the store, inside this one, of one of several runs.

        Args:
            name: of the run, as ``"l0h1"``.
        """
        folder = self.path / "runs" / urllib.parse.quote(name, safe=" ")
        return Store(folder, every_draws=self.every_draws, every_minutes=self.every_minutes)

    @contextlib.contextmanager
    def record(self, identity: Identity, layout: Layout) -> Iterator[Session]:
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
            root.open(identity, layout)
            yield Session(root, identity, layout, notice, self.every_draws, self.every_minutes)
