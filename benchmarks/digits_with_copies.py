"""Digits with duplicates and wrong labels among them, and a small network to learn them.

    data = digits(seed=0)
    params = trained(key, data.train)
    losses = retrained_losses(key, data, subsets, num_seeds=3)      # [subset, seed, query]

A training set of 640: 600 of scikit-learn's digits, 20 of these once more (duplicates), and 20
others of these once more with a wrong label (relabelled).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slt_jax.quickstart.digits import load_digits

NUM_CLASSES, NUM_PIXELS, NUM_HIDDEN = 10, 64, 32
NUM_PLAIN, NUM_COPIES, NUM_QUERIES = 600, 20, 100
WEIGHT_DECAY, LEARNING_RATE, NUM_TRAINING_STEPS = 1e-2, 1e-2, 500
MODELS_AT_ONCE = 20

Examples = tuple[np.ndarray, np.ndarray]


class Digits(NamedTuple):
    """Training examples and queries; ``duplicated`` and ``relabelled`` pair originals and copies.

    The last queries are the originals of the copies, duplicates first.
    """

    train: Examples
    query: Examples
    duplicated: np.ndarray
    relabelled: np.ndarray


def digits(seed: int) -> Digits:
    """Split the digits, and add duplicates and relabelled copies to the training set."""
    images, labels = (np.asarray(column) for column in load_digits())
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    plain, queries = order[:NUM_PLAIN], order[NUM_PLAIN : NUM_PLAIN + NUM_QUERIES]
    originals = np.arange(2 * NUM_COPIES)
    wrong = (labels[plain[NUM_COPIES : 2 * NUM_COPIES]] + rng.integers(1, 10, NUM_COPIES)) % 10
    copied = np.concatenate([labels[plain[:NUM_COPIES]], wrong])
    train = (
        np.concatenate([images[plain], images[plain[originals]]]),
        np.concatenate([labels[plain], copied]).astype(np.int32),
    )
    asked = np.concatenate([queries, plain[originals]])
    pairs = np.stack([originals, NUM_PLAIN + originals], axis=1)
    return Digits(train, (images[asked], labels[asked]), pairs[:NUM_COPIES], pairs[NUM_COPIES:])


def network(params: dict[str, Any], examples: Any) -> jax.Array:
    """Give the logits."""
    hidden = jnp.tanh(examples[0] @ params["first"] + params["first_bias"])
    return hidden @ params["second"] + params["second_bias"]


def cross_entropy(logits: jax.Array, examples: Any) -> jax.Array:
    """Give the loss of every example in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, examples[1])


def loss_fn(params: dict[str, Any], examples: Any) -> jax.Array:
    """Give the loss of every example in nats."""
    return cross_entropy(network(params, examples), examples)


def trained(key: Any, examples: Any) -> dict[str, jax.Array]:
    """Minimise the mean loss plus weight decay by full-batch Adam, from weights drawn by key."""
    first, second = jax.random.split(key)
    params = {
        "first": jax.random.normal(first, (NUM_PIXELS, NUM_HIDDEN)) / np.float32(NUM_PIXELS**0.5),
        "first_bias": jnp.zeros(NUM_HIDDEN),
        "second": jax.random.normal(second, (NUM_HIDDEN, NUM_CLASSES))
        / np.float32(NUM_HIDDEN**0.5),
        "second_bias": jnp.zeros(NUM_CLASSES),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, NUM_TRAINING_STEPS))

    def objective(params: Any) -> jax.Array:
        decay = 0.5 * WEIGHT_DECAY * optax.tree.norm(params, squared=True)
        return loss_fn(params, examples).mean() + decay

    def update(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
        update, (params, optimizer.init(params)), length=NUM_TRAINING_STEPS
    )
    return params


def retrained_losses(key: Any, data: Digits, subsets: np.ndarray, num_seeds: int) -> np.ndarray:
    """Give the loss of every query after training on each subset, ``[subset, seed, query]``."""
    columns = jax.tree.map(jnp.asarray, data.train)

    def one(packed: Any) -> jax.Array:
        key, subset = packed
        params = trained(key, jax.tree.map(lambda column: column[subset], columns))
        return loss_fn(params, data.query)

    # The same initial weights for every subset: differences are then those of the data.
    keys = jnp.tile(jax.random.split(key, num_seeds), len(subsets))
    repeated = jnp.repeat(jnp.asarray(subsets), num_seeds, axis=0)
    losses = jax.jit(lambda packed: jax.lax.map(one, packed, batch_size=MODELS_AT_ONCE))(
        (keys, repeated)
    )
    return np.asarray(losses).reshape(len(subsets), num_seeds, -1)
