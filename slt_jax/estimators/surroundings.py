"""What the loss looks like around w*: the control without data, curvature, noise, acceptance."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, choose, inner, join, norm, on_device, split
from slt_jax._types import ChainKey, Displacement, Scalar, setting
from slt_jax.estimators.control import AT_REST, prior_draw
from slt_jax.kernels.base import AbstractKernel
from slt_jax.minibatch import Minibatch, over_minibatches
from slt_jax.noise import noise_like, stream_of
from slt_jax.posterior import LocalPosterior
from slt_jax.run import Run

_NUM_BATCHES = 32
_NUM_CONTROL_DRAWS = 256
_NUM_CURVATURE_BATCHES = 2
_NUM_NOISE_BATCHES = 8
_NUM_PROBES = 2
_NUM_NOISE_STARTS = 2
_NUM_LANCZOS_STEPS = 6


class Lanczos(NamedTuple):
    """Coefficients (α, β) of a matrix from a start vector, ``[..., step]``, and |start|²."""

    diagonal: Array
    off_diagonal: Array
    norm_squared: Array


class Surroundings(NamedTuple):
    """Measurements around w* and around the chains' last positions.

    With H_ε = √ε_i H_ij √ε_j, and ĝ a gradient on a minibatch:

    - ``control_gap``: the gap, in nats, at draws of the run's kernel without data (nβ = 0);
    - ``gradient``: Lanczos coefficients of H from ∇L_n(w*);
    - ``probes``: those of H_ε from Rademacher vectors;
    - ``noise``: those of H_ε from √ε_i times the deviations of ĝ;
    - ``plain_noise``, ``anchored_noise``: Σ_i ε_i Var(ĝ_i) of the two gradient estimators;
    - ``mean_step_size``: the mean of ε_i, in weight²;
    - ``acceptance``: that of Metropolis's rule for the run's Langevin step on a minibatch loss.
    """

    control_gap: Array
    gradient: Lanczos
    probes: Lanczos
    noise: Lanczos
    plain_noise: Array
    anchored_noise: Array
    mean_step_size: Array
    acceptance: Array


def look_around(run: Run, component: int, rows: np.ndarray) -> Surroundings:
    """Measure the surroundings of w* for one component of a run.

    Args:
        run: the run.
        component: its number.
        rows: the row numbers of the component's live chains.
    """
    arrays, static = split((run.posterior, run.kernel))
    weight = run.survey.mean_weight
    examples, weights = on_device(run.batches.rows(_batch_numbers(run)))
    draws = np.linspace(0, run.num_draws - 1, _NUM_CONTROL_DRAWS).astype(np.int64)
    steps = run.settings.num_burnin_steps + (draws + 1) * run.settings.num_steps_bw_draws
    if run.settings.dispersed:
        steps = np.full(_NUM_CONTROL_DRAWS, AT_REST)
    return _look(
        static,
        on_device(arrays),
        run.key,
        run.rows.starts,
        run.carry.state,
        run.survey.gradient,
        Minibatch(examples, weights, None if weight is None else setting(weight)),
        jax.device_put(steps.astype(np.float32)),
        jax.device_put(rows.astype(np.int32)),
        jax.device_put(np.int32(component)),
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
    starts: Any,
    states: Any,
    gradients: Displacement,
    batches: Minibatch,
    steps: Array,
    rows: Array,
    component: Array,
) -> Surroundings:
    posterior: LocalPosterior
    kernel: AbstractKernel
    posterior, kernel = join(arrays, static)
    posterior = posterior.at_starts(jax.tree.map(lambda leaf: leaf[rows[0]], starts))
    states = jax.tree.map(lambda leaf: leaf[rows], states)
    gradient = tuple(leaf[component] for leaf in gradients)
    key = jax.random.fold_in(key, stream_of("surroundings"))
    sizes = jax.vmap(kernel.step_sizes)(states)
    sizes = tuple(jnp.mean(leaf, axis=0) for leaf in sizes)
    batches = batches.with_center(over_minibatches(posterior.center, batches))
    last = tuple(leaf[0] for leaf in states.position)
    plain, anchored = _batch_gradients(posterior, last, batches)
    noise = anchored if kernel.needs_anchor else plain
    ones = tuple(jnp.ones_like(size) for size in sizes)
    return Surroundings(
        _control(posterior, kernel, key, sizes, batches, steps),
        *_curvature(posterior, key, sizes, gradient, noise, batches),
        _spread(sizes, plain),
        _spread(sizes, anchored),
        inner(sizes, ones) / inner(ones, ones),
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

    def one(packed: tuple[Array, Array]) -> Scalar:
        number, step = packed
        shift = prior_draw(posterior, kernel, jax.random.fold_in(key, number), sizes, step)
        return posterior.gap(shift, _pick(batches, number % _NUM_BATCHES))

    return jax.lax.map(one, (jnp.arange(_NUM_CONTROL_DRAWS), steps))


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
    noise: Displacement,
    batches: Minibatch,
) -> tuple[Lanczos, Lanczos, Lanczos]:
    """Run Lanczos from the gradient at w*, from random probes, and from minibatch noise.

    All starts go through one loop, so that the Hessian product is compiled once.
    """
    labels = posterior.restriction.labels
    root = tuple(jnp.sqrt(size) for size in sizes)
    ones = tuple(jnp.ones_like(size) for size in sizes)
    num_starts = 1 + _NUM_PROBES + _NUM_NOISE_STARTS

    def start(number: Array) -> Displacement:
        drawn = noise_like(jax.random.fold_in(key, 2**20 + number), gradient, labels)
        probe = tuple(jnp.where(xi > 0, jnp.float32(1), jnp.float32(-1)) for xi in drawn)
        which = jnp.clip(number - 1 - _NUM_PROBES, 0, _NUM_NOISE_STARTS - 1)
        deviation = tuple(r * leaf[which] for r, leaf in zip(root, noise, strict=True))
        return choose(number == 0, gradient, choose(number <= _NUM_PROBES, probe, deviation))

    def run(number: Array) -> Lanczos:
        metric = choose(number == 0, ones, root)
        return _lanczos(posterior, batches, sizes, metric, start(number))

    all_starts = jax.lax.map(run, jnp.arange(num_starts))
    first, last = jax.tree.map(lambda leaf: leaf[0], all_starts), 1 + _NUM_PROBES
    probes = jax.tree.map(lambda leaf: leaf[1:last], all_starts)
    return first, probes, jax.tree.map(lambda leaf: leaf[last:], all_starts)


def _lanczos(
    posterior: LocalPosterior,
    batches: Minibatch,
    sizes: Displacement,
    metric: Displacement,
    start: Displacement,
) -> Lanczos:
    """Give the Lanczos coefficients of M H M from ``start``, M diagonal."""
    tiny = jnp.finfo(jnp.float32).tiny

    def visit(state: Any, _: None) -> tuple[Any, tuple[Scalar, Scalar]]:
        previous, current, beta = state
        scaled = tuple(m * c for m, c in zip(metric, current, strict=True))
        product = _hessian_product(posterior, batches, sizes, scaled)
        product = tuple(m * p for m, p in zip(metric, product, strict=True))
        alpha = inner(product, current)
        residual = tuple(
            p - alpha * c - beta * q for p, c, q in zip(product, current, previous, strict=True)
        )
        length = norm(residual)
        # At an invariant subspace the residual is rounding noise: end there, do not blow it up.
        length = jnp.where(length > 1e-6 * (jnp.abs(alpha) + beta), length, jnp.zeros_like(length))
        inverse = jnp.where(length > 0, 1 / jnp.maximum(length, tiny), jnp.zeros_like(length))
        unit = tuple(inverse * leaf for leaf in residual)
        return (current, unit, length), (alpha, length)

    length = norm(start)
    unit = tuple(leaf / jnp.maximum(length, tiny) for leaf in start)
    zeros = tuple(jnp.zeros_like(leaf) for leaf in start)
    begin = (zeros, unit, jnp.zeros((), jnp.float32))
    _, (alphas, betas) = jax.lax.scan(visit, begin, None, length=_NUM_LANCZOS_STEPS)
    return Lanczos(alphas, betas, length**2)


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


def _batch_gradients(
    posterior: LocalPosterior, position: Displacement, batches: Minibatch
) -> tuple[Displacement, Displacement]:
    """Give deviations of minibatch gradients at a chain's position, plain and anchored at w*.

    Returns:
        ``[batch, ...]`` per block, with mean zero over the batches.
    """

    def one(number: Array) -> Displacement:
        at_center = number >= _NUM_NOISE_BATCHES
        here = tuple(jnp.where(at_center, jnp.zeros_like(leaf), leaf) for leaf in position)
        return jax.grad(posterior.gap)(here, _pick(batches, number % _NUM_NOISE_BATCHES))

    gradients = jax.lax.map(one, jnp.arange(2 * _NUM_NOISE_BATCHES))
    here = tuple(leaf[:_NUM_NOISE_BATCHES] for leaf in gradients)
    center = tuple(leaf[_NUM_NOISE_BATCHES:] for leaf in gradients)
    return _centered(here), _centered(tuple(h - c for h, c in zip(here, center, strict=True)))


def _centered(gradients: Displacement) -> Displacement:
    return tuple(leaf - jnp.mean(leaf, axis=0, keepdims=True) for leaf in gradients)


def _spread(sizes: Displacement, deviations: Displacement) -> Scalar:
    """Give Σ_i ε_i Var(ĝ_i) from deviations over minibatches."""
    variances = (jnp.sum(leaf**2, axis=0) / (_NUM_NOISE_BATCHES - 1) for leaf in deviations)
    return inner(sizes, tuple(variances))


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
