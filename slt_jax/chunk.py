"""The device program of the loop: one chunk of steps for all rows."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slt_jax._apart import apart
from slt_jax._tree import Static, all_finite, bytes_made, choose, join, norm, num_bytes
from slt_jax._types import Counter
from slt_jax.carry import Carry, Rows
from slt_jax.centers import centers
from slt_jax.inputs import Source
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.minibatch import Center, Minibatch, leading_axis, over_minibatches
from slt_jax.observables import AbstractObservable
from slt_jax.placement import BY_ROW, BY_SECOND_AXIS, EVERYWHERE, Layout, over_devices
from slt_jax.posterior import LocalPosterior


class Records(NamedTuple):
    """What a chunk reports: per-draw traces ``[draw, row]`` and finished batches of statistics.

    Finished batches are ``[batch, row, ...]``; ``smallest_step_size`` is that of every
    device's rows, in weight².
    """

    traces: dict[str, Float[Array, "draw row"]]
    finished: dict[str, Any]
    num_draws: Counter
    num_finished: dict[str, Counter]
    smallest_step_size: Float[Array, " device"]


class Problem(NamedTuple):
    """What a run samples: traced arrays and static code, split at the program's boundary."""

    posterior: LocalPosterior
    kernel: AbstractKernel
    observables: dict[str, AbstractObservable]
    rows: Rows
    centers: dict[str, Any]


class Schedule(NamedTuple):
    """Traced counts: steps in this chunk, burn-in steps, steps per draw.

    ``fresh_interval`` is in draws, from one observation on fresh batches to the next;
    ``first_observation`` counts those before this chunk.
    """

    num_steps: Counter
    num_burnin_steps: Counter
    num_steps_bw_draws: Counter
    fresh_interval: Counter
    first_observation: Counter


class Shape(NamedTuple):
    """Static capacities of a chunk, and how rows are computed."""

    num_draws: int
    batch_of_rows: int | None
    per_chain_batches: bool
    probe_cache_bytes: int
    layout: Layout | None


WHERE_CARRY = Carry._make(
    EVERYWHERE if name in ("step", "counts") else BY_ROW for name in Carry._fields
)
_OF_RECORDS = {"traces": BY_SECOND_AXIS, "finished": BY_SECOND_AXIS, "smallest_step_size": BY_ROW}
_WHERE_RECORDS = Records._make(_OF_RECORDS.get(name, EVERYWHERE) for name in Records._fields)


def where_arrays(static: Static) -> tuple[Any, ...]:
    """Tell for every array of a split ``Problem`` which devices need which part of it."""
    numbers = tuple(range(sum(static.is_array)))
    of_rows = jax.tree.leaves(join(numbers, static).rows)
    return tuple(BY_ROW if number in of_rows else EVERYWHERE for number in numbers)


@functools.partial(jax.jit, static_argnames=("static", "shape"), donate_argnames="carry")
def run_chunk(
    static: Static,
    arrays: Any,
    carry: Carry,
    sources: tuple[Source, Source | None],
    schedule: Schedule,
    *,
    shape: Shape,
) -> tuple[Carry, Records]:
    """Advance all rows by ``schedule.num_steps`` steps and record what fell due."""
    where = (where_arrays(static), WHERE_CARRY, EVERYWHERE, EVERYWHERE)
    advance = functools.partial(_run_chunk, static, shape)
    split = over_devices(shape.layout, advance, where, (WHERE_CARRY, _WHERE_RECORDS))
    return split(arrays, carry, sources, schedule)


