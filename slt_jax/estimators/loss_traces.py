"""Losses of many examples at every draw, as rows of one matrix with the labels of the rows."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from slt_jax.data import Batches, Probe
from slt_jax.minibatch import Minibatch, values_and_weights
from slt_jax.observables import AbstractObservable, LossValues
from slt_jax.run import Run
from slt_jax.statistics import AbstractStatistic, Trace


class SequenceLosses(LossValues):
    """The loss of every example of a probe in nats, its positions averaged by their weights.

    Args:
        probe: the examples, with weights where some positions are masked.
        statistic: what to accumulate; the traces by default.
        every: measure at every so many draws.
    """

    statistic: AbstractStatistic = Trace()
    every: int = eqx.field(static=True, default=1)

    def relative(self, value, center):
        losses, weights = value
        positions = tuple(range(1, losses.ndim))
        gap = jnp.where(weights > 0, losses - center[0], jnp.zeros_like(losses))
        total = jnp.sum(weights, axis=positions)
        mean = jnp.sum(weights * gap, axis=positions) / jnp.where(total > 0, total, 1.0)
        return mean.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Traces of examples, tokens or other quantities, relative to their values at w*.

    Attributes:
        values: float32 ``[chain, draw, row]`` of the live chains; nats for losses.
        sequence: which example of the probe a row is, or which entry of the observable.
        position: which position of the example; −1 if the row is the example as a whole.
        weight: total weight of the row in its probe's mean loss; NaN if the row is no loss.
    """

    values: Float[np.ndarray, "chain draw row"]
    sequence: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    weight: Float[np.ndarray, " row"]

    @property
    def is_loss(self) -> bool:
        """Whether the rows are losses of examples."""
        return not np.isnan(self.weight).any()

    def __len__(self) -> int:
        return self.values.shape[2]


def read_rows(run: Run, name: str, number: int, alive: np.ndarray, per_token: bool) -> Rows:
    """Read the traces of an observable of a run as rows.

    Args:
        run: the run.
        name: of the observable.
        number: of the component.
        alive: bool ``[chain]``, which chains to read.
        per_token: one row per position with weight, instead of one per example.

    Raises:
        ValueError: no such observable, no trace of it, or values that are not rows.
    """
    observable = _traced(run, name)
    estimate = run.estimate(name)
    assert estimate is not None
    draws = estimate.value
    is_loss = isinstance(observable, LossValues)
    if not isinstance(draws, np.ndarray) or (draws.ndim > 4 and not is_loss):
        shape = jax.tree.map(lambda leaf: leaf.shape[3:], draws)
        raise ValueError(
            f"observable {name!r} must give one array with at most one axis, got {shape}; flatten "
            "what it returns with jnp.ravel"
        )
    values = draws[number] if alive.all() else draws[number][alive]
    if not is_loss:
        return _quantities(values)
    _, weights = jax.device_get(run.centers[name])
    weights = np.asarray(weights, np.float64)
    if values.shape[2:] != weights.shape and per_token:
        raise ValueError(
            f"observable {name!r} keeps one loss per example, not per token: observe "
            "slt.LossValues(probe, slt.Trace()) instead"
        )
    if values.shape[2:] == weights.shape:
        return _tokens(values, weights) if per_token else _sequences(values, weights)
    return _weighted(values, weights.reshape(len(weights), -1).sum(axis=1))


def _traced(run: Run, name: str) -> Any:
    if name not in run.observables:
        raise ValueError(
            f"the run observed {sorted(run.observables)}, not {name!r}: sample with "
            f"observables={{{name!r}: slt.LossValues(probe, slt.Trace())}}"
        )
    observable = run.observables[name]
    if not isinstance(observable.statistic, Trace):
        raise ValueError(
            f"observable {name!r} keeps {type(observable.statistic).__name__}, which forgets the "
            "draws: influence needs statistic=slt.Trace()"
        )
    if name not in run.totals:
        raise ValueError(f"observable {name!r} was never measured: the run has no draws")
    return observable


def _quantities(values: np.ndarray) -> Rows:
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    return Rows(values, np.arange(count), np.full(count, -1), np.full(count, np.nan))


