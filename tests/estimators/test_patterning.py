"""Patterning: the inverse, its errors, and what it promises against what the data then do."""

import dataclasses

import numpy as np
import pytest

import slt_jax as slt
from tests.estimators.blocks import (
    LOCALIZATION,
    N_BETA,
    PROBES,
    SAMPLED,
    WEIGHTS,
    WIDTH,
    exact,
    matrix,
)
from tests.oracles.two_chains import perturbed_gap

NAMES = list(PROBES)
BLOCKS = (0, 5, 9)


def exact_chi():
    """The exact susceptibilities of three blocks to three data sets."""
    ends = np.cumsum([data.targets.size for data in PROBES.values()])[:-1]
    parts = np.split(matrix(exact()), ends, axis=1)
    values = np.stack([part.mean(axis=1) for part in parts], axis=1)
    rows = {f"block {k}": values[k] for k in BLOCKS}
    return slt.Susceptibilities.of_datasets(rows, NAMES, n_beta=N_BETA)


def noisy(values, errors, seed):
    drawn = values + errors * np.random.default_rng(seed).standard_normal(values.shape)
    rows = {f"c{k}": row for k, row in enumerate(drawn)}
    given = {f"c{k}": row for k, row in enumerate(errors)}
    names = [f"d{k}" for k in range(values.shape[1])]
    return slt.Susceptibilities.of_datasets(rows, names, errors=given, n_beta=1.0)


def test_the_data_do_what_was_predicted():
    """The exact change of ⟨g⟩ under reweighted data, both partition functions included."""
    chi = exact_chi()
    target = {"block 0": 5e-6, "block 5": -1e-5}
    answer = slt.patterning(chi, target, ridge=0.0)
    np.testing.assert_allclose(answer.predicted, [5e-6, -1e-5, 0], atol=1e-12)
    weights = WEIGHTS.astype(np.float64)
    sampled, probes = SAMPLED.quadratics(weights), [d.quadratics(weights) for d in PROBES.values()]
    for row, number in enumerate(BLOCKS):
        moving = range(WIDTH * number, WIDTH * (number + 1))
        before, after = (
            perturbed_gap(sampled, probes, moving, N_BETA, LOCALIZATION, scale * answer.change)
            for scale in (0.0, 1.0)
        )
        # Of second order in the change, which the size of the target makes small.
        assert abs(after - before - answer.predicted[row]) < 0.05 * 1e-5


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_truncated_inverse_keeps_the_largest_directions(rank):
    values = np.random.default_rng(0).standard_normal((4, 7))
    target = np.asarray([1.0, -1.0, 0.5, 2.0])
    answer = slt.patterning(noisy(values, np.zeros((4, 7)), 0), target, rank=rank)
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    expected = right[:rank].T @ ((left.T @ target)[:rank] / sizes[:rank])
    np.testing.assert_allclose(answer.change, expected)
    np.testing.assert_allclose(answer.singular_values, sizes)
    assert answer.rank == rank


def test_a_ridge_is_that_of_tikhonov():
    values, target = np.random.default_rng(1).standard_normal((3, 6)), np.asarray([1.0, 0.0, -1.0])
    answer = slt.patterning(noisy(values, np.zeros((3, 6)), 0), target, ridge=0.7)
    expected = np.linalg.solve(values.T @ values + 0.7 * np.eye(6), values.T @ target)
    np.testing.assert_allclose(answer.change, expected)


def test_without_a_choice_the_ridge_is_what_errors_contribute():
    """On average over seeds, RRᵀ of pure noise is that ridge times the identity."""
    errors = np.full((3, 50), 0.1)
    answer = slt.patterning(noisy(np.zeros((3, 50)), errors, 0), np.ones(3))
    assert answer.ridge == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"ridge": 0.5}, {"rank": 2}], ids=["ridge", "rank"])
def test_errors_are_those_of_repeated_measurements(options):
    """The spread over 300 noisy matrices, within 15 %: 5 errors of both standard deviations."""
    rng = np.random.default_rng(2)
    values, errors = rng.standard_normal((3, 8)), rng.uniform(0.02, 0.06, (3, 8))
    target = np.asarray([1.0, 0.5, -1.0])
    changes = [
        slt.patterning(noisy(values, errors, seed), target, num_resamples=2, **options).change
        for seed in range(300)
    ]
    told = slt.patterning(noisy(values, np.zeros_like(errors), 0), target, **options)
    stated = slt.patterning(noisy(values, errors, 1000), target, **options).standard_error
    spread = np.std(changes, axis=0, ddof=1)
    assert np.linalg.norm(stated) == pytest.approx(np.linalg.norm(spread), rel=0.15)
    assert np.linalg.norm(np.mean(changes, axis=0) - told.change) < np.linalg.norm(spread)


def test_the_error_of_the_full_chain_moves_all_components_together():
    """(1 + 1cᵀ)⁻¹ dμ differs from dμ by a multiple of 1; errors of every entry's own do not."""
    rows = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    chi = slt.Susceptibilities.of_datasets(rows, ["x", "y"], n_beta=1.0)
    error, none = np.full((2, 2), 0.01), np.zeros((2, 2))
    shared, own = (
        slt.patterning(
            dataclasses.replace(chi, standard_error=error, shared_error=part),
            {"a": 1.0},
            ridge=0.0,
        ).standard_error
        for part in (error, none)
    )
    assert shared[0] == pytest.approx(shared[1], rel=1e-9)
    assert own[0] != pytest.approx(own[1], rel=1e-3)


def test_what_it_says():
    answer = slt.patterning(exact_chi(), {"block 0": 1e-4}, rank=1)
    text = str(answer)
    assert "3 components by 3 datasets (rank 1)" in text
    assert text.count("±") == 6
    data = answer.to_xarray()
    assert data["change"].dims == ("dataset",)
    assert data["dataset"].values.tolist() == NAMES
    assert data["predicted"].attrs["units"] == "nats"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ({"nobody": 1.0}, {}, r"unknown components \['nobody'\]"),
        (np.ones(2), {}, "3 finite numbers"),
        (np.zeros(3), {}, "not all 0"),
        (np.ones(3), {"ridge": 1.0, "rank": 1}, "not both"),
        (np.ones(3), {"ridge": -1.0}, "at least 0"),
        (np.ones(3), {"rank": 4}, "between 1 and 3"),
    ],
)
def test_bad_input(target, options, message):
    with pytest.raises(ValueError, match=message):
        slt.patterning(exact_chi(), target, **options)


def test_numbers_that_are_missing():
    rows = {"a": [1.0, np.nan], "b": [0.0, 1.0]}
    chi = slt.Susceptibilities.of_datasets(rows, ["x", "y"], n_beta=1.0)
    with pytest.raises(ValueError, match=r"\['a'\] or their errors are not finite"):
        slt.patterning(chi, {"b": 1.0})
