"""Models written in Flax NNX."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from slt_jax._types import Examples, Params
from slt_jax.models.base import Model, from_functions
from slt_jax.models.components import Components
from slt_jax.restriction import Restriction


def from_nnx(
    module: Any,
    loss: Callable[[Any, Any], Any],
    *,
    wrt: Any = None,
    axes: Mapping[str, str] | None = None,
    components: Components | Mapping[str, Restriction] | None = None,
    examples: Examples | None = None,
) -> Model:
    """Make a model of a Flax NNX module.

    The variables of the type ``wrt`` may move. Everything else (running averages, random keys, a
    frozen base) stays as it is, inside the loss. The module itself is left alone: a copy that
    shares its arrays is put in evaluation mode.

    Args:
        module: the trained module.
        loss: ``loss(network, batch) -> [batch, *pos]``, float32 nats, not reduced; ``network`` is
            the module with the weights of the chain.
        wrt: which variables may move, as ``nnx.Optimizer`` takes it; None for ``nnx.Param``, and
            ``nnx.LoRAParam`` for the adapters alone.
        axes: path → names of the axes, as for ``from_functions``.
        components: as for ``from_functions``.
        examples: a few examples on which to run ``Model.check``; None leaves that out.

    Raises:
        ImportError: flax is not installed.
        TypeError, ValueError: arguments that are no such model, or one that cannot be sampled.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = from_nnx(
    ...     nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
    ...     lambda network, x: jnp.sum(network(x) ** 2, axis=-1))
    >>> sorted(model.components.leaves())
    ['bias', 'kernel']
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be a flax.nnx.Module, got {type(module).__name__}")
    copy = nnx.merge(*nnx.split(module))
    copy.eval()
    structure, moving, rest = nnx.split(copy, nnx.Param if wrt is None else wrt, ...)
    return from_functions(
        nnx.to_pure_dict(moving),
        eqx.Partial(_loss_of_weights, loss, structure, nnx.to_pure_dict(rest)),
        axes,
        components,
        examples,
    )


def _loss_of_weights(loss: Any, structure: Any, rest: Any, params: Params, batch: Any) -> Any:
    from flax import nnx

    return loss(nnx.merge(structure, params, rest), batch)
