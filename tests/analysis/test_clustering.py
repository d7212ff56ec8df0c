"""Graphs, PageRank, sweep cuts and clusters, against exact answers on small graphs."""

import sys

import numpy as np
import pytest
from scipy.sparse import block_diag, csr_matrix

from slt_jax.analysis import (
    Search,
    approximate_neighbors,
    conductance,
    conductance_clusters,
    exact_neighbors,
    graph_of,
    grow_clusters,
    local_cut,
    neighbor_graph,
    personalized_pagerank,
    sweep_cut,
)
from slt_jax.analysis.sweep import sweep_profile

NUM_BLOCKS, BLOCK = 6, 40


def planted_partition(inner=0.5, outer=0.01, seed=0):
    """Blocks of equal size, links inside likely and between them rare, and the block of a node."""
    generator = np.random.default_rng(seed)
    block = np.repeat(np.arange(NUM_BLOCKS), BLOCK)
    chance = np.where(block[:, None] == block, inner, outer)
    links = np.triu(generator.random(chance.shape) < chance, 1)
    return graph_of(csr_matrix(links | links.T)), block


GRAPH, BLOCK_OF = planted_partition()


def exact_pagerank(graph, node, teleport):
    """Solve p = α s + (1 − α) ½(I + A D⁻¹) p for all nodes at once."""
    count = graph.num_nodes
    walk = 0.5 * (np.eye(count) + graph.links.toarray() / graph.degrees)
    return np.linalg.solve(np.eye(count) - (1 - teleport) * walk, teleport * np.eye(count)[node])


def as_vector(ranking, count):
    vector = np.zeros(count)
    vector[ranking.nodes] = ranking.mass
    return vector


@pytest.mark.parametrize("dimensions", [2, 12], ids=["k-d tree", "all pairs"])
def test_neighbours_are_the_nearest_others(dimensions):
    points = np.random.default_rng(1).normal(size=(60, dimensions))
    points[7] = points[3]
    found = exact_neighbors(points, 5)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    expected = np.sort(distance, axis=1)[:, 1:6]
    np.testing.assert_allclose(np.take_along_axis(distance, found, axis=1), expected, atol=1e-6)
    assert not np.any(found == np.arange(60)[:, None])


def test_a_point_with_many_copies_is_not_its_own_neighbour():
    found = exact_neighbors(np.zeros((10, 2)), 4)
    assert found.shape == (10, 4)
    assert not np.any(found == np.arange(10)[:, None])


def test_neighbour_graph_links_a_pair_if_either_chose_the_other():
    neighbors = exact_neighbors(np.random.default_rng(2).normal(size=(50, 3)), 4)
    expected = np.zeros((50, 50), bool)
    np.put_along_axis(expected, neighbors, True, axis=1)
    graph = neighbor_graph(neighbors)
    assert np.array_equal(graph.links.toarray(), expected | expected.T)
    assert np.array_equal(graph.degrees, (expected | expected.T).sum(axis=1))


@pytest.mark.parametrize("teleport", [0.001, 0.2])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-9])
def test_pagerank_is_the_solution_of_the_linear_system_within_its_tolerance(teleport, tolerance):
    for node in (0, 100):
        found = personalized_pagerank(GRAPH, node, teleport=teleport, tolerance=tolerance)
        exact = exact_pagerank(GRAPH, node, teleport)
        error = as_vector(found, GRAPH.num_nodes) - exact
        assert np.all(np.abs(error) < tolerance * GRAPH.degrees)


def test_pagerank_with_weights_solves_its_system_too():
    generator = np.random.default_rng(3)
    links = np.triu(generator.exponential(size=(30, 30)) * (generator.random((30, 30)) < 0.3), 1)
    graph = graph_of(csr_matrix(links + links.T))
    found = personalized_pagerank(graph, 4, teleport=0.05, tolerance=1e-10)
    exact = exact_pagerank(graph, 4, 0.05)
    np.testing.assert_allclose(as_vector(found, 30), exact, atol=1e-8)