def _run_chunk(
    static: Static,
    shape: Shape,
    arrays: Any,
    carry: Carry,
    sources: tuple[Source, Source | None],
    schedule: Schedule,
) -> tuple[Carry, Records]:
    problem = _reusing(join(arrays, static), shape.probe_cache_bytes)
    source, fresh = _with_centers(problem.posterior, sources)
    records = _empty_records(problem, carry, shape)

    def body(number: Counter, state: tuple[Carry, Records]) -> tuple[Carry, Records]:
        carry, records = state
        past_burnin = carry.step >= schedule.num_burnin_steps
        first = carry.step == schedule.num_burnin_steps
        info = jax.tree.map(lambda leaf: jnp.where(first, jnp.zeros_like(leaf), leaf), carry.info)
        with jax.named_scope("step"):
            carry = _advance(problem, carry._replace(info=info), source.take(number), shape)
        offset = jnp.where(past_burnin, schedule.num_burnin_steps, 0)
        steps_taken = carry.step - offset
        due = steps_taken % schedule.num_steps_bw_draws == 0
        draw = steps_taken // schedule.num_steps_bw_draws - 1

        def record(state: tuple[Carry, Records]) -> tuple[Carry, Records]:
            carry, records = state
            for every, names in _by_interval(problem, schedule):
                position = (draw // every) - schedule.first_observation
                carry, records = jax.lax.cond(
                    past_burnin & (draw % every == 0),
                    functools.partial(_observe, problem, names, fresh, position, shape),
                    lambda carry, records: (carry, records),
                    carry,
                    records,
                )
            return _record_draw(carry, records, schedule)

        return jax.lax.cond(due, record, lambda state: state, (carry, records))

    carry, records = jax.lax.fori_loop(0, schedule.num_steps, body, (carry, records))
    sizes = jax.vmap(problem.kernel.step_sizes)(carry.state)
    smallest = jnp.min(jnp.stack([jnp.min(leaf) for leaf in sizes]), keepdims=True)
    return carry, records._replace(smallest_step_size=smallest)


def _reusing(problem: Problem, most_bytes: int) -> Problem:
    """Attach to the observables what no draw changes, computed here, as long as it fits."""
    observables, left = problem.observables, most_bytes
    held = {name: num_bytes(observable) for name, observable in observables.items()}
    chosen: dict[str, bool] = {}
    # For all of them what takes little memory, before any is given more.
    for in_full in (False, True):
        for name, observable in observables.items():
            size = bytes_made(functools.partial(observable.prepare, problem.posterior, in_full))
            added = size - held[name]
            if 0 < added <= left:
                chosen[name], held[name], left = in_full, size, left - added
    prepared = {
        name: observables[name].prepare(problem.posterior, in_full)
        for name, in_full in chosen.items()
    }
    return problem._replace(observables=observables | prepared)


def _with_centers(
    posterior: LocalPosterior, sources: tuple[Source, Source | None]
) -> tuple[Source, Source | None]:
    """Attach to data that are on the device what is known of them at w*, if they are small."""
    source, fresh = sources
    if source.whole:
        size = leading_axis(source.examples)
    elif source.indices is not None:
        size = source.indices.shape[-1]
    else:
        return sources
    known = centers(posterior, source.examples, source.weights, size)
    if fresh is not None and fresh.indices is not None:
        fresh = fresh.with_center(known)
    return source.with_center(known), fresh


def _advance(problem: Problem, carry: Carry, batch: Minibatch, shape: Shape) -> Carry:
    """Take one step in every row, freezing rows that become non-finite."""
    posterior, kernel, rows = problem.posterior, problem.kernel, problem.rows
    batch = _prepared(problem, batch, carry.step, shape)

    def advance(row: Rows, state: Any, alive: Array, *own: Minibatch) -> tuple[Any, Array, Info]:
        (minibatch,) = own or (batch,)
        key = jax.random.fold_in(row.key, carry.step)
        proposed, info = kernel.step(key, posterior.at_starts(row.starts), state, minibatch)
        finite = alive & all_finite(proposed) & jnp.isfinite(info.gap)
        info = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.zeros_like(leaf)), info)
        return choose(finite, proposed, state), finite, info

    def pick(row: Rows, *others: Any) -> tuple[Any, ...]:
        own = (_of_chain(batch, row.chain),) if shape.per_chain_batches else ()
        return row, *others, *own

    state, alive, info = _over_rows(
        advance, (rows, carry.state, carry.alive), carry.step, shape, pick
    )
    died = carry.alive & ~alive
    return carry._replace(
        step=carry.step + 1,
        state=state,
        alive=alive,
        died_at=jnp.where(died, carry.step, carry.died_at),
        info=jax.tree.map(jnp.add, carry.info, info),
    )


