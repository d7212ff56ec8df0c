"""How observed values are accumulated: sums on the device, a float64 monoid on the host.

On the device a statistic adds up the values of ``batch_length`` observations, as differences from
their value at w* (the pivot: without it a streaming covariance in float32 loses all its digits).
Each finished batch becomes a *contribution* of float64 sums on the host; contributions are added,
in any grouping, and ``finalize`` turns the total into an estimate with its standard error from
the scatter of batch means. Only sums over finished batches are held, never the draws.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from slt_jax._types import Scalar


class Estimate(NamedTuple):
    """A statistic and its standard error, each with leading axes ``component chain``.

    ``num_batches`` is the number of finished batches behind the error, which is NaN below 2.
    """

    value: PyTree
    standard_error: PyTree
    num_batches: int


class AbstractStatistic(eqx.Module):
    """A monoid of observed values: ``empty`` and ``update`` on the device, the rest on the host.

    Laws: ``merge`` is associative with identity ``None``; cutting a run anywhere changes no total.
    """

    batch_length: eqx.AbstractVar[int]

    @abc.abstractmethod
    def empty(self, value: PyTree) -> Any:
        """Give the sums of no observation, for values of this shape."""

    @abc.abstractmethod
    def update(self, sums: Any, value: PyTree, weight: Scalar) -> Any:
        """Add one observation with its weight."""

    @abc.abstractmethod
    def contribution(self, sums: Any, finished: bool) -> Any:
        """Turn a batch's sums into float64 sums; an unfinished batch counts for no error."""

    @abc.abstractmethod
    def finalize(self, total: Any) -> Estimate:
        """Turn the total of all contributions into the estimate."""

    def merge(self, total: Any, contribution: Any) -> Any:
        """Add a contribution to a total (None for the empty total)."""
        if total is None:
            return contribution
        return jax.tree.map(np.add, total, contribution)


class Kept(Sequence[Any]):
    """Observations that are kept: a sequence that never changes and is cheap to go on from.

    Several of them can be beginnings of one list, of which each knows how much is its own. Going on
    from the longest extends the list, going on from another one copies it: a run of n draws costs
    of the order of n, and a run in the user's hands stays as it was.
    """

    def __init__(self, observations: list[Any], count: int):
        self._observations = observations
        self._count = count

    @classmethod
    def of(cls, observations: Sequence[Any]) -> "Kept":
        """Give the observations of any sequence."""
        if isinstance(observations, Kept):
            return observations
        return cls(list(observations), len(observations))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._observations[i] for i in range(*index.indices(self._count))]
        return self._observations[range(self._count)[index]]

    def __add__(self, later: Sequence[Any]) -> "Kept":
        shared = len(self._observations) == self._count
        own = self._observations if shared else self._observations[: self._count]
        own.extend(later)
        return Kept(own, len(own))

    def __reduce__(self) -> Any:
        return Kept.of, (list(self),)


jax.tree_util.register_pytree_node(
    Kept, lambda kept: (list(kept), None), lambda _, observations: Kept.of(observations)
)


class Trace(AbstractStatistic):
    """Keep every observed value, on the host, as ``[component, chain, draw, ...]``."""

    batch_length: int = eqx.field(static=True, default=1)

    def empty(self, value):
        return jax.tree.map(jnp.zeros_like, value)

    def update(self, sums, value, weight):
        return value

    def contribution(self, sums, finished):
        return Kept.of([sums] if finished else [])

    def merge(self, total, contribution):
        return contribution if total is None else Kept.of(total) + contribution

    def series(self, total: Any, first: int = 0) -> Any:
        """Give the observations from ``first`` on, ``[component, chain, draw, ...]``."""
        return jax.tree.map(lambda *draws: np.stack(draws, axis=2), *total[first:])

    def from_series(self, series: Any) -> Any:
        """Give the total of these observations; inverse of ``series``."""
        count = jax.tree.leaves(series)[0].shape[2]
        rows = [jax.tree.map(lambda leaf, k=k: leaf[:, :, k], series) for k in range(count)]
        return Kept.of(rows)

    def finalize(self, total):
        values = self.series(total)
        # A view of one number: an array of NaN would take twice the memory of the traces.
        errors = jax.tree.map(lambda leaf: np.broadcast_to(np.nan, leaf.shape), values)
        return Estimate(values, errors, len(total))


class Mean(AbstractStatistic):
    """The mean over draws, E[x], with the standard error of batch means.

    Args:
        batch_length: observations per batch; at least 5 autocorrelation times for a right error.
    """

    batch_length: int = eqx.field(static=True, default=10)

    def empty(self, value):
        zeros = jax.tree.map(jnp.zeros_like, value)
        return jnp.zeros((), jnp.float32), zeros

    def update(self, sums, value, weight):
        total, first = sums
        return total + weight, jax.tree.map(lambda s, x: s + weight * x, first, value)

    def contribution(self, sums, finished):
        weight, first = _float64(sums)
        mean = jax.tree.map(lambda s: _ratio(s, weight), first)
        square = jax.tree.map(np.square, mean)
        return {
            "weight": weight,
            "first": first,
            "batches": int(finished),
            "mean": _if(finished, mean),
            "square": _if(finished, square),
        }

    def finalize(self, total):
        mean = jax.tree.map(lambda s: _ratio(s, total["weight"]), total["first"])
        count = int(total["batches"])
        error = jax.tree.map(
            lambda m, q: _root(_scatter(m, m, q, count)), total["mean"], total["square"]
        )
        return Estimate(mean, error, count)