def test_pagerank_reaches_only_where_a_push_would_act():
    """On a long path mass decays exponentially: what is left out would hold less than ε d."""
    count = 4001
    links = np.ones(count - 1)
    path = graph_of(csr_matrix(np.diag(links, 1) + np.diag(links, -1)))
    found = personalized_pagerank(path, 2000, teleport=0.1, tolerance=1e-6)
    assert 20 < len(found.nodes) < 100
    assert found.nodes.tolist() == list(range(found.nodes[0], found.nodes[-1] + 1))


def test_conductance_and_sweep_equal_brute_force():
    ranking = personalized_pagerank(GRAPH, 5, teleport=0.01)
    profile = sweep_profile(GRAPH, ranking)
    scores = as_vector(ranking, GRAPH.num_nodes) / GRAPH.degrees
    links = GRAPH.links.toarray()
    expected = []
    for size in range(1, GRAPH.num_nodes):
        inside = np.zeros(GRAPH.num_nodes, bool)
        inside[np.argsort(-scores, kind="stable")[:size]] = True
        volumes = links[inside].sum(), links[~inside].sum()
        expected.append(links[inside][:, ~inside].sum() / min(volumes))
        assert conductance(GRAPH, np.flatnonzero(inside)) == pytest.approx(expected[-1])
    np.testing.assert_allclose(profile.conductance[:-1], expected)
    cut = sweep_cut(GRAPH, ranking, min_size=1)
    half = profile.volume[:-1] <= GRAPH.degrees.sum() / 2
    assert cut.conductance == pytest.approx(np.min(np.array(expected)[half]))
    assert conductance(GRAPH, cut.members) == pytest.approx(cut.conductance)


def test_cuts_keep_to_the_smallest_size():
    ranking = personalized_pagerank(GRAPH, 5, teleport=0.01)
    for cut in (local_cut, sweep_cut):
        assert len(cut(GRAPH, ranking, min_size=BLOCK + 1).members) > BLOCK
        assert cut(GRAPH, ranking, min_size=1000).members.size == 0


def test_local_cut_stops_where_the_conductance_rises():
    """The block of the seed, though blocks together have a lower conductance still."""
    ranking = personalized_pagerank(GRAPH, 5, teleport=0.01)
    cut = local_cut(GRAPH, ranking)
    assert np.array_equal(cut.members, np.flatnonzero(BLOCK_OF == 0))
    assert cut.conductance == pytest.approx(conductance(GRAPH, cut.members))
    assert len(sweep_cut(GRAPH, ranking).members) > 2 * BLOCK
    # The rise beyond the block is less than twentyfold.
    assert local_cut(GRAPH, ranking, min_rise=20.0).members.size == 0


def test_planted_blocks_are_recovered():
    found = conductance_clusters(GRAPH)
    assert found.sizes["cluster_label"] == NUM_BLOCKS
    labels = found["cluster"].values
    pairs = {(int(label), int(block)) for label, block in zip(labels, BLOCK_OF, strict=True)}
    # A bijection: every cluster is one block, whole.
    assert len(pairs) == NUM_BLOCKS
    assert -1 not in labels
    assert found["size"].values.tolist() == [BLOCK] * NUM_BLOCKS
    assert np.all(np.diff(found["conductance"]) >= 0)
    assert BLOCK_OF[found["seed_node"].values[labels]].tolist() == BLOCK_OF.tolist()


def test_clusters_are_found_beside_a_main_body_that_is_none():
    """Two dense groups on the rim of a Gaussian, whose own bisection has a lower conductance."""
    generator = np.random.default_rng(4)
    body = generator.normal(size=(1500, 4))
    groups = [0.15 * generator.normal(size=(90, 4)) + 5 * np.eye(4)[axis] for axis in (0, 2)]
    graph = neighbor_graph(exact_neighbors(np.concatenate([body, *groups]), 15))
    found = conductance_clusters(graph)["cluster"].values
    assert found.max() == 1
    truth = np.concatenate([np.full(1500, -1), np.zeros(90), np.ones(90)])
    agree = max(np.mean(found == truth), np.mean(np.where(found < 0, -1, 1 - found) == truth))
    assert agree > 0.99
    # The plain sweep from the middle of the body cuts the body in two.
    ranking = personalized_pagerank(graph, int(np.argmin(np.linalg.norm(body, axis=1))))
    assert len(sweep_cut(graph, ranking).members) > 500
    assert local_cut(graph, ranking).members.size == 0


