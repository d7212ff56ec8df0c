"""Whether an estimate can be trusted: one verdict, its reason, and what to do about it."""

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slt_jax.estimators.result import LLCResult


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A finding about an estimate. ``str(verdict)`` is its name, reason and advice.

    >>> print(Verdict("ok", "", ""), Verdict("ok", "", "").ok)
    ok True
    """

    name: str
    reason: str
    advice: str

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the estimate."""
        return self.name == "ok"

    def __str__(self) -> str:
        return self.name if self.ok else f"{self.name}: {self.reason}. {self.advice}"


OK = Verdict("ok", "", "")

MIN_TIMES = 20
MAX_DROPPED = 0.05
MIN_DRAWS = 40
MAX_R_HAT = 1.05
MAX_BIAS = 0.1
MAX_REMAINING = 0.1
MIN_ACCEPTANCE = 0.5
MAX_STIFFNESS, MAX_STABLE = 1.0, 3.0
MAX_ACCEPTANCE_DIMENSION = 10_000


def diverged(dropped: int, total: int) -> Verdict | None:
    """Give the finding that more chains were dropped than may be overlooked, or None."""
    return chains_lost("diverged", dropped, total) if dropped > MAX_DROPPED * total else None


def chains_lost(name: str, dropped: int, total: int) -> Verdict:
    """Give the finding that chains were dropped, under this name."""
    return Verdict(
        name,
        f"{dropped} of {total} chains became non-finite and were dropped with their whole history; "
        "those that stay finite are not a fair sample",
        "Lower the step size or raise the localization until no chain is lost",
    )


def findings(result: "LLCResult") -> tuple[Verdict, ...]:
    """List everything that speaks against an estimate, the gravest first; ``(OK,)`` if nothing."""
    checks = (
        _diverged,
        _not_at_a_minimum,
        _step_too_large,
        _too_short,
        _not_stationary,
        _chains_disagree,
        _only_localization,
    )
    found = tuple(finding for check in checks if (finding := check(result)) is not None)
    return found or (OK,)


def _diverged(result: "LLCResult") -> Verdict | None:
    return diverged(result.num_dropped, result.num_dropped + result.num_chains)


def _not_at_a_minimum(result: "LLCResult") -> Verdict | None:
    if result.data_refined:
        return None
    negative = result.mean + 2 * result.standard_error < 0
    term = result.first_order
    strong = math.isfinite(term) and term > MAX_BIAS * abs(result.mean)
    if not negative and not strong:
        return None
    reason = (
        f"the estimate is negative by {-result.mean / result.standard_error:.1f} standard errors"
        if negative
        else f"the gradient at w* lowers the estimate by about {term:.3g}"
    )
    return Verdict(
        "not at a minimum",
        reason,
        "Train on until the loss is flat, measure the loss the weights were trained on, or lower "
        "nβ or raise γ so that the chains stay near w*",
    )


def _step_too_large(result: "LLCResult") -> Verdict | None:
    bias = result.bias
    limit = MAX_STIFFNESS if bias.step_size > 0 else MAX_STABLE
    # Metropolis's rule is asked about the bias of plain Langevin steps: others have none to see.
    is_biased = bias.step_size > 0 and not result.adjusted
    limited = result.num_params < MAX_ACCEPTANCE_DIMENSION and is_biased
    stiff = result.stiffness > limit and not result.adjusted
    smaller = "Lower the step size, and take more steps in proportion"
    if stiff:
        reason = f"the stiffest direction seen has εa = {result.stiffness:.2g}, unstable from 4 on"
    elif bias.step_size > MAX_BIAS:
        reason = f"the step size adds about {100 * bias.step_size:.0f} % to the estimate"
    elif bias.minibatch > MAX_BIAS:
        reason = f"minibatch noise adds about {100 * bias.minibatch:.0f} % to the estimate"
        smaller = "Lower the step size, enlarge the batches, or anchor the gradients at w*"
    elif bias.anchor > MAX_BIAS:
        reason = f"the anchor's error adds up to {100 * bias.anchor:.0f} % to the estimate"
        smaller = "Raise survey_examples"
    elif limited and result.mala_acceptance < MIN_ACCEPTANCE:
        accepted = 100 * result.mala_acceptance
        reason = f"Metropolis's rule would accept only {accepted:.0f} % of the steps"
    else:
        return None
    return Verdict("step too large", reason, smaller)


def _too_short(result: "LLCResult") -> Verdict | None:
    draws, time = result.num_draws, result.autocorrelation_time
    unknown = ", and for a standard error" if math.isnan(result.standard_error) else ""
    if draws < MIN_DRAWS:
        return Verdict(
            "too short",
            f"{draws} draws are too few to tell how correlated they are{unknown}",
            f"Take {MIN_DRAWS} draws or more",
        )
    if draws < MIN_TIMES * time:
        return Verdict(
            "too short",
            f"{draws} draws are fewer than {MIN_TIMES} autocorrelation times of {time:.1f} draws",
            f"Take {math.ceil(MIN_TIMES * time)} draws or more, or more steps per draw",
        )
    if result.remaining_rise <= MAX_REMAINING * abs(result.mean):
        return None
    if math.isnan(result.relaxations):
        length = "without a localization nothing bounds how long the flattest direction takes"
    else:
        length = f"the run lasts {result.relaxations:.2g} relaxation times of the localization"
    return Verdict(
        "too short",
        f"{length}, and the drift allows a further rise of up to {result.remaining_rise:.3g}",
        "Take more steps, a larger step size, or a larger localization",
    )


def _not_stationary(result: "LLCResult") -> Verdict | None:
    drift, error = result.drift, result.drift_error
    if not (abs(drift) > 3 * error and abs(drift) > 0.05 * abs(result.mean)):
        return None
    return Verdict(
        "not stationary",
        f"the estimate drifts by {drift:+.3g} ± {error:.2g} over the draws",
        "Lengthen the burn-in; if the drift stays, the chains are leaving the region of w*: lower "
        "the step size or raise the localization",
    )


def _chains_disagree(result: "LLCResult") -> Verdict | None:
    if not result.r_hat > MAX_R_HAT:
        return None
    return Verdict(
        "chains disagree",
        f"R-hat is {result.r_hat:.3f}",
        "Take more draws; if it stays, the chains sit in different regions: look at the traces",
    )


def _only_localization(result: "LLCResult") -> Verdict | None:
    signal, error = result.signal, result.signal_error
    if not math.isfinite(signal) or signal > 2 * error:
        return None
    return Verdict(
        "only the localization was seen",
        f"without data the same kernel reads {result.control:.3g} ± {result.control_error:.2g}: "
        "the loss did not hold the chains back",
        "Raise nβ or lower the localization (h* = γ/nβ must be below the curvatures of interest)",
    )
