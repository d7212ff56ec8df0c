"""Which components can be sampled side by side in one call of one compiled program."""

from collections.abc import Hashable, Mapping

import jax

from slt_jax.restriction import Block, Restriction


def groups(components: Mapping[str, Restriction]) -> list[dict[str, Restriction]]:
    """Split components into groups of equal signature and equal offset along the leading axis.

    Weights of layers are stacked along a leading axis. Components that are cut there at the same
    place lie in the same layer: side by side they leave everything below that layer to be computed
    once for all of them. Groups that differ in that place alone share one compiled program.

    Args:
        components: name → restriction.

    Returns:
        the groups, in the order of their first members; within a group the order given.

    >>> from slt_jax.restriction import Block
    >>> def head(layer, number):
    ...     return Restriction([Block("q", (2, 8, 4, 3), (1, 8, 1, 3), (layer, 0, number, 0))])
    >>> heads = {f"l{i}h{j}": head(i, j) for i in range(2) for j in range(3)}
    >>> [list(group) for group in groups(heads)]
    [['l0h0', 'l0h1', 'l0h2'], ['l1h0', 'l1h1', 'l1h2']]
    """
    found: dict[Hashable, dict[str, Restriction]] = {}
    for name, restriction in components.items():
        leading = tuple(map(_leading, restriction.blocks))
        found.setdefault((restriction.signature, leading), {})[name] = restriction
    return list(found.values())


def _leading(block: Block) -> tuple[int, ...]:
    """Give the offset along the leading axis: 0 if it is taken whole, nothing without axes."""
    return tuple(int(offset) for offset in jax.device_get(block.start[:1]))
