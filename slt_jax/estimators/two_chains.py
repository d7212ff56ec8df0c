"""From the moments of a component's chains and of the full chain to susceptibilities."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from slt_jax.estimators.moments import Squares, ratio_error
from slt_jax.run import ChainsDiverged, Run

OBSERVABLE = "susceptibility"
"""The name under which a run measures what susceptibilities are made of."""


class FullMean(NamedTuple):
    """E_full[ℓ̃ − ℓ̃(w*)] of every entry, in nats, with its standard error.

    ``between`` is as in ``Response``.
    """

    mean: Float[np.ndarray, " entry"]
    standard_error: Float[np.ndarray, " entry"]
    between: float


class Response(NamedTuple):
    """What the chains of one component say.

    ``value`` is χ̂ and ``own_error`` its standard error from these chains alone, ``covariance``
    the part −Cov_C(g, ℓ̃) of it, all ``[entry]`` in nats². ``gap`` is E_C[g] in nats with
    ``gap_error``; ``scale``, in nats², the root mean square of g times that of ℓ̃ about its mean
    over the full chain. ``between`` is the squared error from the spread between chains over the
    one from batches of draws, averaged over entries: near 1 if the chains agree.
    """

    value: Float[np.ndarray, " entry"]
    own_error: Float[np.ndarray, " entry"]
    covariance: Float[np.ndarray, " entry"]
    scale: Float[np.ndarray, " entry"]
    gap: float
    gap_error: float
    between: float


def full_mean(run: Run, drop_diverged: bool) -> FullMean:
    """Give the mean of ℓ̃ over the chains of all weights.

    Raises:
        ChainsDiverged: some became non-finite and are not to be dropped, or none is left.
    """
    total, alive = run.total(OBSERVABLE), run.health.alive[0]
    if not alive.any() or not (alive.all() or drop_diverged):
        raise ChainsDiverged(
            f"full chain: {run.health}. Every susceptibility rests on it: lower the step size, "
            "raise the localization, or, if chains are left, go on without those: "
            "drop_diverged=True",
            run,
        )
    sums = {name: leaf[0] for name, leaf in total["sums"].items()}
    term = sums["loss"] - sums["gap"][:, None]
    mean = term[alive].sum(axis=0) / sums["weight"][alive].sum()
    error = _error(0, total, alive, {"weight": mean})
    return FullMean(mean, error, _between(term[alive], sums["weight"][alive], error))


def responses(run: Run, full: FullMean) -> dict[str, Response]:
    """Give the response of every component of a run, from its live chains; NaN if there is none.

    Equation: χ̂ = −(E_C[g ℓ̃] − E_C[g] E_full[ℓ̃]) (Elliott & Murfet, arXiv 2605.07970), with ℓ̃
    relative to its value at w*, which cancels.
    """
    total = run.total(OBSERVABLE)
    return {
        name: _response(run, number, total, full)
        if run.health.alive[number].any()
        else _nothing(full)
        for number, name in enumerate(run.components)
    }


def _nothing(full: FullMean) -> Response:
    unknown = np.full(full.mean.shape, np.nan)
    return Response(unknown, unknown, unknown, unknown, np.nan, np.nan, np.nan)


def _response(run: Run, number: int, total: dict[str, Any], full: FullMean) -> Response:
    alive = run.health.alive[number]
    sums = {name: leaf[number][alive] for name, leaf in total["sums"].items()}
    weight = sums["weight"].sum()
    gap, square = sums["gap"].sum() / weight, sums["square"].sum() / weight
    loss, product, power = (
        sums[name].sum(axis=0) / weight for name in ("loss", "product", "power")
    )
    shift = loss - gap
    # −χ̂ = E_C[g (ℓ̃ − f)], f the mean over the full chain: linear in the chains of the component.
    mean_product = product - square
    value = mean_product - gap * full.mean
    error = _error(number, total, alive, {"gap": full.mean, "weight": value})
    term = sums["product"] - sums["square"][:, None] - sums["gap"][:, None] * full.mean
    spread = power - 2 * product + square - 2 * full.mean * shift + full.mean**2
    with np.errstate(invalid="ignore"):
        scale = np.sqrt(square * spread)
    gap_series = {"weight": np.asarray([gap])}
    return Response(
        -value,
        error,
        -(mean_product - gap * shift),
        scale,
        float(gap),
        float(_error(number, _of_gap(total), alive, gap_series)[0]),
        _between(term, sums["weight"], error),
    )


def _of_gap(total: dict[str, Any]) -> dict[str, Any]:
    """Give the squares from which the error of E_C[g] follows."""

    def of(squares: Squares) -> Squares:
        mixed = {"weight": squares.other["gap weight"][..., None]}
        return Squares(squares.other["gap gap"][..., None], mixed, squares.other, squares.weight)

    kinds = ("per chain", "together")
    return {kind: of(total[kind]) for kind in kinds} | {"batches": total["batches"]}


def _error(
    number: int,
    total: dict[str, Any],
    alive: np.ndarray,
    coefficients: dict[str, np.ndarray],
) -> np.ndarray:
    """Give the standard error of a mean over the chains of a component, from batches of draws.

    What the chains have in common was added up with those that died: without them, the error of
    the mean is taken for that of one chain, as if all that is left moved together.
    """
    count = int(total["batches"])
    if alive.all():
        squares = jax.tree.map(lambda leaf: leaf[number], total["together"])
        return ratio_error(squares, coefficients, count)
    squares = jax.tree.map(lambda leaf: leaf[number][alive], total["per chain"])
    return ratio_error(squares, coefficients, count).mean(axis=0)


def _between(term: np.ndarray, weight: np.ndarray, error: np.ndarray) -> float:
    """Compare the spread of the means of chains with an error that does not know of it."""
    if len(weight) < 2:
        return float("nan")
    variance = (term / weight[:, None]).var(axis=0, ddof=1) / len(weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = variance / error**2
    known = np.isfinite(ratio)
    return float(ratio[known].mean()) if known.any() else float("nan")
