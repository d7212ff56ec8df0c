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
SHARED = "shared_error"
DIRECTION = "shared_direction"


def as_dataset(response: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Give a response matrix as a Dataset with only what an analysis uses, in float64.

    What the functions of this module and ``principal_components`` take and give. The error of the
    full chain's mean loss on a token enters every component times its own mean gap E_C[g] (the
    two-chain estimator of How to Scale Susceptibilities, Timaeus 2026): it is one random number
    per token, and stays so through every linear step.

    Args:
        response: ``chi.to_xarray()``, or one array of it such as ``chi.to_xarray()["control"]``,
            along ``component`` and ``token``.

    Returns:
        ``susceptibility`` (component, token) and, as far as the input has them,

        - ``standard_error`` of that shape, the whole of it;
        - ``shared_error`` of that shape, the part in it that comes from the full chain, with the
          sign of the component's mean gap;
        - ``shared_direction`` (component), proportional to E_C[g]: how a token's shared error is
          spread over the components.

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
    if set(response[VALUES].dims) != {"component", "token"}:
        raise ValueError(
            f"{VALUES} must have the dimensions component and token, got {response[VALUES].dims}"
        )
    kept = [name for name in (VALUES, ERRORS, SHARED, DIRECTION) if name in response]
    dataset = response[kept].astype(np.float64).transpose("component", "token", ...)
    broken = np.any(~np.isfinite(dataset[VALUES].values), axis=1, keepdims=True)[:, 0]
    _refuse(dataset, broken, "have entries that are not finite: drop them with dataset.sel")
    if "observable_mean" in response and DIRECTION not in response:
        gap = response["observable_mean"].astype(np.float64)
        dataset[DIRECTION] = gap
        if SHARED in dataset:
            dataset[SHARED] = np.sign(gap) * dataset[SHARED]
            # Proportional to the gap as well, and in the scale that the input already has.
            mean = dataset[SHARED].mean("token")
            dataset[DIRECTION] = mean if np.any(mean.values != 0) else gap
    return dataset.transpose("component", "token", missing_dims="ignore")


def zscore_components(response: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Give every component mean 0 and standard deviation 1 over the tokens (column z-score).

    Equation: z_ct = (χ_ct − mean_t χ_ct) / std_t χ_ct. The estimate of a component lacks a factor
    Z_C/Z_full that is the same for all tokens and unknown (How to Scale Susceptibilities, Timaeus
    2026): raw magnitudes cannot be compared across components, z-scores can.

    Args:
        response: as for ``as_dataset``; χ in nats².

    Returns:
        The variables of ``as_dataset``: ``susceptibility`` without unit, the others divided by the
        same standard deviation, whose own error is left out. It is added as ``scale`` (component).

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
        The variables of ``as_dataset``. The part of the error that is not shared is that of a
        difference of independent components.

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
    linear = [name for name in (VALUES, SHARED, DIRECTION) if name in dataset]
    centred = dataset.assign(
        {name: dataset[name] - dataset[name].mean("component") for name in linear}
    )
    if ERRORS not in dataset:
        return centred
    own = own_variance(dataset)
    variance = (1 - 2 / count) * own + own.mean("component") / count
    if SHARED in dataset:
        variance = variance + centred[SHARED] ** 2
    return centred.assign({ERRORS: np.sqrt(variance)})


def own_variance(dataset: xr.Dataset) -> xr.DataArray:
    """Give the squared error of each entry without what it shares with other components."""
    variance = dataset[ERRORS] ** 2
    if SHARED in dataset:
        variance = (variance - dataset[SHARED] ** 2).clip(min=0)
    return variance


def _refuse(dataset: xr.Dataset, wrong: Bool[np.ndarray, " component"], fault: str) -> None:
    if wrong.any():
        labels = dataset["component"].values[wrong]
        shown = ", ".join(map(str, labels[:5])) + (", …" if len(labels) > 5 else "")
        raise ValueError(f"{len(labels)} components {fault} (components {shown})")
