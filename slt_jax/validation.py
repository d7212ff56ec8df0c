"""Checks of what a user passes, made before anything compiles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._tree import join, split
from slt_jax._types import ChainKey, Examples, Params
from slt_jax.data import Batches
from slt_jax.examples import check_sampled
from slt_jax.kernels.base import AbstractKernel
from slt_jax.minibatch import Losses
from slt_jax.posterior import LocalPosterior
from slt_jax.run import Execution, Settings

_CAPTURE_LIMIT = 2**20


def check_arguments(
    posterior: LocalPosterior, kernel: AbstractKernel, batches: Batches, key: ChainKey
) -> None:
    """Raise TypeError if the positional arguments of ``sample`` are not what they should be."""
    if not isinstance(posterior, LocalPosterior):
        raise TypeError(f"posterior must be an slt.LocalPosterior, got {_kind(posterior)}")
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"kernel must be a kernel such as slt.sgld(1e-5), got {_kind(kernel)}")
    if isinstance(key, Batches) or _is_key(batches):
        raise TypeError("batches and key are swapped: the order is posterior, kernel, batches, key")
    if not isinstance(batches, Batches):
        raise TypeError(f"batches must be an slt.Batches, got {_kind(batches)}")
    check_key(key)


def check_key(key: Any) -> None:
    """Raise unless ``key`` is one typed threefry key.

    Under ``vmap`` an ``rbg`` key gives every chain the noise of the first.
    """
    if not _is_key(key):
        raise TypeError(
            f"key must be a typed key, as from jax.random.key(0); got {_kind(key)}. Legacy uint32 "
            "keys from jax.random.PRNGKey do not say which generator they belong to"
        )
    if key.shape != ():
        raise ValueError(f"key must be a single key, got an array of keys of shape {key.shape}")
    implementation = str(jax.random.key_impl(key))
    if "threefry" not in implementation:
        raise ValueError(
            f'key must use the threefry generator, got {implementation!r}: under vmap an "rbg" key '
            'gives every chain the same noise. Use jax.random.key(seed, impl="threefry2x32")'
        )


def check_settings(settings: Settings) -> None:
    """Raise ValueError if a count is out of range."""
    minima = {
        "num_chains": 1,
        "num_draws": 1,
        "num_burnin_steps": 0,
        "num_steps_bw_draws": 1,
    }
    for name, least in minima.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if settings.num_steps >= 2**31 - 1:
        raise ValueError(f"{settings.num_steps} steps do not fit a 32-bit step counter")


def check_execution(execution: Execution, settings: Settings, posterior: LocalPosterior) -> None:
    """Raise ValueError if the devices of this process cannot share the chains as asked for."""
    if execution.layout is not None:
        # A loss may hold weights too: those of a base that stays frozen.
        execution.layout.check(settings.num_chains, (posterior.params, posterior.loss_fn))


def check_loss(posterior: LocalPosterior, batches: Batches) -> None:
    """Raise unless the loss gives one float32 value per example or position, abstractly evaluated.

    Raises:
        ValueError: examples that it cannot read, a scalar, another leading axis, weights that do
            not fit, or large arrays captured in the loss's closure.
        TypeError: a dtype narrower than float32, or not a floating-point dtype.
    """
    check_sampled(posterior, batches)
    examples = batches.example_structure
    arrays, static = split(posterior.loss_fn)

    def call(arrays: Any, params: Params, examples: Examples) -> Any:
        return join(arrays, static)(params, examples)

    closed, out = jax.make_jaxpr(call, return_shape=True)(arrays, posterior.params, examples)
    values, weights = (out.values, out.weights) if isinstance(out, Losses) else (out, None)
    if not hasattr(values, "shape"):
        raise TypeError(
            f"loss_fn must return one array [batch, *pos] or slt.Losses, got {_kind(values)}"
        )
    if values.shape[:1] != (batches.batch_size,):
        raise ValueError(
            f"loss_fn must return unreduced losses [batch, *pos] with batch = "
            f"{batches.batch_size}, got shape {values.shape}; do not take the mean in it"
        )
    if values.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"loss_fn must return float32 nats, got {values.dtype}: gaps between losses are lost "
            "in narrower dtypes. Cast logits to float32 before the cross-entropy"
        )
    if weights is not None and weights.shape != values.shape[: len(weights.shape)]:
        raise ValueError(f"slt.Losses: weights {weights.shape} do not fit values {values.shape}")
    if batches.weights is not None:
        expected = (batches.batch_size, *batches.weights.shape[1:])
        if values.shape[: len(expected)] != expected:
            raise ValueError(
                f"weights of a batch have shape {expected}, which does not fit the losses "
                f"{values.shape}"
            )
    _check_captured(closed)


def _check_captured(closed: Any) -> None:
    seen: dict[int, Any] = {}
    _collect_constants(closed, seen)
    large = [const for const in seen.values() if getattr(const, "nbytes", 0) > _CAPTURE_LIMIT]
    if large:
        shapes = ", ".join(f"{const.dtype}{list(const.shape)}" for const in large)
        raise ValueError(
            f"loss_fn captures arrays over 1 MB in its closure ({shapes}): they would be baked "
            "into the compiled program. Pass them as arguments: loss_fn = "
            "equinox.Partial(loss, arrays) with def loss(arrays, params, examples)"
        )


def _collect_constants(closed: Any, seen: dict[int, Any]) -> None:
    for const in getattr(closed, "consts", ()):
        seen[id(const)] = const
    for equation in getattr(closed, "jaxpr", closed).eqns:
        for variable in equation.invars:
            if hasattr(variable, "val"):
                seen[id(variable.val)] = variable.val
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    _collect_constants(inner, seen)


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _kind(value: Any) -> str:
    shape = f" of shape {np.shape(value)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
