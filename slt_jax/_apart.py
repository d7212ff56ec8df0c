"""A part of a program that the compiler can neither move nor merge with what surrounds it."""

from collections.abc import Callable
from typing import TypeVar

import jax

from slt_jax._types import Counter

Arguments = TypeVar("Arguments")
Result = TypeVar("Result")


def apart(
    fn: Callable[[Arguments, Result], Result], times: Counter, arguments: Arguments, result: Result
) -> Result:
    """Give ``fn(arguments, result)``, or ``result`` as it is if ``times`` is 0.

    The part is the body of a loop of its own: XLA does not fuse across the boundary of a loop of
    which it does not know that it makes one trip, and the barrier keeps it from taking work that
    is the same in every trip out of the loop. Unlike a conditional, a loop of no trip copies
    nothing.

    Args:
        fn: the part.
        times: 0 or 1, by a computation that the compiler cannot see through.
        arguments: pytree of arrays.
        result: pytree of arrays, like what ``fn`` gives.
    """

    def body(_: Counter, state: tuple[Arguments, Result]) -> tuple[Arguments, Result]:
        return jax.lax.optimization_barrier((state[0], fn(*state)))

    return jax.lax.fori_loop(0, times, body, (arguments, result))[1]
