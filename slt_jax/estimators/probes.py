"""Several data sets as one probe, and where each of their tokens, sequences and means stands."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._tree import Static, join, on_device, path_table, split
from slt_jax.data import Batches, Probe
from slt_jax.examples import abstract_value, check_examples
from slt_jax.minibatch import Minibatch, values_and_weights
from slt_jax.observables import LossValues
from slt_jax.posterior import LocalPosterior


class Entries(NamedTuple):
    """What the columns of a matrix stand for: tokens, sequences or data sets of the probes.

    ``kind`` is ``"token"``, ``"sequence"`` or ``"dataset"``; the others are arrays ``[entry]``:
    the name of the data set, the row within it, the position in that row (both −1 where there is
    none), the total weight, and the mean loss at w* in nats.
    """

    kind: str
    dataset: np.ndarray
    sequence: np.ndarray
    position: np.ndarray
    weight: np.ndarray
    loss: np.ndarray


class Resolution(NamedTuple):
    """A kind of entries, which of the measured numbers they are, and whether it is the finest."""

    entries: Entries
    numbers: np.ndarray
    is_finest: bool = False


class Probes(NamedTuple):
    """Data sets one after the other, ``counts[i]`` examples of ``names[i]``.

    ``losses`` and ``weights`` are those at w*, float32 ``[n, *pos]`` on the host.
    """

    probe: Probe
    names: tuple[str, ...]
    counts: tuple[int, ...]
    losses: np.ndarray
    weights: np.ndarray

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first row of every data set, and the one after its last."""
        return bounds_of(self.counts)


