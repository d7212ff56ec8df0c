"""A run in progress and the store that keeps it: what is handed over, and how it is taken up."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from slt_jax._tree import path_table
from slt_jax.carry import Carry
from slt_jax.identity import identity_of
from slt_jax.persistence import AbstractStore, Contents, Recording, Saved, StoreMismatch
from slt_jax.run import Health, Run
from slt_jax.statistics import Trace, host_rows

if TYPE_CHECKING:
    from slt_jax.sampling import Ledger

_BURNIN = "burnin/gap"
_TOLERANCE = 1e-3


class NotStored(OSError):
    """Raised when a run or a result cannot be written to its store, as on a full disk.

    ``run`` is the run so far, so that nothing is lost: ``slt.extend(error.run, …)`` goes on from
    it, ``slt.llc_from(error.run)`` estimates from it. Where a result could not be written, it is
    ``result``. What was stored before stays as it was.
    """

    def __init__(self, message: str, run: Run | None = None, result: Any = None):
        super().__init__(message)
        self.run = run
        self.result = result


def check_store(store: Any) -> None:
    """Raise TypeError unless this is a store, or None."""
    if store is not None and not isinstance(store, AbstractStore):
        raise TypeError(f"store must be an slt.Store, as slt.Store('runs/llc'); got {store!r}")


@contextlib.contextmanager
def recorded(store: AbstractStore | None, run: Run) -> Iterator["Recorder"]:
    """Give the recorder of a run, whose ``run`` is where the store left it."""
    if store is None:
        yield Recorder(None, run, None)
        return
    with store.record(identity_of(run), _contents(run)) as recording:
        yield Recorder(recording, run, recording.resume())


def keep(store: AbstractStore | None, result: Any) -> Any:
    """Give the result back, written to the store of the runs that it rests on, if there is one.

    Raises:
        NotStored: it could not be written.
    """
    if store is not None:
        try:
            store.keep(type(result).__name__, result.to_tree())
        except OSError as error:
            raise NotStored(str(error), result=result) from error
    return result


@contextlib.contextmanager
def surviving(run: Run) -> Iterator[None]:
    """Hand a run to the user if what is made of it cannot be written.

    Raises:
        NotStored: with the run, instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise NotStored(f"{error}. The run is not lost: error.run", run) from error


class Recorder:
    """Hands a run in progress to a store after every chunk; without a store it does nothing."""

    def __init__(self, recording: Recording | None, run: Run, saved: Saved | None):
        self.recording = recording
        self.run = run if saved is None else _restored(run, saved)
        self._ended_early = saved is not None and saved.ended_early
        self._saved_step = None if saved is None else saved.step
        # What the store has: draws, draws of the burn-in, and observations of a statistic.
        self._num_handed = {"draws": 0, "burnin": 0} | dict.fromkeys(_kept(run), 0)
        if saved is not None:
            self._num_handed["draws"] = self.run.num_draws
            self._num_handed["burnin"] = self.run.burnin_gap.shape[-1]
            for name in _kept(run):
                self._num_handed[name] = len(self.run.totals.get(name, ()))

    def is_complete(self, ends_early: bool) -> bool:
        """Tell whether nothing is left to do, for a call whose hooks may end it early or not."""
        at_end = self.run.step >= self.run.settings.num_steps
        return at_end or (self._ended_early and ends_early)

    def visit(self, ledger: "Ledger", carry: Carry) -> None:
        """Hand over what is new, make a checkpoint if one is due, and end if asked to."""
        if self.recording is None:
            return
        ending = self.recording.terminating
        with _keeping(ledger, carry):
            self.recording.append(self._new(ledger))
            if ending or self.recording.is_due(ledger.step):
                self._save(self.recording, ledger, carry)
        if ending:
            self.recording.stop()

    def finish(self, ledger: "Ledger", carry: Carry) -> Run:
        """Give the run, marked as complete in the store and saying how it was made."""
        run = ledger.run(carry)
        if self.recording is None:
            return run
        with _keeping(ledger, carry):
            self.recording.append(self._new(ledger))
            if ledger.step != self._saved_step:
                self._save(self.recording, ledger, carry)
            self.recording.complete(ended_early=ledger.step < run.settings.num_steps)
        noted = dict(run.metadata) | self.recording.place.metadata
        return dataclasses.replace(run, metadata=noted)

    def _save(self, recording: Recording, ledger: "Ledger", carry: Carry) -> None:
        run = ledger.run(carry)
        recording.save(_arrays(run), _estimates(run), ledger.step)
        self._saved_step = ledger.step

    def _new(self, ledger: "Ledger") -> dict[str, np.ndarray]:
        """Give the draws and observations that the store does not have, dead draws as NaN."""
        first = self._num_handed["draws"]
        draws = np.arange(first, ledger.num_draws)
        dead = ledger.health.dead_draws(ledger.begun.settings, draws)
        series = {
            f"traces/{name}": np.where(dead, np.float32(np.nan), _last(parts, len(draws)))
            for name, parts in ledger.traces.items()
        }
        num_burnin = sum(part.shape[-1] for part in ledger.burnin_gap)
        series[_BURNIN] = _last(ledger.burnin_gap, num_burnin - self._num_handed["burnin"])
        self._num_handed |= {"draws": ledger.num_draws, "burnin": num_burnin}
        for name, statistic in _kept(ledger.begun).items():
            total = ledger.totals.get(name, ())
            if len(total) > self._num_handed[name]:
                observed = path_table(statistic.series(total, self._num_handed[name]))
                series |= {_observed(name, path): leaf for path, leaf in observed.items()}
            self._num_handed[name] = len(total)
        return series


