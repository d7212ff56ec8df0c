"""By-products of the draws: second estimator, singular fluctuation, local WBIC."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from slt_jax.data import default_n_beta
from slt_jax.estimators.series import long_run_variance
from slt_jax.observables import LossValues
from slt_jax.run import Run
from slt_jax.statistics import AbstractStatistic, Variance

EVALUATION = "evaluation gap"
EXAMPLES = "evaluation losses"
PAIR = "gap pair"


class ExampleLosses(LossValues):
    """The loss of every example of a probe, its positions averaged with the probe's mean weight."""

    statistic: AbstractStatistic = Variance()
    every: int = eqx.field(static=True, default=1)

    def relative(self, value, center):
        losses, weights = value
        positions = tuple(range(1, losses.ndim))
        total = jnp.sum(weights * (losses - center[0]), axis=positions)
        active = jnp.sum(jnp.sum(weights, axis=positions) > 0).astype(jnp.float32)
        # Rows without weight are padding: the scale makes the mean over all rows of a variance the
        # mean over those that count.
        padded = jnp.sqrt(losses.shape[0] / active)
        return padded * total / (jnp.sum(weights) / active)


def fluctuations(
    run: Run, number: int, alive: np.ndarray, gap: np.ndarray, n_beta: float
) -> dict[str, float]:
    """Give the second estimator, the singular fluctuation and the local WBIC (D15)."""
    second, error = _second_estimator(run, number, alive, gap, n_beta)
    fluctuation = math.nan
    if EXAMPLES in run.observables:
        variance = run.statistics[EXAMPLES].value
        fluctuation = n_beta / 2 * float(variance[number][alive].mean())
    wbic = math.nan
    examples = run.batches.num_examples
    if examples > 1 and math.isclose(n_beta, default_n_beta(examples), rel_tol=1e-3):
        wbic = examples * (run.survey.loss + float(gap.mean()))
    return {
        "second_estimator": second,
        "second_estimator_error": error,
        "singular_fluctuation": fluctuation,
        "wbic": wbic,
    }


def _second_estimator(
    run: Run, number: int, alive: np.ndarray, gap: np.ndarray, n_beta: float
) -> tuple[float, float]:
    if PAIR in run.totals:
        statistic = run.observables[PAIR].statistic
        pairs = statistic.finalize(run.totals[PAIR]).value[number][alive].astype(np.float64)
        first, second = pairs[..., 0], pairs[..., 1]
    elif EVALUATION in run.totals or run.kernel.full_batch:
        first = second = gap
    else:
        return math.nan, math.nan
    products = ((first - first.mean()) * (second - second.mean())).mean(axis=0)
    error = math.sqrt(long_run_variance(products) / products.size)
    return n_beta**2 * float(products.mean()), n_beta**2 * error
