"""What every test and doctest runs under: strict dtypes, and annotations that are checked."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
# For the tests that spread chains over devices; all others use the first one.
jax.config.update("jax_num_cpu_devices", 4)

# Linux gives a process 65 530 mappings by default, every compiled program takes about ten, and at
# the limit the compiler crashes with a segmentation fault: the whole suite would come close to it.
_MANY_MAPPINGS = 20_000


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import the package once, as a whole, with the hook that checks its annotations.

    The doctests of the module that happens to be collected first would otherwise import that module
    a second time, with classes other than those that the rest of the package checks against.
    """
    importlib.import_module("slt_jax")


@pytest.fixture(scope="module", autouse=True)
def forget_programs_when_there_are_many() -> Iterator[None]:
    """Unload the compiled programs of the files so far before the process cannot hold more."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