def _prepared(problem: Problem, batch: Minibatch, step: Counter, shape: Shape) -> Minibatch:
    """Attach what is known at w*: once for all rows that share a minibatch."""
    posterior, kernel = problem.posterior, problem.kernel

    def center(batch: Minibatch) -> Center | None:
        if problem.rows.starts is None:
            return kernel.prepare(posterior, batch).center
        return posterior.center(batch)

    if not shape.per_chain_batches:
        return batch.with_center(center(batch))
    chains = jnp.arange(leading_axis(batch.examples), dtype=jnp.int32)
    centers = _over_rows(center, (chains,), step, shape, lambda chain: (_of_chain(batch, chain),))
    return batch.with_center(centers)


def _over_rows(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    step: Counter,
    shape: Shape,
    pick: Callable[..., tuple[Any, ...]] = lambda *row: row,
) -> Any:
    """Apply a function of one row to all rows, together or one after the other.

    Args:
        fn: takes what ``pick`` gives.
        arguments: pytrees with a leading row axis.
        step: any number that the compiler does not know, at least 0.
        shape: how rows are computed.
        pick: gives the arguments of one row from its part of ``arguments``.
    """

    def row_by_row(fn: Callable[[tuple[Any, ...]], Any], size: int | None) -> Any:
        return jax.lax.map(lambda row: fn(pick(*row)), arguments, batch_size=size)

    if shape.batch_of_rows is None:
        return jax.vmap(lambda *row: fn(*pick(*row)))(*arguments)
    if shape.batch_of_rows > 1:
        return row_by_row(lambda row: fn(*row), shape.batch_of_rows)
    return row_by_row(_of_any_company(fn, once=jnp.where(step < 0, 0, 1)), None)


def _of_any_company(fn: Callable[..., Any], once: Counter) -> Callable[[tuple[Any, ...]], Any]:
    """Give a function of one row whose numbers do not depend on how many rows there are.

    XLA unrolls a loop over rows that makes one trip, reads a leading axis of extent one without an
    index, and then fuses the row with what surrounds it: the gap of a lone chain differs in its
    last bit. Apart, the row's program is the same in any company.
    """
    fn = jax.jit(fn)

    def of_row(row: tuple[Any, ...]) -> Any:
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, *row)
        )
        return apart(lambda row, _: fn(*row), once, row, nothing)

    return of_row


def _of_chain(batch: Minibatch, chain: Counter) -> Minibatch:
    examples, weights, center = jax.tree.map(
        lambda leaf: leaf[chain], (batch.examples, batch.weights, batch.center)
    )
    return Minibatch(examples, weights, batch.mean_weight, center)


def _empty_records(problem: Problem, carry: Carry, shape: Shape) -> Records:
    num_rows = carry.alive.shape[0]
    traces = {
        name: jnp.zeros((shape.num_draws, num_rows), jnp.float32)
        for name in (*Info._fields, "distance")
    }
    finished = {}
    for name, observable in problem.observables.items():
        slots = shape.num_draws // (observable.every * observable.statistic.batch_length) + 1
        finished[name] = jax.tree.map(
            lambda leaf, slots=slots: jnp.zeros((slots, *leaf.shape), leaf.dtype),
            carry.partials[name],
        )
    zero = jnp.zeros((), jnp.int32)
    counts = dict.fromkeys(problem.observables, zero)
    return Records(traces, finished, zero, counts, jnp.zeros((1,), jnp.float32))


