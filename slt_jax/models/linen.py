"""Models written in Flax Linen."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from slt_jax._tree import path_table
from slt_jax._types import Examples, Params
from slt_jax.models.base import Model, from_functions
from slt_jax.models.components import Components
from slt_jax.restriction import Restriction


def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    loss: Callable[[Any, Any], Any],
    *,
    axes: Mapping[str, str] | None = None,
    components: Components | Mapping[str, Restriction] | None = None,
    examples: Examples | None = None,
) -> Model:
    """Make a model of a Flax Linen module.

    The collection ``params`` may move. The others (``batch_stats``, …) stay as they are, inside the
    loss. Call the network in evaluation mode: ``network(x, train=False)``.

    Args:
        module: the module, not bound.
        variables: its variables, as ``module.init`` gives them; boxes of ``with_partitioning`` are
            opened and their names become ``axes``.
        loss: ``loss(network, batch) -> [batch, *pos]``, float32 nats, not reduced, where
            ``network(x, …)`` is ``module.apply(variables, x, …)``.
        axes: path → names of the axes, as for ``from_functions``.
        components: as for ``from_functions``.
        examples: a few examples on which to run ``Model.check``; None leaves that out.

    Raises:
        ImportError: flax is not installed.
        TypeError, ValueError: arguments that are no such model, or one that cannot be sampled.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> module = nn.Dense(2)
    >>> model = from_linen(
    ...     module, module.init(jax.random.key(0), jnp.ones((1, 3))),
    ...     lambda network, x: jnp.sum(network(x) ** 2, axis=-1))
    >>> sorted(model.components.leaves())
    ['bias', 'kernel']
    """
    from flax import linen as nn
    from flax.core import unfreeze

    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"variables must have the collection 'params', got {got}: pass all that module.init "
            "gave, or {'params': params} if there is nothing else"
        )
    names = _names_of_axes(nn, variables["params"])
    opened = unfreeze(nn.meta.unbox(variables))
    params = opened.pop("params")
    return from_functions(
        params,
        # The method, not the module: it can be compared even if the module has lists for fields.
        eqx.Partial(_loss_of_weights, loss, module.apply, opened),
        names | dict(axes or {}),
        components,
        examples,
    )


def _loss_of_weights(loss: Any, apply: Any, rest: Any, params: Params, batch: Any) -> Any:
    return loss(functools.partial(apply, {**rest, "params": params}), batch)


def _names_of_axes(nn: Any, boxed: Params) -> dict[str, str]:
    """Read the names that boxes give to the axes; an axis without a name is called ``_``."""
    shapes = path_table(nn.meta.unbox(boxed))
    specs = path_table(nn.get_partition_spec(boxed))
    return {
        path: " ".join("_" if name is None else str(name) for name in spec)
        for path, spec in specs.items()
        if len(spec) > 0 and len(spec) == len(shapes[path].shape)
    }
