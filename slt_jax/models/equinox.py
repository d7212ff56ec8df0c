"""Models written in Equinox."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from slt_jax._types import Examples, Params
from slt_jax.models.base import Model, from_functions
from slt_jax.models.components import Components
from slt_jax.restriction import Restriction


def from_equinox(
    module: Any,
    loss: Callable[[Any, Any], Any],
    *,
    filter_spec: Any = eqx.is_inexact_array,
    axes: Mapping[str, str] | None = None,
    components: Components | Mapping[str, Restriction] | None = None,
    examples: Examples | None = None,
) -> Model:
    """Make a model of an Equinox module, or of any pytree that is called by the loss.

    The floating-point arrays may move. Everything else (integers, keys, activation functions) stays
    as it is, inside the loss, and dropout is put in inference mode. One array assigned to two
    fields is two leaves, hence untied: use ``equinox.nn.Shared``.

    Args:
        module: the trained module.
        loss: ``loss(network, batch) -> [batch, *pos]``, float32 nats, not reduced; ``network`` is
            the module with the weights of the chain. Equinox layers take one example:
            ``jax.vmap(network)(x)``.
        filter_spec: what may move, as ``equinox.partition`` takes it: a function of a leaf, or a
            pytree of bools, which keeps buffers or a frozen base out.
        axes: path → names of the axes, as for ``from_functions``.
        components: as for ``from_functions``.
        examples: a few examples on which to run ``Model.check``; None leaves that out.

    Raises:
        TypeError, ValueError: weights or a loss that cannot be sampled.

    >>> import jax, jax.numpy as jnp
    >>> model = from_equinox(
    ...     eqx.nn.Linear(3, 2, key=jax.random.key(0)),
    ...     lambda network, x: jnp.sum(jax.vmap(network)(x) ** 2, axis=-1))
    >>> sorted(model.components.leaves())
    ['bias', 'weight']
    """
    moving, frozen = eqx.partition(eqx.nn.inference_mode(module), filter_spec)
    loss_fn = eqx.Partial(_loss_of_weights, loss, frozen)
    return from_functions(moving, loss_fn, axes, components, examples)


def _loss_of_weights(loss: Any, frozen: Any, params: Params, batch: Any) -> Any:
    return loss(eqx.combine(params, frozen), batch)
