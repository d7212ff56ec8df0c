"""What the loss looks like around w*: the control without data, curvature, noise, acceptance."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, choose, inner, join, norm, on_device, split
from slt_jax._types import ChainKey, Displacement, Scalar, setting
from slt_jax.kernels.base import AbstractKernel
from slt_jax.minibatch import Minibatch, over_minibatches
from slt_jax.noise import noise_like, stream_of
from slt_jax.posterior import LocalPosterior
from slt_jax.run import Run
from slt_jax.survey import mean_weight

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
    weight = mean_weight(run.posterior, run.batches, run.survey)
    total = None if weight is None else setting(weight)
    examples, weights = run.batches.rows(numbers)
    examples, weights = on_device((examples, weights))
    batches = Minibatch(examples, weights, total)
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
    batches = batches.with_center(over_minibatches(posterior.center, batches))
    last = tuple(leaf[0] for leaf in states.position)
    step_curvature, lanczos = _curvature(posterior, key, sizes, gradient, batches)
    plain_noise, anchored_noise = _gradient_noise(posterior, sizes, last, batches)
    return Surroundings(
        _control(posterior, kernel, key, sizes, batches, steps),
        step_curvature,
        lanczos,
        plain_noise,
        anchored_noise,
        _acceptance(posterior, key, sizes, states.position, batches),
    )


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

    def one(packed: tuple[Array, Array]) -> Scalar:
        number, step = packed
        noise = noise_like(jax.random.fold_in(key, number), zeros, posterior.restriction.labels)
        shift = tuple(
            xi * jnp.sqrt(kernel.control_variance(size, gamma, step))
            for xi, size in zip(noise, sizes, strict=True)
        )
        return posterior.gap(posterior.clip(shift), _pick(batches, number))

    return jax.lax.map(one, (jnp.arange(_NUM_BATCHES), steps))


def _pick(batches: Minibatch, number: Array) -> Minibatch:
    examples, weights, center = jax.tree.map(
        lambda leaf: leaf[number], (batches.examples, batches.weights, batches.center)
    )
    return Minibatch(examples, weights, batches.mean_weight, center)


def _curvature(
    posterior: LocalPosterior,
    key: ChainKey,
    sizes: Displacement,
    gradient: Displacement,
    batches: Minibatch,
) -> tuple[Scalar, tuple[Array, Array]]:
    """Estimate Σ_i ε_i H_ii with Rademacher probes, and give Lanczos coefficients of H from g.

    One loop serves both, so that the Hessian product is compiled once: the first iterations are
    Lanczos steps, the last ones multiply a probe each.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    labels = posterior.restriction.labels

    def visit(state: Any, number: Array) -> tuple[Any, tuple[Scalar, Scalar]]:
        previous, current, beta = state
        noise = noise_like(jax.random.fold_in(key, 2**20 + number), current, labels)
        probe = tuple(
            jnp.sqrt(size) * jnp.where(xi > 0, jnp.float32(1), jnp.float32(-1))
            for xi, size in zip(noise, sizes, strict=True)
        )
        vector = choose(number < _NUM_LANCZOS_STEPS, current, probe)
        product = _hessian_product(posterior, batches, sizes, vector)
        alpha = inner(product, vector)
        residual = tuple(
            p - alpha * c - beta * q for p, c, q in zip(product, current, previous, strict=True)
        )
        length = norm(residual)
        unit = tuple(leaf / jnp.maximum(length, tiny) for leaf in residual)
        return (current, unit, length), (alpha, length)

    unit = tuple(leaf / jnp.maximum(norm(gradient), tiny) for leaf in gradient)
    zeros = tuple(jnp.zeros_like(leaf) for leaf in gradient)
    start = (zeros, unit, jnp.zeros((), jnp.float32))
    _, (alphas, betas) = jax.lax.scan(visit, start, jnp.arange(_NUM_LANCZOS_STEPS + _NUM_PROBES))
    return (
        jnp.mean(alphas[_NUM_LANCZOS_STEPS:]),
        (alphas[:_NUM_LANCZOS_STEPS], betas[:_NUM_LANCZOS_STEPS]),
    )


def _hessian_product(
    posterior: LocalPosterior, batches: Minibatch, sizes: Displacement, vector: Displacement
) -> Displacement:
    """Give H v by central differences over one step √ε: the curvature that the chain feels."""
    tiny = jnp.finfo(jnp.float32).tiny
    ones = tuple(jnp.ones_like(leaf) for leaf in sizes)
    scale = jnp.sqrt(inner(sizes, ones) / jnp.maximum(inner(vector, vector), tiny))

    def one(number: Array) -> Displacement:
        sign = jnp.where(number % 2 == 0, jnp.float32(1), jnp.float32(-1))
        shift = tuple(sign * scale * leaf for leaf in vector)
        gradient = jax.grad(posterior.gap)(shift, _pick(batches, number // 2))
        return tuple(sign * leaf for leaf in gradient)

    gradients = jax.lax.map(one, jnp.arange(2 * _NUM_CURVATURE_BATCHES))
    return tuple(jnp.mean(leaf, axis=0) / scale for leaf in gradients)


def _gradient_noise(
    posterior: LocalPosterior, sizes: Displacement, position: Displacement, batches: Minibatch
) -> tuple[Scalar, Scalar]:
    """Give Σ_i ε_i Var(ĝ_i) over minibatches at a chain's position, plain and anchored at w*."""

    def one(number: Array) -> Displacement:
        at_center = number >= _NUM_NOISE_BATCHES
        here = tuple(jnp.where(at_center, jnp.zeros_like(leaf), leaf) for leaf in position)
        return jax.grad(posterior.gap)(here, _pick(batches, number % _NUM_NOISE_BATCHES))

    gradients = jax.lax.map(one, jnp.arange(2 * _NUM_NOISE_BATCHES))
    here = tuple(leaf[:_NUM_NOISE_BATCHES] for leaf in gradients)
    center = tuple(leaf[_NUM_NOISE_BATCHES:] for leaf in gradients)

    def spread(gradients: Displacement) -> Scalar:
        variances = (jnp.var(leaf, axis=0, ddof=1) for leaf in gradients)
        return inner(sizes, tuple(variances))

    anchored = tuple(h - c for h, c in zip(here, center, strict=True))
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
        batch = _pick(batches, number % _NUM_BATCHES)
        labels = posterior.restriction.labels
        noise = noise_like(jax.random.fold_in(key, 2**21 + number), position, labels)

        # The density is visited at the position, then at the proposal made there.
        def visit(state: Any, _: None) -> tuple[Any, tuple[Scalar, Displacement, Displacement]]:
            here, kick = state
            value, slope = jax.value_and_grad(posterior.log_density)(here, batch)
            proposal = tuple(
                d + 0.5 * e * g + jnp.sqrt(e) * xi
                for d, e, g, xi in zip(here, sizes, slope, kick, strict=True)
            )
            return (proposal, kick), (value, here, slope)

        _, (values, points, slopes) = jax.lax.scan(visit, (position, noise), None, length=2)
        backward = sum(
            jnp.sum((d[0] - d[1] - 0.5 * e * g[1]) ** 2 / (2 * e))
            for d, e, g in zip(points, sizes, slopes, strict=True)
        )
        ratio = values[1] - values[0] + 0.5 * inner(noise, noise) - backward
        return jnp.exp(jnp.minimum(jnp.where(jnp.isfinite(ratio), ratio, -1e4), 0.0))

    return jax.lax.map(one, (jnp.arange(num_rows), positions))
