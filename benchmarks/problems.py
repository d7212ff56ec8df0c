"""The two problems that both sides of a benchmark sample: a digit classifier and a byte model.

Data, initial weights and training are fixed: every call on one machine gives the same w*:

    params, loss_fn, dataset = mlp_problem()            # 64-128-128-10 ReLU network on digits
    params, loss_fn, dataset = transformer_problem()    # 2-layer decoder on Python's own source

`params` is a pytree of float32 arrays, `dataset` a dict of numpy arrays with leading axis N, and
`loss_fn(params, batch)` the unreduced loss in nats, `[batch]` or `[batch, pos-1]`. Weights and data
travel to another framework as plain arrays: `np.savez(path, **flatten_params(params))` and
`np.savez(path, **dataset)`.

Dimension names: d = model width 64, h = heads 4, k = head width 16, pos = 64 bytes of context;
`pos-1`: the last byte has no next one to predict.
"""

import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.datasets import load_digits

Params = dict[str, Any]
Batch = dict[str, Any]
LossFn = Callable[[Params, Batch], Float[Array, "batch *pos"]]

MLP_WIDTHS = (64, 128, 128, 10)
NUM_LAYERS = 2
D_MODEL = 64
NUM_HEADS = 4
HEAD_WIDTH = D_MODEL // NUM_HEADS
FEED_FORWARD = 4 * D_MODEL
VOCABULARY = 256
CONTEXT = 64
# Neither none nor all of a head: a peer that ignores the fraction fails the comparison of losses.
ROTARY_WIDTH = HEAD_WIDTH // 2
ROTARY_BASE = 10_000.0
LAYER_NORM_EPSILON = 1e-5
NUM_SEQUENCES = 2_000


class Problem(NamedTuple):
    """Weights w* near a minimum, the loss they nearly minimise, and the whole training set."""

    params: Params
    loss_fn: LossFn
    dataset: dict[str, np.ndarray]


class Training(NamedTuple):
    """How w* is found: Adam, its `learning_rate` taken down to 0 along a cosine."""

    learning_rate: float
    num_steps: int
    batch_size: int


MLP_TRAINING = Training(learning_rate=3e-3, num_steps=300, batch_size=256)
TRANSFORMER_TRAINING = Training(learning_rate=3e-3, num_steps=1_500, batch_size=32)


def mlp_problem() -> Problem:
    """Train the classifier: N = 1797 images `[N, 64]` in [0, 1] with labels `[N]`.

    The loss is `[batch]`, nats per example. Training stops before every example is fitted
    perfectly, where all losses and hence the LLC would vanish.
    """
    images, labels = load_digits(return_X_y=True)
    dataset = {"images": (images / 16.0).astype(np.float32), "labels": labels.astype(np.int32)}
    params = _train(
        mlp_loss, _init_mlp(jax.random.key(0)), dataset, jax.random.key(1), MLP_TRAINING
    )
    return Problem(params, mlp_loss, dataset)


def transformer_problem() -> Problem:
    """Train the language model: N = 2000 sequences `[N, 64]` of bytes.

    The loss is `[batch, pos-1]`, nats per byte.
    """
    dataset = {"tokens": standard_library_bytes(NUM_SEQUENCES, CONTEXT)}
    initial = _init_transformer(jax.random.key(2))
    params = _train(transformer_loss, initial, dataset, jax.random.key(3), TRANSFORMER_TRAINING)
    return Problem(params, transformer_loss, dataset)


def flatten_params(params: Params) -> dict[str, np.ndarray]:
    """Every leaf under its path, as `layers/0/qkv/kernel`: what `np.savez` can write."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def standard_library_bytes(num_sequences: int, length: int) -> Int[np.ndarray, "N pos"]:
    """Windows of the standard library's source, evenly spaced over its modules in name order.

    The text is that of the running Python: runs are comparable within one Python version only.
    """
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(module.read_bytes() for module in modules), dtype=np.uint8)
    spacing = (len(text) - length) // num_sequences
    if spacing < length:
        raise ValueError(
            f"{num_sequences} windows of {length} bytes overlap in {len(text)} bytes of source; "
            "ask for fewer or shorter sequences."
        )
    starts = spacing * np.arange(num_sequences)
    return text[starts[:, None] + np.arange(length)].astype(np.int32)


def mlp_loss(params: Params, batch: Batch) -> Float[Array, " batch"]:
    """Softmax cross-entropy of the true class, one value per image, in nats."""
    hidden = batch["images"]
    num_layers = len(MLP_WIDTHS) - 1
    for layer in range(num_layers):
        hidden = _dense(params[f"dense_{layer}"], hidden)
        if layer < num_layers - 1:
            hidden = jax.nn.relu(hidden)
    return optax.softmax_cross_entropy_with_integer_labels(hidden, batch["labels"])


def transformer_loss(params: Params, batch: Batch) -> Float[Array, "batch pos-1"]:
    """Cross-entropy of the next byte given the bytes before it, one value per byte, in nats."""
    tokens = batch["tokens"]
    hidden = params["embed"][tokens]
    for layer in params["layers"]:
        hidden = hidden + _attention(layer, _layer_norm(layer["attention_norm"], hidden))
        hidden = hidden + _feed_forward(layer, _layer_norm(layer["feed_forward_norm"], hidden))
    # The last position is computed and dropped, as the peer does: equal arithmetic on both sides.
    logits = _product(_layer_norm(params["final_norm"], hidden), params["unembed"])
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


def _attention(layer: Params, hidden: Float[Array, "batch pos d"]) -> Float[Array, "batch pos d"]:
    """Causal self-attention as in GPT-NeoX: rotary positions; q, k, v side by side in each head."""
    qkv = _dense(layer["qkv"], hidden)
    query, key, value = (jnp.swapaxes(qkv[:, :, :, part], 1, 2) for part in range(3))
    scores = jnp.einsum("bhpk,bhsk->bhps", _rotate(query), _rotate(key)) / np.sqrt(
        HEAD_WIDTH
    ).astype(np.float32)
    causal = np.tril(np.ones((hidden.shape[1], hidden.shape[1]), dtype=bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("bhps,bhsk->bhpk", weights, value)
    return _dense(layer["out"], jnp.swapaxes(mixed, 1, 2).reshape(hidden.shape))


def _feed_forward(
    layer: Params, hidden: Float[Array, "batch pos d"]
) -> Float[Array, "batch pos d"]:
    return _dense(layer["down"], jax.nn.gelu(_dense(layer["up"], hidden), approximate=False))


def _rotate(heads: Float[Array, "batch h pos k"]) -> Float[Array, "batch h pos k"]:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of the first `ROTARY_WIDTH` entries."""
    exponents = np.arange(0, ROTARY_WIDTH, 2, dtype=np.float32) / ROTARY_WIDTH
    angles = np.arange(heads.shape[2], dtype=np.float32)[:, None] / ROTARY_BASE**exponents
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = jnp.split(heads[..., :ROTARY_WIDTH], 2, axis=-1)
    turned = [
        first * cosine - second * sine,
        second * cosine + first * sine,
        heads[..., ROTARY_WIDTH:],
    ]
    return jnp.concatenate(turned, axis=-1)