def bounds_of(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Give where pieces of these lengths begin and end.

    >>> bounds_of([2, 3])
    [(0, 2), (2, 5)]
    """
    ends = np.cumsum(counts).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def join_probes(probes: Mapping[str, Any], posterior: LocalPosterior, batches: Batches) -> Probes:
    """Put data sets one after the other and look at their losses at w*.

    Args:
        probes: name → ``slt.Probe``, or its examples (arrays with a common leading axis).
        posterior: for the loss at w*.
        batches: the sampling data, which the probes must resemble; as many examples of a probe are
            evaluated at once as there are in a batch, unless the probe says otherwise.

    Raises:
        TypeError, ValueError: no probe, examples unlike each other or unlike the sampling data, a
            loss at w* that is not finite, a data set without weight.
    """
    if not isinstance(probes, Mapping) or not probes:
        raise TypeError(
            'probes must name at least one data set, as in {"code": examples}; '
            f"got {type(probes).__name__} {'of nothing' if probes == {} else ''}".rstrip()
        )
    made = {
        str(name): value if isinstance(value, Probe) else Probe(value)
        for name, value in probes.items()
    }
    _check_alike(made, batches)
    for name, probe in made.items():
        check_examples(posterior, probe.examples, f"probe {name!r}")
    sizes = [probe.batch_size or batches.batch_size for probe in made.values()]
    examples = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
        *(probe.examples for probe in made.values()),
    )
    probe = Probe(examples, _join_weights(made), min(sizes))
    abstract_value("probes", posterior, batches, LossValues(probe=probe))
    losses, weights = losses_at_center(posterior, probe)
    names, counts = tuple(made), tuple(probe.num_examples for probe in made.values())
    joined = Probes(probe, names, counts, losses, weights)
    for name, (first, last) in zip(names, joined.bounds, strict=True):
        check_losses(f"probe {name!r}", losses[first:last], weights[first:last])
    return joined


def structure_of(examples: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Map the paths of examples to dtype and shape of one of them."""
    return {
        path or "examples": (str(leaf.dtype), tuple(leaf.shape[1:]))
        for path, leaf in path_table(examples).items()
    }


def _check_alike(probes: Mapping[str, Probe], batches: Batches) -> None:
    """Raise ValueError unless all probes have one shape, and the structure of the batches."""
    sampled = structure_of(batches.example_structure)
    kinds = {path: (dtype, len(shape)) for path, (dtype, shape) in sampled.items()}
    structures = {name: structure_of(probe.examples) for name, probe in probes.items()}
    for name, structure in structures.items():
        own = {path: (dtype, len(shape)) for path, (dtype, shape) in structure.items()}
        if own != kinds:
            raise ValueError(
                f"probe {name!r} has examples of (dtype, shape) {structure}, the sampling data "
                f"{sampled}: the loss function takes one kind of examples, so give probes the same "
                "entries, dtypes and number of axes"
            )
    first = next(iter(structures))
    for name, structure in structures.items():
        if structure != structures[first]:
            raise ValueError(
                f"probes must have examples of one shape: {first!r} has {structures[first]} and "
                f"{name!r} has {structure}. Cut them to one length, or pad them and give "
                "slt.Probe(examples, weights) with weights 0 on the padding"
            )


def _join_weights(probes: Mapping[str, Probe]) -> np.ndarray | None:
    """Join the weights of probes, of which some may have none and some none per position."""
    given = {name: probe.weights for name, probe in probes.items() if probe.weights is not None}
    if not given:
        return None
    rank = max(weights.ndim for weights in given.values())
    trailing = {weights.shape[1:] for weights in given.values() if weights.ndim == rank}
    if len(trailing) > 1:
        shapes = {name: weights.shape for name, weights in given.items()}
        raise ValueError(f"weights of the probes must have one shape per example, got {shapes}")
    shape = trailing.pop()

    def fill(probe: Probe) -> np.ndarray:
        own = np.ones(probe.num_examples, np.float32) if probe.weights is None else probe.weights
        shaped = np.asarray(own).reshape(own.shape + (1,) * (rank - own.ndim))
        return np.broadcast_to(shaped, (probe.num_examples, *shape))

    return np.concatenate([fill(probe) for probe in probes.values()])


@functools.partial(jax.jit, static_argnames="static")
def _losses(static: Static, arrays: Any, examples: Any, given: Any) -> tuple[jax.Array, jax.Array]:
    """Give losses at w* and weights of one batch."""
    posterior: LocalPosterior = join(arrays, static)
    found = posterior.loss_fn(posterior.params, examples)
    values, weights = values_and_weights(found, Minibatch(examples, given))
    assert weights is not None
    return values, weights


def losses_at_center(posterior: LocalPosterior, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Give losses at w* and weights of a probe, both ``[n, *pos]``, on the host.

    One program serves all probes that are evaluated in batches of the same size.
    """
    count = probe.num_examples
    size = min(probe.batch_size or count, count)
    arrays, static = split(posterior)
    arrays, found = on_device(arrays), []
    given = np.ones(count, np.float32) if probe.weights is None else probe.weights
    for first in range(0, count, size):
        # The last batch is filled up with the last example.
        numbers = np.minimum(np.arange(first, first + size), count - 1)
        batch = jax.tree.map(lambda leaf, at=numbers: np.asarray(leaf)[at], (probe.examples, given))
        found.append(_losses(static, arrays, *on_device(batch)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *jax.device_get(found))


def check_losses(name: str, losses: np.ndarray, weights: np.ndarray) -> None:
    """Raise ValueError unless losses at w* are finite, and some have weight.

    Args:
        name: of the data set.
        losses: those at w*, float32 ``[n, *pos]``.
        weights: of the same shape.
    """
    bad = np.argwhere(~np.isfinite(losses))
    if len(bad):
        raise ValueError(
            f"{name}: the loss at w* is not finite at row {bad[0][0]}, position "
            f"{bad[0][1:].tolist()} ({len(bad)} such entries, masked ones included). Token ids "
            "outside the model's vocabulary give such losses: encode the text with the model's own "
            "tokenizer"
        )
    if not weights.sum() > 0:
        raise ValueError(f"{name} has no entry of positive weight: nothing to measure")


def resolutions(probes: Probes, tokens: bool) -> dict[str, Resolution]:
    """Tell where tokens, sequences and data sets stand among what is measured at a draw.

    Measured are the means of all sequences, those of all data sets and, if losses have positions
    and ``tokens`` is set, every loss by itself. Entries without weight are left out.
    """
    count, num_datasets = len(probes.losses), len(probes.names)
    positions = tuple(range(1, probes.losses.ndim))
    weights = np.asarray(probes.weights, np.float64)
    weighted = weights * probes.losses
    of_row = np.repeat(np.asarray(probes.names, dtype=np.str_), probes.counts)
    row = np.concatenate([np.arange(size) for size in probes.counts])
    by_row = weights.sum(positions), weighted.sum(positions)
    rows = _kept("sequence", 0, of_row, row, np.full(count, -1), *by_row)
    nothing = np.full(num_datasets, -1)
    sums = (
        np.asarray([leaf[first:last].sum() for first, last in probes.bounds]) for leaf in by_row
    )
    names = np.asarray(probes.names, dtype=np.str_)
    found = {
        "sequence": rows,
        "dataset": _kept("dataset", count, names, nothing, nothing, *sums),
    }
    if not tokens:
        return found | {"sequence": rows._replace(is_finest=True)}
    length = probes.losses.size // count
    finest = _kept(
        "token",
        count + num_datasets if positions else 0,
        np.repeat(of_row, length),
        np.repeat(row, length),
        np.tile(np.arange(length), count),
        weights.reshape(-1),
        weighted.reshape(-1),
    )
    return {"token": finest._replace(is_finest=True)} | found


def measured_count(probes: Probes, tokens: bool) -> int:
    """Give how many numbers are measured at a draw."""
    by_token = probes.losses.size if tokens and probes.losses.ndim > 1 else 0
    return len(probes.losses) + len(probes.names) + by_token


def _kept(
    kind: str,
    first: int,
    dataset: np.ndarray,
    sequence: np.ndarray,
    position: np.ndarray,
    weight: np.ndarray,
    weighted_loss: np.ndarray,
) -> Resolution:
    kept = np.flatnonzero(weight > 0)
    loss = weighted_loss[kept] / weight[kept]
    entries = Entries(kind, dataset[kept], sequence[kept], position[kept], weight[kept], loss)
    return Resolution(entries, first + kept)


def flatten(
    probes: tuple[tuple[int, ...], bool], losses: jax.Array, weights: jax.Array
) -> jax.Array:
    """Give what is measured at a draw as one vector: means of rows, of data sets, and tokens.

    Args:
        probes: examples per data set, and whether to keep tokens.
        losses: changes of the loss, ``[n, *pos]`` in nats, 0 where masked.
        weights: of the same shape.
    """
    counts, tokens = probes
    positions = tuple(range(1, losses.ndim))
    weight, total = jnp.sum(weights, axis=positions), jnp.sum(weights * losses, axis=positions)
    tiny = jnp.finfo(jnp.float32).tiny
    of_datasets = [
        jnp.sum(total[first:last]) / jnp.sum(weight[first:last])
        for first, last in bounds_of(counts)
    ]
    parts = [total / jnp.maximum(weight, tiny), jnp.stack(of_datasets)]
    if tokens and positions:
        parts.append(losses.reshape(-1))
    return jnp.concatenate([part.astype(jnp.float32) for part in parts])
