"""Areas under the curve, permutation tests and contrasts, against enumeration."""

import itertools

import numpy as np
import pytest
import xarray as xr

from slt_jax.analysis import auc, contrast_tokens, principal_components, separate

NAMES = [f"l{layer}h{head}" for layer in range(2) for head in range(4)]


def analysis(loadings):
    """What ``principal_components`` gives, reduced to loadings of made-up values."""
    loadings = np.asarray(loadings, np.float64)
    count = np.arange(1, loadings.shape[1] + 1)
    return xr.Dataset(
        {"loadings": (("component", "principal_component"), loadings)},
        coords={"component": NAMES[: len(loadings)], "principal_component": count},
    )


def test_auc_counts_pairs():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 4, 20).astype(float)
    labels = generator.random(20) < 0.4
    pairs = [np.sign(up - down) / 2 + 0.5 for up in values[labels] for down in values[~labels]]
    assert auc(values, labels) == pytest.approx(np.mean(pairs))
    assert auc(-values, labels) == pytest.approx(1 - np.mean(pairs))
    with pytest.raises(ValueError, match="both kinds"):
        auc(values, np.zeros(20, bool))


def test_p_value_of_a_perfect_separation_is_one_in_all_subsets():
    """Both halves put two heads on top, so exactly one other pair does as well: the two lowest."""
    loadings = np.linspace(-1, 1, 8)[:, None]
    found = separate(analysis(loadings), analysis(loadings), NAMES[-2:], num_components=1)
    assert found.auc == 1.0
    assert found.num_subsets == 28
    assert found.exact
    # The sign is chosen, so the two smallest loadings separate as well.
    assert found.p_value == pytest.approx(2 / 28)


def test_p_value_counts_the_whole_procedure():
    generator = np.random.default_rng(1)
    first, second = (np.linalg.qr(generator.normal(size=(8, 3)))[0] for _ in range(2))
    labelled = ["l0h1", "l1h2", "l1h3"]
    found = separate(analysis(first), analysis(second), labelled)

    cosine = first.T @ second
    matched = np.argmax(np.abs(cosine), axis=1)

    def procedure(subset):
        labels = np.isin(np.arange(8), subset)
        areas = np.array([auc(first[:, k], labels) for k in range(3)])
        best = int(np.argmax(np.abs(areas - 0.5)))
        sign = np.sign(areas[best] - 0.5) * np.sign(cosine[best, matched[best]])
        return best, auc(sign * second[:, matched[best]], labels)

    best, area = procedure([NAMES.index(name) for name in labelled])
    others = [procedure(subset)[1] for subset in itertools.combinations(range(8), 3)]
    assert (found.component, found.matched) == (best + 1, matched[best] + 1)
    assert found.auc == pytest.approx(area)
    assert found.auc_choice >= 0.5
    assert found.p_value == pytest.approx(np.mean(np.array(others) >= area - 1e-12))


def test_sign_and_order_of_the_second_half_do_not_matter():
    generator = np.random.default_rng(2)
    first = np.linalg.qr(generator.normal(size=(8, 3)))[0]
    turned = analysis(-first[:, [2, 0, 1]]).isel(component=[3, 1, 0, 2, 7, 6, 5, 4])
    plain = separate(analysis(first), analysis(first), ["l0h0", "l0h3"])
    other = separate(analysis(first), turned, ["l0h0", "l0h3"])
    assert other.auc == plain.auc == plain.auc_choice
    assert other.p_value == plain.p_value
    assert other.matched == {1: 2, 2: 3, 3: 1}[plain.component]


def test_p_values_of_random_loadings_are_not_too_small():
    """P(p ≤ 0.05) ≤ 0.05 exactly; 200 draws exceed 23 with a probability below 1e-4."""
    generator = np.random.default_rng(3)
    values = []
    for _ in range(200):
        first, second = (generator.normal(size=(8, 2)) for _ in range(2))
        values.append(
            separate(analysis(first), analysis(second), NAMES[:3], num_components=2).p_value
        )
    assert np.sum(np.array(values) <= 0.05) <= 23
    # They spread over the whole range: the mean of a uniform p is 0.5 ± 0.02, and ties raise it.
    assert 0.42 < np.mean(values) < 0.65


def test_many_subsets_are_drawn_at_random():
    first = analysis(np.linspace(-1, 1, 8)[:, None])
    exact = separate(first, first, NAMES[-3:], num_components=1)
    drawn = separate(first, first, NAMES[-3:], num_components=1, max_subsets=50)
    assert (exact.num_subsets, exact.exact) == (56, True)
    assert (drawn.num_subsets, drawn.exact) == (50, False)
    assert drawn.p_value >= 1 / 51
    assert drawn == separate(first, first, NAMES[-3:], num_components=1, max_subsets=50)


def test_planted_circuit_is_found_on_tokens_it_was_not_chosen_on():
    generator = np.random.default_rng(4)
    circuit = np.array([0, 0, 0, 1.0, 0, 1, 0, 1])
    scores = generator.normal(size=200)
    noise = generator.normal(size=(8, 200))
    values = (
        3 * np.ones((8, 1)) * generator.normal(size=200) + 1.5 * circuit[:, None] * scores + noise
    )
    chi = xr.DataArray(values, dims=("component", "token"), coords={"component": NAMES})
    halves = (principal_components(chi[:, part::2], 3) for part in (0, 1))
    found = separate(*halves, ["l0h3", "l1h1", "l1h3"])
    assert found.auc == 1.0
    assert found.p_value <= 3 / 56
    assert "AUC 1.00" in str(found)


def test_contrast_has_the_error_of_the_difference_between_sequences():
    """Sequences with an offset each: with one token of each kind per sequence it cancels."""
    generator = np.random.default_rng(5)
    sequence = np.repeat(np.arange(50), 2)
    chosen = np.tile([True, False], 50)
    differences = generator.normal(1.0, 0.5, 50)
    values = 100 * generator.normal(size=50)[sequence] + np.where(chosen, differences[sequence], 0)
    coords = {"dataset": ("token", np.repeat("d", 100)), "sequence": ("token", sequence)}
    frame = xr.DataArray(values, dims="token", coords=coords)
    found = contrast_tokens(frame, chosen)
    assert found.difference == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(50))
    with pytest.raises(ValueError, match="at least 2"):
        contrast_tokens(frame[:2], chosen[:2])
    with pytest.raises(ValueError, match="no token is left"):
        contrast_tokens(frame, sequence == 0)


def test_bad_labels_are_refused():
    first = analysis(np.eye(8)[:, :3])
    with pytest.raises(ValueError, match=r"\['l9h9'\] are not components"):
        separate(first, first, ["l9h9"])
    with pytest.raises(ValueError, match="0 of 8 components are labelled"):
        separate(first, first, [])
    with pytest.raises(ValueError, match="3 principal components, 4 were to be tried"):
        separate(first, first, ["l0h0"], num_components=4)
    with pytest.raises(ValueError, match="of different components"):
        separate(first, first.isel(component=slice(4)), ["l0h0"])
