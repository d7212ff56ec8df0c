from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from ._types import Array
from .learning_coefficients import (
    deep_linear_network,
    generic_half_jacobian_rank,
    half_jacobian_rank,
    minimal_prefixes,
    reduced_rank_regression,
    single_free_layer,
    two_layer_local,
)
from .quadrature import normal_crossing, scaled_moments

REDUCED_RANK_TABLE = [
    ((5, 3, 5, 0), 6.5, 2),
    ((5, 3, 5, 2), 9.5, 2),
    ((5, 4, 5, 0), 8, 1),
    ((4, 3, 8, 0), 6, 1),
    ((8, 3, 4, 0), 6, 1),
    ((3, 8, 4, 0), 6, 1),
    ((10, 10, 10, 0), 37.5, 1),
    ((10, 10, 10, 5), 47, 2),
    ((10, 10, 10, 10), 50, 1),
    ((100, 50, 100, 20), 2887.5, 1),
    ((3, 3, 3, 1), 4, 1),
]

DEEP_TABLE = [
    ([1, 1, 1], 0, 2, 0.5, 2),
    ([1, 1, 1, 1], 0, 3, 0.5, 3),
    ([2, 2, 2], 0, 8, 1.5, 1),
    ([4, 4, 4, 4], 2, 48, 7.5, 3),
    ([3, 5, 4, 2], 1, 43, 3, 1),
    ([10] * 4, 0, 300, 33.5, 3),
    ([10] * 5, 3, 400, 41, 4),
    ([10] * 6, 5, 500, 45, 1),
    ([50, 20, 80, 20, 50], 10, 5200, 500, 1),
    ([427, 367, 97, 322, 249, 233, 269], 0, 424414, 10410.5, 3),
    ([455, 395, 125, 350, 277, 261, 297], 28, 519614, 20546.5, 3),
    ([100] * 11, 0, 100000, 2750, 1),
    ([100] * 11, 50, 100000, 4437.5, 1),
]


@pytest.mark.parametrize(("dimensions", "value", "multiplicity"), REDUCED_RANK_TABLE)
def test_reduced_rank_table(dimensions: tuple[int, int, int, int], value: float, multiplicity: int):
    assert reduced_rank_regression(*dimensions) == (Fraction(value), multiplicity)


@pytest.mark.parametrize(("widths", "rank", "size", "value", "multiplicity"), DEEP_TABLE)
def test_deep_linear_table(
    widths: list[int], rank: int, size: int, value: float, multiplicity: int
):
    assert _num_weights(widths) == size
    assert deep_linear_network(widths, rank) == (Fraction(value), multiplicity)


def test_two_layers_of_the_deep_formula_are_reduced_rank_regression():
    for m, h, n in product(range(1, 7), repeat=3):
        for r in range(min(m, h, n) + 1):
            assert reduced_rank_regression(m, h, n, r) == deep_linear_network([m, h, n], r)


def test_one_layer_is_linear_regression():
    assert deep_linear_network([7, 4], 3) == (14, 1)


def test_random_networks_have_one_admissible_prefix_and_bounded_coefficient():
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        widths = rng.integers(1, 60, size=rng.integers(2, 12)).tolist()
        rank = int(rng.integers(0, min(widths) + 1))
        assert len(minimal_prefixes([width - rank for width in widths])) == 1
        result = deep_linear_network(widths, rank)
        assert 0 <= result.value <= Fraction(_num_weights(widths), 2)
        assert result.multiplicity >= 1


def test_searching_prefixes_loses_no_admissible_set():
    rng = np.random.default_rng(1)
    for _ in range(500):
        excess = rng.integers(0, 6, size=rng.integers(2, 7)).tolist()
        assert len(_admissible_sets(excess)) == len(minimal_prefixes(excess)) == 1


def test_equal_widths_closed_form():
    for layers, width in product(range(2, 8), range(1, 12)):
        a = (width * (layers + 1) - 1) % layers + 1
        value = Fraction(width**2 * (layers + 1) + a * (layers - a), 4 * layers)
        assert deep_linear_network([width] * (layers + 1), 0).value == value


def test_transposing_the_network_changes_nothing():
    rng = np.random.default_rng(2)
    for _ in range(200):
        widths = rng.integers(1, 20, size=rng.integers(3, 8)).tolist()
        rank = int(rng.integers(0, min(widths) + 1))
        assert deep_linear_network(widths, rank) == deep_linear_network(widths[::-1], rank)


def test_scalar_two_layer_network_is_a_normal_crossing():
    expected = deep_linear_network([1, 1, 1], 0)
    first, second = (
        scaled_moments(normal_crossing([1, 1]), 2, n_beta, half_width=1.0).mean
        for n_beta in (1e5, 1e6)
    )
    value = float(expected.value)
    # λ − E[nβK] = (m − 1)/(log nβ + c): two temperatures give m without knowing c.
    slope = (1 / (value - second) - 1 / (value - first)) / np.log(10)
    assert 1 / slope == pytest.approx(expected.multiplicity - 1, abs=1e-6)


