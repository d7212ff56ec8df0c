"""What the loss looks like around w*: the control without data, curvature, noise, acceptance."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, inner, join, noise_like, on_device, split, stream_of
from slt_jax._types import ChainKey, Displacement, Scalar
from slt_jax.kernels.base import AbstractKernel
from slt_jax.minibatch import Minibatch
from slt_jax.posterior import LocalPosterior
from slt_jax.run import Run

_NUM_BATCHES = 32
_NUM_CURVATURE_BATCHES = 4
_NUM_NOISE_BATCHES = 8
_NUM_PROBES = 4
_NUM_LANCZOS_STEPS = 10


class Surroundings(NamedTuple):
    """Measurements around w* and around the chains' last positions.

    ``control_gap`` is the gap, in nats, at draws of the run's kernel without data (nβ = 0), one per
    minibatch; ``step_curvature`` is Σ ε_i H_ii; ``lanczos`` the tridiagonal matrix
    (diagonal, off-diagonal) of H started at ∇L_n(w*); ``plain_noise`` and ``anchored_noise`` are
    tr Cov of the two gradient estimators over minibatches, weighted by ε_i; ``acceptance`` is that
    of Metropolis's rule for the run's Langevin step on a minibatch loss.
    """

    control_gap: Array
    step_curvature: Array
    lanczos: tuple[Array, Array]
    plain_noise: Array
    anchored_noise: Array
    acceptance: Array


def look_around(run: Run, component: int, rows: np.ndarray) -> Surroundings:
    """Measure the surroundings of w* for one component of a run.

    Args:
        run: the run.
        component: its number.
        rows: the row numbers of the component's live chains.
    """
    starts = run.rows.starts
    posterior = run.posterior
    if starts is not None:
        first = int(rows[0])
        posterior = posterior.at_starts(
            tuple(jax.device_put(jax.device_get(leaf)[first]) for leaf in starts)
        )
    states = jax.tree.map(lambda leaf: jax.device_get(leaf)[rows], run.carry.state)
    gradient = tuple(jax.device_get(leaf)[component] for leaf in run.survey.gradient)
    arrays, static = split((posterior, run.kernel))
    numbers = _batch_numbers(run)
    examples, weights = run.batches.rows(numbers)
    batches = Minibatch(*on_device((examples, weights, _mean_weight(run))))
    draws = np.linspace(0, run.num_draws - 1, _NUM_BATCHES).astype(np.int64)
    steps = run.settings.num_burnin_steps + (draws + 1) * run.settings.num_steps_bw_draws
    return _look(
        static,
        on_device(arrays),
        run.key,
        on_device(states),
        on_device(gradient),
        on_device(batches),
        jax.device_put(steps.astype(np.float32)),
    )


def _batch_numbers(run: Run) -> np.ndarray:
    words = jax.device_get(jax.random.key_data(run.key))
    generator = np.random.default_rng([*words.tolist(), stream_of("surroundings")])
    return np.stack(
        [
            generator.choice(run.batches.num_examples, run.batches.batch_size, replace=False)
            for _ in range(_NUM_BATCHES)
        ]
    )


def _mean_weight(run: Run) -> np.ndarray | None:
    from slt_jax.survey import mean_weight

    weight = mean_weight(run.posterior, run.batches, run.survey)
    return None if weight is None else np.full(_NUM_BATCHES, weight, np.float32)


@functools.partial(jax.jit, static_argnames="static")
def _look(
    static: Static,
    arrays: Any,
    key: ChainKey,
    states: Any,
    gradient: Displacement,
    batches: Minibatch,
    steps: Array,
) -> Surroundings:
    posterior: LocalPosterior
    kernel: AbstractKernel
    posterior, kernel = join(arrays, static)
    key = jax.random.fold_in(key, stream_of("surroundings"))
    sizes = jax.vmap(kernel.step_sizes)(states)
    sizes = tuple(jnp.mean(leaf, axis=0) for leaf in sizes)
    batches = jax.lax.map(lambda batch: batch.with_center(posterior.center(batch)), batches)
    last = tuple(leaf[0] for leaf in states.position)
    hessian = functools.partial(
        _hessian_product, posterior, _first(batches, _NUM_CURVATURE_BATCHES), sizes
    )
    plain_noise, anchored_noise = _gradient_noise(posterior, sizes, last, batches)
    return Surroundings(
        _control(posterior, kernel, key, sizes, batches, steps),
        _step_curvature(posterior, key, sizes, hessian),
        _lanczos(hessian, gradient),
        plain_noise,
        anchored_noise,
        _acceptance(posterior, key, sizes, states.position, batches),
    )


def _first(batches: Minibatch, count: int) -> Minibatch:
    return jax.tree.map(lambda leaf: leaf[:count], batches)


def _control(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    key: ChainKey,
    sizes: Displacement,
    batches: Minibatch,
    steps: Array,
) -> Array:
    """Give the gap at exact draws of the chain at nβ = 0, at the steps of real draws (D6)."""
    gamma = jnp.maximum(posterior.localization, jnp.finfo(jnp.float32).tiny)
    zeros = posterior.restriction.zeros()

    def one(packed: tuple[Array, Array, Minibatch]) -> Scalar:
        number, step, batch = packed
        noise = noise_like(jax.random.fold_in(key, number), zeros, posterior.restriction.labels)
        shift = tuple(
            xi * jnp.sqrt(kernel.control_variance(size, gamma, step))
            for xi, size in zip(noise, sizes, strict=True)
        )
        return posterior.gap(posterior.clip(shift), batch)

    return jax.lax.map(one, (jnp.arange(_NUM_BATCHES), steps, batches))


def _hessian_product(
    posterior: LocalPosterior, batches: Minibatch, sizes: Displacement, vector: Displacement
) -> Displacement:
    """Give H v by central differences over one step √ε: the curvature that the chain feels."""
    tiny = jnp.finfo(jnp.float32).tiny
    count = sum(leaf.size for leaf in vector)
    step = jnp.sqrt(sum(jnp.sum(leaf) for leaf in sizes) / count)
    scale = step * jnp.sqrt(count / jnp.maximum(inner(vector, vector), tiny))
    forward = tuple(scale * leaf for leaf in vector)

    def one(batch: Minibatch) -> Displacement:
        up = jax.grad(posterior.gap)(forward, batch)
        down = jax.grad(posterior.gap)(tuple(-leaf for leaf in forward), batch)
        return tuple((u - d) / (2 * scale) for u, d in zip(up, down, strict=True))

    return tuple(jnp.mean(leaf, axis=0) for leaf in jax.lax.map(one, batches))


def _step_curvature(
    posterior: LocalPosterior, key: ChainKey, sizes: Displacement, hessian: Any
) -> Scalar:
    """Estimate Σ_i ε_i H_ii by Hutchinson's method with Rademacher probes."""
    zeros = posterior.restriction.zeros()

    def one(number: Array) -> Scalar:
        noise = noise_like(
            jax.random.fold_in(key, 2**20 + number), zeros, posterior.restriction.labels
        )
        probe = tuple(
            jnp.sqrt(size) * jnp.where(xi > 0, 1.0, -1.0).astype(jnp.float32)
            for xi, size in zip(noise, sizes, strict=True)
        )
        return inner(probe, hessian(probe))

    return jnp.mean(jax.lax.map(one, jnp.arange(_NUM_PROBES)))


