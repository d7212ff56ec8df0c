"""What speaks against an estimate: control without data, predicted biases, gradient at w*."""

import math
from typing import Any, NamedTuple

import numpy as np

from slt_jax._types import host_float
from slt_jax.estimators.quadrature import quadratic_form, tridiagonal
from slt_jax.estimators.result import BiasBudget
from slt_jax.estimators.surroundings import Lanczos, Surroundings
from slt_jax.run import Run


class _Target(NamedTuple):
    """The numbers of the posterior that every formula needs: nβ and the prior's precision."""

    n_beta: float
    precision: float


def budget(run: Run, number: int, mean: float, around: Surroundings | None) -> dict[str, Any]:
    """Give control, signal, acceptance, biases and first-order term; NaN where not measured."""
    target = _Target(host_float(run.posterior.n_beta), run.posterior.host_precision)
    nan = math.nan
    if around is None:
        return {
            "control": nan,
            "control_error": nan,
            "signal": nan,
            "mala_acceptance": nan,
            "stiffness": nan,
            "bias": BiasBudget(nan, nan, nan),
            "gradient_noise": nan,
            "first_order": _gradient_bound(run, number, target),
        }
    plain, anchored = float(around.plain_noise), float(around.anchored_noise)
    return _control(around, mean, target) | {
        "mala_acceptance": float(np.mean(around.acceptance)),
        "stiffness": _stiffness(around, target),
        "bias": _biases(run, number, mean, around, target),
        "gradient_noise": anchored / plain if plain > 0 else nan,
        "first_order": _first_order(run, number, around, target),
    }


def _control(around: Surroundings, mean: float, target: _Target) -> dict[str, float]:
    control = target.n_beta * np.asarray(around.control_gap, np.float64)
    if target.precision <= 0 or target.n_beta <= 0 or not np.all(np.isfinite(control)):
        return {"control": math.nan, "control_error": math.nan, "signal": math.nan}
    reading = float(control.mean())
    return {
        "control": reading,
        "control_error": float(control.std(ddof=1)) / math.sqrt(control.size),
        "signal": 1 - mean / reading if reading > 0 else math.nan,
    }


def _stiffness(around: Surroundings, target: _Target) -> float:
    """Give the largest ε_i a_i found: the largest Ritz value of nβH_ε, plus εγ."""
    top = max(
        float(_ritz(around.probes, probe).max()) for probe in range(len(around.probes.diagonal))
    )
    return target.n_beta * max(top, 0.0) + float(around.mean_step_size) * target.precision


def _ritz(lanczos: Lanczos, number: int) -> np.ndarray:
    diagonal, off_diagonal = lanczos.diagonal[number], lanczos.off_diagonal[number]
    return np.linalg.eigvalsh(tridiagonal(np.asarray(diagonal), np.asarray(off_diagonal)))


def _biases(
    run: Run, number: int, mean: float, around: Surroundings, target: _Target
) -> BiasBudget:
    """Predict the biases relative to the estimate without them (definition D8).

    Excess by the step size: (nβ/8) tr H_ε. By minibatch noise, with n_ε = √ε_i (ĝ_i − ∇L_i):
    ((nβ)²/8) E[n_εᵀ nβH_ε (nβH_ε + ε̄γ)⁻¹ n_ε], of which the shape comes from Lanczos and the size
    from the measured variance.
    """
    factors = run.kernel.bias_factors()
    probes = np.asarray(around.probes.diagonal, np.float64)[:, 0]
    size = np.asarray(around.probes.norm_squared, np.float64)
    step = factors.step_size * target.n_beta / 8 * float(np.mean(probes * size))
    variance = around.anchored_noise if run.kernel.needs_anchor else around.plain_noise
    felt = _felt_noise(around, target)
    minibatch = factors.minibatch * target.n_beta**2 / 8 * float(variance) * felt
    if run.kernel.full_batch:
        minibatch = 0.0
    anchor = _anchor_excess(run, number, target)
    unbiased = mean - step - minibatch - anchor
    if not unbiased > 0:
        return BiasBudget(*(math.inf if part > 0 else 0.0 for part in (step, minibatch, anchor)))
    return BiasBudget(step / unbiased, minibatch / unbiased, anchor / unbiased)


def _felt_noise(around: Surroundings, target: _Target) -> float:
    """Give the part of the gradient noise that lies in directions of curvature above h*."""
    pull = float(around.mean_step_size) * target.precision

    def share(curvature: np.ndarray) -> np.ndarray:
        felt = target.n_beta * np.maximum(curvature, 0)
        return felt / np.maximum(felt + pull, 1e-300)

    total = np.asarray(around.noise.norm_squared, np.float64)
    if not total.sum() > 0:
        return 0.0
    forms = [
        quadratic_form(
            np.asarray(around.noise.diagonal[start]),
            np.asarray(around.noise.off_diagonal[start]),
            float(total[start]),
            share,
        )
        for start in range(len(total))
    ]
    return float(np.sum(forms) / total.sum())


def _anchor_excess(run: Run, number: int, target: _Target) -> float:
    """Bound (nβ)³Σ h_iΔ_i²/(2a_i²) by (nβ)²|Δ|²/(8γ), Δ the error of ∇L_n(w*) from a subset."""
    if not run.kernel.needs_anchor or run.survey.is_whole:
        return 0.0
    square = float(run.survey.subset_noise[number])
    return target.n_beta**2 * square / (8 * target.precision) if target.precision > 0 else math.inf


def _gradient_bound(run: Run, number: int, target: _Target) -> float:
    square = float(run.survey.gradient_norm_squared[number])
    return target.n_beta**2 * square / target.precision if target.precision > 0 else math.nan


def _first_order(run: Run, number: int, around: Surroundings, target: _Target) -> float:
    """Give ½(nβ)² Σ g_i²(nβh_i + 2γ)/(nβh_i + γ)² for the gradient g at w* (D10)."""
    square = float(run.survey.gradient_norm_squared[number])
    if target.precision <= 0 or square == 0:
        return 0.0 if square == 0 else math.nan

    def term(curvature: np.ndarray) -> np.ndarray:
        pull = target.n_beta * np.maximum(curvature, 0)
        return (pull + 2 * target.precision) / (pull + target.precision) ** 2

    diagonal = np.asarray(around.gradient.diagonal)
    off_diagonal = np.asarray(around.gradient.off_diagonal)
    return 0.5 * target.n_beta**2 * quadratic_form(diagonal, off_diagonal, square, term)