class Covariance(AbstractStatistic):
    """The covariance over draws of every entry of x with every entry of y.

    The observed value is a pair (x, y) of arrays ``[k]`` and ``[n]``; the result is ``[k, n]``. The
    error is the delta method over batch means of xy, x and y.

    Args:
        batch_length: observations per batch; at least 5 autocorrelation times for a right error.
    """

    batch_length: int = eqx.field(static=True, default=10)

    def empty(self, value):
        x, y = value
        product = jnp.zeros((*x.shape, *y.shape), jnp.float32)
        return jnp.zeros((), jnp.float32), jnp.zeros_like(x), jnp.zeros_like(y), product

    def update(self, sums, value, weight):
        total, first_x, first_y, product = sums
        x, y = value
        return (
            total + weight,
            first_x + weight * x,
            first_y + weight * y,
            product + weight * x[:, None] * y[None, :],
        )

    def contribution(self, sums, finished):
        weight, x, y, product = _float64(sums)
        mean = {
            "x": _ratio(x, weight)[..., :, None],
            "y": _ratio(y, weight)[..., None, :],
            "xy": _ratio(product, weight),
        }
        pairs = {
            f"{a}*{b}": mean[a] * mean[b]
            for a in mean
            for b in mean
            if list(mean).index(a) <= list(mean).index(b)
        }
        return {
            "weight": weight,
            "sums": (x, y, product),
            "batches": int(finished),
            "mean": _if(finished, mean),
            "pairs": _if(finished, pairs),
        }

    def finalize(self, total):
        x, y, product = (_ratio(leaf, total["weight"]) for leaf in total["sums"])
        x, y = x[..., :, None], y[..., None, :]
        mean, pairs, count = total["mean"], total["pairs"], int(total["batches"])

        def scatter(a: str, b: str) -> np.ndarray:
            return _scatter(mean[a], mean[b], pairs[f"{a}*{b}"], count)

        variance = (
            scatter("xy", "xy")
            + y**2 * scatter("x", "x")
            + x**2 * scatter("y", "y")
            - 2 * y * scatter("x", "xy")
            - 2 * x * scatter("y", "xy")
            + 2 * x * y * scatter("x", "y")
        )
        return Estimate(product - x * y, _root(variance), count)


class Variance(AbstractStatistic):
    """The variance over draws of every entry of x, with the delta-method error of batch means.

    Args:
        batch_length: observations per batch; at least 5 autocorrelation times for a right error.
    """

    batch_length: int = eqx.field(static=True, default=10)

    def empty(self, value):
        return jnp.zeros((), jnp.float32), jnp.zeros_like(value), jnp.zeros_like(value)

    def update(self, sums, value, weight):
        total, first, second = sums
        return total + weight, first + weight * value, second + weight * value**2

    def contribution(self, sums, finished):
        weight, first, second = _float64(sums)
        x, q = _ratio(first, weight), _ratio(second, weight)
        batch = {"x": x, "q": q, "x*x": x * x, "x*q": x * q, "q*q": q * q}
        return {
            "weight": weight,
            "sums": (first, second),
            "batches": int(finished),
            "mean": _if(finished, batch),
        }

    def finalize(self, total):
        x, q = (_ratio(leaf, total["weight"]) for leaf in total["sums"])
        m, count = total["mean"], int(total["batches"])
        variance = (
            _scatter(m["q"], m["q"], m["q*q"], count)
            - 4 * x * _scatter(m["x"], m["q"], m["x*q"], count)
            + 4 * x**2 * _scatter(m["x"], m["x"], m["x*x"], count)
        )
        return Estimate(q - x**2, _root(variance), count)


def _float64(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Divide sums ``[component, chain, ...]`` by weights ``[component, chain]``."""
    shaped = np.reshape(weight, weight.shape + (1,) * (total.ndim - weight.ndim))
    return np.divide(total, shaped, out=np.zeros_like(total), where=shaped > 0)


def _if(finished: bool, tree: PyTree) -> Any:
    return tree if finished else jax.tree.map(np.zeros_like, tree)


def _scatter(a: np.ndarray, b: np.ndarray, ab: np.ndarray, count: int) -> np.ndarray:
    """Give the covariance of the means of two quantities, from sums over ``count`` batches."""
    if count < 2:
        return np.full(np.broadcast_shapes(a.shape, b.shape), np.nan)
    return (ab - a * b / count) / (count * (count - 1))


def _root(variance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(variance, 0.0))


def host_rows(leaf: Array | np.ndarray, num_components: int) -> np.ndarray:
    """Reshape a leaf ``[row, ...]`` to ``[component, chain, ...]`` on the host."""
    array = np.asarray(leaf)
    # Not -1: a chunk shorter than a draw has no entry from which an extent could be inferred.
    return array.reshape(num_components, array.shape[0] // num_components, *array.shape[1:])
