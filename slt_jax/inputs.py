"""How minibatches reach the device: gathered there by index, stacked by the host, or whole."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import on_device
from slt_jax._types import ChainKey, Counter, Scalar
from slt_jax.data import Batches, BatchOrder, batch_key, uniform_subset
from slt_jax.minibatch import Center, Minibatch
from slt_jax.placement import Layout, place


class Source(eqx.Module):
    """The minibatches of one chunk, as arguments of the compiled program.

    With ``indices``, ``examples`` is the whole data set and batches are gathered from it; without,
    ``examples`` holds the batches themselves, stacked along a leading axis of steps; a ``whole``
    source is one batch for all steps. ``fresh`` is the like for observations. ``center`` is what is
    known at w* of ``examples``, if it is.
    """

    examples: Any
    weights: Array | None
    indices: Array | None
    mean_weight: Scalar | None
    whole: bool = eqx.field(static=True)
    center: Center | None = None

    def with_center(self, center: Center | None) -> "Source":
        """Give the same source with what is known of its examples at w*."""
        return Source(
            self.examples, self.weights, self.indices, self.mean_weight, self.whole, center
        )

    def take(self, number: Counter) -> Minibatch:
        """Give the minibatch of the chunk's step ``number``, or one per chain on a leading axis."""
        if self.whole:
            return Minibatch(self.examples, self.weights, self.mean_weight, self.center)
        chosen = number if self.indices is None else self.indices[number]
        examples, weights, center = jax.tree.map(
            lambda leaf: leaf[chosen], (self.examples, self.weights, self.center)
        )
        return Minibatch(examples, weights, self.mean_weight, center)


class Window(NamedTuple):
    """How many steps and observations one chunk can hold: static, so it keys the program."""

    steps: int
    observations: int
    num_fresh: int


@functools.partial(
    jax.jit, static_argnames=("order", "num_examples", "size", "window", "num_streams")
)
def _indices(
    key: ChainKey,
    first_step: Counter,
    first_observation: Counter,
    *,
    order: BatchOrder | None,
    num_examples: int,
    size: int,
    window: Window,
    num_streams: int | None,
) -> tuple[Array, Array]:
    """Give the example numbers of the batches of a chunk and of its observations.

    Returns:
        int32 ``[step, (chain,) batch]`` and ``[observation, fresh, batch]``.
    """

    def subset(stream: ChainKey, step: Counter) -> Array:
        return uniform_subset(jax.random.fold_in(stream, step), num_examples, size)

    def of_step(stream: ChainKey, step: Counter) -> Array:
        return subset(stream, step) if order is None else order(stream, step)

    def counted(first: Counter, count: int) -> Array:
        return first + jnp.arange(count, dtype=jnp.int32)

    steps = counted(first_step, window.steps)
    if num_streams is None:
        stream = batch_key(key, "batches")
        of_steps = jax.vmap(lambda step: of_step(stream, step))(steps)
    else:
        streams = jax.vmap(lambda chain: batch_key(key, "batches", chain))(
            jnp.arange(num_streams, dtype=jnp.int32)
        )
        of_steps = jax.vmap(lambda step: jax.vmap(lambda s: of_step(s, step))(streams))(steps)
    fresh = jax.vmap(lambda number: batch_key(key, "fresh batches", number))(
        jnp.arange(window.num_fresh, dtype=jnp.int32)
    )
    observations = counted(first_observation, window.observations)
    return of_steps, jax.vmap(lambda step: jax.vmap(lambda s: subset(s, step))(fresh))(observations)


class Feed:
    """Makes the sources of successive chunks from a user's batches.

    Args:
        batches: where examples come from.
        key: the run's key.
        mean_weight: total weight per example, or None if every weight is one.
        num_chains: streams, if batches are drawn per chain.
        on_device_bytes: the largest data set that is placed on the device.
        whole: give the whole data set as every batch.
        layout: where the batches are needed.
    """

    def __init__(
        self,
        batches: Batches,
        key: ChainKey,
        mean_weight: Scalar | None,
        num_chains: int,
        on_device_bytes: int,
        whole: bool,
        layout: Layout | None,
    ):
        self.batches = batches
        self.key = key
        self.mean_weight = mean_weight
        self.num_streams = num_chains if batches.per_chain and not whole else None
        self.whole = whole
        self.layout = layout
        self.resident = None
        self.bytes_per_step = 0.0
        if whole or batches.num_bytes <= on_device_bytes:
            self.resident = place(layout, on_device((batches.dataset.whole(), batches.weights)))
        else:
            per_example = batches.num_bytes / batches.num_examples
            self.bytes_per_step = per_example * batches.batch_size * (self.num_streams or 1)

    def indices(self, first_step: int, first_observation: int, window: Window) -> Any:
        """Draw the numbers of the examples of a chunk; queued on the device, not waited for."""
        if self.whole and not window.num_fresh:
            return None
        return _indices(
            self.key,
            jax.device_put(np.int32(first_step)),
            jax.device_put(np.int32(first_observation)),
            order=self.batches.order,
            num_examples=self.batches.num_examples,
            size=self.batches.batch_size,
            window=window,
            num_streams=self.num_streams,
        )

    def sources(
        self, indices: Any, num_steps: int, num_observations: int
    ) -> tuple[Source, Source | None]:
        """Give the batches of a chunk's first so many steps, and of its first observations."""
        steps, fresh = (None, None) if indices is None else indices
        of_steps = self._whole() if self.whole else self._source(steps, num_steps)
        if fresh is None or fresh.size == 0:
            return place(self.layout, of_steps), None
        of_draws = self._source(fresh, min(num_observations, fresh.shape[0]))
        return place(self.layout, (of_steps, of_draws))

    def _whole(self) -> Source:
        assert self.resident is not None
        examples, weights = self.resident
        return Source(examples, weights, None, self.mean_weight, whole=True)

    def _source(self, indices: Any, count: int) -> Source:
        if self.resident is not None:
            examples, weights = self.resident
            return Source(examples, weights, indices, self.mean_weight, whole=False)
        numbers, count = jax.device_get(indices), max(count, 1)
        rows = self.batches.rows(numbers[:count])
        # A short chunk takes the place of a full one in the program: nobody reads the rest.
        padded = jax.tree.map(
            lambda leaf: np.pad(leaf, [(0, len(numbers) - count), *[(0, 0)] * (leaf.ndim - 1)]),
            rows,
        )
        examples, weights = on_device(padded)
        return Source(examples, weights, None, self.mean_weight, whole=False)