def _layer_norm(norm: Params, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    centred = hidden - hidden.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * norm["scale"] + norm["bias"]


def _dense(layer: Params, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "..."]:
    """`inputs @ kernel + bias`, with as many output axes as the bias has."""
    outputs = _product(inputs, layer["kernel"]) + layer["bias"].reshape(-1)
    return outputs.reshape(*inputs.shape[:-1], *layer["bias"].shape)


def _product(
    inputs: Float[Array, "*batch inputs"], kernel: Array
) -> Float[Array, "*batch outputs"]:
    """`inputs @ kernel` as one two-dimensional product, which XLA's CPU backend does faster."""
    rows = inputs.reshape(-1, inputs.shape[-1]) @ kernel.reshape(inputs.shape[-1], -1)
    return rows.reshape(*inputs.shape[:-1], -1)


def _init_mlp(key: PRNGKeyArray) -> Params:
    """He-normal kernels and zero biases, float32."""
    keys = jax.random.split(key, len(MLP_WIDTHS) - 1)
    return {
        f"dense_{layer}": _init_dense(keys[layer], (inputs, outputs), (2.0 / inputs) ** 0.5)
        for layer, (inputs, outputs) in enumerate(pairwise(MLP_WIDTHS))
    }


def _init_transformer(key: PRNGKeyArray) -> Params:
    """Normal kernels of deviation 1/√d, smaller where they write to the residual stream."""
    keys = jax.random.split(key, NUM_LAYERS + 2)
    deviation = D_MODEL**-0.5
    return {
        "embed": deviation * jax.random.normal(keys[-2], (VOCABULARY, D_MODEL)),
        "layers": [_init_layer(layer_key, deviation) for layer_key in keys[:NUM_LAYERS]],
        "final_norm": _init_norm(),
        "unembed": deviation * jax.random.normal(keys[-1], (D_MODEL, VOCABULARY)),
    }


def _init_layer(key: PRNGKeyArray, deviation: float) -> Params:
    keys = jax.random.split(key, 4)
    small = deviation / (2 * NUM_LAYERS) ** 0.5
    qkv_bias, out_bias = (NUM_HEADS, 3, HEAD_WIDTH), (D_MODEL,)
    return {
        "attention_norm": _init_norm(),
        "qkv": _init_dense(keys[0], (D_MODEL, *qkv_bias), deviation, qkv_bias),
        "out": _init_dense(keys[1], (NUM_HEADS, HEAD_WIDTH, D_MODEL), small, out_bias),
        "feed_forward_norm": _init_norm(),
        "up": _init_dense(keys[2], (D_MODEL, FEED_FORWARD), deviation),
        "down": _init_dense(keys[3], (FEED_FORWARD, D_MODEL), small / 2),
    }


def _init_dense(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    deviation: float,
    bias_shape: tuple[int, ...] | None = None,
) -> Params:
    bias = jnp.zeros(shape[-1:] if bias_shape is None else bias_shape)
    return {"kernel": deviation * jax.random.normal(key, shape), "bias": bias}


def _init_norm() -> Params:
    return {"scale": jnp.ones(D_MODEL), "bias": jnp.zeros(D_MODEL)}


def _train(
    loss_fn: LossFn,
    params: Params,
    dataset: dict[str, np.ndarray],
    key: PRNGKeyArray,
    training: Training,
) -> Params:
    """Adam on uniformly drawn minibatches, all steps in one compiled scan."""
    schedule = optax.cosine_decay_schedule(training.learning_rate, training.num_steps)
    optimizer = optax.adam(schedule)
    resident = jax.tree.map(jnp.asarray, dataset)
    num_examples = len(next(iter(dataset.values())))

    def mean_loss(params: Params, rows: Int[Array, " batch"]) -> Float[Array, ""]:
        return loss_fn(params, jax.tree.map(lambda array: array[rows], resident)).mean()

    def step(
        carry: tuple[Params, optax.OptState], step_key: PRNGKeyArray
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        rows = jax.random.randint(step_key, (training.batch_size,), 0, num_examples)
        updates, state = optimizer.update(jax.grad(mean_loss)(params, rows), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    keys = jax.random.split(key, training.num_steps)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimizer.init(params))
    )
    return params
