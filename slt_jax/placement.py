"""Where the rows of a run are computed: the only file that names a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_CHAIN = "chain"

EVERYWHERE = PartitionSpec()
"""An array of which every device has a copy."""

BY_ROW = PartitionSpec(_CHAIN)
"""An array with a leading row axis, of which every device has the rows that it computes."""

BY_SECOND_AXIS = PartitionSpec(None, _CHAIN)
"""An array whose second axis is that of rows."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Spread the chains of a run over several devices of this process.

    Every device holds all weights and computes an equal share of the rows, the (component, chain)
    pairs, by the same program; nothing passes between devices while they work. The numbers are
    those of one device: to the bit with ``rows="map"``, to rounding with ``rows="vmap"``.

    A CPU is one device unless JAX is told otherwise before its first use. Two devices keep two
    cores busy where the operations of one chain are too small for that:
    ``jax.config.update("jax_num_cpu_devices", 2)``. XLA has as many threads as there are cores or
    devices, whichever are more. While all of them are busy with chains, what they offer each other
    to do of wide layers stays in memory until a chunk ends: 6 to 8 MiB per step at 3 million
    weights. One thread more clears it away, and runs take a tenth to a third longer: set the
    environment variable ``NPROC=3`` for two devices. Or give ``Execution`` a smaller
    ``steps_per_chunk``; what does not change at w* is then computed anew as often.

    Args:
        chain: the number of devices. ``num_chains`` must be a multiple of it.

    Raises:
        ValueError: fewer than 1.

    >>> from slt_jax.run import Execution
    >>> Execution(rows="map", layout=Layout(chain=1)).layout
    Layout(chain=1)
    """

    chain: int = 1

    def __post_init__(self):
        if isinstance(self.chain, bool) or not isinstance(self.chain, int) or self.chain < 1:
            raise ValueError(f"chain must be a number of devices, at least 1, got {self.chain!r}")

    def check(self, num_chains: int, weights: Any) -> None:
        """Raise ValueError unless there are as many devices, and they can share these chains.

        Args:
            num_chains: chains per component.
            weights: all there are; those that are spread over devices already are refused.
        """
        devices = jax.local_devices()
        if self.chain > len(devices):
            raise ValueError(
                f"{self} needs {self.chain} devices, and this process has {len(devices)} "
                f"({devices[0].platform}). A CPU can be split, before JAX is first used: "
                f'jax.config.update("jax_num_cpu_devices", {self.chain})'
            )
        if num_chains % self.chain:
            raise ValueError(
                f"{self} gives every device as many chains: num_chains must be a multiple of "
                f"{self.chain}, got {num_chains}"
            )
        for leaf in jax.tree.leaves(weights):
            if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
                raise ValueError(
                    f"the weights are spread over devices already, as {leaf.sharding}, and {self} "
                    "has every device hold all of them: leave out the layout to go on with theirs, "
                    "or gather the weights on one device"
                )

    @property
    def is_processor(self) -> bool:
        """Whether the devices are a CPU, whole or in parts."""
        return jax.local_devices()[0].platform == "cpu"

    @property
    def splits_processor(self) -> bool:
        """Whether the devices are parts of a CPU."""
        return self.chain > 1 and self.is_processor

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices, in the order in which JAX counts them."""
        devices = jax.local_devices()[: self.chain]
        return jax.make_mesh((self.chain,), (_CHAIN,), (AxisType.Auto,), devices=devices)


def place(layout: Layout | None, tree: Any, where: Any = EVERYWHERE) -> Any:
    """Put arrays where a layout wants them; without one they stay where they are.

    Args:
        layout: the layout, or None.
        tree: pytree of arrays.
        where: for the leaves or whole branches of it, ``EVERYWHERE``, ``BY_ROW`` or
            ``BY_SECOND_AXIS``.
    """
    if layout is None:
        return tree

    def put(spec: PartitionSpec, branch: Any) -> Any:
        sharding = NamedSharding(layout.mesh, spec)
        if spec == EVERYWHERE and not layout.is_processor:
            return jax.device_put(branch, sharding)
        # Of an array on one device JAX cuts the shares by a compiled program for every shape, and
        # copies it for every other device, where parts of a CPU can all look at the same memory.
        return jax.tree.map(lambda leaf: _put_by_host(leaf, sharding), branch)

    return jax.tree.map(put, where, tree, is_leaf=lambda spec: isinstance(spec, PartitionSpec))


def hand_over(layout: Layout | None, tree: Any, where: Any) -> Any:
    """Put arrays where a layout wants them; those of which it makes shares are gone afterwards.

    A program may overwrite what it is given, and nobody holds a second copy.

    Args:
        layout: the layout, or None.
        tree: pytree of arrays that nobody else needs.
        where: as for ``place``.
    """
    if layout is None:
        return tree

    def give(leaf: Any, sharding: NamedSharding) -> Any:
        shares = _put_by_host(leaf, sharding)
        if layout.is_processor:
            # They are views of the whole as yet, and a view cannot be overwritten.
            shares = jax.device_put(shares, sharding, may_alias=False)
        leaf.delete()
        return shares

    def put(spec: PartitionSpec, branch: Any) -> Any:
        if spec == EVERYWHERE:
            return place(layout, branch)
        sharding = NamedSharding(layout.mesh, spec)
        return jax.tree.map(lambda leaf: give(leaf, sharding), branch)

    return jax.tree.map(put, where, tree, is_leaf=lambda spec: isinstance(spec, PartitionSpec))


def _put_by_host(leaf: Any, sharding: NamedSharding) -> Any:
    """Send every device what it needs by way of the host."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.device_get(leaf), sharding)
    words = jax.device_put(jax.device_get(jax.random.key_data(leaf)), sharding)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))


def over_devices(
    layout: Layout | None, fn: Callable[..., Any], arguments: tuple[Any, ...], results: Any
) -> Callable[..., Any]:
    """Give a function that every device applies to its own rows.

    Args:
        layout: the layout; None for one device, on which the function stays as it is.
        fn: takes and gives pytrees of arrays, and computes each row by itself.
        arguments: for every argument, as ``where`` for ``place``.
        results: the like for what it gives; of what is ``EVERYWHERE`` all devices find the same.
    """
    if layout is None:
        return fn
    return jax.shard_map(
        fn, mesh=layout.mesh, in_specs=arguments, out_specs=results, check_vma=False
    )
