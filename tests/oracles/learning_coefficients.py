"""Learning coefficients of matrix-product models, in exact rational arithmetic.

The learning coefficient λ and its multiplicity m are read off the volume of the
set of nearly optimal weights, vol{K < t} ~ c t^λ (−log t)^{m−1} as t → 0. The
global value belongs to the deepest singular point of the true fibre; at any other
teacher the *local* value can be larger (`two_layer_local`).
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple


class LearningCoefficient(NamedTuple):
    """λ (dimensionless) and the order of the pole it comes from.

    Args:
        value: λ, a rational number, 0 ≤ λ ≤ (number of weights)/2.
        multiplicity: m ≥ 1; E[nβK] = λ − (m − 1)/log nβ to leading order.
    """

    value: Fraction
    multiplicity: int


def reduced_rank_regression(m: int, h: int, n: int, r: int) -> LearningCoefficient:
    """λ of y = B A x with A: h×m, B: n×h, at the deepest point of rank(BA) = r.

    Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in
    Bayesian estimation", Neural Networks 18 (2005), main theorem.

    Args:
        m: input width.
        h: hidden width.
        n: output width.
        r: rank of the true map, 0 ≤ r ≤ min(m, h, n).

    Returns:
        λ and its multiplicity.

    Raises:
        ValueError: the rank does not fit into the widths.

    >>> reduced_rank_regression(5, 3, 5, 0)
    LearningCoefficient(value=Fraction(13, 2), multiplicity=2)
    """
    _require_rank_fits((m, h, n), r)
    if m + h < n + r:
        return LearningCoefficient(Fraction(h * m - h * r + n * r, 2), 1)
    if n + h < m + r:
        return LearningCoefficient(Fraction(h * n - h * r + m * r, 2), 1)
    if m + n < h + r:
        return LearningCoefficient(Fraction(m * n, 2), 1)
    balanced = -((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n
    odd = (m + h + n + r) % 2
    return LearningCoefficient(Fraction(balanced + odd, 8), 1 + odd)


def minimal_prefixes(excess_widths: Sequence[int]) -> list[int]:
    """Sizes k of the sets Σ (the k smallest excess widths) that Aoyagi's theorem admits.

    Σ with |Σ| = ℓ + 1 is admitted if, with S the sum of M over Σ and min ∅ = ∞,

        max_Σ M < min_Σᶜ M,    ℓ·max_Σ M ≤ S < ℓ·min_Σᶜ M.

    The first condition makes Σ a prefix of the sorted widths, so prefixes are all
    there is to search. The theorem says that the list has one element.

    Args:
        excess_widths: M_k = H_k − r, shape (L + 1,), all ≥ 0.

    Returns:
        Every admitted size k = ℓ + 1 ≥ 2.

    >>> minimal_prefixes([2, 1, 5])
    [2]
    """
    ordered = sorted(excess_widths)
    admitted: list[int] = []
    for size in range(2, len(ordered) + 1):
        ell, total, largest = size - 1, sum(ordered[:size]), ordered[size - 1]
        if total < ell * largest:
            continue
        if size < len(ordered):
            following = ordered[size]
            if largest == following or total >= ell * following:
                continue
        admitted.append(size)
    return admitted


def deep_linear_network(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """λ of y = W_L ⋯ W_1 x at the deepest point of the given rank.

    With M_k = H_k − r, Σ the admitted prefix (`minimal_prefixes`), |Σ| = ℓ + 1,
    S = Σ_{k∈Σ} M_k and a = S − (⌈S/ℓ⌉ − 1)ℓ,

        λ = [r(H_0 + H_L) − r²]/2 + a(ℓ − a)/(4ℓ) − (ℓ(ℓ − 1)/4)(S/ℓ)²
            + ½ Σ_{i<j∈Σ} M_i M_j,        m = a(ℓ − a) + 1.

    Aoyagi, "Consideration on the learning efficiency of multiple-layered neural
    networks with linear units", Neural Networks 172 (2024); the same values serve
    as ground truth in Lau et al., arXiv 2308.12108.

    Args:
        widths: H_0, …, H_L with H_0 the input, shape (L + 1,), L ≥ 1.
        rank: r, the rank of the product, 0 ≤ r ≤ min H_k.

    Returns:
        λ and its multiplicity.

    Raises:
        ValueError: fewer than two widths, or the rank does not fit into them.

    >>> deep_linear_network([10, 10, 10, 10], 0)
    LearningCoefficient(value=Fraction(67, 2), multiplicity=3)
    """
    if len(widths) < 2:
        raise ValueError(f"expected an input and an output width, got widths={list(widths)}")
    _require_rank_fits(widths, rank)
    excess = sorted(width - rank for width in widths)
    (size,) = minimal_prefixes(excess)
    chosen = excess[:size]
    ell, total = len(chosen) - 1, sum(chosen)
    a = total - (-(-total // ell) - 1) * ell
    pairs = (total**2 - sum(width**2 for width in chosen)) // 2
    value = (
        Fraction(rank * (widths[0] + widths[-1]) - rank**2, 2)
        + Fraction(a * (ell - a), 4 * ell)
        - Fraction((ell - 1) * total**2, 4 * ell)
        + Fraction(pairs, 2)
    )
    return LearningCoefficient(value, a * (ell - a) + 1)


def two_layer_local(m: int, h: int, n: int, a: int, b: int, r: int) -> LearningCoefficient:
    """Local λ of y = B A x at a teacher of ranks rank(A) = a, rank(B) = b, rank(BA) = r.

        λ_loc = (a n + b m − a b)/2 + λ_RRR(m − a, h − a − b + r, n − b; 0)

    The first term is half the rank of the Jacobian of (A, B) ↦ BA. On its kernel the
    product is again a two-layer product of smaller matrices at the origin: what is
    left of the hidden space is ker B / (ker B ∩ im A), of dimension h − a − b + r.

    Args:
        m: input width.
        h: hidden width.
        n: output width.
        a: rank of A (h×m).
        b: rank of B (n×h).
        r: rank of BA, max(0, a + b − h) ≤ r ≤ min(a, b).

    Returns:
        Local λ and its multiplicity; the global value if a = b = r.

    Raises:
        ValueError: no pair of matrices has these ranks.

    >>> two_layer_local(3, 3, 3, a=1, b=3, r=1).value
    Fraction(9, 2)
    """
    fits = a <= min(m, h) and b <= min(h, n) and max(0, a + b - h) <= r <= min(a, b)
    if not fits:
        raise ValueError(
            f"no A ({h}×{m}) of rank {a} and B ({n}×{h}) of rank {b} have rank(BA)={r}"
        )
    remainder = reduced_rank_regression(m - a, h - a - b + r, n - b, 0)
    regular = Fraction(a * n + b * m - a * b, 2)
    return LearningCoefficient(regular + remainder.value, remainder.multiplicity)


def single_free_layer(left_rank: int, right_rank: int) -> LearningCoefficient:
    """λ when one layer W_k of a deep linear network moves and the others are frozen.

    The product is linear in W_k, so the model is regular on a quotient:

        λ = ½ · rank(W_L ⋯ W_{k+1}) · rank(W_{k−1} ⋯ W_1),    m = 1,

    exact at every nβ once γ → 0. It is the sharpest test of a weight-refined
    learning coefficient (Wang et al., arXiv 2410.02984).

    Args:
        left_rank: rank of the frozen product above the free layer (H_L if none).
        right_rank: rank of the frozen product below it (H_0 if none).

    Returns:
        λ with multiplicity 1.

    >>> single_free_layer(3, 2).value
    Fraction(3, 1)
    """
    return LearningCoefficient(Fraction(left_rank * right_rank, 2), 1)


def half_jacobian_rank(ranks_above: Sequence[int], ranks_below: Sequence[int]) -> Fraction:
    """½ rank of the Jacobian of (W_1, …, W_L) ↦ W_L ⋯ W_1: a lower bound on local λ.

        rank J = Σ_k (s_k − s_{k−1}) p_k,    s_0 = 0

    Layer k reaches im(W_L ⋯ W_{k+1}) ⊗ coim(W_{k−1} ⋯ W_1); the left spaces are
    nested upwards in k and the right ones downwards, hence the telescoping sum. It
    equals λ_loc = H_0 H_L/2 where the product map is a submersion.

    Args:
        ranks_above: s_k = rank(W_L ⋯ W_{k+1}), k = 1…L, shape (L,); s_L = H_L.
        ranks_below: p_k = rank(W_{k−1} ⋯ W_1), k = 1…L, shape (L,); p_1 = H_0.

    Returns:
        ½ rank J.

    Raises:
        ValueError: the two lists differ in length or are not monotone.

    >>> half_jacobian_rank([3, 3], [3, 1])
    Fraction(9, 2)
    """
    monotone = all(low <= high for low, high in pairwise(ranks_above)) and all(
        high >= low for high, low in pairwise(ranks_below)
    )
    if len(ranks_above) != len(ranks_below) or not monotone:
        raise ValueError(
            "expected equally many ranks, rising above and falling below the layer, "
            f"got {list(ranks_above)} and {list(ranks_below)}"
        )
    steps = (high - low for low, high in pairwise([0, *ranks_above]))
    rank = sum(step * below for step, below in zip(steps, ranks_below, strict=True))
    return Fraction(rank, 2)


def generic_half_jacobian_rank(widths: Sequence[int], layer_ranks: Sequence[int]) -> Fraction:
    """`half_jacobian_rank` of a random teacher with the given rank in each layer.

    For generic factors the rank of a product is the least rank among its factors
    (and widths), which holds with probability one for Gaussian rank-limited layers.

    Args:
        widths: H_0, …, H_L, shape (L + 1,).
        layer_ranks: rank(W_1), …, rank(W_L), shape (L,).

    Returns:
        ½ rank J.

    >>> generic_half_jacobian_rank([3, 3, 3], [1, 3])
    Fraction(9, 2)
    """
    layers = range(1, len(widths))
    above = [min([widths[-1], *layer_ranks[k:]]) for k in layers]
    below = [min([widths[0], *layer_ranks[: k - 1]]) for k in layers]
    return half_jacobian_rank(above, below)


def _require_rank_fits(widths: Sequence[int], rank: int) -> None:
    if not 0 <= rank <= min(widths):
        raise ValueError(f"expected 0 ≤ rank ≤ {min(widths)} for widths {list(widths)}, got {rank}")
