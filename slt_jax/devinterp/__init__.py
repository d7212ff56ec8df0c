"""Samples of devinterp, for the estimators of slt_jax."""

from slt_jax.devinterp.reader import read_devinterp as read_devinterp
