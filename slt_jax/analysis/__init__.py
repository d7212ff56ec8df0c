"""From results to what they mean: decomposition, clusters, patterns, tests, pictures, reports.

The functions take what ``to_xarray()`` gives and know nothing of how it was sampled::

    chi = susceptibilities.to_xarray()
    standard = slt.analysis.center_tokens(slt.analysis.zscore_components(chi))
    components = slt.analysis.principal_components(standard)
    slt.analysis.top_tokens(components["scores"].sel(principal_component=2), text)
    slt.analysis.plots.plot_loadings(components)

Pictures are in ``slt_jax.analysis.plots`` and need matplotlib (``slt-jax[plot]``); UMAP and exact
neighbours in many dimensions need ``slt-jax[analysis]``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from slt_jax.analysis.clustering import Search as Search
from slt_jax.analysis.clustering import conductance_clusters as conductance_clusters
from slt_jax.analysis.clustering import grow_clusters as grow_clusters
from slt_jax.analysis.decomposition import match_components as match_components
from slt_jax.analysis.decomposition import principal_components as principal_components
from slt_jax.analysis.decomposition import project as project
from slt_jax.analysis.graph import Graph as Graph
from slt_jax.analysis.graph import conductance as conductance
from slt_jax.analysis.graph import graph_of as graph_of
from slt_jax.analysis.neighbors import approximate_neighbors as approximate_neighbors
from slt_jax.analysis.neighbors import exact_neighbors as exact_neighbors
from slt_jax.analysis.neighbors import neighbor_graph as neighbor_graph
from slt_jax.analysis.pagerank import PageRank as PageRank
from slt_jax.analysis.pagerank import personalized_pagerank as personalized_pagerank
from slt_jax.analysis.patterns import token_patterns as token_patterns
from slt_jax.analysis.separation import Contrast as Contrast
from slt_jax.analysis.separation import Separation as Separation
from slt_jax.analysis.separation import auc as auc
from slt_jax.analysis.separation import contrast_tokens as contrast_tokens
from slt_jax.analysis.separation import separate as separate
from slt_jax.analysis.standardization import center_tokens as center_tokens
from slt_jax.analysis.standardization import zscore_components as zscore_components
from slt_jax.analysis.sweep import Cut as Cut
from slt_jax.analysis.sweep import local_cut as local_cut
from slt_jax.analysis.sweep import sweep_cut as sweep_cut
from slt_jax.analysis.token_text import TokenText as TokenText
from slt_jax.analysis.top_tokens import TokenInContext as TokenInContext
from slt_jax.analysis.top_tokens import top_tokens as top_tokens
from slt_jax.analysis.umap import umap_embedding as umap_embedding

if TYPE_CHECKING:
    from slt_jax.analysis import plots as plots


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("slt_jax.analysis.plots")
    raise AttributeError(f"module 'slt_jax.analysis' has no attribute {name!r}")
