"""The state of the loop: what distinguishes the rows, and what is carried from step to step."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Int, Key

from slt_jax._types import Counter
from slt_jax.kernels.base import Info


class Rows(NamedTuple):
    """What differs between rows: key, chain number, and block offsets if there are components.

    ``starts`` is None, or per block and axis an int32 ``[row]`` array where components differ in
    the offset and None where they share it.
    """

    key: Key[Array, " row"]
    chain: Int[Array, " row"]
    starts: Any


class Carry(NamedTuple):
    """Everything the chains need to go on.

    ``state`` has a leading row axis; ``info`` sums what steps reported since the last draw;
    ``partials`` are the sums of the observables' unfinished batches, with their ``counts``.
    """

    step: Int[Array, ""]
    state: Any
    alive: Bool[Array, " row"]
    died_at: Int[Array, " row"]
    info: Info
    partials: dict[str, Any]
    counts: dict[str, Counter]
