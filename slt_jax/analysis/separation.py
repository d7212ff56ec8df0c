"""Does one principal component separate a set of components, such as the induction heads?

The direction that separates best is chosen on one half of the tokens and judged on the other, and
the whole procedure, choice included, is repeated for every other set of as many components: the
p-value counts how many of them it separates as well.
"""

import itertools
import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from slt_jax.analysis.decomposition import AXIS, match_components

_MAX_SUBSETS = 200_000
_BLOCK = 4096


class Separation(NamedTuple):
    """How well one principal component separates a set of components from the others.

    Attributes:
        component: the principal component chosen on the first half, counted from 1.
        matched: its counterpart on the second half.
        cosine: between the loadings of the two, positive: the sign is taken along.
        auc_choice: area under the ROC curve on the first half, at least 0.5 by choice of the sign.
        auc: the same component and sign on the second half: the result.
        p_value: part of the subsets of equal size with at least this ``auc``; itself counted.
        num_subsets: how many subsets were compared.
        exact: whether these were all there are.
    """

    component: int
    matched: int
    cosine: float
    auc_choice: float
    auc: float
    p_value: float
    num_subsets: int
    exact: bool

    def __str__(self) -> str:
        kind = "all" if self.exact else "random"
        return (
            f"component {self.component} separates with AUC {self.auc:.2f} on tokens it was not "
            f"chosen on ({self.auc_choice:.2f} on those it was; cosine of the loadings "
            f"{self.cosine:.2f}); p = {self.p_value:.2g} over {kind} {self.num_subsets} subsets"
        )


class Contrast(NamedTuple):
    """A difference between two groups of tokens, with its error over sequences."""

    difference: float
    standard_error: float
    num_sequences: int


