"""From results to pictures. The modules are imported by name, since they need optional packages.

``slt_jax.analysis.plots`` needs matplotlib: ``pip install 'slt-jax[plot]'``.
"""
