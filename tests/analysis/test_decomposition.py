"""Standardisation and principal components: what they must keep, and what they must not see."""

import numpy as np
import pytest
import xarray as xr

from slt_jax.analysis import (
    center_tokens,
    match_components,
    principal_components,
    project,
    zscore_components,
)

from .responses import make_response

CHI = make_response()
MATRICES = ("susceptibility", "standard_error", "shared_error")
STANDARD = center_tokens(zscore_components(CHI))


def test_zscores_have_mean_zero_and_deviation_one_along_tokens():
    values = zscore_components(CHI)["susceptibility"]
    np.testing.assert_allclose(values.mean("token"), 0, atol=1e-12)
    np.testing.assert_allclose(values.std("token"), 1)


def test_zscores_do_not_depend_on_the_unknown_scale_of_a_component():
    scale = xr.DataArray(np.geomspace(0.01, 100, 6), dims="component")
    scaled = zscore_components(CHI.assign({name: CHI[name] * scale for name in MATRICES}))
    for name in MATRICES:
        np.testing.assert_allclose(scaled[name], zscore_components(CHI)[name])
    np.testing.assert_allclose(
        scaled["shared_direction"], zscore_components(CHI)["shared_direction"]
    )


def test_centred_tokens_have_mean_zero_along_components_and_keep_differences():
    centred = center_tokens(CHI)["susceptibility"]
    np.testing.assert_allclose(centred.mean("component"), 0, atol=1e-12)
    np.testing.assert_allclose(
        centred.diff("component"), CHI["susceptibility"].diff("component"), atol=1e-12
    )


def test_after_both_steps_components_still_have_mean_zero():
    np.testing.assert_allclose(STANDARD["susceptibility"].mean("token"), 0, atol=1e-12)


def test_error_of_a_centred_token_is_that_of_its_parts():
    """Components are independent, but for one number per token that all of them share."""
    count = CHI.sizes["component"]
    matrix = np.eye(count) - np.full((count, count), 1 / count)
    shared = CHI["observable_mean"].values[:, None] * CHI["full_error"].values
    own = CHI["standard_error"].values ** 2 - shared**2
    expected = np.sqrt(matrix**2 @ own + (matrix @ shared) ** 2)
    np.testing.assert_allclose(center_tokens(CHI)["standard_error"], expected)
    np.testing.assert_allclose(center_tokens(CHI)["shared_error"], matrix @ shared, atol=1e-12)
    alone = center_tokens(CHI[["susceptibility", "standard_error"]])["standard_error"]
    np.testing.assert_allclose(alone, np.sqrt(matrix**2 @ CHI["standard_error"].values ** 2))


def test_error_of_the_full_chain_moves_tokens_along_the_shared_direction():
    """Along the mean gap, carried through both steps at a fixed scale."""
    error = xr.DataArray(np.random.default_rng(1).normal(size=CHI.sizes["token"]), dims="token")
    moved = CHI["susceptibility"] + CHI["observable_mean"] * error
    scale = zscore_components(CHI)["scale"]
    before, after = (center_tokens(chi / scale) for chi in (CHI["susceptibility"], moved))
    shift = (after["susceptibility"] - before["susceptibility"]).values
    direction = STANDARD["shared_direction"].values / CHI["full_error"].values.mean()
    np.testing.assert_allclose(shift, direction[:, None] * error.values, atol=1e-12)


def test_mean_gaps_without_errors_give_the_direction_too():
    plain = CHI[["susceptibility", "observable_mean"]]
    one, other = (center_tokens(zscore_components(chi))["shared_direction"] for chi in (CHI, plain))
    ratio = one / other
    np.testing.assert_allclose(ratio, ratio[0])


@pytest.mark.parametrize("size", [1, 6])
def test_components_agree_with_the_singular_value_decomposition(size):
    result = principal_components(STANDARD, num_components=size)
    values = STANDARD["susceptibility"].values
    left, singular, right = np.linalg.svd(values - values.mean(axis=1, keepdims=True))
    for number in range(min(size, 5)):
        sign = np.sign(left[:, number] @ result["loadings"].values[:, number])
        np.testing.assert_allclose(result["loadings"][:, number], sign * left[:, number], atol=1e-6)
        np.testing.assert_allclose(
            result["scores"][number], sign * singular[number] * right[number], atol=1e-6
        )
    ratio = singular**2 / np.sum(singular**2)
    np.testing.assert_allclose(result["explained_variance_ratio"], ratio[:size], atol=1e-12)
    np.testing.assert_allclose(
        result["explained_variance"], result["scores"].var("token", ddof=1), atol=1e-12
    )


def test_all_components_give_the_matrix_back():
    result = principal_components(CHI, num_components=6)
    rebuilt = result["mean"] + xr.dot(result["loadings"], result["scores"])
    np.testing.assert_allclose(
        rebuilt.transpose("component", "token"), CHI["susceptibility"], atol=1e-10
    )


