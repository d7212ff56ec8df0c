"""Whether an influence matrix can be trusted."""

import math
from typing import TYPE_CHECKING

from slt_jax.estimators.trace_moments import MIN_BATCHES
from slt_jax.estimators.verdict import MIN_TIMES, OK, Verdict, diverged

if TYPE_CHECKING:
    from slt_jax.estimators.influence_result import BIFResult

MAX_BETWEEN = 0.1
MAX_DRIFT = 0.1


def findings(result: "BIFResult") -> tuple[Verdict, ...]:
    """List everything that speaks against the matrix, the gravest first; ``(OK,)`` if nothing."""
    checks = (_diverged, _chains_disagree, _too_short, _not_stationary, _constant)
    found = tuple(finding for check in checks if (finding := check(result)) is not None)
    return found or (OK,)


def _diverged(result: "BIFResult") -> Verdict | None:
    return diverged(result.num_dropped, result.num_dropped + result.num_chains)


def _chains_disagree(result: "BIFResult") -> Verdict | None:
    share, found = result.diagnostics.between_share, result.diagnostics
    if not (share > MAX_BETWEEN and found.between_ratio > found.between_limit):
        return None
    return Verdict(
        "chains disagree",
        f"chains differ from each other by {100 * share:.0f} % of the variance within them, "
        f"{found.between_ratio:.1f} times what their autocorrelation explains",
        "Take more draws; if it stays, the chains sit in different regions, and the covariance "
        "between them (between_covariance) is a part of the posterior that this one leaves out",
    )


def _too_short(result: "BIFResult") -> Verdict | None:
    time, batches = result.diagnostics.autocorrelation_time, result.diagnostics.num_batches
    if result.num_draws >= MIN_TIMES * time and batches >= MIN_BATCHES:
        return None
    return Verdict(
        "too short",
        f"{result.num_draws} draws are {result.num_draws / time:.3g} autocorrelation times of "
        f"{time:.1f} draws, and the errors rest on {batches} batches",
        f"Take {math.ceil(5 * time) * MIN_BATCHES} draws or more, or more steps per draw",
    )


def _not_stationary(result: "BIFResult") -> Verdict | None:
    share, ratio = result.diagnostics.drift_share, result.diagnostics.drift_ratio
    if not (share > MAX_DRIFT and ratio > 3):
        return None
    return Verdict(
        "not stationary",
        f"{100 * share:.0f} % of the variance of the mean training loss is a drift over the draws "
        f"({ratio:.1f} standard errors)",
        "Lengthen the burn-in; if the drift stays, the chains are leaving the region of w*: lower "
        "the step size or raise the localization",
    )


def _constant(result: "BIFResult") -> Verdict | None:
    train, query = result.diagnostics.num_constant
    if train + query == 0:
        return None
    return Verdict(
        "losses without variation",
        f"{train} training and {query} query rows never changed, so that their correlations are "
        "NaN",
        "Check that the weights that move act on these examples; in float32 a loss of exactly 0 "
        "does not move",
    )