def _tokens(values: np.ndarray, weights: np.ndarray) -> Rows:
    """Give one row per position that has weight."""
    if weights.ndim == 1:
        return _weighted(values, weights)
    flat = weights.reshape(len(weights), -1)
    rows = np.flatnonzero(flat)
    values = values.reshape(*values.shape[:2], -1)
    sequence, position = np.divmod(rows, flat.shape[1])
    # Choosing copies: where nothing is masked the traces are used as they are.
    chosen = values if len(rows) == flat.size else values[:, :, rows]
    return Rows(chosen, sequence, position, flat.reshape(-1)[rows])


def _sequences(values: np.ndarray, weights: np.ndarray) -> Rows:
    """Give one row per example, its positions averaged by their weights."""
    if weights.ndim == 1:
        return _weighted(values, weights)
    flat = weights.reshape(len(weights), -1)
    total = flat.sum(axis=1)
    shares = (flat / np.where(total > 0, total, 1.0)[:, None]).astype(np.float32)
    values = values.reshape(*values.shape[:2], *flat.shape)
    return _weighted(np.einsum("cdnp,np->cdn", values, shares), total)


def _weighted(values: np.ndarray, weight: np.ndarray) -> Rows:
    """Leave out the examples without weight: they are padding."""
    rows = np.flatnonzero(weight)
    chosen = values if len(rows) == len(weight) else values[:, :, rows]
    return Rows(chosen, rows, np.full(len(rows), -1), weight[rows])


def mean_weight(run: Run) -> float:
    """Give the total weight of an example of the sampled data, averaged over the data."""
    if run.survey.mean_weight is not None:
        return float(run.survey.mean_weight)

    def values(params: Any, examples: Any) -> Any:
        return values_and_weights(run.posterior.loss_fn(params, examples), Minibatch(examples))[0]

    shape = jax.eval_shape(values, run.posterior.params, run.batches.example_structure).shape
    return float(np.prod(shape[1:]))


def as_probe(examples: Any, batches: Batches) -> Probe:
    """Give a probe as it is, examples as a probe evaluated like batches, None as all the data."""
    if isinstance(examples, Probe):
        return examples
    if examples is None:
        return Probe(batches.dataset.whole(), batches.weights, batches.batch_size)
    return Probe(examples, batch_size=batches.batch_size)


def traced_losses(examples: Any, batches: Batches, per_token: bool, every: int) -> LossValues:
    """Give the observable that keeps the losses of examples, per position or per example."""
    kind = LossValues if per_token else SequenceLosses
    return kind(probe=as_probe(examples, batches), statistic=Trace(), every=every)


def add_observables(options: Any, own: dict[str, Any], estimator: str) -> None:
    """Put an estimator's observables beside those of the user.

    Raises:
        ValueError: a name is taken, or several components are asked for.
    """
    if len(options.get("components") or {}) > 1:
        raise ValueError(
            f"{estimator} estimates one component: use run = slt.sample(..., components=...) with "
            f"traced losses and slt.{estimator}_from(run, component=name) for each"
        )
    given = dict(options.get("observables") or {})
    taken = sorted(set(given) & set(own))
    if taken:
        raise ValueError(f"the names {taken} are the estimator's own: rename these observables")
    options["observables"] = given | own


def own_rows(run: Run, train: str, query: str, rows: Rows, queries: Rows) -> np.ndarray:
    """Give, for every query, the training row that is the same example; −1 where there is none.

    Examples are the same if all their numbers are. Of several such the first is the query itself,
    the others are duplicates of it.
    """
    if train == query:
        return np.arange(len(queries))
    if not queries.is_loss:
        return np.full(len(queries), -1)
    known: dict[tuple[bytes, int], int] = {}
    names = _contents(run.observables[train])
    for row, (sequence, position) in enumerate(zip(rows.sequence, rows.position, strict=True)):
        known.setdefault((names[sequence], int(position)), row)
    contents = _contents(run.observables[query])
    asked = zip(queries.sequence, queries.position, strict=True)
    return np.array([known.get((contents[s], int(p)), -1) for s, p in asked])


def _contents(observable: AbstractObservable) -> list[bytes]:
    assert isinstance(observable, LossValues)
    probe = observable.probe
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(probe.examples))]
    return [b"|".join(leaf[row].tobytes() for leaf in leaves) for row in range(probe.num_examples)]
