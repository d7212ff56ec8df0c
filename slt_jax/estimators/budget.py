"""What speaks against an estimate: control without data, predicted biases, gradient at w*."""

import math
from typing import Any

import numpy as np

from slt_jax.estimators.quadrature import quadratic_form
from slt_jax.estimators.result import BiasBudget
from slt_jax.estimators.surroundings import Surroundings
from slt_jax.run import Run


def budget(
    run: Run, number: int, mean: float, n_beta: float, around: Surroundings | None
) -> dict[str, Any]:
    """Give control, signal, acceptance, biases and first-order term; NaN where not measured."""
    nan = math.nan
    """Give control, signal, acceptance, biases and first-order term, NaN where not measured."""
    if around is None:
        bound = _gradient_bound(run, number, n_beta)
        return {
            "control": nan,
            "control_error": nan,
            "signal": nan,
            "mala_acceptance": nan,
            "bias": BiasBudget(nan, nan, nan),
            "gradient_noise": nan,
            "first_order": bound,
        }
    gamma = float(run.posterior.localization)
    control = n_beta * np.asarray(around.control_gap, np.float64)
    known = gamma > 0 and n_beta > 0 and bool(np.all(np.isfinite(control)))
    reading = float(control.mean()) if known else nan
    signal = 1 - mean / reading if known and reading > 0 else nan
    noise = around.anchored_noise if run.kernel.needs_anchor else around.plain_noise
    size = max(abs(mean), 1e-30)
    factors = run.kernel.bias_factors()
    step = n_beta * float(around.step_curvature) / 8 / size
    minibatch = n_beta**2 * float(noise) / 8 / size
    return {
        "control": reading,
        "control_error": float(control.std(ddof=1)) / math.sqrt(control.size) if known else nan,
        "signal": signal,
        "mala_acceptance": float(np.mean(around.acceptance)),
        "bias": BiasBudget(
            factors.step_size * step, factors.minibatch * minibatch, _anchor_bias(run, number, size)
        ),
        "gradient_noise": float(around.anchored_noise / around.plain_noise)
        if around.plain_noise > 0
        else nan,
        "first_order": _first_order(run, number, n_beta, around),
    }


def _anchor_bias(run: Run, number: int, size: float) -> float:
    """Bound (nβ)²Σ Δ_i² nβh_i/(2a_i²) ≤ (nβ)²|Δ|²/(8γ), Δ the error of ∇L_n(w*) from a subset."""
    gamma, n_beta = float(run.posterior.localization), float(run.posterior.n_beta)
    if not run.kernel.needs_anchor or run.survey.is_whole:
        return 0.0
    square = float(run.survey.subset_noise[number])
    return n_beta**2 * square / (8 * gamma) / size if gamma > 0 else math.inf


def _gradient_bound(run: Run, number: int, n_beta: float) -> float:
    gamma = float(run.posterior.localization)
    square = float(run.survey.gradient_norm_squared[number])
    return n_beta**2 * square / gamma if gamma > 0 else math.nan


def _first_order(run: Run, number: int, n_beta: float, around: Surroundings) -> float:
    """Give ½(nβ)² Σ g_i²(nβh_i + 2γ)/(nβh_i + γ)² for the gradient g at w* (D10)."""
    gamma = float(run.posterior.localization)
    square = float(run.survey.gradient_norm_squared[number])
    if gamma <= 0 or square == 0:
        return 0.0 if square == 0 else math.nan

    def term(curvature: np.ndarray) -> np.ndarray:
        pull = n_beta * np.maximum(curvature, 0)
        return (pull + 2 * gamma) / (pull + gamma) ** 2

    diagonal, off_diagonal = (np.asarray(leaf) for leaf in around.lanczos)
    return 0.5 * n_beta**2 * quadratic_form(diagonal, off_diagonal, square, term)
