"""Checks for other people's kernels and losses: laws that every one of them must keep."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slt_jax._tree import on_device, path_table
from slt_jax._types import ChainKey, Params
from slt_jax.data import Batches
from slt_jax.estimators.series import mean_error
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.kernels.sgld import sgld
from slt_jax.minibatch import Losses, Minibatch
from slt_jax.posterior import LocalPosterior, LossFn
from slt_jax.preparation import prepare
from slt_jax.sampling import sample
from slt_jax.validation import check_loss

_CURVATURES = (0.5, 1.0, 2.0)
_N_BETA, _LOCALIZATION = 50.0, 10.0


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """What ``check_kernel`` measured: λ̂ with its error, and the exact value of the density."""

    estimate: float
    standard_error: float
    exact: float

    def __str__(self) -> str:
        return (
            f"kernel ok: LLC {self.estimate:.4f} ± {self.standard_error:.4f} on a Gaussian, exact "
            f"{self.exact:.4f}"
        )


def gaussian_loss(params: Params, noise: Float[Array, "batch weight"]) -> Float[Array, " batch"]:
    """Give ½ Σ h_i w_i² + Σ z_i w_i for noise z of mean zero: a quadratic with noisy gradients."""
    curvature = jnp.asarray(_CURVATURES, jnp.float32)
    weights = params["w"]
    return 0.5 * jnp.sum(curvature * weights**2) + noise @ weights


def check_kernel(
    kernel: AbstractKernel,
    key: ChainKey,
    *,
    tolerance: float = 0.05,
    num_chains: int = 16,
    num_draws: int = 4000,
) -> KernelReport:
    """Check that a kernel keeps the interface and samples a Gaussian posterior.

    The target has three weights of curvatures 0.5, 1 and 2 nats/weight², nβ = 50 and γ = 10, so
    λ = ½Σ nβh/(nβh + γ); choose a step size that resolves precisions up to 110. Checked: state and
    info keep shape and dtype, the same key gives the same step and another key another one, the
    gap is measured before the step, and λ̂ is right within 5 standard errors (a false alarm in 10⁶)
    plus ``tolerance``.

    Args:
        kernel: the kernel, with concrete settings.
        key: one typed threefry key.
        tolerance: allowed relative bias of λ̂, for the step size.
        num_chains: chains of the check.
        num_draws: draws per chain, after as many burn-in steps.

    Raises:
        AssertionError: what was expected and what was got.

    >>> print(check_kernel(sgld(1e-3), jax.random.key(0)).exact > 0)
    True
    """
    posterior, batches = _gaussian_problem()
    _check_step(kernel, posterior, batches, key)
    run = sample(
        posterior,
        kernel,
        batches,
        key,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=num_draws,
        progress=False,
    )
    assert run.health.alive.all(), f"chains became non-finite on a Gaussian: {run.health}"
    gap = run.traces["gap"][0].astype(np.float64)
    precision = _N_BETA * np.asarray(_CURVATURES)
    exact = float(0.5 * np.sum(precision / (precision + _LOCALIZATION)))
    estimate = _N_BETA * float(gap.mean())
    error = _N_BETA * mean_error(gap, independent_batches=False).standard_error
    assert abs(estimate - exact) < 5 * error + tolerance * exact, (
        f"the kernel does not sample its target: expected LLC {exact:.4f}, got {estimate:.4f} ± "
        f"{error:.4f}. Check the factors of nβ, γ and the step size in drift and noise"
    )
    return KernelReport(estimate, error, exact)


def _gaussian_problem() -> tuple[LocalPosterior, Batches]:
    noise = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    noise -= noise.mean(axis=0)
    posterior = LocalPosterior(
        gaussian_loss, {"w": np.zeros(3, np.float32)}, _N_BETA, _LOCALIZATION
    )
    return posterior, Batches(0.05 * noise, 64)


def _check_step(
    kernel: AbstractKernel, posterior: LocalPosterior, batches: Batches, key: ChainKey
) -> None:
    run = prepare(posterior, kernel, batches, key, {"num_chains": 1})
    examples, _ = batches.rows(np.arange(batches.batch_size))
    batch = run.kernel.prepare(run.posterior, Minibatch(on_device(examples)))
    state = run.kernel.init(run.posterior, (jnp.full((3,), 0.1, jnp.float32),))
    step = jax.jit(lambda key, state: run.kernel.step(key, run.posterior, state, batch))
    first, info = step(key, state)
    again, _ = step(key, state)
    other, _ = step(jax.random.fold_in(key, 1), state)
    assert isinstance(info, Info), f"step must return (state, slt.Info), got {type(info).__name__}"
    assert _structure(first) == _structure(state), (
        f"step must keep the state's shapes and dtypes: expected {_structure(state)}, got "
        f"{_structure(first)}"
    )
    assert all(map(np.array_equal, first.position, again.position)), (
        "the same key must give the same step: randomness may come from the key only"
    )
    assert not all(map(np.array_equal, first.position, other.position)), (
        "another key must give another step: the kernel does not use its key"
    )
    expected, gap = jax.device_get((run.posterior.gap(state.position, batch), info.gap))
    assert np.isclose(gap, expected, rtol=1e-3, atol=1e-6), (
        f"info.gap must be the gap before the step: expected {expected:.6g}, got {gap:.6g}"
    )


def _structure(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def check_model(loss_fn: LossFn, params: Params, examples: Any, *, weights: Any = None) -> None:
    """Check that a loss is a function of the weights and of one example at a time.

    Checked: float32 losses with one entry per example, finite at w*; permuting the examples
    permutes the losses (dropout with a baked-in mask does not); the loss of an example does not
    depend on the others (batch normalisation in training mode does); it feels small displacements
    (weights cast to a narrow dtype do not). Two leaves that are one buffer are warned about: the
    sampler would untie them.

    Args:
        loss_fn: ``loss_fn(params, examples) -> [batch, *pos]``.
        params: w*, pytree of floating-point arrays.
        examples: at least 4 examples, as for ``slt.Batches``.
        weights: as for ``slt.Batches``.

    Raises:
        TypeError, ValueError: what was expected, what was got, and what to do.

    >>> check_model(gaussian_loss, {"w": np.zeros(3, np.float32)}, np.eye(4, 3, dtype=np.float32))
    """
    _check_tied(params)
    dataset = Batches(examples, 1, weights=weights).dataset
    if dataset.num_examples < 4:
        raise ValueError(f"check_model needs at least 4 examples, got {dataset.num_examples}")
    batches = Batches(examples, dataset.num_examples, weights=weights)
    posterior = LocalPosterior(loss_fn, params, n_beta=1.0, localization=1e4)
    check_loss(posterior, batches)
    _check_rows(posterior, batches)
    prepare(posterior, sgld(1e-4), batches, jax.random.key(0), {"num_chains": 1})


def _check_tied(params: Params) -> None:
    seen: dict[int, str] = {}
    for path, leaf in path_table(params).items():
        other = seen.setdefault(id(leaf), path)
        if other != path:
            warnings.warn(
                f"{other!r} and {path!r} are one array: as two leaves they will move apart. Keep "
                "tied weights as one leaf (equinox.nn.Shared, or one entry used twice)",
                stacklevel=3,
            )


def _check_rows(posterior: LocalPosterior, batches: Batches) -> None:
    size = batches.num_examples

    @jax.jit
    def values(examples: Any) -> Array:
        result = posterior.loss_fn(posterior.params, examples)
        return result.values if isinstance(result, Losses) else result

    def losses(numbers: np.ndarray) -> np.ndarray:
        return jax.device_get(values(on_device(batches.rows(numbers)[0])))

    numbers = np.arange(size)
    straight = losses(numbers)
    reversed_rows = losses(numbers[::-1])[::-1]
    # Every other row becomes a copy of the last one; the first example stays where it is.
    alone = losses(np.where(numbers == 0, 0, size - 1))
    scale = 1e-4 * (1.0 + np.abs(straight).max())
    if not np.allclose(straight, reversed_rows, rtol=1e-4, atol=scale):
        raise ValueError(
            "reordering the examples does not reorder the losses: largest difference "
            f"{np.abs(straight - reversed_rows).max():.3g} nats. A random mask is baked into the "
            "loss (dropout in training mode?): put the model in evaluation mode"
        )
    if not np.allclose(straight[0], alone[0], rtol=1e-4, atol=scale):
        raise ValueError(
            "the loss of an example depends on the other examples: it changed by "
            f"{np.abs(straight[0] - alone[0]).max():.3g} nats when they were replaced. Use running "
            "averages in batch normalisation (evaluation mode)"
        )
