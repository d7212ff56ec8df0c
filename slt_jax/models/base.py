"""What the sampler needs of a model: weights, a loss, names of axes, and components."""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._tree import path_table
from slt_jax._types import Examples, Params
from slt_jax.data import Batches
from slt_jax.minibatch import Losses
from slt_jax.models.components import Components
from slt_jax.posterior import LossFn
from slt_jax.restriction import Restriction
from slt_jax.testing import check_model

_COMPARED_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that can be sampled, whatever library it was written in.

    Attributes:
        params: w*, a pytree of floating-point arrays and nothing else: all that may move.
        loss_fn: ``loss_fn(params, batch) -> [batch, *pos]``, float32 nats, not reduced, or
            ``slt.Losses``. What does not move is inside it, as a pytree.
        axes: path → names of the axes of the leaf, such as ``"l d h k"``; empty if unknown.
        components: the weights by name, ``model.components["l0h1"]``.

    >>> model = from_functions({"w": np.ones(3, np.float32)}, lambda params, x: x @ params["w"])
    >>> model.components["w"].num_params
    3
    """

    params: Params
    loss_fn: LossFn
    axes: Mapping[str, str]
    components: Components

    def check(self, examples: Examples, *, weights: Any = None) -> None:
        """Check on a few examples that the model can be sampled.

        As ``slt.testing.check_model``: the loss is float32 and unreduced, follows its gradient, and
        is a function of the weights and of one example at a time, which dropout and batch
        normalisation in training mode are not. Weights that no loss depends on are warned about:
        buffers among the weights would be sampled.

        Args:
            examples: at least 4 examples, as for ``slt.Batches``.
            weights: as for ``slt.Batches``.

        Raises:
            TypeError, ValueError: what was expected, what was got, and what to do.
        """
        _warn_of_buffers(self, examples)
        check_model(self.loss_fn, self.params, examples, weights=weights)


def from_functions(
    params: Params,
    loss_fn: LossFn,
    axes: Mapping[str, str] | None = None,
    components: Components | Mapping[str, Restriction] | None = None,
    examples: Examples | None = None,
) -> Model:
    """Make a model of plain functions of a pytree of weights.

    Args:
        params: w*, pytree of floating-point arrays. Integers, PRNG keys and buffers belong inside
            the loss, as in ``equinox.Partial(loss, buffers)``.
        loss_fn: ``loss_fn(params, batch) -> [batch, *pos]``, float32 nats, not reduced. In it
            ``table[ids]`` takes the last row for ids beyond a table, of tokens or of positions:
            write ``jnp.take(table, ids, axis=0)``, whose NaN is found before sampling, or have such
            examples refused by a method ``check_examples`` (see ``slt_jax.posterior.LossFn``).
        axes: path → names of the axes, such as ``{"attn.q": "l d h k"}``. With the names of
            ``slt.models.Components`` they give components by short names; None for none.
        components: restrictions with names of your own, or ready-made components; None for what
            ``axes`` and paths give.
        examples: a few examples (at least 4) on which to run ``Model.check``; None leaves that out.

    Raises:
        TypeError, ValueError: weights or a loss that cannot be sampled.

    Warns:
        UserWarning: two leaves that hold the same numbers and are not tied.

    >>> def loss(params, batch):
    ...     inputs, targets = batch
    ...     return (inputs @ params["w"] - targets) ** 2
    >>> data = (np.eye(4, 3, dtype=np.float32), np.ones(4, np.float32))
    >>> model = from_functions({"w": np.ones(3, np.float32)}, loss, examples=data)
    >>> model.loss_fn(model.params, data).shape
    (4,)

    Adapters on a frozen base, which is an argument of the loss instead of a part of ``params``:

    >>> def adapted(base, adapters, batch):
    ...     return loss({"w": base["w"] + adapters["a"] @ adapters["b"]}, batch)
    >>> adapters = {"a": np.ones((3, 1), np.float32), "b": np.zeros(1, np.float32)}
    >>> lora = from_functions(adapters, eqx.Partial(adapted, model.params))
    >>> lora.components["full"].labels
    ('a', 'b')
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(params, batch), got {loss_fn!r}")
    check_weights_only(params)
    warn_of_untied(params)
    if not isinstance(components, Components):
        components = Components(params, axes, named=components)
    model = Model(params, loss_fn, dict(axes or {}), components)
    if examples is not None:
        model.check(examples)
    return model


