"""The map of the tokens. UMAP compiles for half a minute, so that the map itself is a slow test."""

import importlib.util
import sys

import numpy as np
import pytest

from slt_jax.analysis import approximate_neighbors, exact_neighbors, umap_embedding

from .responses import make_response


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"slt-jax\[analysis\]"):
        umap_embedding(make_response(), 0, num_neighbors=5)


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="one less than the 40 tokens, got 45"):
        umap_embedding(make_response(), 0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
@pytest.mark.filterwarnings("default")
def test_map_is_repeatable_and_keeps_groups_together():
    response = make_response(num_sequences=20)
    values = response["susceptibility"].values
    values[:, :100] += 100
    embedding = umap_embedding(response, 3, num_neighbors=15)
    assert embedding.dims == ("token", "axis")
    assert embedding["dataset"].values.tolist() == response["dataset"].values.tolist()
    repeated = umap_embedding(response, 3, num_neighbors=15)
    assert np.array_equal(embedding.values, repeated.values)
    other = umap_embedding(response, 4, num_neighbors=15)
    assert not np.allclose(embedding.values, other.values)
    nearest = exact_neighbors(embedding.values, 1)[:, 0]
    assert np.array_equal(nearest < 100, np.arange(200) < 100)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pynndescent") is None, reason="pynndescent is not installed"
)
@pytest.mark.filterwarnings("default")
def test_approximate_neighbours_are_mostly_the_nearest():
    points = np.random.default_rng(0).normal(size=(2000, 12))
    exact, found = exact_neighbors(points, 15), approximate_neighbors(points, 15, seed=1)
    assert found.shape == exact.shape
    common = [len(set(one) & set(other)) for one, other in zip(exact, found, strict=True)]
    assert np.mean(common) > 0.9 * 15
    assert np.array_equal(found, approximate_neighbors(points, 15, seed=1))
