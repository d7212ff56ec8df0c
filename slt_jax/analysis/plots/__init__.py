"""Pictures of results. Needs matplotlib: ``pip install 'slt-jax[plot]'``.

Every function gives a figure that belongs to no window and draws on nothing else: show it in a
notebook, or save it with ``figure.savefig(path)``. Colours can be told apart by colour-blind
readers; negative values are blue, positive ones red, and white is zero.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "slt_jax.analysis.plots needs matplotlib: pip install 'slt-jax[plot]'"
    ) from error

from slt_jax.analysis.plots.data_map import plot_data_map as plot_data_map
from slt_jax.analysis.plots.embedding import plot_embedding as plot_embedding
from slt_jax.analysis.plots.heatmap import plot_component_heatmap as plot_component_heatmap
from slt_jax.analysis.plots.influence import plot_influence as plot_influence
from slt_jax.analysis.plots.loadings import plot_loadings as plot_loadings
from slt_jax.analysis.plots.traces import plot_llc_traces as plot_llc_traces
