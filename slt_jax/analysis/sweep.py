"""The best cut along an ordering of the nodes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from slt_jax.analysis.graph import Graph
from slt_jax.analysis.pagerank import PageRank

_TIE = 1e-9


class Cut(NamedTuple):
    """A set of nodes, in increasing order, and its conductance (infinite if there is none)."""

    members: Int[np.ndarray, " member"]
    conductance: float


class Profile(NamedTuple):
    """What each prefix of an ordering of nodes would be as a set.

    ``order`` are the nodes; entry i of the others belongs to the first i + 1 of them. A prefix that
    ends between nodes of equal score is no ``candidate``.
    """

    order: Int[np.ndarray, " node"]
    conductance: Float[np.ndarray, " node"]
    volume: Float[np.ndarray, " node"]
    candidate: Bool[np.ndarray, " node"]


def sweep_profile(graph: Graph, ranking: PageRank) -> Profile:
    """Give the conductance of every set of nodes with PageRank per degree above some level.

    Equation: nodes by decreasing p_v/d_v; φ of the first j of them for every j (Andersen, Chung and
    Lang, FOCS 2006, section 2).

    Args:
        graph: undirected.
        ranking: from ``personalized_pagerank`` on that graph.
    """
    nodes = ranking.nodes
    scores = ranking.mass / graph.degrees[nodes]
    order = np.argsort(-scores, kind="stable")
    nodes, scores = nodes[order], scores[order]
    rank = np.full(graph.num_nodes, len(nodes), np.int64)
    rank[nodes] = np.arange(len(nodes))
    volume = np.cumsum(graph.degrees[nodes])
    inner = np.cumsum(_weight_completed(graph, nodes, rank))
    total = float(graph.degrees.sum())
    smaller = np.minimum(volume, total - volume)
    with np.errstate(divide="ignore", invalid="ignore"):
        conductances = np.where(smaller > _TIE * total, (volume - inner) / smaller, np.inf)
    lower = np.append(scores[1:], 0.0)
    return Profile(nodes, conductances, volume, scores > lower * (1 + _TIE))


def sweep_cut(graph: Graph, ranking: PageRank, *, min_size: int = 20) -> Cut:
    """Take the set of least conductance among the prefixes of a ranking.

    Equation: argmin_j φ_j over prefixes of at most half of the graph's volume (Andersen, Chung and
    Lang, FOCS 2006, section 2).

    On the neighbour graph of a point cloud this tends to be a bisection of the main body, from any
    seed: the surface of a set grows more slowly than its volume. ``local_cut`` stops before that.

    Args:
        graph: undirected.
        ranking: from ``personalized_pagerank`` on that graph.
        min_size: the fewest nodes a set may have.

    Returns:
        The set, empty with infinite conductance if no prefix is allowed.
    """
    profile, conductances = _allowed(graph, ranking, min_size)
    return _prefix(profile, conductances, len(conductances))


def local_cut(
    graph: Graph, ranking: PageRank, *, min_size: int = 20, min_rise: float = 1.25
) -> Cut:
    """Take the first set along a ranking beyond which the conductance rises.

    Equation: argmin_{j < i} φ_j, where i is the first prefix with φ_i ≥ r · min_{j < i} φ_j, over
    prefixes of at most half of the graph's volume. A set without links to the rest is taken too.

    A cluster shows as a dip of the conductance along the sweep; from a seed in the main body it
    falls all the way to the bisection, and there is no set.

    Args:
        graph: undirected.
        ranking: from ``personalized_pagerank`` on that graph.
        min_size: the fewest nodes a set may have.
        min_rise: r > 1.

    Returns:
        The set, empty with infinite conductance if there is none.
    """
    profile, conductances = _allowed(graph, ranking, min_size)
    lowest = np.minimum.accumulate(conductances)
    with np.errstate(invalid="ignore"):
        rises = np.isfinite(lowest) & (profile.conductance >= min_rise * lowest)
    rises &= _is_half(graph, profile)
    ends = np.flatnonzero(rises | (conductances < _TIE))
    return _prefix(profile, conductances, int(ends[0]) + 1 if ends.size else 0)


def _is_half(graph: Graph, profile: Profile) -> Bool[np.ndarray, " node"]:
    return profile.volume <= (0.5 + _TIE) * float(graph.degrees.sum())


def _allowed(
    graph: Graph, ranking: PageRank, min_size: int
) -> tuple[Profile, Float[np.ndarray, " node"]]:
    """Give the profile, and its conductance with infinity in place of sets not to be taken."""
    profile = sweep_profile(graph, ranking)
    allowed = profile.candidate & _is_half(graph, profile)
    allowed[: min_size - 1] = False
    return profile, np.where(allowed, profile.conductance, np.inf)


def _prefix(profile: Profile, conductances: Float[np.ndarray, " node"], end: int) -> Cut:
    """Take the best of the first ``end`` prefixes."""
    if end == 0 or not np.isfinite(conductances[:end]).any():
        return Cut(np.zeros(0, np.int64), np.inf)
    size = int(np.argmin(conductances[:end])) + 1
    return Cut(np.sort(profile.order[:size]), float(conductances[size - 1]))


def _weight_completed(
    graph: Graph, nodes: Int[np.ndarray, " node"], rank: Int[np.ndarray, " any"]
) -> Float[np.ndarray, " node"]:
    """Give, for each node in order, twice the weight of its links to the nodes before it."""
    rows = graph.links[nodes]
    start = np.repeat(np.arange(len(nodes)), np.diff(rows.indptr))
    last = np.maximum(start, rank[rows.indices])
    return np.bincount(last, rows.data, len(nodes) + 1)[: len(nodes)]
