"""What a sampling call takes and gives: options, execution, health, and the run."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import numpy as np

from slt_jax._types import ChainKey
from slt_jax.carry import Carry, Rows
from slt_jax.data import Batches
from slt_jax.kernels.base import AbstractKernel
from slt_jax.observables import AbstractObservable, Positions
from slt_jax.persistence import PLACE, AbstractStore, Place
from slt_jax.placement import Layout
from slt_jax.posterior import LocalPosterior
from slt_jax.restriction import Restriction
from slt_jax.statistics import Estimate, host_rows
from slt_jax.survey import Survey


class ChainsDiverged(ValueError):
    """Raised when a number is asked of a run in which chains became non-finite.

    ``run`` is that run, so that nothing is lost: ``slt.llc_from(error.run, drop_diverged=True)``.
    ``result`` is what an estimator that made several runs says without those chains, else None.
    """

    def __init__(self, message: str, run: "Run", result: Any = None):
        super().__init__(message)
        self.run = run
        self.result = result


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is laid out in time and memory; it never changes what is computed.

    Args:
        rows: ``"vmap"`` computes all chains at once; ``"map"`` one after the other, with results
            that do not depend on how many there are, to the bit.
        rows_at_once: with ``rows="map"``, how many are computed together; None for one.
        steps_per_chunk: steps between two visits of the host, where progress is shown, traces are
            collected and hooks run; None for 256, or for fewer where batches or statistics of so
            many would take over 256 MB, or where devices are parts of a CPU (16).
        device_data_bytes: data sets up to this size are placed on the device and gathered there;
            larger ones are gathered on the host, chunk by chunk, one ahead. The same batches.
        probe_cache_bytes: activations of probes that no draw changes, those below the layer that
            moves and beside the one head that moves, are computed once per chunk while they take
            up to this size in all; beyond it, at every draw.
        profile: a folder for a profile of one chunk of draws, after everything is compiled: open it
            with XProf (``pip install xprof; xprof <folder>``) or Perfetto. None for no profile.
        layout: an ``slt.Layout``, to spread the chains over several devices; None for one device,
            or for those on which the weights lie.

    Raises:
        ValueError: a setting out of range, or ``rows_at_once`` where all rows are computed at once.
        TypeError: a layout that is none.
    """

    rows: Literal["vmap", "map"] = "vmap"
    rows_at_once: int | None = None
    steps_per_chunk: int | None = None
    device_data_bytes: int = 2**28
    probe_cache_bytes: int = 2**29
    profile: str | os.PathLike[str] | None = None
    layout: Layout | None = None

    def __post_init__(self):
        if self.rows not in ("vmap", "map"):
            raise ValueError(f'rows must be "vmap" or "map", got {self.rows!r}')
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1, got {self.rows_at_once}")
        if self.rows_at_once is not None and self.rows == "vmap":
            raise ValueError(
                'rows="vmap" computes all rows at once: for some at a time, write '
                f'slt.Execution(rows="map", rows_at_once={self.rows_at_once})'
            )
        if self.steps_per_chunk is not None and self.steps_per_chunk < 1:
            raise ValueError(f"steps_per_chunk must be at least 1, got {self.steps_per_chunk}")
        if self.layout is not None and not isinstance(self.layout, Layout):
            raise TypeError(f"layout must be an slt.Layout, got {self.layout!r}")

    @property
    def batch_of_rows(self) -> int | None:
        """Rows per ``lax.map`` iteration, or None for one ``vmap`` over all."""
        return None if self.rows == "vmap" else (self.rows_at_once or 1)


class Progress(NamedTuple):
    """What a hook sees after every chunk. A hook that returns True ends the run early.

    ``gap()`` gives the paired gap in nats, ``[component, chain, draw]``, of the draws so far;
    ``snapshot()`` the run so far, which stays valid.
    """

    step: int
    num_steps: int
    num_draws: int
    alive: np.ndarray
    gap: Callable[[], np.ndarray]
    snapshot: Callable[[], "Run"]


