"""Floating-point operations of a program, every round of every loop counted.

XLA's own count of a compiled program takes the body of a loop once, however often it runs. This one
walks the program that JAX traces and follows the whole numbers that decide how often.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_ON_WHOLE_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": max,
    "min": min,
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": lambda value: not value if isinstance(value, bool) else ~value,
    "clamp": lambda low, value, high: min(max(value, low), high),
    "select_n": lambda which, *cases: cases[which],
    **dict.fromkeys(
        ("convert_element_type", "copy", "reshape", "squeeze", "stop_gradient"), lambda value: value
    ),
}

# What moves or picks numbers without computing with them.
_FREE = frozenset(
    (
        *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"),
        *("device_put", "dynamic_slice", "dynamic_update_slice", "gather", "optimization_barrier"),
        *("pad", "reshape", "rev", "scatter", "select_n", "sharding_constraint", "slice", "split"),
        *("squeeze", "stop_gradient", "transpose"),
    )
)


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Give the floating-point operations of ``fn(*args)``.

    A contraction of k pairs is 2k operations; an elementwise function, of any kind, is one per
    element, and a reduction one per element of its input. Data movement and whole numbers are free.
    Branches that are chosen by something unknown count as the most expensive one.

    Args:
        fn: a function that JAX can trace.
        *args: its arguments, pytrees of arrays or of ``jax.ShapeDtypeStruct``. Scalar whole
            numbers that decide how often a loop runs must be given as NumPy or JAX scalars.

    Raises:
        ValueError: a loop whose number of rounds depends on what is not known, or a kernel in
            another language.

    >>> def power(matrix, exponent):
    ...     return jax.lax.fori_loop(0, exponent, lambda _, x: x @ matrix, matrix)
    >>> count_flops(power, np.ones((4, 4), np.float32), np.int32(10))
    1280.0
    """
    return _Counter().cost(jax.make_jaxpr(fn)(*args), jax.tree.leaves(args))[0]


class _Counter:
    """Walks programs; remembers the cost of those it has walked with the same known numbers."""

    def __init__(self):
        self._seen: dict[Any, tuple[float, list[Any]]] = {}

    def cost(self, program: Any, values: Sequence[Any]) -> tuple[float, list[Any]]:
        """Give the operations of a program, and what is known of its results."""
        known = [_whole_number(value) for value in values]
        place = (id(program), *known)
        if place not in self._seen:
            jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
            self._seen[place] = self._walk(jaxpr, dict(zip(jaxpr.invars, known, strict=True)))
        return self._seen[place]

    def _walk(self, jaxpr: Jaxpr, found: dict[Any, Any]) -> tuple[float, list[Any]]:
        def known(atom: Any) -> Any:
            return _whole_number(atom.val) if isinstance(atom, Literal) else found.get(atom)

        total = 0.0
        for equation in jaxpr.eqns:
            cost, results = self._equation(equation, [known(atom) for atom in equation.invars])
            total += cost
            found |= zip(equation.outvars, results, strict=True)
        return total, [known(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, known: list[Any]) -> tuple[float, list[Any]]:
        name, params = equation.primitive.name, equation.params
        unknown = [None] * len(equation.outvars)
        if name == "while":
            return self._while(params, known)
        if name == "optimization_barrier":
            return 0.0, known
        if name == "scan":
            state = [None] * (len(known) - params["num_consts"])
            cost, _ = self.cost(params["jaxpr"], known[: params["num_consts"]] + state)
            return params["length"] * cost, unknown
        if name == "cond":
            which, *rest = known
            branches = params["branches"]
            chosen = branches if which is None else branches[which : which + 1]
            costs = [self.cost(branch, rest) for branch in chosen]
            return max(cost for cost, _ in costs), costs[0][1] if which is not None else unknown
        inner = next((p for p in params.values() if isinstance(p, Jaxpr | ClosedJaxpr)), None)
        if inner is None or name.startswith(("reduce", "scatter")):
            return _operations(equation), _evaluate(equation, known)
        if len(getattr(inner, "jaxpr", inner).invars) != len(known):
            raise ValueError(f"the operations of {name!r} cannot be counted")
        return self.cost(inner, known)

    def _while(self, params: Any, known: list[Any]) -> tuple[float, list[Any]]:
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        total, state = 0.0, known[second:]
        while True:
            cost, (goes_on,) = self.cost(params["cond_jaxpr"], [*known[:first], *state])
            total += cost
            if goes_on is None:
                raise ValueError(
                    "how often a loop runs depends on a number that is not known while counting; "
                    "give the scalars that decide it as NumPy or JAX scalars"
                )
            if not goes_on:
                return total, state
            cost, state = self.cost(params["body_jaxpr"], [*known[first:second], *state])
            total += cost


def _whole_number(value: Any) -> int | None:
    """Give a scalar whole number or truth value, or None for anything else."""
    if isinstance(value, int | None):
        return value
    is_scalar = isinstance(value, np.ndarray | np.generic | jax.Array) and value.ndim == 0
    is_whole = is_scalar and (
        jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.bool_)
    )
    return value.item() if is_whole else None


def _evaluate(equation: Any, known: list[Any]) -> list[Any]:
    """Give what an operation on known whole numbers results in."""
    operation = _ON_WHOLE_NUMBERS.get(equation.primitive.name)
    is_scalar = not equation.outvars[0].aval.shape
    if operation is None or not is_scalar or any(value is None for value in known):
        return [None] * len(equation.outvars)
    return [operation(*known)]


def _operations(equation: Any) -> float:
    """Give the floating-point operations of one equation without a program inside."""
    name, result = equation.primitive.name, equation.outvars[0].aval
    if name in _FREE or not jnp.issubdtype(result.dtype, jnp.floating):
        return 0.0
    shapes = [atom.aval.shape for atom in equation.invars]
    size = float(math.prod(result.shape))
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = shapes[1]
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * size * math.prod(kernel) / kernel[features]
    return max(size, *(float(math.prod(shape)) for shape in shapes)) if shapes else 0.0