def auc(values: Float[np.ndarray, " entry"], labels: Bool[np.ndarray, " entry"]) -> float:
    """Give the area under the ROC curve: how often a labelled entry is the larger of two.

    Equation: AUC = P(v₊ > v₋) + ½ P(v₊ = v₋) over pairs of a labelled and another entry
    (Mann–Whitney's U over the number of pairs).

    Args:
        values: any unit.
        labels: True for the entries that should be large; some, but not all.

    Returns:
        0…1; ½ if labels and values have nothing to do with each other.

    Raises:
        ValueError: all or no entries are labelled.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    num_labelled = int(labels.sum())
    if not 0 < num_labelled < len(labels):
        raise ValueError(
            f"an AUC needs both kinds of entries, {num_labelled} of {len(labels)} are labelled"
        )
    return float(_aucs(rankdata(values)[:, None], labels[None])[0, 0])


def separate(
    first: xr.Dataset,
    second: xr.Dataset,
    labelled: Collection[str],
    *,
    num_components: int = 3,
    max_subsets: int = _MAX_SUBSETS,
    seed: int = 0,
) -> Separation:
    """Choose the principal component that separates a set on one half, judge it on the other.

    On the first half each of the leading principal components is scored by the AUC of its loadings,
    with the sign that makes it at least ½; the best is matched to the principal component of the
    second half with the most similar loadings, whose AUC with that sign is the result. The same is
    done for every subset of components of equal size, so the p-value accounts for the choice. It
    is a permutation test: exact if the set was fixed without looking at the loadings.

    Args:
        first: ``principal_components`` of one half of the tokens.
        second: likewise of the other half, of the same components.
        labelled: names of the components of the set, such as heads that attend by induction.
        num_components: how many leading principal components are tried.
        max_subsets: if there are more subsets, as many random ones are compared, the set itself
            added: then p is at least 1/(max_subsets + 1).
        seed: of the random subsets.

    Returns:
        The separation, with the AUC on the second half and its p-value.

    Raises:
        ValueError: names that are not components, all or no components, or too few principal
            components.
    """
    names = first["component"].values
    labels = _labels(names, labelled)
    if not 1 <= num_components <= first.sizes[AXIS]:
        raise ValueError(
            f"the first half has {first.sizes[AXIS]} principal components, {num_components} "
            "were to be tried"
        )
    first = first.isel({AXIS: slice(num_components)})
    match = match_components(first, second)
    aligned = second["loadings"].sel({"component": names, AXIS: match["matched"].values})
    choice_ranks = rankdata(first["loadings"].transpose("component", AXIS).values, axis=0)
    flip = np.sign(match["cosine"].values)
    ranks = rankdata(aligned.transpose("component", AXIS).values * flip, axis=0)
    chosen, choice, result = _procedure(choice_ranks, ranks, labels[None])
    subsets, exact = _subsets(len(names), int(labels.sum()), max_subsets, seed)
    reached = 0
    for start in range(0, len(subsets), _BLOCK):
        block = _indicators(subsets[start : start + _BLOCK], len(names))
        reached += int(np.sum(_procedure(choice_ranks, ranks, block)[2] >= result[0] - 1e-12))
    number = int(chosen[0])
    return Separation(
        component=int(first[AXIS].values[number]),
        matched=int(match["matched"].values[number]),
        cosine=float(abs(match["cosine"].values[number])),
        auc_choice=float(choice[0]),
        auc=float(result[0]),
        p_value=reached / len(subsets) if exact else (reached + 1) / (len(subsets) + 1),
        num_subsets=len(subsets),
        exact=exact,
    )


def contrast_tokens(values: xr.DataArray, chosen: Bool[np.ndarray, " token"]) -> Contrast:
    """Compare the mean of some tokens with the mean of the others, with an error over sequences.

    Equation: mean over chosen − mean over others; its error is the jackknife that leaves out one
    sequence at a time, √((S−1)/S Σ_s (d_s − d̄)²), since tokens of one sequence are not
    independent. The sampling error of the chains, common to all tokens, is not in it.

    Args:
        values: along ``token`` with the coordinates ``dataset`` and ``sequence``; any unit.
        chosen: which tokens.

    Returns:
        Difference and error in the unit of ``values``.

    Raises:
        ValueError: fewer than two sequences, or one whose removal leaves a group empty.

    >>> place = {"dataset": ("token", ["d"] * 4), "sequence": ("token", [0, 0, 1, 1])}
    >>> values = xr.DataArray([1.0, 4.0, 0.0, 5.0], dims="token", coords=place)
    >>> contrast_tokens(values, np.array([False, True, False, True]))
    Contrast(difference=4.0, standard_error=1.0, num_sequences=2)
    """
    keys = zip(values["dataset"].values.tolist(), values["sequence"].values.tolist(), strict=True)
    numbers: dict[tuple[str, int], int] = {}
    group = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    count = len(numbers)
    if count < 2:
        raise ValueError(f"an error over sequences needs at least 2 of them, got {count}")
    means = []
    for wanted in (chosen, ~chosen):
        weight = wanted.astype(np.float64)
        sums = np.bincount(group, weight * values.values, count)
        sizes = np.bincount(group, weight, count)
        if np.any(sizes.sum() - sizes == 0):
            raise ValueError("without one of the sequences no token is left in one of the groups")
        means.append((sums.sum() / sizes.sum(), (sums.sum() - sums) / (sizes.sum() - sizes)))
    left_out = means[0][1] - means[1][1]
    error = math.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    return Contrast(float(means[0][0] - means[1][0]), error, count)


def _labels(names: np.ndarray, labelled: Collection[str]) -> Bool[np.ndarray, " component"]:
    unknown = sorted(set(labelled) - set(names.tolist()))
    if unknown:
        raise ValueError(f"{unknown} are not components of the analysis: got {names.tolist()}")
    labels = np.isin(names, list(labelled))
    if not 0 < labels.sum() < len(names):
        raise ValueError(
            f"{labels.sum()} of {len(names)} components are labelled: a separation needs both kinds"
        )
    return labels


def _subsets(
    count: int, size: int, limit: int, seed: int
) -> tuple[Int[np.ndarray, "subset member"], bool]:
    """Give all subsets of ``range(count)``, or as many random ones as allowed."""
    total = math.comb(count, size)
    if total <= limit:
        flat = itertools.chain.from_iterable(itertools.combinations(range(count), size))
        return np.fromiter(flat, np.int64, total * size).reshape(total, size), True
    order = np.random.default_rng(seed).random((limit, count))
    return np.argpartition(order, size, axis=1)[:, :size], False


def _indicators(
    subsets: Int[np.ndarray, "subset member"], count: int
) -> Bool[np.ndarray, "subset component"]:
    labels = np.zeros((len(subsets), count), bool)
    np.put_along_axis(labels, subsets, True, axis=1)
    return labels


def _procedure(
    choice_ranks: Float[np.ndarray, "component principal"],
    ranks: Float[np.ndarray, "component principal"],
    labels: Bool[np.ndarray, "subset component"],
) -> tuple[Int[np.ndarray, " subset"], Float[np.ndarray, " subset"], Float[np.ndarray, " subset"]]:
    """Choose component and sign on one half; give them with both halves' AUC, for every subset."""
    choice, result = _aucs(choice_ranks, labels), _aucs(ranks, labels)
    chosen = np.argmax(np.abs(choice - 0.5), axis=1)
    choice, result = (_at(part, chosen) for part in (choice, result))
    turned = choice < 0.5
    return chosen, np.where(turned, 1 - choice, choice), np.where(turned, 1 - result, result)


def _aucs(
    ranks: Float[np.ndarray, "component principal"], labels: Bool[np.ndarray, "subset component"]
) -> Float[np.ndarray, "subset principal"]:
    size, count = int(labels[0].sum()), labels.shape[1]
    sums = labels.astype(np.float64) @ ranks
    return (sums - size * (size + 1) / 2) / (size * (count - size))


def _at(
    values: Float[np.ndarray, "subset principal"], chosen: Int[np.ndarray, " subset"]
) -> Float[np.ndarray, " subset"]:
    return np.take_along_axis(values, chosen[:, None], axis=1)[:, 0]
