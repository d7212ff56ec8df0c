"""Undirected graphs, and how well a set of their nodes is separated from the rest."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix


class Graph(NamedTuple):
    """An undirected graph: symmetric ``links`` with weights > 0, and the ``degrees`` they sum to.

    Made by ``graph_of`` from an adjacency matrix, or by ``neighbor_graph`` from points.
    """

    links: csr_matrix
    degrees: Float[np.ndarray, " node"]

    @property
    def num_nodes(self) -> int:
        """How many nodes there are, linked or not."""
        return len(self.degrees)

    def __str__(self) -> str:
        return f"graph of {self.num_nodes} nodes and {self.links.nnz // 2} links"


def graph_of(links: csr_matrix) -> Graph:
    """Make a graph of an adjacency matrix.

    Args:
        links: symmetric ``[node, node]``, weights ≥ 0 where zeros are no links; the diagonal must
            be empty.

    Returns:
        The graph, with float64 weights.

    Raises:
        ValueError: a matrix that is not square, not symmetric, negative, or links a node to itself.

    >>> print(graph_of(csr_matrix(np.ones((3, 3)) - np.eye(3))))
    graph of 3 nodes and 3 links
    """
    num_rows, num_columns = links.get_shape()
    if num_rows != num_columns:
        raise ValueError(f"an adjacency matrix is square, got {num_rows} × {num_columns}")
    links = csr_matrix(links, dtype=np.float64, copy=True)
    links.sum_duplicates()
    links.eliminate_zeros()
    if links.nnz and not links.data.min() > 0:
        raise ValueError(f"the weights of links must be ≥ 0, got {links.data.min()}")
    if links.diagonal().any():
        raise ValueError("nodes must not be linked to themselves: empty the diagonal")
    if (links != links.T).nnz:
        raise ValueError("links must be symmetric: take links.maximum(links.T)")
    return Graph(links, _degrees(links))


def subgraph(graph: Graph, nodes: Int[np.ndarray, " kept"]) -> Graph:
    """Keep some nodes and the links among them; node i of the result is ``nodes[i]``."""
    links = csr_matrix(graph.links[nodes][:, nodes])
    return Graph(links, _degrees(links))


def conductance(graph: Graph, members: Int[np.ndarray, " member"]) -> float:
    """Give the conductance of a set of nodes: how much of its links leads out of it.

    Equation: φ(S) = cut(S) / min(vol S, vol S̄), where vol is the sum of the degrees and cut(S) the
    weight of the links that leave S (Andersen, Chung and Lang, FOCS 2006, section 2).

    Args:
        graph: undirected.
        members: distinct nodes with links, not all that have any.

    Returns:
        0 for a set without links to the rest, 1 for one without links within.

    Raises:
        ValueError: a set, or a rest, without links.

    >>> path = graph_of(csr_matrix(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])))
    >>> conductance(path, np.array([0]))
    1.0
    """
    inside = np.zeros(graph.num_nodes)
    inside[members] = 1
    volume, total = float(graph.degrees[members].sum()), float(graph.degrees.sum())
    smaller = min(volume, total - volume)
    if not smaller > 0:
        raise ValueError(f"the {len(members)} nodes, or all the others, have no links at all")
    return (volume - float(inside @ (graph.links @ inside))) / smaller


def _degrees(links: csr_matrix) -> Float[np.ndarray, " node"]:
    return np.asarray(links.sum(axis=1), np.float64).reshape(-1)
