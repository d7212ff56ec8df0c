"""Putting components on one scale, and tokens on one origin, before they are compared.

The papers write the response matrix with a row per token and a column per component; here it is an
array ``(component, token)``, so *their* column z-score runs along ``token`` and *their* row
centring along ``component``. The two are applied in this order in Towards Spectroscopy (Gordon et
al., arXiv 2601.12703, table 4), and in the other order in Structural Inference (Baker et al., arXiv
2504.18274).
"""

import numpy as np
import xarray as xr
from jaxtyping import Bool

VALUES = "susceptibility"
ERRORS = "standard_error"
GAP = "mean_gap"


def as_dataset(response: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Give a response matrix as a Dataset with only what an analysis uses, in float64.

    Args:
        response: ``chi.to_xarray()``, or one array of it such as ``chi.to_xarray()["control"]``,
            along ``component`` and ``token``.

    Returns:
        ``susceptibility`` (component, token) and, where given, ``standard_error`` of that shape and
        ``mean_gap`` (component).

    Raises:
        ValueError: other dimensions, no susceptibility, or entries that are not finite.
    """
    if isinstance(response, xr.DataArray):
        response = response.rename(VALUES).to_dataset()
    if VALUES not in response:
        raise ValueError(
            f"expected a Dataset with the variable {VALUES!r}, as chi.to_xarray() gives it, got "
            f"the variables {sorted(map(str, response.data_vars))}"
        )
    kept = [name for name in (VALUES, ERRORS, GAP) if name in response]
    dataset = response[kept].astype(np.float64)
    if set(dataset[VALUES].dims) != {"component", "token"}:
        raise ValueError(
            f"{VALUES} must have the dimensions component and token, got {dataset[VALUES].dims}"
        )
    dataset = dataset.transpose("component", "token", missing_dims="ignore")
    finite = np.isfinite(dataset[VALUES].values).all(axis=1)
    _refuse(dataset, ~finite, "have entries that are not finite: drop them with dataset.sel")
    return dataset


def zscore_components(response: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Give every component mean 0 and standard deviation 1 over the tokens (column z-score).

    Equation: z_ct = (χ_ct − mean_t χ_ct) / std_t χ_ct. The estimate of a component lacks a factor
    Z_C/Z_full that is the same for all tokens and unknown (How to Scale Susceptibilities, Timaeus
    2026): raw magnitudes cannot be compared across components, z-scores can.

    Args:
        response: as for ``as_dataset``; χ in nats².

    Returns:
        ``susceptibility`` without unit; ``standard_error`` and ``mean_gap`` divided by the same
        standard deviation (its own sampling error is left out), which is added as ``scale``
        (component).

    Raises:
        ValueError: a component that is constant over the tokens, or fewer than two tokens.

    >>> chi = xr.DataArray([[1.0, 3.0], [10.0, 30.0]], dims=("component", "token"))
    >>> zscore_components(chi)["susceptibility"].values.tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    dataset = as_dataset(response)
    if dataset.sizes["token"] < 2:
        raise ValueError(f"a z-score needs at least 2 tokens, got {dataset.sizes['token']}")
    scale = dataset[VALUES].std("token")
    _refuse(dataset, scale.values == 0, "are the same for all tokens: they have no z-score")
    centred = dataset.assign({VALUES: dataset[VALUES] - dataset[VALUES].mean("token")})
    return (centred / scale).assign(scale=scale)


def center_tokens(response: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Subtract from every token its mean over the components (row centring).

    Equation: χ_ct − mean_c χ_ct. What a token does to all components alike, which is mostly how
    much its loss moves at all, goes; what remains is how the components differ on it.

    Args:
        response: as for ``as_dataset``, usually z-scored.

    Returns:
        ``susceptibility``; ``standard_error`` of the difference as if components were independent;
        ``mean_gap`` with its mean subtracted, the direction in which an error of the full chain,
        which all components share, moves a centred token.

    Raises:
        ValueError: a single component.

    >>> chi = xr.DataArray([[1.0, 3.0], [2.0, 5.0]], dims=("component", "token"))
    >>> center_tokens(chi)["susceptibility"].values.tolist()
    [[-0.5, -1.0], [0.5, 1.0]]
    """
    dataset = as_dataset(response)
    count = dataset.sizes["component"]
    if count < 2:
        raise ValueError("centring over components needs at least 2 components, got 1")
    names = [name for name in (VALUES, GAP) if name in dataset]
    centred = dataset.assign(
        {name: dataset[name] - dataset[name].mean("component") for name in names}
    )
    if ERRORS not in dataset:
        return centred
    variance = dataset[ERRORS] ** 2
    variance = (1 - 2 / count) * variance + variance.mean("component") / count
    return centred.assign({ERRORS: np.sqrt(variance)})


def _refuse(dataset: xr.Dataset, wrong: Bool[np.ndarray, " component"], fault: str) -> None:
    if wrong.any():
        labels = dataset["component"].values[wrong]
        shown = ", ".join(map(str, labels[:5])) + (", …" if len(labels) > 5 else "")
        raise ValueError(f"{len(labels)} components {fault} (components {shown})")
