"""One small network written in Flax Linen, Flax NNX, Equinox and plain functions.

The paths of the weights are the same in all four, since the noise of a leaf and the key of a chain
are derived from paths: with them, the same key gives the same run.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from slt_jax.models import Model, from_equinox, from_functions, from_linen, from_nnx

NUM_INPUTS, NUM_HIDDEN, NUM_EXAMPLES = 3, 5, 32


def _weights() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    shapes = {"hidden": (NUM_INPUTS, NUM_HIDDEN), "out": (NUM_HIDDEN, 2)}
    return {
        name: {
            "kernel": generator.normal(size=shape).astype(np.float32),
            "bias": generator.normal(size=shape[1]).astype(np.float32),
        }
        for name, shape in shapes.items()
    }


WEIGHTS = _weights()
INPUTS = np.random.default_rng(4).normal(size=(NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32)
TARGETS = np.random.default_rng(5).integers(0, 2, NUM_EXAMPLES)
DATA = (INPUTS, TARGETS)


def cross_entropy(network: Any, batch: Any) -> jax.Array:
    """Give the loss of each example in nats; the network takes a batch."""
    inputs, targets = batch
    scores = jax.nn.log_softmax(network(inputs))
    return -jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


def one_by_one(network: Any, batch: Any) -> jax.Array:
    """The same for a network that takes one example."""
    return cross_entropy(jax.vmap(network), batch)


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="out")(jnp.tanh(linen.Dense(NUM_HIDDEN, name="hidden")(x)))


class NnxNetwork(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(NUM_INPUTS, NUM_HIDDEN, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(NUM_HIDDEN, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


class Dense(eqx.Module):
    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.kernel + self.bias


class EquinoxNetwork(eqx.Module):
    hidden: Dense
    out: Dense
    activation: Any

    def __call__(self, x):
        return self.out(self.activation(self.hidden(x)))


def _plain_loss(params: Any, batch: Any) -> jax.Array:
    def network(x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    return cross_entropy(network, batch)


def make_nnx() -> NnxNetwork:
    """Give the NNX module with the weights in it."""
    module = NnxNetwork()
    for name, leaves in WEIGHTS.items():
        layer = getattr(module, name)
        layer.kernel[...] = jnp.asarray(leaves["kernel"])
        layer.bias[...] = jnp.asarray(leaves["bias"])
    return module


def make_models() -> dict[str, Model]:
    """Give the network as a model, made in each of the four ways."""
    weights = jax.tree.map(jnp.asarray, WEIGHTS)
    layers = {name: Dense(**leaves) for name, leaves in weights.items()}
    return {
        "plain": from_functions(weights, _plain_loss),
        "linen": from_linen(LinenNetwork(), {"params": weights}, cross_entropy),
        "nnx": from_nnx(make_nnx(), cross_entropy),
        "equinox": from_equinox(EquinoxNetwork(**layers, activation=jnp.tanh), one_by_one),
    }
