"""The one loop: sample a posterior with a kernel, in chunks, with many chains at once."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from slt_jax._tree import on_device, split
from slt_jax._types import ChainKey, setting
from slt_jax.carry import Carry
from slt_jax.chunk import (
    WHERE_CARRY,
    Problem,
    Records,
    Schedule,
    Shape,
    run_chunk,
    where_arrays,
)
from slt_jax.data import Batches
from slt_jax.inputs import Feed, Source, Window
from slt_jax.kernels.base import AbstractKernel
from slt_jax.observables import AbstractObservable
from slt_jax.persistence import AbstractStore
from slt_jax.placement import hand_over, place
from slt_jax.posterior import LocalPosterior
from slt_jax.preparation import prepare
from slt_jax.progress import ProgressBar
from slt_jax.recording import Recorder, check_store, recorded
from slt_jax.run import Execution, Health, Progress, Run, SampleOptions
from slt_jax.statistics import host_rows
from slt_jax.validation import check_arguments, check_execution, check_settings

_LONGEST_CHUNK = 256
# Programs that run side by side on a CPU queue parts of their products for threads to help with.
# Where every thread runs such a program, nobody takes them, and they are kept until it ends:
# megabytes per step of a transformer.
_LONGEST_SIDE_BY_SIDE = 16
_CHUNK_BYTES = 2**28


def sample(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    **options: Unpack[SampleOptions],
) -> Run:
    """Sample the localized posterior with many chains and give the run.

    Every row, a (component, chain) pair, has the key fold_in(fold_in(key, selection), chain) and
    uses fold_in of it with the step: its randomness depends on nothing else. Rows that become
    non-finite are frozen and recorded in ``run.health``; ``sample`` never raises for them.

    Programs are compiled at the first call with a loss, in every process anew unless JAX keeps
    them on disk; one line before the first call makes it:
    ``jax.config.update("jax_compilation_cache_dir", "/a/folder/of/yours")``.

    Args:
        posterior: what to sample.
        kernel: ``slt.sgld(…)``, ``slt.sghmc(…)``, ``slt.sgnht(…)``, or the exact full-batch
            ``slt.mala``, ``slt.hmc``, ``slt.nuts``, for which ``batches`` is its whole data set.
        batches: where minibatches come from.
        key: one typed threefry key, as from ``jax.random.key(0)``.
        **options: see ``slt.SampleOptions``; defaults are 4 chains, 1000 draws, 500 burn-in
            steps and one step per draw.

    Returns:
        The run: traces, statistics, health and what is needed to go on.

    Raises:
        TypeError, ValueError: arguments that cannot be sampled, before the sampler is compiled.

    >>> import jax.numpy as jnp
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    >>> posterior = LocalPosterior(
    ...     loss, {"w": data.mean(0)}, n_beta=20.0, localization=1.0)
    >>> from slt_jax.kernels import sgld
    >>> run = sample(posterior, sgld(1e-2), Batches(data, 16), jax.random.key(0),
    ...              num_chains=2, num_draws=50, num_burnin_steps=50, progress=False)
    >>> run.traces["gap"].shape
    (1, 2, 50)
    """
    check_arguments(posterior, kernel, batches, key)
    check_store(options.get("store"))
    run = prepare(posterior, kernel, batches, key, options)
    with recorded(options.get("store"), run) as recorder:
        return _continue(recorder, options.get("progress", True), options.get("hooks", ()))


def extend(
    run: Run,
    num_draws: int,
    *,
    execution: Execution | None = None,
    progress: bool = True,
    hooks: Sequence[Callable[[Progress], bool | None]] = (),
    store: AbstractStore | None = None,
) -> Run:
    """Give the run with ``num_draws`` further draws per chain, as if it had not been interrupted.

    The given run stays as it is: extending it twice gives the same answer twice.

    Args:
        run: from ``sample`` or ``extend``.
        num_draws: further draws per chain.
        execution: another layout in time and memory; None for that of the run.
        progress: show a progress bar.
        hooks: called after every chunk with a ``Progress``.
        store: an ``slt.Store`` that keeps the extended run, or already holds it.
    """
    check_settings(dataclasses.replace(run.settings, num_draws=num_draws))
    settings = dataclasses.replace(run.settings, num_draws=run.num_draws + num_draws)
    check_settings(settings)
    execution = execution or run.execution
    check_execution(execution, settings, run.posterior)
    # The program consumes its carry: give it a copy, so that the run in the user's hands lives on.
    carry = jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False), run.carry)
    extended = dataclasses.replace(run, settings=settings, carry=carry, execution=execution)
    with recorded(store, extended) as recorder:
        return _continue(recorder, progress, hooks)


class Segment(NamedTuple):
    """The steps of one chunk: where it begins, how many, and where its observations begin."""

    first_step: int
    num_steps: int
    first_observation: int
    is_burnin: bool


def _segments(run: Run, length: int) -> list[Segment]:
    """Cut the remaining steps into chunks that do not straddle the end of the burn-in."""
    settings = run.settings
    every = _fresh_interval(run)
    segments, step = [], run.step
    while step < settings.num_steps:
        in_burnin = step < settings.num_burnin_steps
        end = settings.num_burnin_steps if in_burnin else settings.num_steps
        count = min(length, end - step)
        draw = max(step - settings.num_burnin_steps, 0) // settings.num_steps_bw_draws
        segments.append(Segment(step, count, -(-draw // every), in_burnin))
        step += count
    return segments


def _fresh_interval(run: Run) -> int:
    return max((o.every for o in run.observables.values() if o.num_fresh), default=1)


def _compiled(run: Run) -> dict[str, AbstractObservable]:
    return {name: observable.compiled() for name, observable in run.observables.items()}


def _chunk_length(run: Run, feed: Feed) -> int:
    """Give the steps of a chunk: as asked for, or as many as its buffers should grow to."""
    layout, asked = run.execution.layout, run.execution.steps_per_chunk
    if asked is not None:
        return asked
    longest = _LONGEST_SIDE_BY_SIDE if layout and layout.splits_processor else _LONGEST_CHUNK
    held = sum(
        leaf.nbytes / (observable.every * observable.statistic.batch_length)
        for name, observable in _compiled(run).items()
        for leaf in jax.tree.leaves(run.carry.partials[name])
    )
    steps = chunk_steps(feed.bytes_per_step + held / run.settings.num_steps_bw_draws)
    return min(longest, steps)


def chunk_steps(bytes_per_step: float) -> int:
    """Give the steps of a chunk whose buffers grow by this much per step."""
    return max(1, min(_LONGEST_CHUNK, int(_CHUNK_BYTES // max(bytes_per_step, 1))))


def _continue(
    recorder: Recorder, show: bool, hooks: Sequence[Callable[[Progress], bool | None]]
) -> Run:
    """Run the chunks that are left, showing progress, storing and calling hooks in between."""
    run = recorder.run
    if recorder.is_complete(ends_early=bool(hooks)):
        return recorder.finish(Ledger(run), run.carry)
    feed = _feed(run)
    length = _chunk_length(run, feed)
    shape = Shape(
        length // run.settings.num_steps_bw_draws + 1,
        run.execution.batch_of_rows,
        run.batches.per_chain and not run.kernel.full_batch,
        run.execution.probe_cache_bytes,
        run.execution.layout,
    )
    problem = Problem(run.posterior, run.kernel, _compiled(run), run.rows, dict(run.centers))
    arrays, static = split(problem)
    layout, ledger = run.execution.layout, Ledger(run)
    arrays = place(layout, on_device(arrays), where_arrays(static))
    carry = hand_over(layout, run.carry, WHERE_CARRY)
    supply, profiled = _supply(run, feed, length, shape), _profiled_step(run, length)
    upcoming = next(supply, None)
    with ProgressBar(run, enabled=show) as bar:
        while upcoming is not None:
            segment, sources = upcoming
            with _profile(run.execution.profile if segment.first_step == profiled else None):
                carry, records = run_chunk(
                    static, arrays, carry, sources, _schedule(run, segment), shape=shape
                )
                # Dispatch is asynchronous: the next batches are gathered while the device works.
                upcoming = next(supply, None)
                ledger.absorb(segment, records, carry)
                # Finished sums may be large: make room for those of the next chunk.
                del records
            bar.show(ledger)
            recorder.visit(ledger, carry)
            progress = _progress(ledger, carry)
            answers = [hook(progress) for hook in hooks]
            if any(answers):
                break
    return recorder.finish(ledger, carry)


def _profiled_step(run: Run, length: int) -> int:
    """Give where the second chunk begins, or the first of draws after it: all is compiled then."""
    segments = _segments(run, length)
    later = (segment for segment in segments[1:] if not segment.is_burnin)
    return next(later, segments[-1]).first_step


def _profile(folder: str | os.PathLike[str] | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if folder is None else jax.profiler.trace(os.fspath(folder))


def _feed(run: Run) -> Feed:
    weight = run.survey.mean_weight
    return Feed(
        run.batches,
        run.key,
        None if weight is None else setting(weight),
        run.settings.num_chains,
        run.execution.device_data_bytes,
        run.kernel.full_batch,
        run.execution.layout,
    )


def _supply(
    run: Run, feed: Feed, length: int, shape: Shape
) -> Iterator[tuple[Segment, tuple[Source, Source | None]]]:
    """Give the segments with their minibatches, the numbers of the next ones drawn ahead."""
    fresh = [observable for observable in _compiled(run).values() if observable.num_fresh]
    num_fresh = max((observable.num_fresh for observable in fresh), default=0)
    closest = min((observable.every for observable in fresh), default=1)
    window = Window(length, shape.num_draws // closest + 1 if fresh else 0, num_fresh)
    segments = _segments(run, length)
    queued = [feed.indices(s.first_step, s.first_observation, window) for s in segments[:1]]
    for number, segment in enumerate(segments):
        sources = feed.sources(queued.pop(), segment.num_steps, _num_observations(run, segment))
        # Queued before this segment's program is: the host need not wait for that to end.
        queued += [
            feed.indices(s.first_step, s.first_observation, window)
            for s in segments[number + 1 : number + 2]
        ]
        yield segment, sources


def _num_observations(run: Run, segment: Segment) -> int:
    """Bound the observations on fresh batches that fall due in a chunk."""
    if segment.is_burnin:
        return 0
    num_draws = segment.num_steps // run.settings.num_steps_bw_draws + 1
    return num_draws // _fresh_interval(run) + 1


def _schedule(run: Run, segment: Segment) -> Schedule:
    counts = (
        segment.num_steps,
        run.settings.num_burnin_steps,
        run.settings.num_steps_bw_draws,
        _fresh_interval(run),
        segment.first_observation,
    )
    schedule = Schedule(*(jax.device_put(np.int32(count)) for count in counts))
    return place(run.execution.layout, schedule)


def _progress(ledger: "Ledger", carry: Any) -> Progress:
    def snapshot() -> Run:
        return ledger.run(jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False), carry))

    return Progress(
        ledger.step,
        ledger.begun.settings.num_steps,
        ledger.num_draws,
        ledger.health.alive,
        ledger.gap,
        snapshot,
    )


class Ledger:
    """The host's record of a run in progress: traces, totals and health, merged in float64."""

    def __init__(self, begun: Run):
        self.begun = begun
        self.step = begun.step
        self.health = begun.health
        self.traces = {name: [trace] for name, trace in begun.traces.items()}
        self.burnin_gap = [begun.burnin_gap]
        self.totals = dict(begun.totals)
        self.smallest_step_size = begun.smallest_step_size
        # What a run holds lies where it lay before, whatever the layout in which it was sampled.
        self._begun_at = jax.tree.map(lambda leaf: leaf.sharding, begun.carry)

    @property
    def num_draws(self) -> int:
        """The number of draws per chain so far."""
        return sum(part.shape[-1] for part in self.traces["gap"])

    def gap(self) -> np.ndarray:
        """The paired gap in nats of the draws so far, ``[component, chain, draw]``."""
        return np.concatenate(self.traces["gap"], axis=-1)

    def absorb(self, segment: Segment, records: Records, carry: Carry) -> None:
        """Take in what one chunk reported, when it has."""
        records, health = jax.device_get((records, (carry.alive, carry.died_at)))
        count = len(self.begun.components)
        num_draws = int(records.num_draws)
        for name, trace in records.traces.items():
            rows = host_rows(trace[:num_draws].T, count)
            if not segment.is_burnin:
                self.traces[name].append(rows)
            elif name == "gap":
                self.burnin_gap.append(rows)
        for name, observable in self.begun.observables.items():
            for slot in range(int(records.num_finished[name])):
                sums = jax.tree.map(
                    lambda leaf, slot=slot: host_rows(leaf[slot], count), records.finished[name]
                )
                self._merge(self.totals, name, observable.statistic.contribution(sums, True))
        self.health = Health(*(host_rows(leaf, count) for leaf in health))
        self.smallest_step_size = float(records.smallest_step_size.min())
        self.step += segment.num_steps

    def _merge(self, totals: dict[str, Any], name: str, contribution: Any) -> None:
        statistic = self.begun.observables[name].statistic
        totals[name] = statistic.merge(totals.get(name), contribution)

    def run(self, carry: Any) -> Run:
        """Give the run so far; what a dead chain would have reported after its death is NaN."""
        traces = {name: np.concatenate(parts, axis=-1) for name, parts in self.traces.items()}
        dead = self.health.dead_draws(self.begun.settings, np.arange(self.num_draws))
        if self.begun.execution.layout is not None:
            carry = jax.device_put(carry, self._begun_at)
        return dataclasses.replace(
            self.begun,
            carry=carry,
            step=self.step,
            traces={name: np.where(dead, np.float32(np.nan), t) for name, t in traces.items()},
            burnin_gap=np.concatenate(self.burnin_gap, axis=-1),
            totals=self.totals.copy(),
            health=self.health,
            smallest_step_size=self.smallest_step_size,
        )
