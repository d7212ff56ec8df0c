"""Personalised PageRank from one node, touching only the part of the graph that it reaches."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

from slt_jax.analysis.graph import Graph

_GROWTH_ITERATIONS = 4
_MOST_ITERATIONS = 20_000


class PageRank(NamedTuple):
    """PageRank on the nodes that it reaches: ``nodes`` in increasing order, and their ``mass``."""

    nodes: Int[np.ndarray, " node"]
    mass: Float[np.ndarray, " node"]


def personalized_pagerank(
    graph: Graph, seed_node: int, *, teleport: float = 0.001, tolerance: float = 1e-7
) -> PageRank:
    """Find where a lazy random walk that keeps returning to one node spends its time.

    Equation: p = α s + (1 − α) W p with the lazy walk W = ½(I + A D⁻¹), s the seed node, A the
    adjacency matrix and D the degrees (Andersen, Chung and Lang, FOCS 2006, equation 1). The walk
    that is not lazy has the same p at the teleport probability 2α/(1 + α).

    What is returned obeys the contract of that paper's push algorithm: the residual r, defined by
    p + pr(r) = pr(s), stays below ε d_v at every node, and so does the error |p_v − pr(s)_v|.
    Pushing node by node takes up to 1/(αε) = 10¹⁰ steps at the settings of Towards Spectroscopy
    (Gordon et al., arXiv 2601.12703, table 4), which are the defaults here. Instead of pushing, the
    equation restricted to the nodes reached so far is solved by conjugate gradients (it is
    symmetric and positive definite in p_v/d_v), and the nodes on whose residual a push would act
    are added until there are none.

    Args:
        graph: undirected.
        seed_node: a node with links.
        teleport: α, the probability to return to the seed at each step, between 0 and 1.
        tolerance: ε, the largest residual per degree.

    Returns:
        The nodes reached and the part of its time that the walk spends at each, at most 1 in all.

    Raises:
        ValueError: a node without links, or settings outside their range.
        FloatingPointError: a tolerance below what float64 can give.

    >>> from slt_jax.analysis.graph import graph_of
    >>> path = graph_of(csr_matrix(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])))
    >>> found = personalized_pagerank(path, 0, teleport=0.5)
    >>> found.nodes.tolist(), found.mass.round(3).tolist()
    ([0, 1, 2], [0.708, 0.25, 0.042])
    """
    if not (0 < teleport < 1 and tolerance > 0):
        raise ValueError(
            f"teleport must lie between 0 and 1 and tolerance above 0, got {teleport} and "
            f"{tolerance}"
        )
    if not 0 <= seed_node < graph.num_nodes or graph.degrees[seed_node] == 0:
        raise ValueError(f"node {seed_node} has no links to walk along in a {graph}")
    goal = 0.5 * teleport * tolerance
    nodes, scores, limit = np.array([seed_node]), np.zeros(1), _GROWTH_ITERATIONS
    while True:
        rows = graph.links if len(nodes) == graph.num_nodes else graph.links[nodes]
        system = _System(csr_matrix(rows[:, nodes]), graph.degrees[nodes], teleport)
        source = np.where(nodes == seed_node, teleport, 0.0)
        scores, is_solved = _conjugate_gradients(system, source, scores, goal, limit)
        arriving = 0.5 * (1 - teleport) * (rows.T @ scores)
        arriving[nodes] = 0
        is_pushed = (arriving >= teleport * tolerance * graph.degrees) & (graph.degrees > 0)
        if is_pushed.any():
            nodes, scores = _grow(graph, nodes, scores, np.flatnonzero(is_pushed))
            limit = _GROWTH_ITERATIONS
        elif is_solved:
            mass = np.maximum(scores, 0) * graph.degrees[nodes]
            return PageRank(nodes[mass > 0], mass[mass > 0])
        elif limit == _MOST_ITERATIONS:
            raise FloatingPointError(f"PageRank does not reach the tolerance {tolerance}")
        else:
            limit = _MOST_ITERATIONS


class _System(NamedTuple):
    """M = ½(1 + α) D − ½(1 − α) A on some nodes; the equation is M q = α s for q = p/d."""

    links: csr_matrix
    degrees: Float[np.ndarray, " node"]
    teleport: float

    @property
    def diagonal(self) -> Float[np.ndarray, " node"]:
        return 0.5 * (1 + self.teleport) * self.degrees

    def apply(self, scores: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
        return self.diagonal * scores - 0.5 * (1 - self.teleport) * (self.links @ scores)


def _conjugate_gradients(
    system: _System,
    source: Float[np.ndarray, " node"],
    scores: Float[np.ndarray, " node"],
    goal: float,
    limit: int,
) -> tuple[Float[np.ndarray, " node"], bool]:
    """Improve a solution of M q = source until |residual| < goal · degree, or the limit."""
    residual = source - system.apply(scores)
    scaled = residual / system.diagonal
    direction, power = scaled, residual @ scaled
    for _ in range(limit):
        if _is_below(residual, goal * system.degrees):
            return scores, True
        image = system.apply(direction)
        step = power / (direction @ image)
        scores = scores + step * direction
        residual = residual - step * image
        scaled = residual / system.diagonal
        previous, power = power, residual @ scaled
        direction = scaled + (power / previous) * direction
    return scores, _is_below(residual, goal * system.degrees)


def _is_below(values: Float[np.ndarray, " node"], limits: Float[np.ndarray, " node"]) -> bool:
    return bool(np.all(np.abs(values) < limits))


def _grow(
    graph: Graph,
    nodes: Int[np.ndarray, " node"],
    scores: Float[np.ndarray, " node"],
    added: Int[np.ndarray, " added"],
) -> tuple[Int[np.ndarray, " grown"], Float[np.ndarray, " grown"]]:
    """Add nodes; all that have links once they are most, which saves cutting out the rest."""
    merged = np.concatenate([nodes, added])
    if 2 * len(merged) > graph.num_nodes:
        merged = np.flatnonzero(graph.degrees > 0)
    grown = np.zeros(graph.num_nodes)
    grown[nodes] = scores
    merged = np.sort(merged)
    return merged, grown[merged]
