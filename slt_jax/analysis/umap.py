"""A map of the tokens by UMAP. Needs umap-learn: ``pip install 'slt-jax[analysis]'``."""

import importlib
from typing import Any

import numpy as np
import xarray as xr

from slt_jax.analysis.standardization import VALUES, as_dataset


def umap_embedding(
    response: xr.Dataset | xr.DataArray, seed: int, *, num_neighbors: int = 45
) -> xr.DataArray:
    """Place the tokens in the plane so that those with similar responses lie close together.

    Equation: none; UMAP (McInnes et al., arXiv 1802.03426) on Euclidean distances between the
    columns of the response matrix, with the 45 neighbours of Towards Spectroscopy (Gordon et al.,
    arXiv 2601.12703). Distances on the map are not to scale: read from it what lies together.

    Args:
        response: (component, token), usually after ``zscore_components`` and ``center_tokens``.
        seed: of the layout. With a seed UMAP runs on one thread and the same input gives the same
            map on the same machine and versions.
        num_neighbors: k of the neighbour graph, less than the number of tokens.

    Returns:
        float64 (token, axis) with the coordinates of the tokens, without unit.

    Raises:
        ValueError: not more tokens than neighbours.
        ImportError: umap-learn is not installed.
    """
    dataset = as_dataset(response)
    num_tokens = dataset.sizes["token"]
    if not 2 <= num_neighbors < num_tokens:
        raise ValueError(
            f"num_neighbors must be between 2 and one less than the {num_tokens} tokens, got "
            f"{num_neighbors}"
        )
    try:
        # Optional, so its types are not known everywhere.
        umap: Any = importlib.import_module("umap").UMAP
    except ImportError as error:
        raise ImportError(
            "umap_embedding needs umap-learn: pip install 'slt-jax[analysis]'"
        ) from error
    layout = umap(n_neighbors=num_neighbors, n_components=2, random_state=seed, n_jobs=1)
    points = np.ascontiguousarray(dataset[VALUES].values.T, np.float32)
    coords = {
        name: coordinate
        for name, coordinate in dataset.coords.items()
        if coordinate.dims == ("token",)
    }
    return xr.DataArray(
        np.asarray(layout.fit_transform(points), np.float64),
        dims=("token", "axis"),
        coords={**coords, "axis": [1, 2]},
        name="umap",
    )
