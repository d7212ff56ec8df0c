"""How much memory susceptibilities will take, and how many components fit side by side."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax

from slt_jax.grouping import groups
from slt_jax.kernels.base import AbstractKernel
from slt_jax.posterior import LocalPosterior
from slt_jax.restriction import Restriction
from slt_jax.sampling import chunk_steps

_COLUMNS = 7
_RESULTS = 9
_HELD_PER_CHAIN = 6
_HELD_TOGETHER = 3
_COPIES = 3
_SUMS = 3
_BEING_ADDED = 3


class Pace(NamedTuple):
    """What decides how many finished sums wait on the device for the host.

    Draws per batch, steps per draw, and steps per chunk if they were chosen.
    """

    batch_length: int
    num_steps_bw_draws: int
    steps_per_chunk: int | None


class Size(NamedTuple):
    """The memory of a measurement, in bytes, besides the model and its evaluation.

    ``host_bytes`` is that of sums, errors and results; ``device_bytes`` that of chains and of sums
    that the host has not fetched yet. On a CPU both lie in the same memory.
    """

    num_components: int
    num_entries: int
    side_by_side: int
    host_bytes: int
    device_bytes: int

    def __str__(self) -> str:
        return (
            f"susceptibilities of {self.num_components} components to {self.num_entries} entries, "
            f"{self.side_by_side} components side by side: {self.host_bytes / 2**20:.0f} MiB on "
            f"the host and {self.device_bytes / 2**20:.0f} MiB on the device, besides the model"
        )


def bytes_per_component(num_measured: int, num_chains: int) -> int:
    """Give the host bytes that one component takes while it is sampled.

    Sums of three kinds and their squares per chain, squares of all chains together, in float64:
    once of the run, and for the control once in all and once for the batch that is added.
    """
    held = _HELD_PER_CHAIN * num_chains + _HELD_TOGETHER
    return _COPIES * 8 * held * num_measured


def slabs(components: Mapping[str, Restriction], most: int) -> list[dict[str, Restriction]]:
    """Cut components into groups of equal shape and layer, and these into pieces of equal size.

    Equal pieces share one compiled program: where a group cannot be cut evenly into pieces of the
    largest size, somewhat smaller ones are taken if they make it even.

    Args:
        components: name → restriction.
        most: how many may be sampled side by side.
    """
    cut = []
    for group in groups(components):
        names, count = list(group), math.ceil(len(group) / most)
        even = (number for number in range(count, 2 * count + 1) if len(names) % number == 0)
        size = math.ceil(len(names) / next(even, count))
        cut += [
            {name: group[name] for name in names[first : first + size]}
            for first in range(0, len(names), size)
        ]
    return cut


def predict(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    pieces: list[dict[str, Restriction]],
    num_measured: int,
    num_chains: int,
    pace: Pace,
) -> Size:
    """Predict the memory of a measurement.

    Args:
        posterior: whose weights the full chain moves.
        kernel: for the size of a chain's state.
        pieces: components that are sampled side by side.
        num_measured: numbers measured at a draw.
        num_chains: chains per component.
        pace: how the draws are cut into batches and chunks.
    """
    count, largest = sum(map(len, pieces)), max(map(len, pieces))
    matrix = 8 * count * num_measured
    sampling = _COLUMNS * matrix + largest * bytes_per_component(num_measured, num_chains)
    states = max(
        _state_bytes(posterior, kernel, None),
        largest * max(_state_bytes(posterior, kernel, next(iter(p.values()))) for p in pieces),
    )
    sums = 4 * _SUMS * num_measured * largest * num_chains
    waiting = _slots(sums, pace) + _BEING_ADDED
    return Size(
        count,
        num_measured,
        largest,
        max(sampling, _RESULTS * matrix),
        num_chains * states + waiting * sums,
    )


def _slots(sums: int, pace: Pace) -> int:
    """Give how many finished batches of sums a chunk has room for, as the sampler does."""
    per_step = sums / (pace.batch_length * pace.num_steps_bw_draws)
    steps = pace.steps_per_chunk or chunk_steps(per_step)
    return (steps // pace.num_steps_bw_draws + 1) // pace.batch_length + 1


def _state_bytes(
    posterior: LocalPosterior, kernel: AbstractKernel, restriction: Restriction | None
) -> int:
    target = posterior if restriction is None else posterior.restrict(restriction)
    state = jax.eval_shape(lambda: kernel.init(target))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
