"""The local learning coefficient: from a posterior, or from a run already made."""

import math
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from slt_jax._types import ChainKey, host_float
from slt_jax.data import Batches, Probe
from slt_jax.estimators.budget import budget
from slt_jax.estimators.chains import (
    are_independent,
    component_number,
    draw_weights,
    live_chains,
)
from slt_jax.estimators.convergence import convergence
from slt_jax.estimators.evaluation import check_evaluation
from slt_jax.estimators.fluctuation import EVALUATION, EXAMPLES, PAIR, ExampleLosses, fluctuations
from slt_jax.estimators.result import LLCResult
from slt_jax.estimators.series import (
    autocorrelation_time,
    drift,
    mean_error,
)
from slt_jax.estimators.surroundings import look_around
from slt_jax.kernels.base import AbstractKernel
from slt_jax.observables import GapPair, MeanLoss
from slt_jax.posterior import LocalPosterior
from slt_jax.recording import keep
from slt_jax.run import Run, SampleOptions
from slt_jax.sampling import sample
from slt_jax.validation import check_arguments

_CLOSEST_PAIRS = 4


def llc(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    *,
    evaluation: Probe | None = None,
    data_refined: bool = False,
    drop_diverged: bool = False,
    surroundings: bool = True,
    **options: Unpack[SampleOptions],
) -> LLCResult:
    """Estimate the local learning coefficient at w*.

    Equation: λ̂ = nβ(E_w[L_n(w)] − L_n(w*)), w from p ∝ exp(−nβ L_n(w) − (γ/2)|w − w*|²) (Lau et
    al., arXiv 2308.12108, section 4). Both losses are taken on the same minibatch, before the step
    that uses it, so that the noise of the batch and the error of L_n(w*) cancel; burn-in is left
    out. For a refined LLC (Wang et al., arXiv 2410.02984) pass ``posterior.restrict(…)`` and other
    batches.

    Args:
        posterior: loss, w*, nβ (dimensionless), γ (1/weight²) and the weights that move.
        kernel: the sampler, such as ``slt.sgld(1e-5)``.
        batches: minibatches of the data set that defines L_n.
        key: one typed threefry key.
        evaluation: measure the gap on these examples at every draw instead of on the minibatches;
            needed with a batch order of your own, and for the singular fluctuation.
        data_refined: ``batches`` are not what w* was trained on: a gradient at w* is then expected,
            and noted instead of held against the estimate.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        surroundings: measure control, curvature, noise and acceptance around w* as well: about 150
            minibatch gradients.
        **options: as for ``slt.sample``.

    Returns:
        The estimate with its error, diagnostics and verdict.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set.
        TypeError, ValueError: see ``slt.sample``.

    >>> import jax.numpy as jnp
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=20.0, localization=0.2)
    >>> from slt_jax.kernels import sgld
    >>> result = llc(posterior, sgld(3e-3), Batches(data, 32), jax.random.key(0),
    ...              num_draws=2000, progress=False)
    >>> 1.6 < result.mean < 2.4
    True
    """
    if isinstance(batches, Batches) and not batches.independent and evaluation is None:
        raise ValueError(
            "batches in an order of your own depend on earlier ones, which biases the gap measured "
            "on them: pass evaluation=slt.Probe(examples), or use uniform batches"
        )
    if len(options.get("components") or {}) > 1:
        raise ValueError(
            "llc estimates one component: use run = slt.sample(..., components=...) and "
            "slt.llc_from(run, component=name) for each"
        )
    check_arguments(posterior, kernel, batches, key)
    check_evaluation(evaluation, posterior, batches)
    own = _observables(kernel, evaluation, options)
    options["observables"] = dict(options.get("observables") or {}) | own
    run = sample(posterior, kernel, batches, key, **options)
    result = llc_from(
        run, data_refined=data_refined, drop_diverged=drop_diverged, surroundings=surroundings
    )
    return keep(options.get("store"), result)


