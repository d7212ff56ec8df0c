"""What speaks against susceptibilities: lost chains, short batches, no signal beyond the prior."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slt_jax.estimators.series import autocorrelation_time
from slt_jax.estimators.verdict import OK, Verdict
from slt_jax.run import Run

MIN_BATCHES = 20
MIN_TIMES = 5
MIN_FULL = 4
MAX_DROPPED = 0.05


class Lengths(NamedTuple):
    """How long one run is: draws, batches and their length, and its autocorrelation time."""

    num_draws: int
    num_batches: int
    batch_length: int
    autocorrelation_time: float


def lengths(run: Run, num_batches: int, batch_length: int) -> Lengths:
    """Measure the longest autocorrelation time of the gap over the components of a run."""
    times = [1.0]
    for gap, alive in zip(run.traces["gap"], run.health.alive, strict=True):
        if alive.any():
            times.append(autocorrelation_time(gap[alive].mean(axis=0).astype(np.float64)))
    return Lengths(run.num_draws, num_batches, batch_length, max(times))


class Lost(NamedTuple):
    """How many chains were dropped, out of how many."""

    dropped: int
    total: int


def findings(
    full: Lengths,
    components: Sequence[Lengths],
    lost: Lost,
    adapting: bool,
    localized: bool,
    excess: float,
) -> tuple[Verdict, ...]:
    """List everything that speaks against the estimate, the gravest first; ``(OK,)`` if nothing.

    Args:
        full: of the full chain.
        components: of the runs of components.
        lost: chains that were dropped.
        adapting: the metric still changed while draws were taken.
        localized: there is a prior, without which there is no control.
        excess: mean square, in errors, of what the control leaves unexplained; NaN if unknown.
    """
    found = (
        _diverged(lost),
        _too_short(full, components),
        _only_localization(excess),
        _full_too_short(full, components),
        _adapting(adapting),
        _no_control(localized),
    )
    return tuple(finding for finding in found if finding is not None) or (OK,)


def _diverged(lost: Lost) -> Verdict | None:
    if not lost.dropped:
        return None
    fair = lost.dropped <= MAX_DROPPED * lost.total
    return Verdict(
        "chains dropped" if fair else "diverged",
        f"{lost.dropped} of {lost.total} chains became non-finite and were dropped with their "
        "whole history; those that stay finite are not a fair sample",
        "Lower the step size or raise the localization until no chain is lost",
    )


def _too_short(full: Lengths, components: Sequence[Lengths]) -> Verdict | None:
    for name, one in [("the full chain", full), *(("the components", one) for one in components)]:
        time, batches = one.autocorrelation_time, one.num_batches
        needed = math.ceil(MIN_BATCHES * MIN_TIMES * time)
        if batches >= MIN_BATCHES and one.batch_length >= MIN_TIMES * time:
            continue
        return Verdict(
            "too short",
            f"the errors of {name} come from {batches} batches of {one.batch_length} draws, where "
            f"{MIN_BATCHES} batches of {MIN_TIMES} autocorrelation times ({time:.1f} draws) are "
            "needed",
            f"Take {needed} draws or more, or more steps per draw",
        )
    return None


def _only_localization(excess: float) -> Verdict | None:
    if not excess < 1.5:
        return None
    return Verdict(
        "only the localization was seen",
        "in most components the kernel without data (nβ = 0) gives the same susceptibilities up to "
        f"a factor: what is left is {math.sqrt(excess):.2f} of its error",
        "Raise nβ or lower the localization (h* = γ/nβ must be below the curvatures of interest)",
    )


def _full_too_short(full: Lengths, components: Sequence[Lengths]) -> Verdict | None:
    longest = max(one.num_draws for one in components)
    if full.num_draws >= MIN_FULL * longest:
        return None
    return Verdict(
        "full chain short",
        f"the full chain has {full.num_draws} draws per chain, the components up to {longest}: "
        "its error looks like a leading principal component with loadings E_C[g]",
        f"Give it {MIN_FULL * longest} draws or more",
    )


def _adapting(adapting: bool) -> Verdict | None:
    if not adapting:
        return None
    return Verdict(
        "control approximate",
        "the step sizes changed while draws were taken, and the control has the last ones",
        "Use burn-in steps, after which the preconditioner is frozen, and a constant step size",
    )


def _no_control(localized: bool) -> Verdict | None:
    if localized:
        return None
    return Verdict(
        "no control",
        "without a localization nothing confines the chains at nβ = 0",
        "Give the posterior a localization above 0",
    )