def test_local_value_at_the_deepest_point_is_global():
    for m, h, n in product(range(1, 7), repeat=3):
        for r in range(min(m, h, n) + 1):
            assert two_layer_local(m, h, n, r, r, r) == reduced_rank_regression(m, h, n, r)


def test_local_value_bounds_the_global_one_from_above():
    checked = greater = 0
    for m, h, n in product(range(1, 7), repeat=3):
        for a, b in product(range(min(m, h) + 1), range(min(h, n) + 1)):
            for r in range(max(0, a + b - h), min(a, b) + 1):
                local = two_layer_local(m, h, n, a, b, r).value
                whole = reduced_rank_regression(m, h, n, r).value
                assert whole <= local <= Fraction(h * (m + n), 2)
                assert local >= half_jacobian_rank([b, n], [m, a])
                checked, greater = checked + 1, greater + (local > whole)
    assert (checked, greater) == (4227, 918)


def test_local_value_of_a_submersion_is_half_the_output_dimension():
    assert two_layer_local(3, 3, 3, a=1, b=3, r=1) == (Fraction(9, 2), 1)
    assert two_layer_local(4, 5, 3, a=4, b=1, r=1) == (6, 1)
    assert two_layer_local(34, 31, 22, a=0, b=21, r=0).value == 362


@pytest.mark.parametrize("seed", range(20))
def test_jacobian_rank_matches_the_numerical_jacobian(seed: int):
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 5, size=rng.integers(3, 6)).tolist()
    ranks = [int(rng.integers(0, min(pair) + 1)) for pair in pairwise(widths)]
    layers = [
        rng.standard_normal((upper, rank)) @ rng.standard_normal((rank, lower))
        for (lower, upper), rank in zip(pairwise(widths), ranks, strict=True)
    ]
    above, below = _products_around_each_layer(layers, widths)
    columns = [np.kron(left, right.T) for left, right in zip(above, below, strict=True)]
    expected = Fraction(int(np.linalg.matrix_rank(np.hstack(columns), tol=1e-8)), 2)
    assert generic_half_jacobian_rank(widths, ranks) == expected
    assert half_jacobian_rank(_ranks(above), _ranks(below)) == expected


def test_single_free_layer_is_half_the_rank_of_its_hessian():
    rng = np.random.default_rng(3)
    left = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 5))
    right = rng.standard_normal((3, 6))
    jacobian = np.kron(left, right.T)
    rank = int(np.linalg.matrix_rank(jacobian.T @ jacobian))
    assert single_free_layer(2, 3).value == Fraction(rank, 2)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: reduced_rank_regression(2, 2, 2, 3), "rank ≤ 2"),
        (lambda: deep_linear_network([3], 0), "input and an output"),
        (lambda: two_layer_local(3, 2, 3, a=2, b=2, r=1), "no A"),
        (lambda: half_jacobian_rank([3, 1], [3, 3]), "rising above"),
    ],
)
def test_impossible_ranks_are_refused(call: Callable[[], object], reason: str):
    with pytest.raises(ValueError, match=reason):
        call()


def _num_weights(widths: Sequence[int]) -> int:
    return sum(lower * upper for lower, upper in pairwise(widths))


def _admissible_sets(excess: Sequence[int]) -> list[tuple[int, ...]]:
    """Aoyagi's three conditions over all subsets, as the theorem states them."""
    admitted = []
    for size in range(2, len(excess) + 1):
        for chosen in combinations(range(len(excess)), size):
            inside = [excess[k] for k in chosen]
            outside = [excess[k] for k in range(len(excess)) if k not in chosen]
            least = min(outside, default=np.inf)
            ell, total = size - 1, sum(inside)
            if max(inside) < least and ell * max(inside) <= total < ell * least:
                admitted.append(chosen)
    return admitted


def _products_around_each_layer(
    layers: Sequence[Array], widths: Sequence[int]
) -> tuple[Sequence[Array], Sequence[Array]]:
    """W_L ⋯ W_{k+1} and W_{k−1} ⋯ W_1 for every k, empty products being identities."""
    below = [np.eye(widths[0])]
    for layer in layers[:-1]:
        below.append(layer @ below[-1])
    above = [np.eye(widths[-1])]
    for layer in reversed(layers[1:]):
        above.append(above[-1] @ layer)
    return above[::-1], below


def _ranks(matrices: Sequence[Array]) -> list[int]:
    return [int(np.linalg.matrix_rank(matrix, tol=1e-8)) for matrix in matrices]