def _observables(kernel: AbstractKernel, evaluation: Probe | None, options: Any) -> dict[str, Any]:
    if evaluation is not None:
        return {
            EVALUATION: MeanLoss(probe=evaluation),
            EXAMPLES: ExampleLosses(probe=evaluation),
        }
    if getattr(kernel, "full_batch", False):
        return {}
    # Enough pairs for a variance, nearly free; in powers, so that more draws are more of the same.
    hundredth = max(_CLOSEST_PAIRS, options.get("num_draws", 1000) // 100)
    every = _CLOSEST_PAIRS ** int(math.log(hundredth, _CLOSEST_PAIRS))
    return {PAIR: GapPair(every=every, at_least=_CLOSEST_PAIRS)}


def llc_from(
    run: Run,
    *,
    component: str | None = None,
    data_refined: bool = False,
    drop_diverged: bool = False,
    surroundings: bool = True,
) -> LLCResult:
    """Estimate the local learning coefficient from a run already made.

    Args:
        run: from ``slt.sample``.
        component: which one, if the run has several.
        data_refined: the run's batches are not what w* was trained on.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        surroundings: measure control, curvature, noise and acceptance around w* as well.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set, or none is left.
        ValueError: a run without draws, an unknown component, or dependent batches without an
            evaluation set.
    """
    number = component_number(run, component)
    alive = live_chains(run, number, drop_diverged, "llc_from")
    gap, weights = _gap(run, number, alive)
    n_beta = host_float(run.posterior.n_beta)
    around = None
    if surroundings:
        rows = number * run.settings.num_chains + np.flatnonzero(alive)
        around = jax.device_get(look_around(run, number, rows))
    mean = n_beta * float(np.average(gap.mean(axis=0), weights=weights))
    parts = [
        _settings(run, n_beta),
        _errors(gap, weights, n_beta, run),
        _stationarity(gap, n_beta, run),
        _traces(run, number, alive),
        budget(run, number, mean, around),
        fluctuations(run, number, alive, gap, n_beta),
    ]
    merged = {name: value for part in parts for name, value in part.items()}
    return LLCResult(
        mean=mean,
        per_chain=n_beta * np.average(gap, axis=1, weights=weights),
        gap=gap,
        draw_weights=weights,
        signal_error=_signal_error(merged, mean),
        num_dropped=int((~alive).sum()),
        data_refined=data_refined,
        source=run,
        **merged,
    )


def _settings(run: Run, n_beta: float) -> dict[str, Any]:
    """Give what the result says of the run that it rests on."""
    precision = run.posterior.host_precision
    return {
        "init_loss": run.survey.loss,
        "num_survey_examples": run.survey.num_examples,
        "n_beta": n_beta,
        "localization": host_float(run.posterior.localization),
        "effective_curvature": precision / n_beta if n_beta else math.inf,
        "num_params": run.posterior.restriction.num_params,
        "adjusted": run.kernel.adjusted,
        "independent_chains": are_independent(run),
        "comparable_starts": run.settings.dispersed and are_independent(run),
        "adapting": _adapting(run),
        "metadata": dict(run.metadata) | {"num_draws": run.num_draws},
    }


class _Gap(NamedTuple):
    values: np.ndarray
    weights: np.ndarray


def _gap(run: Run, number: int, alive: np.ndarray) -> _Gap:
    """Give the gap that the estimate rests on, ``[chain, draw]``, and the draws' weights."""
    weights = draw_weights(run, number, alive)
    if EVALUATION in run.totals:
        estimate = run.observables[EVALUATION].statistic.finalize(run.totals[EVALUATION])
        return _Gap(np.asarray(estimate.value, np.float64)[number][alive], weights)
    if not run.batches.independent and not run.kernel.full_batch:
        raise ValueError(
            "the run's batches depend on earlier ones, which biases the gap measured on them: use "
            "slt.llc with evaluation=slt.Probe(examples), or uniform batches"
        )
    return _Gap(run.traces["gap"][number][alive].astype(np.float64), weights)


def _adapting(run: Run) -> bool:
    """Tell whether the metric still changed while draws were taken."""
    return run.kernel.adapts and run.settings.num_burnin_steps == 0


def _weighted(gap: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give a series whose plain mean has the error of the weighted mean."""
    center = np.average(gap, axis=1, weights=weights)[:, None]
    return center + weights / weights.mean() * (gap - center)


def _errors(gap: np.ndarray, weights: np.ndarray, n_beta: float, run: Run) -> dict[str, float]:
    weighted = _weighted(gap, weights)
    error = mean_error(weighted, are_independent(run))
    checked = convergence(gap)
    squared = error.standard_error**2
    ess = float(gap.var()) / squared if squared > 0 else math.nan
    return {
        "standard_error": n_beta * error.standard_error,
        "degrees_of_freedom": error.degrees_of_freedom,
        "r_hat": checked.r_hat,
        "ess": ess,
        "ess_bulk": checked.ess_bulk,
        "autocorrelation_time": autocorrelation_time(gap.mean(axis=0)),
    }


def _stationarity(gap: np.ndarray, n_beta: float, run: Run) -> dict[str, float]:
    """Measure the drift, and what it allows if the run is short against its relaxation (D5)."""
    moved = drift(gap.mean(axis=0))
    precision = run.posterior.host_precision
    relaxations, rise = math.nan, max(0.0, n_beta * (moved.change + 2 * moved.standard_error))
    # Without a prior the flattest direction never comes to rest: the drift itself must be small.
    remaining = rise
    if precision > 0:
        steps = run.kernel.relaxation_steps(run.smallest_step_size, precision)
        relaxations = run.step / steps
        # What is left of an exponential approach with rate 2/steps, from its slope at the end.
        lasting = 2 * run.num_draws * run.settings.num_steps_bw_draws / steps
        # After a few relaxation times the flattest direction is at rest, whatever the drift.
        remaining = 0.0 if relaxations > 3 else rise / lasting
    return {
        "drift": n_beta * moved.change,
        "drift_error": n_beta * moved.standard_error,
        "relaxations": relaxations,
        "remaining_rise": 0.0 if math.isnan(remaining) else remaining,
    }


def _traces(run: Run, number: int, alive: np.ndarray) -> dict[str, float]:
    names = ("acceptance", "distance", "gradient_norm", "noise_norm", "localization_norm")
    return {name: float(run.traces[name][number][alive].mean()) for name in names}


def _signal_error(merged: dict[str, Any], mean: float) -> float:
    control = merged["control"]
    if not math.isfinite(merged["signal"]):
        return math.nan
    return math.hypot(
        merged["standard_error"] / control, mean / control * merged["control_error"] / control
    )