@contextlib.contextmanager
def _keeping(ledger: "Ledger", carry: Carry) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A chunk consumes its carry, but the next one will not be run: this one is the user's.
        raise NotStored(str(error), ledger.run(carry)) from error


def _last(parts: list[np.ndarray], count: int) -> np.ndarray:
    """Join the last ``count`` draws of a list of parts, without joining what came before."""
    chosen, found = [parts[0][..., :0]], 0
    for part in reversed(parts):
        if found >= count:
            break
        chosen.insert(1, part)
        found += part.shape[-1]
    return np.concatenate(chosen, axis=-1)[..., found - count :]


def _kept(run: Run) -> dict[str, Trace]:
    """Give the statistics that keep every observation, by name of the observable."""
    return {
        name: observable.statistic
        for name, observable in run.observables.items()
        if isinstance(observable.statistic, Trace)
    }


def _observed(name: str, path: str) -> str:
    return f"observed/{name}/{'.'.join(['value', *path.split('/')] if path else ['value'])}"


def _arrays(run: Run) -> dict[str, Any]:
    """Give all that a run needs to go on, apart from what grows with the draws, by name."""
    sums = {name: total for name, total in run.totals.items() if name not in _kept(run)}
    least = np.float64(run.smallest_step_size)
    return _placed(run) | path_table({"sums": sums, "smallest_step_size": least})


def _placed(run: Run) -> dict[str, Any]:
    return path_table({"carry": run.carry, "centers": run.centers})


def _contents(run: Run) -> Contents:
    settings, rows = run.settings, (len(run.components), run.settings.num_chains)
    series = {f"traces/{name}": (*rows, settings.num_draws) for name in run.traces}
    series[_BURNIN] = (*rows, settings.num_burnin_steps // settings.num_steps_bw_draws)
    for name, statistic in _kept(run).items():
        count = -(-settings.num_draws // run.observables[name].every) // statistic.batch_length
        for path, leaf in path_table(run.carry.partials[name]).items():
            series[_observed(name, path)] = (*rows, count, *leaf.shape[1:])
    return Contents(
        _placed(run), series, tuple(run.components), settings.num_steps, settings.num_steps_bw_draws
    )


def _estimates(run: Run) -> dict[str, np.ndarray]:
    """Give values and standard errors of the statistics so far, by name."""
    found = {}
    for name in run.observables:
        estimate = None if name in _kept(run) else run.estimate(name)
        if estimate is not None:
            found[name] = {"value": estimate.value, "standard_error": estimate.standard_error}
    return path_table(found)


def _restored(run: Run, saved: Saved) -> Run:
    """Give the saved run, with the code, the weights and the data of one that is just begun."""
    _check_centers(run, saved)
    like = {"carry": run.carry, "centers": run.centers}
    placed = jax.tree.unflatten(
        jax.tree.structure(like), [saved.arrays[path] for path in path_table(like)]
    )
    carry, count = placed["carry"], len(run.components)
    alive, died_at = jax.device_get((carry.alive, carry.died_at))
    return dataclasses.replace(
        run,
        carry=carry,
        centers=placed["centers"],
        step=saved.step,
        traces={name: saved.series[f"traces/{name}"] for name in run.traces},
        burnin_gap=saved.series[_BURNIN],
        totals=_restored_totals(run, saved),
        health=Health(host_rows(alive, count), host_rows(died_at, count)),
        smallest_step_size=float(saved.arrays["smallest_step_size"]),
    )


def _check_centers(run: Run, saved: Saved) -> None:
    """Refuse observables that give other values at w* than those in the store did."""
    for name, center in run.centers.items():
        for path, here in path_table({"centers": {name: center}}).items():
            here, there = jax.device_get((here, saved.arrays[path]))
            if not np.allclose(here, there, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise StoreMismatch(
                    f"the store was made with another observable {name!r}: at w* it gave other "
                    "values. Choose another path for this call"
                )


def _restored_totals(run: Run, saved: Saved) -> dict[str, Any]:
    totals, kept = {}, _kept(run)
    for name, observable in run.observables.items():
        partial = run.carry.partials[name]
        if name in kept:
            leaves = [saved.series[_observed(name, path)] for path in path_table(partial)]
            if leaves[0].shape[2]:
                series = jax.tree.unflatten(jax.tree.structure(partial), leaves)
                totals[name] = kept[name].from_series(series)
            continue
        # One row is enough to learn what a total consists of.
        first = jax.tree.map(lambda leaf: host_rows(leaf[:1], 1), jax.device_get(partial))
        like = {"sums": {name: observable.statistic.contribution(first, True)}}
        paths = path_table(like)
        if all(path in saved.arrays for path in paths):
            leaves = [_as(leaf, saved.arrays[path]) for path, leaf in paths.items()]
            totals[name] = jax.tree.unflatten(jax.tree.structure(like), leaves)["sums"][name]
    return totals


def _as(like: Any, array: Any) -> Any:
    """Give a restored array as the Python number that it was, if it was one."""
    return type(like)(array) if isinstance(like, (int, float)) else array
