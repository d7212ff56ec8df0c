"""Clusters of tokens that respond alike: sets of low conductance in their neighbour graph."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int

from slt_jax.analysis.graph import Graph, subgraph
from slt_jax.analysis.pagerank import personalized_pagerank
from slt_jax.analysis.sweep import Cut, local_cut


class Search(NamedTuple):
    """How clusters are searched; the defaults are those of Towards Spectroscopy, where it has them.

    Gordon et al., arXiv 2601.12703, table 4, gives ``teleport``, ``tolerance``, ``min_size`` and
    ``min_yield``.

    Attributes:
        teleport: α of PageRank: the walk forgets its seed after about 1/α steps.
        tolerance: ε of PageRank: nodes that hold less than ε of the walk's time per link are not
            looked at, so a set of more than 1/ε links is not seen as a whole.
        min_size: the fewest tokens of a cluster.
        min_rise: the factor by which conductance must rise beyond a cluster, see ``local_cut``.
        max_conductance: the largest conductance of a cluster.
        seeds_per_round: how many seeds are tried in a round.
        min_yield: the search ends with a round that puts less than this part of all tokens into
            clusters.
    """

    teleport: float = 0.001
    tolerance: float = 1e-7
    min_size: int = 20
    min_rise: float = 1.25
    max_conductance: float = 0.5
    seeds_per_round: int = 100
    min_yield: float = 0.001


def conductance_clusters(graph: Graph, seed: int = 0, search: Search | None = None) -> xr.Dataset:
    """Find sets of tokens that are linked among themselves and little to the others.

    In rounds: seeds are drawn at random from the nodes that are in no cluster and have not been
    tried. From each grows a candidate, the ``local_cut`` of its personalised PageRank (Andersen,
    Chung and Lang, FOCS 2006); seeds inside a candidate of the same round are skipped. Candidates
    become clusters in order of conductance, unless they share nodes with one that did, and their
    nodes leave the graph. Most tokens usually belong to no cluster: they are the main body.

    Args:
        graph: of the tokens, as ``neighbor_graph`` gives it; up to 10⁶ nodes, of which a seed takes
            a few seconds each.
        seed: of the random seeds.
        search: settings; None for the defaults.

    Returns:
        ``cluster`` (node), counting from 0 in the order of conductance, −1 for the main body; and
        ``conductance`` (within the graph of its round), ``size`` and ``seed_node`` along
        (cluster_label).

    >>> from scipy.sparse import block_diag, csr_matrix
    >>> from slt_jax.analysis.graph import graph_of
    >>> clique = np.ones((30, 30)) - np.eye(30)
    >>> found = conductance_clusters(graph_of(csr_matrix(block_diag([clique] * 3))))
    >>> np.bincount(found["cluster"].values).tolist()
    [30, 30, 30]
    """
    search = Search() if search is None else search
    generator = np.random.default_rng(seed)
    remaining = np.arange(graph.num_nodes)
    untried = graph.degrees > 0
    rest, found = graph, []
    while True:
        here = np.flatnonzero(untried[remaining] & (rest.degrees > 0))
        drawn = generator.permutation(here)[: search.seeds_per_round]
        seeds, cuts = grow_clusters(rest, drawn, search)
        untried[remaining[drawn]] = False
        accepted = [
            (int(remaining[node]), Cut(remaining[cut.members], cut.conductance))
            for node, cut in zip(seeds, cuts, strict=True)
        ]
        found += accepted
        taken = np.zeros(graph.num_nodes, bool)
        for _, cut in accepted:
            taken[cut.members] = True
        if taken.sum() < max(1, search.min_yield * graph.num_nodes):
            return _as_dataset(graph.num_nodes, found)
        kept = np.flatnonzero(~taken[remaining])
        rest, remaining = subgraph(rest, kept), remaining[kept]


def grow_clusters(
    graph: Graph, seeds: Int[np.ndarray, " seed"], search: Search | None = None
) -> tuple[list[int], list[Cut]]:
    """Grow a candidate from each seed, in order, and keep the best ones that do not overlap.

    One round of ``conductance_clusters``. Renaming the nodes renames the result, nothing else.

    Args:
        graph: undirected.
        seeds: nodes with links.
        search: settings; None for the defaults.

    Returns:
        The seeds and the sets that grew from them, by increasing conductance.
    """
    search = Search() if search is None else search
    covered = np.zeros(graph.num_nodes, bool)
    grown: list[tuple[int, Cut]] = []
    for node in seeds.tolist():
        if covered[node]:
            continue
        ranking = personalized_pagerank(
            graph, node, teleport=search.teleport, tolerance=search.tolerance
        )
        cut = local_cut(graph, ranking, min_size=search.min_size, min_rise=search.min_rise)
        if cut.conductance <= search.max_conductance:
            covered[cut.members] = True
            grown.append((node, cut))
    grown.sort(key=lambda pair: pair[1].conductance)
    kept = _disjoint(graph.num_nodes, [cut for _, cut in grown])
    return [grown[i][0] for i in kept], [grown[i][1] for i in kept]


def _disjoint(num_nodes: int, cuts: list[Cut]) -> list[int]:
    taken: Bool[np.ndarray, " node"] = np.zeros(num_nodes, bool)
    kept = []
    for number, cut in enumerate(cuts):
        if not taken[cut.members].any():
            taken[cut.members] = True
            kept.append(number)
    return kept


def _as_dataset(num_nodes: int, found: list[tuple[int, Cut]]) -> xr.Dataset:
    found = sorted(found, key=lambda pair: pair[1].conductance)
    labels = np.full(num_nodes, -1, np.int64)
    for number, (_, cut) in enumerate(found):
        labels[cut.members] = number
    return xr.Dataset(
        {
            "cluster": ("node", labels),
            "conductance": ("cluster_label", np.array([cut.conductance for _, cut in found])),
            "size": ("cluster_label", np.array([len(cut.members) for _, cut in found], np.int64)),
            "seed_node": ("cluster_label", np.array([node for node, _ in found], np.int64)),
        },
        coords={"cluster_label": np.arange(len(found))},
    )
