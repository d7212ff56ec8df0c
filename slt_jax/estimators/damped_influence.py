"""Damped influence functions: what Bayesian influence tends to where the posterior is Gaussian."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slt_jax._tree import Static, inner, join, on_device, split
from slt_jax._types import Displacement, Scalar, setting
from slt_jax.data import Batches, Probe
from slt_jax.estimators.loss_traces import as_probe
from slt_jax.minibatch import Minibatch, values_and_weights
from slt_jax.observables import over_probe
from slt_jax.posterior import LocalPosterior

_MAX_RESIDUAL = 10.0


class GaussNewton(NamedTuple):
    """A loss as a network and a convex loss of its outputs, for curvature that is never negative.

    ``network(params, examples)`` gives outputs ``[batch, ...]``; ``output_loss(outputs, examples)``
    gives nats ``[batch, *pos]``, the same as the posterior's loss function.
    """

    network: Callable[[Any, Any], Array]
    output_loss: Callable[[Array, Any], Array]


def damped_influence(
    posterior: LocalPosterior,
    batches: Batches,
    *,
    query: Any,
    train: Any = None,
    gauss_newton: GaussNewton | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> Float[np.ndarray, "train query"]:
    """Give the damped influence of training examples on the losses of queries, without sampling.

    Equation: −∇φ_jᵀ (H + (γ/nβ) I)⁻¹ ∇ℓ_i at w*, the limit of −nβ·Cov(ℓ_i, φ_j) for small noise
    (Kreer et al., arXiv 2509.26544), γ with the weight decay in it. H is the generalised
    Gauss–Newton matrix of the mean loss over the data if ``gauss_newton`` says what the loss is
    made of, and its Hessian if not. By conjugate gradients, one solution per query; no matrix of
    the size of the weights is formed.

    Args:
        posterior: loss, w*, nβ, γ and the weights that count.
        batches: the data of the mean loss, evaluated ``batch_size`` examples at a time.
        query: an ``slt.Probe`` or examples; the loss of each is the mean over its positions.
        train: likewise; None for all of the data.
        gauss_newton: the network and the loss of its outputs.
        tolerance: of the residual, relative to the gradient of the query.
        max_iterations: of the conjugate gradients.

    Returns:
        float32 nats, ``[train, query]``; divide by n for the change of φ_j per unit of weight.

    Raises:
        ValueError: nothing damps, or the iterations do not converge: H + (γ/nβ) I is not positive
            definite, or needs more of them; outputs whose loss is not the posterior's.

    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.array([[0.0, 2.0], [0.0, -2.0]], np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=2.0, localization=2.0)
    >>> damped_influence(posterior, Batches(data, 2), query=data).round(4).tolist()
    [[-2.0, 2.0], [2.0, -2.0]]
    """
    damping = float(posterior.prior_precision) / max(float(posterior.n_beta), 1e-30)
    if not damping > 0:
        raise ValueError("localization and weight decay are 0: nothing damps the influence")
    probes = on_device(
        (
            as_probe(None, batches),
            as_probe(train, batches),
            as_probe(query, batches),
        )
    )
    arrays, static = split((posterior, probes, gauss_newton))
    solved = _solve(
        static, arrays, setting(damping), tolerance=float(tolerance), num_steps=max_iterations
    )
    influence, residuals, mismatch = jax.device_get(solved)
    if gauss_newton is not None and not mismatch < 1e-3:
        raise ValueError(
            f"gauss_newton gives losses that differ from the posterior's by up to {mismatch:.3g} "
            "nats: output_loss(network(params, examples), examples) must equal loss_fn"
        )
    if not residuals.max() <= _MAX_RESIDUAL * tolerance:
        raise ValueError(
            f"{int(np.sum(~(residuals <= _MAX_RESIDUAL * tolerance)))} of {residuals.size} "
            f"solutions did not converge (residuals up to {residuals.max():.2g}): raise "
            "max_iterations or the localization, or give gauss_newton if the Hessian at w* has "
            "negative eigenvalues"
        )
    return influence.T


@functools.partial(jax.jit, static_argnames=("static", "tolerance", "num_steps"))
def _solve(
    static: Static, arrays: Any, damping: Scalar, *, tolerance: float, num_steps: int
) -> tuple[Array, Array, Scalar]:
    """Give influences ``[query, train]``, relative residuals ``[query]`` and the loss mismatch."""
    posterior: LocalPosterior
    posterior, (data, train, query), parts = join(arrays, static)
    zeros = posterior.restriction.zeros()
    product = _curvature_product(posterior, data, parts)

    def operator(vector: Displacement) -> Displacement:
        return tuple(p + damping * v for p, v in zip(product(vector), vector, strict=True))

    def solve(number: Array) -> tuple[Array, Scalar]:
        single = jax.tree.map(lambda leaf: leaf[number][None], (query.examples, query.weights))

        def loss(displacement: Displacement) -> Scalar:
            return jnp.sum(_losses(posterior, displacement, *single))

        gradient = jax.grad(loss)(zeros)
        solution, residual = _conjugate_gradients(operator, gradient, tolerance, num_steps)

        def along(displacement: Displacement) -> Array:
            return over_probe(
                lambda packed: _losses(posterior, displacement, *packed), train, with_weights=True
            )

        _, change = jax.jvp(along, (zeros,), (solution,))
        return -change, residual

    count = jax.tree.leaves(query.examples)[0].shape[0]
    influence, residuals = jax.lax.map(solve, jnp.arange(count))
    return influence, residuals, _mismatch(posterior, query, parts)


def _losses(posterior: LocalPosterior, at: Displacement, examples: Any, weights: Any) -> Array:
    """Give the loss of every example, its positions averaged by their weights."""
    values, combined = _weighted(posterior.losses_at(at, examples), weights)
    weight = _per_example(combined)
    return _per_example(combined * values) / jnp.where(weight > 0, weight, 1.0)


def _weighted(losses: Any, weights: Array | None) -> tuple[Array, Array]:
    values, combined = values_and_weights(losses, Minibatch(None, weights))
    return values, jnp.ones_like(values) if combined is None else combined


def _per_example(values: Array) -> Array:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _curvature_product(
    posterior: LocalPosterior, data: Probe, parts: GaussNewton | None
) -> Callable[[Displacement], Displacement]:
    """Give v ↦ H v for the mean loss over the data, evaluated batch by batch.

    H v is the gradient at w* of a sum over examples: for the Hessian of ∂_v ℓ_i(w), for the
    Gauss–Newton matrix of f_i(w)ᵀ c_i, where c_i = ∇²ℓ(f_i) ∂_v f_i is held fixed.
    """
    zeros = posterior.restriction.zeros()

    def total_weight(packed: Any) -> Array:
        examples, weights = packed
        return _per_example(_weighted(posterior.losses_at(zeros, examples), weights)[1])

    def hessian(at: Displacement, vector: Displacement, packed: Any) -> Array:
        examples, weights = packed

        def losses(displacement: Displacement) -> Array:
            values, combined = _weighted(posterior.losses_at(displacement, examples), weights)
            return _per_example(values * combined)

        return jax.jvp(losses, (at,), (vector,))[1]

    def gauss_newton(at: Displacement, vector: Displacement, packed: Any) -> Array:
        assert parts is not None
        (network_fn, output_loss), (examples, weights) = parts, packed

        def network(displacement: Displacement) -> Array:
            return network_fn(posterior.params_at(displacement), examples)

        def loss(outputs: Array) -> Scalar:
            values, combined = _weighted(output_loss(outputs, examples), weights)
            return jnp.sum(values * combined)

        outputs, change = jax.jvp(network, (zeros,), (vector,))
        _, cotangent = jax.jvp(jax.grad(loss), (outputs,), (change,))
        return _per_example(network(at) * cotangent)

    part = hessian if parts is None else gauss_newton
    inverse = 1 / jnp.sum(over_probe(total_weight, data, with_weights=True))

    def product(vector: Displacement) -> Displacement:
        def total(at: Displacement) -> Scalar:
            # Batches are evaluated again on the way back: their activations are not all held.
            one = jax.checkpoint(lambda packed: part(at, vector, packed))
            return jnp.sum(over_probe(one, data, with_weights=True))

        return tuple(inverse * leaf for leaf in jax.grad(total)(zeros))

    return product


def _mismatch(posterior: LocalPosterior, query: Probe, parts: GaussNewton | None) -> Scalar:
    """Give the largest difference between the posterior's losses and those of the parts."""
    if parts is None:
        return jnp.zeros((), jnp.float32)
    network, output_loss = parts

    def difference(examples: Any) -> Array:
        outputs = network(posterior.params, examples)
        own, _ = _weighted(posterior.loss_fn(posterior.params, examples), None)
        given, _ = _weighted(output_loss(outputs, examples), None)
        return _per_example(jnp.abs(own - given))

    return jnp.max(over_probe(difference, query))


def _conjugate_gradients(
    operator: Callable[[Displacement], Displacement],
    target: Displacement,
    tolerance: float,
    num_steps: int,
) -> tuple[Displacement, Scalar]:
    """Solve A x = b; give x and |b − A x|/|b|, recomputed."""
    from jax.scipy.sparse.linalg import cg

    solution, _ = cg(operator, target, tol=tolerance, maxiter=num_steps)
    left = tuple(b - a for b, a in zip(target, operator(solution), strict=True))
    size = jnp.maximum(inner(target, target), jnp.finfo(jnp.float32).tiny)
    return solution, jnp.sqrt(inner(left, left) / size)
