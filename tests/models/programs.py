"""What is in a traced program: its equations and shapes, however deeply nested."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations_in(jaxpr: Jaxpr) -> Iterator[Any]:
    """Every equation of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from equations_in(getattr(inner, "jaxpr", inner))


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def shapes_in(jaxpr: Jaxpr) -> set[tuple[int, ...]]:
    """Every shape that a program computes anywhere."""
    return {v.aval.shape for equation in equations_in(jaxpr) for v in equation.outvars}