class SampleOptions(TypedDict, total=False):
    """The keywords that ``sample`` and every estimator share.

    num_chains: chains per component.
    num_draws: draws per chain, after burn-in.
    num_burnin_steps: steps that are discarded, in which preconditioners adapt.
    num_steps_bw_draws: steps per draw.
    components: named restrictions of equal signature, sampled side by side as rows.
    observables: named quantities to measure at the draws.
    collect: ``slt.Positions(every=…)`` to keep draws.
    dispersed: start chains from N(w*, I/γ) instead of w*.
    paired: leave the component out of the keys: common random numbers across components.
    survey_examples: examples used for the loss and gradient at w*; None for a default.
    execution: an ``slt.Execution``.
    progress: show a progress bar.
    hooks: called after every chunk with a ``Progress``.
    store: an ``slt.Store`` that keeps the run on disk while it is sampled; the same call goes on
        from there.
    """

    num_chains: int
    num_draws: int
    num_burnin_steps: int
    num_steps_bw_draws: int
    components: Mapping[str, Restriction] | None
    observables: Mapping[str, AbstractObservable] | None
    collect: Positions | None
    dispersed: bool
    paired: bool
    survey_examples: int | None
    execution: Execution
    progress: bool
    hooks: Sequence[Callable[[Progress], bool | None]]
    store: AbstractStore | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The validated options of a run: what decides its numbers."""

    num_chains: int
    num_draws: int
    num_burnin_steps: int
    num_steps_bw_draws: int
    dispersed: bool
    paired: bool
    survey_examples: int | None

    @property
    def num_steps(self) -> int:
        """Steps per chain, burn-in included."""
        return self.num_burnin_steps + self.num_draws * self.num_steps_bw_draws


class Health(NamedTuple):
    """Which rows stayed finite.

    ``alive`` is bool ``[component, chain]``; ``died_at`` the step at which a row became non-finite
    and was frozen at its last finite state, −1 for the living.
    """

    alive: np.ndarray
    died_at: np.ndarray

    def dead_draws(self, settings: Settings, draws: np.ndarray) -> np.ndarray:
        """Tell which of these draws a row did not live to see, ``[component, chain, draw]``.

        A draw is dead if the row died in any of its steps.
        """
        last_steps = settings.num_burnin_steps + settings.num_steps_bw_draws * (1 + draws)
        return ~self.alive[..., None] & (last_steps > self.died_at[..., None])

    def __str__(self) -> str:
        dead = int((~self.alive).sum())
        if not dead:
            return f"all {self.alive.size} chains finite"
        steps = ", ".join(str(step) for step in self.died_at[~self.alive])
        return f"{dead} of {self.alive.size} chains became non-finite (at steps {steps})"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything to report from, or to go on from with ``slt.extend(run, num_draws=…)``.

    ``traces`` maps names to float32 arrays ``[component, chain, draw]``: ``gap`` (nats),
    ``distance`` from w*, the norms of gradient, noise and localization as applied (weight units),
    ``acceptance`` and ``weight``. ``smallest_step_size`` is the least ε_i of any weight and row, in
    weight². ``burnin_gap`` is the gap during burn-in. A run is never consumed:
    continuing it twice gives the same answer twice.
    """

    posterior: LocalPosterior
    kernel: AbstractKernel
    batches: Batches
    key: ChainKey
    settings: Settings
    execution: Execution
    components: Mapping[str, Restriction]
    observables: Mapping[str, AbstractObservable]
    survey: Survey
    rows: Rows
    carry: Carry
    step: int
    traces: Mapping[str, np.ndarray]
    burnin_gap: np.ndarray
    totals: Mapping[str, Any]
    centers: Mapping[str, Any]
    health: Health
    smallest_step_size: float
    metadata: Mapping[str, Any]

    @property
    def num_draws(self) -> int:
        """The number of draws per chain so far."""
        return self.traces["gap"].shape[-1]

    def total(self, name: str) -> Any:
        """Give the float64 sums of an observable over all its draws so far, None if none."""
        statistic, total = self.observables[name].statistic, self.totals.get(name)
        if not int(jax.device_get(self.carry.counts[name])):
            return total
        sums = jax.device_get(self.carry.partials[name])
        rows = jax.tree.map(lambda leaf: host_rows(leaf, len(self.components)), sums)
        return statistic.merge(total, statistic.contribution(rows, finished=False))

    @property
    def statistics(self) -> dict[str, Estimate]:
        """The estimate of every observable, relative to its value at w*, over all its draws."""
        estimates = {name: self.estimate(name) for name in self.observables}
        return {name: estimate for name, estimate in estimates.items() if estimate is not None}

    def estimate(self, name: str) -> Estimate | None:
        """Give the estimate of one observable, or None if it was never measured."""
        total = self.total(name)
        return self.observables[name].statistic.finalize(total) if total else None

    @property
    def positions(self) -> dict[str, np.ndarray]:
        """The collected displacements by block, float32 ``[component, chain, draw, ...]``."""
        if "positions" not in self.totals:
            raise ValueError("no draws were kept: sample with collect=slt.Positions(every=…)")
        draws = self.statistics["positions"].value
        return dict(zip(self.posterior.restriction.labels, draws, strict=True))

    def to_arviz(self) -> Any:
        """Give the run as ArviZ inference data: collected draws and sampler statistics.

        Raises:
            ImportError: arviz is not installed.
            ValueError: more than one component.
        """
        import arviz
        import xarray

        if len(self.components) != 1:
            raise ValueError(f"one component at a time; this run has {list(self.components)}")
        draws = self.positions if "positions" in self.totals else {}
        groups = {
            "posterior": _dataset({name: values[0] for name, values in draws.items()}),
            "sample_stats": _dataset({name: trace[0] for name, trace in self.traces.items()}),
        }
        groups["sample_stats"].attrs |= {name: str(value) for name, value in self.metadata.items()}
        if hasattr(arviz, "InferenceData"):
            return arviz.InferenceData(**groups)
        return xarray.DataTree.from_dict(groups)

    def __str__(self) -> str:
        return (
            f"Run({len(self.components)} components × {self.settings.num_chains} chains, "
            f"{self.num_draws} draws after {self.settings.num_burnin_steps} burn-in steps; "
            f"{self.health}){kept_in(self.metadata)}"
        )