def check_weights_only(params: Params) -> None:
    """Raise TypeError unless every leaf is a floating-point array, or the shape of one."""
    table = path_table(params)
    if not table:
        raise TypeError("params has no leaves: there is nothing to sample")
    for path, leaf in table.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(f"params leaf {path!r} is not an array: got {type(leaf).__name__}")
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            raise TypeError(
                f"params leaf {path!r} is a PRNG key: a model that is sampled uses no randomness. "
                "Put it in evaluation mode and keep the key out of its weights"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params leaf {path!r} has dtype {dtype}: only floating-point weights can be "
                "sampled. Keep integers, masks and buffers inside the loss, for example as "
                "equinox.Partial(loss, buffers)"
            )


def warn_of_untied(params: Params) -> None:
    """Warn of two leaves that hold the same numbers: as two leaves they will move apart.

    Matrices are compared with each other and with each other's transpose; constant ones, such as
    fresh biases, and trees over 256 MB are left alone, except for leaves that are one array.
    """
    table = path_table(params)
    is_small = sum(leaf.size * leaf.dtype.itemsize for leaf in table.values()) <= _COMPARED_BYTES
    seen: dict[Any, str] = {}
    for path, leaf in table.items():
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            continue
        marks: list[Any] = [id(leaf)]
        if is_small and leaf.ndim >= 2 and getattr(leaf, "is_fully_addressable", True):
            marks += _content(np.asarray(jax.device_get(leaf)))
        other = next((seen[mark] for mark in marks if mark in seen), None)
        if other is not None:
            warnings.warn(
                f"{other!r} and {path!r} hold the same weights: if they are tied, they will move "
                "apart, since they are two leaves. Make them one leaf that is used twice "
                "(equinox.nn.Shared, one flax Embed with attend, or one entry of the tree)",
                stacklevel=3,
            )
        seen |= {mark: path for mark in marks if mark not in seen}


def _content(array: np.ndarray) -> list[Any]:
    """Give digests of a matrix and of its transpose; none if all entries are equal."""
    if array.size < 2 or np.all(array == array.flat[0]):
        return []
    views = [array] if array.ndim != 2 else [array, array.T]
    return [
        (str(view.dtype), view.shape, hashlib.blake2b(view.tobytes(), digest_size=16).digest())
        for view in views
    ]


def _warn_of_buffers(model: Model, examples: Examples) -> None:
    batches = Batches(examples, 1)
    rows, _ = batches.rows(np.arange(batches.num_examples))

    @eqx.filter_jit
    def gradients(loss_fn: LossFn, params: Params, rows: Examples) -> Params:
        def total(params: Params) -> jax.Array:
            losses = loss_fn(params, rows)
            return jnp.sum(losses.values if isinstance(losses, Losses) else losses)

        # Away from w*, where a perfect fit or a factor of 0 would hide weights that do matter.
        gradient = jax.grad(total)(jax.tree.map(_shaken, params))
        return jax.tree.map(lambda leaf: jnp.any(leaf != 0), gradient)

    felt = path_table(jax.device_get(gradients(model.loss_fn, model.params, rows)))
    idle = [path for path, is_felt in felt.items() if not is_felt]
    if idle:
        warnings.warn(
            f"no loss depends on {', '.join(map(repr, idle))}: if these are buffers (tables, "
            "masks, running averages), keep them out of the weights; otherwise they move freely",
            stacklevel=3,
        )


def _shaken(leaf: jax.Array) -> jax.Array:
    noise = jax.random.normal(jax.random.key(0), leaf.shape, jnp.float32)
    return leaf + (0.01 * noise).astype(leaf.dtype)