def _record_draw(carry: Carry, records: Records, schedule: Schedule) -> tuple[Carry, Records]:
    """Write the mean over the steps of this draw of what they reported; start the next draw."""
    length = schedule.num_steps_bw_draws.astype(jnp.float32)
    values = {name: leaf / length for name, leaf in zip(Info._fields, carry.info, strict=True)}
    values["distance"] = jax.vmap(norm)(carry.state.position)
    traces = {
        name: trace.at[records.num_draws].set(values[name])
        for name, trace in records.traces.items()
    }
    empty = jax.tree.map(jnp.zeros_like, carry.info)
    return carry._replace(info=empty), records._replace(
        traces=traces, num_draws=records.num_draws + 1
    )


def _by_interval(
    problem: Problem, schedule: Schedule
) -> list[tuple[int | Counter, tuple[str, ...]]]:
    """Group observables that fall due at the same draws: they share one pass of the model.

    Those on fresh batches have one interval, which is traced.
    """
    fresh = tuple(name for name, own in problem.observables.items() if own.num_fresh)
    groups: dict[int, tuple[str, ...]] = {}
    for name, observable in problem.observables.items():
        if not observable.num_fresh:
            groups[observable.every] = (*groups.get(observable.every, ()), name)
    return [*groups.items(), *([(schedule.fresh_interval, fresh)] if fresh else [])]


def _observe(
    problem: Problem,
    names: tuple[str, ...],
    fresh: Source | None,
    number: Counter,
    shape: Shape,
    carry: Carry,
    records: Records,
) -> tuple[Carry, Records]:
    """Measure some observables in every row, and add them to their statistics."""
    batches = _fresh_batches(problem, names, fresh, number)

    def measure(row: Rows, position: Any) -> dict[str, Any]:
        target, values = problem.posterior.at_starts(row.starts), {}
        for name in names:
            observable = problem.observables[name]
            with jax.named_scope(name):
                own = batches if observable.num_fresh else None
                value = observable.measure(target, position, own)
                values[name] = _single(observable.relative(value, problem.centers[name]))
        return values

    values = _over_rows(measure, (problem.rows, carry.state.position), carry.step, shape)
    for name in names:
        carry, records = _add(problem, name, values[name], carry, records)
    return carry, records


def _add(
    problem: Problem, name: str, values: Any, carry: Carry, records: Records
) -> tuple[Carry, Records]:
    """Add one observation per row to a statistic; close its batch of draws if it is full."""
    statistic = problem.observables[name].statistic
    # A draw weighs as much as the time it stands for; a dead row's draws weigh nothing.
    sums = jax.vmap(statistic.update)(carry.partials[name], values, carry.info.weight)
    count = carry.counts[name] + 1
    full = count == statistic.batch_length
    slot = records.num_finished[name]
    finished = jax.tree.map(
        lambda slots, leaf: slots.at[slot].set(leaf), records.finished[name], sums
    )
    sums = jax.tree.map(lambda leaf: jnp.where(full, jnp.zeros_like(leaf), leaf), sums)
    return (
        carry._replace(
            partials=carry.partials | {name: sums},
            counts=carry.counts | {name: jnp.where(full, jnp.zeros_like(count), count)},
        ),
        records._replace(
            finished=records.finished | {name: finished},
            num_finished=records.num_finished | {name: slot + full.astype(slot.dtype)},
        ),
    )


def _single(value: Any) -> Any:
    """Cast what an observable gives to float32, the dtype of all sums."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), value)


def _fresh_batches(
    problem: Problem, names: tuple[str, ...], fresh: Source | None, number: Counter
) -> Minibatch | None:
    if not any(problem.observables[name].num_fresh for name in names):
        return None
    assert fresh is not None
    batches = fresh.take(number)
    return batches.with_center(over_minibatches(problem.posterior.center, batches))
