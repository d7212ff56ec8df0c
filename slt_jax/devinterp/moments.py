"""What susceptibilities are made of, from the draws in a sample store of devinterp."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slt_jax.data import Probe
from slt_jax.estimators.moments import Gaps, ProbeGaps, Products, Shifts
from slt_jax.estimators.probes import flatten
from slt_jax.estimators.susceptibilities import batch_length
from slt_jax.observables import AbstractObservable, LossValues, MeanLoss
from slt_jax.statistics import AbstractStatistic
from slt_jax.storage.devinterp import Samples


class Measured(NamedTuple):
    """An observable, what a run holds of it, and its values at w*, which nobody measured.

    ``partial`` are the sums ``[chain, ...]`` of a batch of draws of which none was taken yet.
    """

    observable: AbstractObservable
    total: Any
    center: Any
    partial: Any


def measure_probes(samples: Samples, sampled: str, full: bool, alive: np.ndarray) -> Measured:
    """Add up, over the draws, what ``slt.susceptibilities_from`` needs.

    The gap is the mean loss on the examples of ``sampled``, minus what devinterp took for L(w*).

    Args:
        samples: the store.
        sampled: the observable that holds examples of the sampling data.
        full: whether all weights moved.
        alive: which chains stayed finite, bool ``[chain]``.

    Raises:
        ValueError: no such observable, or no other.
    """
    names = [name for name in samples.losses if name != sampled]
    if sampled not in samples.losses or not names:
        raise ValueError(
            "susceptibilities need the losses on examples of the sampling data and on a probe: "
            f"the store has the observables {list(samples.losses)}, and sampled={sampled!r} names "
            "the sampling data. Sample again with both among the observables, or name another"
        )
    statistic = (Shifts if full else Products)(batch_length(samples.settings["num_draws"]))
    observable = ProbeGaps(
        losses=LossValues(probe=Probe(np.concatenate([samples.input_ids[n] for n in names]))),
        statistic=statistic,
        evaluation=MeanLoss(probe=Probe(samples.input_ids[sampled])),
        names=tuple(names),
        counts=tuple(len(samples.input_ids[name]) for name in names),
    )
    losses = np.concatenate([samples.losses[name] for name in names], axis=2)
    gap = samples.losses[sampled].mean(axis=(2, 3), dtype=np.float64) - samples.init_loss
    counted = np.broadcast_to(alive[:, None], gap.shape)
    total = _add_up(statistic, observable, losses, gap.astype(np.float32), counted)
    positions = np.ones(losses.shape[2:], np.float32)
    center = (np.full_like(positions, np.nan), positions), np.nan
    none = _batch(statistic, observable, losses[:, :1], gap[:, :1], np.zeros_like(gap[:, :1]))
    return Measured(observable, total, center, none)


def _add_up(
    statistic: AbstractStatistic,
    observable: ProbeGaps,
    losses: np.ndarray,
    gap: np.ndarray,
    counted: np.ndarray,
) -> Any:
    """Give the total over all draws, batch by batch as the sampler does."""
    length, num_draws, total = statistic.batch_length, gap.shape[1], None
    for first in range(0, num_draws, length):
        chosen = slice(first, first + length)
        weights = counted[:, chosen].astype(np.float32)
        sums = _batch(statistic, observable, losses[:, chosen], gap[:, chosen], weights)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], jax.device_get(sums))
        contribution = statistic.contribution(rows, finished=first + length <= num_draws)
        total = statistic.merge(total, contribution)
    return total


@eqx.filter_jit
def _batch(
    statistic: AbstractStatistic, observable: ProbeGaps, losses: Any, gap: Any, weights: Any
) -> Any:
    """Add up the draws of one batch: ``[chain, draw, ...]`` → ``[chain, ...]``."""
    kept = observable.counts, observable.tokens

    def value(losses: Any, gap: Any) -> Gaps:
        return Gaps(gap, gap**2, flatten(kept, losses, jnp.ones_like(losses)))

    def of_chain(losses: Any, gap: Any, weights: Any) -> Any:
        first = statistic.empty(value(losses[0], gap[0]))

        def add(sums: Any, draw: Any) -> Any:
            return statistic.update(sums, value(*draw[:2]), draw[2]), None

        return jax.lax.scan(add, first, (losses, gap, weights))[0]

    return jax.vmap(of_chain)(losses, gap, weights)