def test_a_cloud_without_clusters_has_none():
    points = np.random.default_rng(5).normal(size=(1000, 5))
    found = conductance_clusters(neighbor_graph(exact_neighbors(points, 20)))
    assert found.sizes["cluster_label"] == 0
    assert np.all(found["cluster"] == -1)


def test_names_of_nodes_do_not_matter():
    order = np.random.default_rng(6).permutation(GRAPH.num_nodes)
    renamed = graph_of(csr_matrix(GRAPH.links[order][:, order]))
    place = np.argsort(order)
    seeds = np.array([0, 50, 55, 120])
    search = Search(max_conductance=1.0)
    first_seeds, first = grow_clusters(GRAPH, seeds, search)
    second_seeds, second = grow_clusters(renamed, place[seeds], search)
    assert order[second_seeds].tolist() == first_seeds
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(np.sort(order[other.members]), one.members)
        assert other.conductance == pytest.approx(one.conductance)


def test_seeds_decide_which_clusters_are_found_but_not_what_they_are():
    few = Search(seeds_per_round=3, min_yield=0.0)
    first, second = (conductance_clusters(GRAPH, seed, few)["cluster"].values for seed in (0, 1))
    for labels in (first, second):
        assert len(set(zip(labels.tolist(), BLOCK_OF.tolist(), strict=True))) == NUM_BLOCKS
    assert np.array_equal(first, conductance_clusters(GRAPH, 0, few)["cluster"].values)


def test_search_settings_are_obeyed():
    assert conductance_clusters(GRAPH, search=Search(min_size=130)).sizes["cluster_label"] == 0
    assert conductance_clusters(GRAPH, search=Search(max_conductance=0.01))["size"].size == 0
    one = Search(seeds_per_round=1, min_yield=0.5)
    assert conductance_clusters(GRAPH, search=one)["size"].size == 1


def test_bad_graphs_and_settings_are_refused():
    with pytest.raises(ValueError, match="symmetric"):
        graph_of(csr_matrix(np.triu(np.ones((3, 3)), 1)))
    with pytest.raises(ValueError, match="themselves"):
        graph_of(csr_matrix(np.ones((3, 3))))
    with pytest.raises(ValueError, match=r"≥ 0, got -1"):
        graph_of(csr_matrix(np.array([[0, -1], [-1, 0]])))
    with pytest.raises(ValueError, match="square"):
        graph_of(csr_matrix(np.ones((2, 3))))
    lonely = graph_of(csr_matrix(block_diag([np.ones((2, 2)) - np.eye(2), np.zeros((1, 1))])))
    with pytest.raises(ValueError, match="node 2 has no links"):
        personalized_pagerank(lonely, 2)
    with pytest.raises(ValueError, match="teleport must lie between 0 and 1"):
        personalized_pagerank(lonely, 0, teleport=1.0)
    with pytest.raises(ValueError, match="no links at all"):
        conductance(lonely, np.array([2]))
    with pytest.raises(ValueError, match="one less than the 5 points"):
        exact_neighbors(np.zeros((5, 2)), 5)
    with pytest.raises(ValueError, match="finite"):
        exact_neighbors(np.full((5, 2), np.nan), 2)


@pytest.mark.parametrize(
    ("module", "search"),
    [("sklearn.neighbors", exact_neighbors), ("pynndescent", approximate_neighbors)],
)
def test_missing_packages_are_named_with_their_extra(monkeypatch, module, search):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"slt-jax\[analysis\]"):
        search(np.random.default_rng(0).normal(size=(30, 20)), 3)
