"""What every test and doctest runs under: strict dtypes, and annotations that are checked."""

import importlib

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import the package once, as a whole, with the hook that checks its annotations.

    The doctests of the module that happens to be collected first would otherwise import that module
    a second time, with classes other than those that the rest of the package checks against.
    """
    importlib.import_module("slt_jax")