def _lanczos(hessian: Any, start: Displacement) -> tuple[Array, Array]:
    """Give the Lanczos coefficients of H from ``start``: quadrature nodes for startᵀ f(H) start."""
    tiny = jnp.finfo(jnp.float32).tiny

    def step(state: Any, _: None) -> tuple[Any, tuple[Scalar, Scalar]]:
        previous, current, beta = state
        product = hessian(current)
        alpha = inner(product, current)
        residual = tuple(
            p - alpha * c - beta * q for p, c, q in zip(product, current, previous, strict=True)
        )
        length = jnp.sqrt(inner(residual, residual))
        unit = tuple(leaf / jnp.maximum(length, tiny) for leaf in residual)
        return (current, unit, length), (alpha, length)

    length = jnp.sqrt(inner(start, start))
    unit = tuple(leaf / jnp.maximum(length, tiny) for leaf in start)
    zeros = tuple(jnp.zeros_like(leaf) for leaf in start)
    _, coefficients = jax.lax.scan(
        step, (zeros, unit, jnp.zeros((), jnp.float32)), None, length=_NUM_LANCZOS_STEPS
    )
    return coefficients


def _gradient_noise(
    posterior: LocalPosterior, sizes: Displacement, position: Displacement, batches: Minibatch
) -> tuple[Scalar, Scalar]:
    """Give Σ_i ε_i Var(ĝ_i) over minibatches at a chain's position, plain and anchored at w*."""
    zeros = posterior.restriction.zeros()

    def gradients(batch: Minibatch) -> tuple[Displacement, Displacement]:
        here = jax.grad(posterior.gap)(position, batch)
        center = jax.grad(posterior.gap)(zeros, batch)
        return here, tuple(h - c for h, c in zip(here, center, strict=True))

    here, anchored = jax.lax.map(gradients, _first(batches, _NUM_NOISE_BATCHES))

    def spread(gradients: Displacement) -> Scalar:
        variances = (jnp.var(leaf, axis=0, ddof=1) for leaf in gradients)
        return inner(sizes, tuple(variances))

    return spread(here), spread(anchored)


def _acceptance(
    posterior: LocalPosterior,
    key: ChainKey,
    sizes: Displacement,
    positions: Displacement,
    batches: Minibatch,
) -> Array:
    """Give Metropolis's acceptance of one Langevin step from every row, on a minibatch loss."""
    num_rows = positions[0].shape[0]

    def one(packed: tuple[Array, Displacement]) -> Scalar:
        number, position = packed
        batch = jax.tree.map(lambda leaf: leaf[number % _NUM_BATCHES], batches)
        density = jax.value_and_grad(lambda d: posterior.log_density(d, batch))
        value, slope = density(position)
        noise = noise_like(
            jax.random.fold_in(key, 2**21 + number), position, posterior.restriction.labels
        )
        proposal = tuple(
            d + 0.5 * e * g + jnp.sqrt(e) * xi
            for d, e, g, xi in zip(position, sizes, slope, noise, strict=True)
        )
        new_value, new_slope = density(proposal)
        backward = sum(
            jnp.sum((d - p - 0.5 * e * g) ** 2 / (2 * e))
            for d, p, e, g in zip(position, proposal, sizes, new_slope, strict=True)
        )
        forward = 0.5 * inner(noise, noise)
        ratio = new_value - value + forward - backward
        return jnp.exp(jnp.minimum(jnp.where(jnp.isfinite(ratio), ratio, -1e4), 0.0))

    return jax.lax.map(one, (jnp.arange(num_rows), positions))
