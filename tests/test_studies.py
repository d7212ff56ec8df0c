"""The arithmetic of the studies in benchmarks/, on made-up numbers whose answers are known."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from slt_jax import analysis

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HEADS = ["l0h0", "l0h1", "l1h0", "l1h1", "l1h2"]


@pytest.fixture(scope="module")
def studies():
    pytest.importorskip("sklearn", reason="needs the extra `quickstart`")
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import induction_by_susceptibility as induction
        import influence_on_digits as influence
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(induction=induction, influence=influence)


@pytest.fixture
def chain():
    """What the two-chain formula gives for expectations that are drawn at random."""
    rng = np.random.default_rng(0)
    sets, rows, length = ["code", "repeated"], 4, 63
    tokens = len(sets) * rows * length
    gap = rng.uniform(0.1, 1, len(HEADS))
    shift, full = rng.normal(size=(len(HEADS), tokens)), rng.normal(size=tokens)
    covariance = rng.normal(size=shift.shape)
    place = {
        "component": HEADS,
        "dataset": ("token", np.repeat(sets, rows * length)),
        "sequence": ("token", np.tile(np.repeat(np.arange(rows), length), len(sets))),
        "position": ("token", np.tile(np.arange(length), len(sets) * rows)),
    }
    matrix = ("component", "token")
    made = xr.Dataset(
        {
            "susceptibility": (matrix, covariance - gap[:, None] * (shift - full)),
            "covariance": (matrix, covariance),
            "control": (matrix, rng.normal(size=shift.shape)),
            "full_mean": ("token", full),
            "observable_mean": ("component", gap),
            "standard_error": (matrix, np.ones_like(shift)),
            "shared_error": (matrix, np.zeros_like(shift)),
        },
        place,
    )
    return made, shift


def test_own_shift_undoes_the_two_chain_formula(studies, chain):
    made, shift = chain
    np.testing.assert_allclose(studies.induction.own_shift(made)["susceptibility"], shift)


def test_a_direction_scores_raw_tokens_as_the_standardised_matrix_does(studies, chain):
    made, _ = chain
    standard = analysis.center_tokens(analysis.zscore_components(made))
    components = analysis.principal_components(standard, 2)
    loadings = components["loadings"].sel(principal_component=2)
    scores = studies.induction.Direction(loadings, made).scores(made)
    expected = components["scores"].sel(principal_component=2)
    np.testing.assert_allclose(scores - scores.mean(), expected - expected.mean(), atol=1e-10)


def test_repeats_are_tokens_whose_predecessor_came_before(studies, chain):
    """Of 63 tokens after the first, 31 come twice; the first of the second time follows another."""
    made, _ = chain
    chosen = studies.induction.is_repeat(made)
    assert set(made["dataset"].values[chosen]) == {"repeated"}
    assert sorted(set(made["position"].values[chosen].tolist())) == list(range(32, 63))


def test_what_is_beyond_the_control_is_uncorrelated_with_it(studies, chain):
    made, _ = chain
    (rest,) = studies.induction.beyond_control([made])
    left = xr.corr(rest["susceptibility"], made["control"], "token")
    np.testing.assert_allclose(left, 0, atol=1e-12)


def test_a_circuit_is_found_where_repeats_suffer(studies, chain):
    """Two of three heads of the last layer: one of three pairs, p = 1/3; the errors are scatter."""
    made, shift = chain
    repeats = studies.induction.is_repeat(made)

    def of(extra: float) -> xr.Dataset:
        gap = made["observable_mean"].values
        wanted = np.where(repeats, np.array([5, 9, 0, 1 + extra, 2])[:, None], 0) * gap[:, None]
        change = gap[:, None] * (wanted - shift)
        return made.assign(susceptibility=made["susceptibility"] - change)

    found = studies.induction.circuit([of(0.0), of(0.2)], ["l1h1", "l1h2"])
    assert list(found["extra"].values()) == pytest.approx([5, 9, 0, 1.1, 2])
    assert list(found["error"].values()) == pytest.approx([0, 0, 0, 0.1, 0], abs=1e-9)
    assert found["auc within layer 1"] == 1
    assert found["p within layer 1"] == pytest.approx(1 / 3)
    assert found["largest"] == "l0h1"


def test_additive_losses_are_foreseen_perfectly(studies, monkeypatch: pytest.MonkeyPatch):
    """A loss that falls by an example's score when it is in the subset has LDS 1, its negative −1.

    The noise ceiling of equal repetitions is 1.
    """
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 3))
    subsets = np.stack([rng.permutation(20)[:10] for _ in range(12)])
    losses = -scores[subsets].sum(axis=1)
    monkeypatch.setattr(studies.influence, "NUM_BOOTSTRAPS", 20)
    found = studies.influence.evaluate(
        {"BIF": scores, "opposite": -scores}, subsets, np.repeat(losses[:, None], 3, axis=1)
    )
    assert found["lds"]["BIF"]["value"] == pytest.approx(1)
    assert found["lds"]["opposite"]["value"] == pytest.approx(-1)
    assert found["lead of BIF"]["opposite"]["low"] > 1.9
    assert found["noise ceiling"] == pytest.approx(1)
