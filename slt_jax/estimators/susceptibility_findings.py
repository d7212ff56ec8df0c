"""What speaks against susceptibilities: lost chains, short batches, no signal beyond the prior."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import fdtri

from slt_jax.estimators.series import autocorrelation_time
from slt_jax.estimators.verdict import MAX_DROPPED, OK, Verdict, chains_lost
from slt_jax.run import Run

MIN_BATCHES = 20
MIN_TIMES = 5
MIN_FULL = 4


class Quality(NamedTuple):
    """How good one run is.

    Draws, batches of them and their length; the longest autocorrelation time over its components;
    and by component the spread between chains over the error from batches, as variances.
    """

    name: str
    num_chains: int
    num_draws: int
    num_batches: int
    batch_length: int
    autocorrelation_time: float
    between: Mapping[str, float]


def quality(
    name: str, run: Run, num_batches: int, batch_length: int, between: Mapping[str, float]
) -> Quality:
    """Judge a run; the autocorrelation time is that of the gap."""
    times = [1.0]
    for gap, alive in zip(run.traces["gap"], run.health.alive, strict=True):
        if alive.any():
            times.append(autocorrelation_time(gap[alive].mean(axis=0).astype(np.float64)))
    chains = run.settings.num_chains
    return Quality(
        name, chains, run.num_draws, num_batches, batch_length, max(times), dict(between)
    )


class Lost(NamedTuple):
    """How many chains were dropped, out of how many."""

    dropped: int
    total: int


def findings(
    full: Quality,
    components: Sequence[Quality],
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
        _chains_disagree([full, *components]),
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
    return chains_lost("chains dropped" if fair else "diverged", *lost)


def _too_short(full: Quality, components: Sequence[Quality]) -> Verdict | None:
    for one in (full, *components):
        time, batches = one.autocorrelation_time, one.num_batches
        needed = math.ceil(MIN_BATCHES * MIN_TIMES * time)
        if batches >= MIN_BATCHES and one.batch_length >= MIN_TIMES * time:
            continue
        return Verdict(
            "too short",
            f"errors of {one.name} come from {batches} batches of {one.batch_length} draws, "
            f"where {MIN_BATCHES} of {MIN_TIMES} autocorrelation times ({time:.1f} draws) are "
            "needed",
            f"Take {needed} draws or more, or more steps per draw",
        )
    return None


def _chains_disagree(runs: Sequence[Quality]) -> Verdict | None:
    count = sum(len(one.between) for one in runs)
    for one in runs:
        if one.num_batches < 2 or one.num_chains < 2:
            continue
        # All entries of a component may move together: no better than the spread of one of them.
        limit = float(fdtri(one.num_chains - 1, one.num_batches - 1, 1 - 1e-3 / count))
        name = max(one.between, key=lambda component: one.between[component])
        if one.between[name] > limit:
            return Verdict(
                "chains disagree",
                f"in {name} the variance between chains is {one.between[name]:.1f} times what "
                "batches of draws within them say",
                "Take more draws; if it stays, the chains sit in different regions",
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


def _full_too_short(full: Quality, components: Sequence[Quality]) -> Verdict | None:
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
