"""Type aliases, and the legend of the dimension names used in every annotation.

=============  ==================================================================
name           meaning
=============  ==================================================================
``batch``      examples in one minibatch
``*pos``       positions of one example (absent when a loss is per example)
``row``        one (component, chain) pair: the only batch axis of the loop
``component``  a set of weights that moves while the others stay at w*
``chain``      one Markov chain
``draw``       one recorded state of a chain
``rank``       axes of the view of a parameter leaf
=============  ==================================================================

Losses are in nats, ``n_beta`` is dimensionless, ``localization`` is in 1/weight².
"""

from typing import Any, TypeAlias

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params: TypeAlias = PyTree[Any]
"""A pytree of floating-point arrays: the weights w*."""

Examples: TypeAlias = PyTree[Any]
"""A pytree of arrays that share a leading ``batch`` axis."""

Displacement: TypeAlias = tuple[Array, ...]
"""The chain's position δ = w − w*, one float32 array per block of a restriction."""

Scalar: TypeAlias = Float[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
Counter: TypeAlias = Int[Array, ""]
ChainKey: TypeAlias = Key[Array, ""]


def setting(value: Any) -> jax.Array:
    """Give a numeric setting as a float32 array leaf, placed without compiling anything.

    ``jnp.asarray`` compiles a conversion program for every Python scalar; an explicit
    ``device_put`` of a NumPy scalar does not, and is allowed under a transfer guard.
    """
    if isinstance(value, Tracer) or (isinstance(value, jax.Array) and value.dtype == np.float32):
        return value
    return jax.device_put(np.asarray(value, dtype=np.float32))


def as_float(name: str, value: Any) -> float | None:
    """Give the Python float of a setting, or None while it is traced.

    Raises:
        ValueError: an array of several numbers.
        TypeError: not a number.
    """
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name} must be one number, got an array of shape {np.shape(value)}: all chains share "
            "their settings. Make one call per value; they share one compiled program"
        )
    if isinstance(value, Tracer):
        return None
    try:
        return host_float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error


def host_float(value: Any) -> float:
    """Read a scalar from wherever it is, explicitly, as a transfer guard demands."""
    return float(jax.device_get(value))
