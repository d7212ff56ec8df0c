"""The graph in which every token is linked to the tokens with the most similar responses."""

import importlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from slt_jax.analysis.graph import Graph, graph_of

_TREE_DIMENSIONS = 10
"""Up to so many dimensions a k-d tree beats comparing all pairs."""


def exact_neighbors(
    points: Float[np.ndarray, "point axis"], num_neighbors: int = 45
) -> Int[np.ndarray, "point neighbor"]:
    """Find the nearest other points of every point, by Euclidean distance.

    Up to 10 dimensions through a k-d tree; above by comparing all pairs in blocks (scikit-learn),
    which takes about half an hour for 10⁶ points × 100 axes on two cores and little memory. Keep
    the leading principal components, or use ``approximate_neighbors``, where that is too long.

    Args:
        points: any unit, such as standardised susceptibilities ``[token, component]``.
        num_neighbors: k, less than the number of points.

    Returns:
        int32 ``[point, neighbor]``, the nearest first, never the point itself.

    Raises:
        ValueError: points that are not finite, or fewer than k + 1 of them.
        ImportError: more than 10 dimensions without scikit-learn.

    >>> exact_neighbors(np.array([[0.0], [1.0], [3.0]]), num_neighbors=1).ravel().tolist()
    [1, 0, 1]
    """
    _check_points(points, num_neighbors)
    if points.shape[1] <= _TREE_DIMENSIONS:
        found = KDTree(points).query(points, num_neighbors + 1, workers=-1)[1]
    else:
        found = _all_pairs(points, num_neighbors + 1)
    return _without_self(np.asarray(found, np.int32))


def approximate_neighbors(
    points: Float[np.ndarray, "point axis"], num_neighbors: int = 45, *, seed: int = 0
) -> Int[np.ndarray, "point neighbor"]:
    """Find most of the nearest other points of every point, by nearest-neighbour descent.

    Equation: none; the search of Dong, Moses and Li (WWW 2011) in pynndescent, which comes with
    umap-learn. 10⁶ points take minutes. The same seed gives the same neighbours.

    Args:
        points: as for ``exact_neighbors``.
        num_neighbors: k, less than the number of points.
        seed: of the search.

    Returns:
        int32 ``[point, neighbor]``, the nearest found first, never the point itself.

    Raises:
        ValueError: as ``exact_neighbors``.
        ImportError: pynndescent is not installed.
    """
    _check_points(points, num_neighbors)
    try:
        # Optional, so its types are not known everywhere.
        descent: Any = importlib.import_module("pynndescent").NNDescent
    except ImportError as error:
        raise ImportError(
            "approximate_neighbors needs pynndescent: pip install 'slt-jax[analysis]'"
        ) from error
    search = descent(
        points.astype(np.float32), n_neighbors=num_neighbors + 1, random_state=seed, n_jobs=1
    )
    return _without_self(np.asarray(search.neighbor_graph[0], np.int32))


def neighbor_graph(neighbors: Int[np.ndarray, "point neighbor"]) -> Graph:
    """Link two points if either is among the nearest of the other.

    Args:
        neighbors: as ``exact_neighbors`` gives them.

    Returns:
        The graph, all links of weight 1. About 12 bytes per link and direction: 0.8 GB for
        10⁶ points with k = 45, and about three times that while it is made.

    >>> graph = neighbor_graph(np.array([[1], [0], [1]]))
    >>> graph.links.toarray().astype(int).tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    count, degree = neighbors.shape
    ends = np.arange(0, count * degree + 1, degree)
    chosen = csr_matrix((np.ones(neighbors.size), neighbors.reshape(-1), ends), (count, count))
    return graph_of(csr_matrix(chosen.maximum(chosen.T.tocsr())))


def _check_points(points: Float[np.ndarray, "point axis"], num_neighbors: int) -> None:
    if not np.all(np.isfinite(points)):
        raise ValueError("points must be finite: leave out the tokens or components with NaN")
    if not 1 <= num_neighbors < len(points):
        raise ValueError(
            f"num_neighbors must be between 1 and one less than the {len(points)} points, got "
            f"{num_neighbors}"
        )


def _all_pairs(
    points: Float[np.ndarray, "point axis"], count: int
) -> Int[np.ndarray, "point neighbor"]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise ImportError(
            f"neighbours of points with {points.shape[1]} axes need scikit-learn: "
            "pip install 'slt-jax[analysis]' (or keep at most "
            f"{_TREE_DIMENSIONS} principal components)"
        ) from error
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
    return search.kneighbors(points, return_distance=False)


def _without_self(found: Int[np.ndarray, "point candidate"]) -> Int[np.ndarray, "point neighbor"]:
    """Drop every point from its own list, or the last entry if identical points crowd it out."""
    is_self = found == np.arange(len(found))[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(found), -1)
