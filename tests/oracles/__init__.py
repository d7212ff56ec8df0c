"""Exact answers the engine is tested against.

Nothing here imports the engine: NumPy, SciPy and the formulas only, so that an
agreement between the two is an agreement between two derivations.
"""
