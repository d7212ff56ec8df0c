"""Where minibatches come from: a batch is a pure function of (key, step)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slt_jax._types import ChainKey, Counter, Examples
from slt_jax.dataset import open_dataset
from slt_jax.minibatch import leading_axis
from slt_jax.noise import stream_of

BatchOrder = Callable[[ChainKey, Any], Int[Array, " batch"]]
"""The numbers of the examples in the batch of a step, as a pure function of (key, step)."""


def uniform_subset(key: ChainKey, num_examples: int, size: int) -> Int[Array, " batch"]:
    """Draw a uniform subset of ``size`` examples without replacement.

    Floyd's algorithm (Bentley & Floyd, Communications of the ACM 30(9), 1987): exact, and it
    needs memory of the order of the subset, not of the data set.

    Args:
        key: a typed JAX key.
        num_examples: n, the number of examples.
        size: m ≤ n.

    Returns:
        int32 ``[batch]``, distinct numbers below n.

    >>> sorted(uniform_subset(jax.random.key(0), 3, 3).tolist())
    [0, 1, 2]
    """
    slots = jnp.arange(size, dtype=jnp.int32)
    if size == num_examples:
        return slots
    last = num_examples - size + slots
    candidates = jax.random.randint(key, (size,), 0, last + 1, dtype=jnp.int32)

    def choose(slot: Counter, chosen: Array) -> Array:
        taken = jnp.any(chosen == candidates[slot])
        return chosen.at[slot].set(jnp.where(taken, last[slot], candidates[slot]))

    return jax.lax.fori_loop(0, size, choose, jnp.full((size,), -1, jnp.int32))


def epoch_order(num_examples: int, batch_size: int) -> BatchOrder:
    """Give the order of an epoch-shuffling data loader, for comparison with other software.

    Each epoch is one permutation cut into batches, the remainder dropped. Successive batches
    then depend on each other, which changes the stationary law and biases the paired gap:
    estimators ask for a fixed evaluation set instead.

    >>> order = epoch_order(num_examples=4, batch_size=2)
    >>> key = jax.random.key(0)
    >>> sorted(order(key, 0).tolist() + order(key, 1).tolist())
    [0, 1, 2, 3]
    """
    batches_per_epoch = num_examples // batch_size

    def order(key: ChainKey, step: Counter | int) -> Int[Array, " batch"]:
        epoch, batch = jnp.divmod(step, batches_per_epoch)
        permutation = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        return jax.lax.dynamic_slice(
            permutation.astype(jnp.int32), (batch * batch_size,), (batch_size,)
        )

    return order


class Batches:
    """Minibatches of a data set, each a fresh uniform subset without replacement.

    A batch is a pure function of (key, step), so a run can be cut, resumed or repeated and sees
    the same batches. All chains share them unless ``per_chain`` is set.

    Args:
        dataset: an array ``[n, ...]``, a pytree of such arrays, a memory map, or anything with
            ``__len__`` and ``__getitem__`` (a Hugging Face data set, a list of rows).
        batch_size: examples per batch, m ≤ n.
        weights: ``[n]`` or ``[n, *pos]``, 0 where nothing is predicted; the loss there must
            still be finite. None for all ones.
        per_chain: whether every chain draws its own batches.
        order: a batch order of your own, as ``slt.epoch_order(...)``. None for independent
            uniform subsets.

    Raises:
        ValueError: empty or ragged data, a batch size outside 1…n, weights of another length.
        TypeError: data that cannot be indexed, or that are no numbers.

    >>> batches = Batches((np.zeros((10, 2)), np.arange(10)), batch_size=4)
    >>> batches.num_examples, batches.batch_size
    (10, 4)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        weights: Any = None,
        per_chain: bool = False,
        order: BatchOrder | None = None,
    ):
        self.dataset = open_dataset(dataset)
        self.num_examples = self.dataset.num_examples
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
        if not 1 <= batch_size <= self.num_examples:
            raise ValueError(
                f"batch_size must be between 1 and the {self.num_examples} examples there are, "
                f"got {batch_size}"
            )
        self.batch_size = int(batch_size)
        self.weights = None if weights is None else check_weights(weights, self.num_examples)
        self.per_chain = per_chain
        self.order = order

    @property
    def independent(self) -> bool:
        """Whether every step draws its batch independently of all earlier steps."""
        return self.order is None

    def indices(self, key: ChainKey, step: Counter | int) -> Int[Array, " batch"]:
        """Give the numbers of the examples in the batch of ``step``."""
        if self.order is not None:
            return self.order(key, step)
        return uniform_subset(jax.random.fold_in(key, step), self.num_examples, self.batch_size)

    def rows(self, indices: np.ndarray) -> tuple[Examples, np.ndarray | None]:
        """Read examples and their weights on the host, for any shape of ``indices``."""
        flat = np.asarray(indices).reshape(-1)
        shape = np.shape(indices)
        examples = jax.tree.map(
            lambda leaf: leaf.reshape(shape + leaf.shape[1:]), self.dataset.rows(flat)
        )
        if self.weights is None:
            return examples, None
        return examples, self.weights[flat].reshape(shape + self.weights.shape[1:])

    @property
    def num_bytes(self) -> int:
        """The size of the whole data set on a device, in bytes."""
        return self.dataset.num_bytes + (0 if self.weights is None else self.weights.nbytes)

    @property
    def example_structure(self) -> Examples:
        """A pytree of ``jax.ShapeDtypeStruct``: one minibatch, without reading it."""
        row, _ = self.rows(np.zeros(1, np.int32))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.batch_size, *leaf.shape[1:]), leaf.dtype), row
        )


