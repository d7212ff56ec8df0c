"""One process's work on a store: taking a run up, keeping it, and marking it as complete."""

import math
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slt_jax.persistence import Contents, Identity, Place, Saved, StoreDamaged, StoreMismatch
from slt_jax.storage.checkpoints import Checkpoint, Checkpoints
from slt_jax.storage.files import writing
from slt_jax.storage.root import Root, now
from slt_jax.storage.series import SeriesLog
from slt_jax.storage.statistics import write_statistics
from slt_jax.storage.termination import Notice

_SECONDS_BETWEEN_APPENDS = 1.0
_TERMINATED = 143  # 128 + SIGTERM, as shells report it


class Session:
    """Keeps one run in a store.

    Args:
        root: of the store, open.
        identity: what the run is made from.
        contents: what the run will hold.
        notice: whether the process was asked to end.
    """

    outdates: tuple[Path, ...] = ()
    """Results that are not those of the store any more once the run goes on."""

    def __init__(self, root: Root, identity: Identity, contents: Contents, notice: Notice):
        self.root = root
        self.identity = identity
        self.contents = contents
        self.notice = notice
        self.checkpoints = Checkpoints(root.path / "checkpoints")
        self.interval_steps = self.interval_seconds = math.inf
        self.place = Place(str(root.path))
        self._log: SeriesLog
        self._waiting: list[Mapping[str, np.ndarray]] = []
        self._is_writing = False
        self._appended_at = self._saved_at = time.monotonic()
        self._saved_step = 0

    def schedule(self, every_draws: int | None, every_minutes: float | None) -> None:
        """Let a checkpoint be due after so many draws or so much time."""
        self.interval_steps = (every_draws or math.inf) * self.contents.num_steps_bw_draws
        self.interval_seconds = math.inf if every_minutes is None else 60 * every_minutes

    @property
    def terminating(self) -> bool:
        """Whether the process was asked to end."""
        return self.notice.given

    def resume(self) -> Saved | None:
        """Give the run as it was last saved, or None if it never was.

        Raises:
            StoreMismatch: the store has more draws than were asked for.
            StoreDamaged: no checkpoint is left that can be read.
        """
        held = self.root.attributes
        for checkpoint in self.checkpoints.newest_first(self.contents.placed):
            if checkpoint.step > self.contents.num_steps:
                raise StoreMismatch(
                    f"the store {self.root.path} is at step {checkpoint.step}, and this call "
                    f"asks for {self.contents.num_steps} only: ask for at least as many draws, or "
                    "choose another path"
                )
            self._log = self._open_log()
            try:
                series = self._log.read(checkpoint.series)
            except StoreDamaged as damage:
                self.checkpoints.set_aside(checkpoint.step, str(damage))
                continue
            return self._saved(checkpoint, series, held)
        if held["step"]:
            raise StoreDamaged(
                f"the store {self.root.path} was at step {held['step']}, but none of its "
                "checkpoints can be read: delete it to begin anew, or choose another path"
            )
        self._log = self._open_log()
        return None

    def _saved(self, checkpoint: Checkpoint, series: Any, held: Mapping[str, Any]) -> Saved:
        self._saved_step = checkpoint.step
        note = "the checkpoint after it being damaged" if self.checkpoints.has_damaged else ""
        self.place = Place(self.place.path, f"resumed at step {checkpoint.step}", note)
        ended_early = held["ended_early"] and held["step"] == checkpoint.step
        return Saved(checkpoint.step, ended_early, checkpoint.arrays, series)

    def _open_log(self) -> SeriesLog:
        with writing(self.root.path, self._remains):
            return SeriesLog(self.root.group, self.contents.series)

    def is_due(self, step: int) -> bool:
        """Tell whether it is time for a checkpoint."""
        elapsed = time.monotonic() - self._saved_at
        due = step - self._saved_step >= self.interval_steps
        return due or elapsed >= self.interval_seconds

    def append(self, series: Mapping[str, np.ndarray]) -> None:
        """Take in further draws, and write what has gathered about once in a second."""
        new = {name: draws for name, draws in series.items() if draws.shape[2]}
        if new:
            self._waiting.append(new)
        if self._waiting and time.monotonic() - self._appended_at >= _SECONDS_BETWEEN_APPENDS:
            with writing(self.root.path, self._remains):
                self._write_series()

    def save(
        self, arrays: Mapping[str, Any], estimates: Mapping[str, np.ndarray], step: int
    ) -> None:
        """Make a checkpoint of the run at this step."""
        with writing(self.root.path, self._remains):
            self._write_series()
            write_statistics(self.root.zarr_path, self.root.path / "checkpoints", estimates)
            self.checkpoints.save(step, arrays, self._log.ends)
            self.root.update(step=step, num_draws=self._num_draws)
        self._saved_step, self._saved_at = step, time.monotonic()

    def complete(self, ended_early: bool) -> None:
        """Mark the run as complete; if it was so before, say that it is used again."""
        held = self.root.attributes
        if not held["completed"]:
            with writing(self.root.path, self._remains):
                self.root.update(completed=True, ended_early=ended_early, completed_at=now())
            return
        note = f"complete since {held['completed_at']}; nothing was sampled"
        self.place = Place(self.place.path, "reused", note)
        warnings.warn(f"store {self.place}", stacklevel=2)

    def stop(self) -> None:
        """End the process as it was asked to, saying how to go on.

        Raises:
            SystemExit: with status 143.
        """
        self.notice.obeyed = True
        print(
            f"Ended by SIGTERM. The run is saved in {self.root.path} at step {self._saved_step} of "
            f"{self.contents.num_steps}: the same call, or the same command, goes on from there.",
            file=sys.stderr,
        )
        raise SystemExit(_TERMINATED)

    @property
    def _remains(self) -> str:
        if not self._saved_step:
            return "No checkpoint had been made yet."
        return f"The checkpoint at step {self._saved_step} is intact."

    @property
    def _num_draws(self) -> int:
        ends = self._log.ends.items()
        return max(length for name, (length, _) in ends if name.startswith("traces/"))

    def _write_series(self) -> None:
        """Write what has gathered, noting first who does."""
        if not self._is_writing:
            sessions = self.root.attributes["sessions"]
            own = {
                "from_step": self._saved_step,
                "began": now(),
                "versions": dict(self.identity.versions),
            }
            self.root.update(
                completed=False,
                ended_early=False,
                num_steps=self.contents.num_steps,
                sessions=[*sessions, own],
            )
            for result in self.outdates:
                shutil.rmtree(result, ignore_errors=True)
            self._is_writing = True
        names = dict.fromkeys(name for series in self._waiting for name in series)
        for name in names:
            parts = [series[name] for series in self._waiting if name in series]
            self._log.append({name: np.concatenate(parts, axis=2)})
        self._waiting = []
        self._appended_at = time.monotonic()
