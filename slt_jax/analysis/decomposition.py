"""Principal components of a response matrix: loadings by component, scores by token."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from slt_jax.analysis.standardization import (
    DIRECTION,
    ERRORS,
    SHARED,
    VALUES,
    as_dataset,
    own_variance,
)

AXIS = "principal_component"

_BLOCK_ENTRIES = 2**24
"""Entries of the matrix that are float64 at once while the covariance is summed: 128 MiB."""


def principal_components(
    response: xr.Dataset | xr.DataArray, num_components: int = 10
) -> xr.Dataset:
    """Find the directions, across components, in which the tokens differ the most.

    Equation: χ_ct = mean_c + Σ_k loadings_ck scores_kt, with orthonormal loadings: the
    eigenvectors of the covariance of the components over the tokens, by decreasing eigenvalue. The
    sign, which the equation leaves open, is the one that makes the loading of largest magnitude
    positive. Structural Inference (Baker et al., arXiv 2504.18274, section 4) reads circuits off
    the loadings.

    A caution: the error that tokens share across components (see ``as_dataset``) is a rank-one
    pattern of pure noise. It looks like a leading principal component, whose loadings are
    correlated with the components' mean gaps E_C[g].

    Args:
        response: (component, token), as ``chi.to_xarray()`` gives it, usually after
            ``zscore_components`` and ``center_tokens``.
        num_components: how many directions, at most min(components, tokens − 1).

    Returns:
        A Dataset, ``principal_component`` counting from 1, in the unit of the input:

        - ``loadings`` (component, principal_component), unit vectors;
        - ``scores`` (principal_component, token);
        - ``explained_variance`` (principal_component), with the divisor tokens − 1, and
          ``explained_variance_ratio``, its part of the variance of all directions;
        - ``mean`` (component), what was subtracted;
        - with ``standard_error`` in the input: ``score_error`` (principal_component, token), as if
          loadings were exact and components independent but for the shared error, and
          ``noise_ratio``, the part of the explained variance that the errors alone would give;
        - with the mean gaps E_C[g] (``observable_mean``): ``gap_correlation``
          (principal_component), Pearson's correlation of the loadings, over the components, with
          the mean gaps as standardised; NaN if either is constant.

    Raises:
        ValueError: more directions than the matrix can have, or a matrix ``as_dataset`` refuses.

    >>> chi = xr.DataArray([[0.0, 2.0, 4.0], [1.0, 0.0, -1.0]], dims=("component", "token"))
    >>> result = principal_components(chi, num_components=1)
    >>> result["loadings"].values.round(3).ravel().tolist()
    [0.894, -0.447]
    >>> result["scores"].values.round(3).ravel().tolist()
    [-2.236, 0.0, 2.236]
    """
    dataset = as_dataset(response)
    num_tokens = dataset.sizes["token"]
    largest = min(dataset.sizes["component"], num_tokens - 1)
    if not 1 <= num_components <= largest:
        raise ValueError(
            f"a matrix of {dataset.sizes['component']} components × {num_tokens} tokens has "
            f"{largest} principal components, asked for {num_components}"
        )
    values = dataset[VALUES].values
    mean = values.mean(axis=1)
    variances, vectors = np.linalg.eigh(_scatter(values, mean) / (num_tokens - 1))
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    loadings = oriented(vectors[:, :num_components])
    total = variances.sum()
    explained = variances[:num_components]
    result = {
        "loadings": (("component", AXIS), loadings),
        "scores": ((AXIS, "token"), loadings.T @ values - (loadings.T @ mean)[:, None]),
        "explained_variance": (AXIS, explained),
        "explained_variance_ratio": (AXIS, explained / total if total > 0 else explained),
        "mean": ("component", mean),
    }
    if ERRORS in dataset:
        result |= _noise(dataset, loadings, explained)
    if DIRECTION in dataset:
        result["gap_correlation"] = (AXIS, _correlations(loadings, dataset[DIRECTION].values))
    return xr.Dataset(result, coords={**dataset.coords, AXIS: np.arange(1, num_components + 1)})


def project(components: xr.Dataset, response: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Give the scores of other tokens along principal components that are already known.

    Equation: scores_kt = Σ_c loadings_ck (χ_ct − mean_c).

    Args:
        components: as ``principal_components`` returns them.
        response: (component, token) with at least the same components, standardised alike.

    Returns:
        float64 (principal_component, token).

    Raises:
        ValueError: components that the response lacks.
    """
    dataset = as_dataset(response)
    expected = components["component"].values
    missing = sorted(set(expected.tolist()) - set(dataset["component"].values.tolist()))
    if missing:
        raise ValueError(f"the response has no components {missing}, which have loadings")
    values = dataset[VALUES].sel(component=expected) - components["mean"]
    return xr.dot(components["loadings"], values, dim="component").rename("scores")


def match_components(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Find, for each principal component of one analysis, the most similar one of another.

    Two analyses of one model, such as of two halves of the tokens, may order their components
    differently. Similarity is the cosine of the angle between the loadings.

    Args:
        first: as ``principal_components`` returns it.
        second: likewise, of the same components of the model.

    Returns:
        ``matched`` (principal_component), a label of ``second``, and ``cosine``, negative where the
        two have opposite signs.

    Raises:
        ValueError: the two analyses are of different components.
    """
    names, others = (set(analysis["component"].values.tolist()) for analysis in (first, second))
    if names != others:
        raise ValueError(
            f"the two analyses are of different components: {sorted(map(str, names ^ others))} "
            "appear in only one of them"
        )
    aligned = second["loadings"].sel(component=first["component"])
    cosine = first["loadings"].values.T @ aligned.values
    best = np.argmax(np.abs(cosine), axis=1)
    return xr.Dataset(
        {
            "matched": (AXIS, second[AXIS].values[best]),
            "cosine": (AXIS, cosine[np.arange(len(best)), best]),
        },
        coords={AXIS: first[AXIS].values},
    )


def oriented(vectors: Float[np.ndarray, "entry vector"]) -> Float[np.ndarray, "entry vector"]:
    """Flip vectors so that the entry of largest magnitude of each is positive.

    >>> oriented(np.array([[1.0], [-2.0]])).tolist()
    [[-1.0], [2.0]]
    """
    largest: Int[np.ndarray, " vector"] = np.argmax(np.abs(vectors), axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1.0, signs)


def _scatter(
    values: Float[np.ndarray, "component token"], mean: Float[np.ndarray, " component"]
) -> Float[np.ndarray, "component component"]:
    """Sum the outer products of the centred tokens, a block of tokens at a time."""
    size = max(1, _BLOCK_ENTRIES // len(values))
    total = np.zeros((len(values), len(values)))
    for start in range(0, values.shape[1], size):
        block = values[:, start : start + size] - mean[:, None]
        total += block @ block.T
    return total


def _noise(
    dataset: xr.Dataset,
    loadings: Float[np.ndarray, "component principal"],
    explained: Float[np.ndarray, " principal"],
) -> dict[str, Any]:
    variance = (loadings**2).T @ own_variance(dataset).values
    if SHARED in dataset:
        variance += (loadings.T @ dataset[SHARED].values) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance.mean(axis=1) / explained
    return {"score_error": ((AXIS, "token"), np.sqrt(variance)), "noise_ratio": (AXIS, ratio)}


def _correlations(
    loadings: Float[np.ndarray, "component principal"], gap: Float[np.ndarray, " component"]
) -> Float[np.ndarray, " principal"]:
    centred, gap = loadings - loadings.mean(axis=0), gap - gap.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return gap @ centred / np.linalg.norm(centred, axis=0) / np.linalg.norm(gap)