def kept_in(metadata: Mapping[str, Any]) -> str:
    """Say where a run is kept, and whether it was read from there instead of being sampled."""
    return f"\n  kept in {_place(metadata)}" if "store" in metadata else ""


def kept_together(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Give what the metadata of a result say of the places where its runs are kept.

    Args:
        runs: the metadata of the runs.

    >>> places = Place("a: b", "reused", "complete since noon"), Place("c"), Place("d")
    >>> kept_in(kept_together(place.metadata for place in places)).strip()
    'kept in 3 stores: 1 reused, 2 sampled'
    >>> kept_in(kept_together([places[0].metadata] * 2)).strip()
    'kept in a: b: reused, complete since noon'
    >>> kept_together([{}])
    {}
    """
    places = dict.fromkeys(_place(told) for told in runs if "store" in told)
    if len(places) < 2:
        return next((place.metadata for place in places), {})
    counts = Counter(place.use for place in places)
    uses = ", ".join(f"{count} {use}" for use, count in counts.items())
    return Place(f"{len(places)} stores", uses).metadata


def _place(metadata: Mapping[str, Any]) -> Place:
    return Place(*(metadata[name] for name in PLACE))


def _dataset(arrays: dict[str, np.ndarray]) -> Any:
    """Name the axes of arrays ``[chain, draw, ...]``."""
    import xarray

    return xarray.Dataset(
        {
            name: (
                ("chain", "draw", *(f"{name}_dim_{k}" for k in range(array.ndim - 2))),
                array,
            )
            for name, array in arrays.items()
        }
    )