def test_sign_does_not_depend_on_the_order_of_components_or_of_tokens():
    order = np.random.default_rng(3).permutation(6)
    tokens = np.random.default_rng(4).permutation(CHI.sizes["token"])
    shuffled = principal_components(CHI.isel(component=order, token=tokens), num_components=3)
    result = principal_components(CHI, num_components=3)
    np.testing.assert_allclose(
        shuffled["loadings"].sel(component=result["component"]), result["loadings"], atol=1e-9
    )
    assert np.all(
        result["loadings"].max("component") == np.abs(result["loadings"]).max("component")
    )


def test_tokens_in_blocks_give_the_same(monkeypatch):
    whole = principal_components(CHI, num_components=3)
    monkeypatch.setattr("slt_jax.analysis.decomposition._BLOCK_ENTRIES", 42)
    xr.testing.assert_allclose(principal_components(CHI, num_components=3), whole)


def test_projection_of_the_same_tokens_gives_their_scores():
    result = principal_components(CHI, num_components=3)
    shuffled = CHI.isel(component=[3, 1, 0, 2, 5, 4])
    np.testing.assert_allclose(
        project(result, shuffled).transpose(*result["scores"].dims), result["scores"], atol=1e-10
    )


def test_score_errors_are_those_of_a_sum():
    result = principal_components(CHI, num_components=2)
    loadings = result["loadings"].values
    shared = CHI["observable_mean"].values[:, None] * CHI["full_error"].values
    own = CHI["standard_error"].values ** 2 - shared**2
    expected = np.sqrt((loadings**2).T @ own + (loadings.T @ shared) ** 2)
    np.testing.assert_allclose(result["score_error"], expected)
    # The errors are a hundredth of the planted variances.
    assert np.all(result["noise_ratio"] < 0.05)


def test_noise_alone_has_a_noise_ratio_near_one():
    generator = np.random.default_rng(5)
    errors = np.full((4, 5000), 0.3)
    noise = xr.Dataset(
        {
            "susceptibility": (
                ("component", "token"),
                generator.normal(size=errors.shape) * errors,
            ),
            "standard_error": (("component", "token"), errors),
        },
        coords={"component": list("abcd")},
    )
    # Eigenvalues of a 4 × 4 Wishart matrix of 5000 degrees of freedom are within 6 % of 1.
    np.testing.assert_allclose(principal_components(noise, 4)["noise_ratio"], 1, atol=0.1)


def test_rank_one_error_of_the_full_chain_is_recognised():
    generator = np.random.default_rng(6)
    error = xr.DataArray(30 * generator.normal(size=CHI.sizes["token"]), dims="token")
    spoilt = CHI.assign(susceptibility=CHI["susceptibility"] + CHI["observable_mean"] * error)
    correlation = principal_components(spoilt, 3)["gap_correlation"].values
    assert abs(correlation[0]) > 0.9
    plain = principal_components(CHI, 3)
    expected = np.corrcoef(plain["loadings"].values.T, CHI["observable_mean"].values)
    np.testing.assert_allclose(plain["gap_correlation"], expected[-1, :-1], atol=1e-10)


def test_components_of_two_halves_are_matched_with_their_sign():
    first = principal_components(CHI, num_components=3)
    second = first.isel(principal_component=[1, 0, 2]).assign_coords(principal_component=[1, 2, 3])
    second = second.assign(loadings=second["loadings"] * [1, -1, 1]).isel(
        component=slice(None, None, -1)
    )
    match = match_components(first, second)
    assert match["matched"].values.tolist() == [2, 1, 3]
    np.testing.assert_allclose(match["cosine"], [-1, 1, 1])


def test_bad_matrices_are_refused():
    constant = CHI.copy(deep=True)
    constant["susceptibility"][2] = 1.0
    with pytest.raises(ValueError, match=r"1 components are the same .* l1h0"):
        zscore_components(constant)
    broken = CHI.copy(deep=True)
    broken["susceptibility"][1, 3] = np.nan
    with pytest.raises(ValueError, match=r"not finite.*l0h1"):
        principal_components(broken)
    with pytest.raises(ValueError, match="has 6 principal components, asked for 7"):
        principal_components(CHI, num_components=7)
    with pytest.raises(ValueError, match="at least 2 components"):
        center_tokens(CHI.isel(component=[0]))
    with pytest.raises(ValueError, match="dimensions component and token"):
        principal_components(CHI["susceptibility"].rename(token="query"))
    with pytest.raises(ValueError, match="got the variables"):
        principal_components(CHI.drop_vars("susceptibility"))
    with pytest.raises(ValueError, match=r"no components \['l2h1'\]"):
        project(principal_components(CHI, 2), CHI.isel(component=slice(5)))