def check_weights(weights: Any, num_examples: int) -> np.ndarray:
    """Give example weights as float32, or raise ValueError if they cannot be weights."""
    array = np.asarray(weights, dtype=np.float32)
    if array.shape[:1] != (num_examples,):
        raise ValueError(
            f"weights must have one entry per example: expected leading axis {num_examples}, "
            f"got shape {array.shape}"
        )
    if not np.all(np.isfinite(array)) or array.min() < 0 or array.sum() == 0:
        raise ValueError("weights must be finite, at least 0, and not all 0")
    return array


class Probe(eqx.Module):
    """A fixed set of examples on which observables are measured.

    Args:
        examples: pytree of arrays with a common leading axis, one entry per example.
        weights: ``[n]`` or ``[n, *pos]``, 0 where masked; None for all ones.
        batch_size: examples evaluated at once; None for all.
    """

    examples: Examples
    weights: Float[Array | np.ndarray, "n *pos"] | None
    batch_size: int | None = eqx.field(static=True)

    def __init__(self, examples: Any, weights: Any = None, batch_size: int | None = None):
        dataset = open_dataset(examples)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size of a probe must be at least 1, got {batch_size}")
        self.examples = dataset.rows(np.arange(dataset.num_examples))
        self.weights = None if weights is None else check_weights(weights, dataset.num_examples)
        self.batch_size = batch_size

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return leading_axis(self.examples)


def default_n_beta(num_examples: int) -> float:
    """Give nβ at the inverse temperature β = 1/log n, for a data set of n examples.

    Equation: nβ = n / log n (Watanabe, "A Widely Applicable Bayesian Information Criterion", JMLR
    14, 2013; used for the LLC by Lau et al., arXiv 2308.12108). n counts the examples (rows,
    sequences) of the data set over which the mean loss is taken, not a batch and not tokens.

    Args:
        num_examples: n > 1.

    Returns:
        nβ, dimensionless.

    >>> round(default_n_beta(1797), 1)
    239.8
    """
    if num_examples < 2:
        raise ValueError(f"n / log n needs at least 2 examples, got {num_examples}")
    return float(num_examples / np.log(num_examples))


def batch_key(key: ChainKey, purpose: str, chain: Counter | None = None) -> ChainKey:
    """Derive the key of a batch stream from the run's key; one per chain if asked for."""
    stream = jax.random.fold_in(key, stream_of(purpose))
    return stream if chain is None else jax.random.fold_in(stream, chain)
