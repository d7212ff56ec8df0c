"""Runs and results on disk: checkpoints, zarr, and files of other software."""
