"""First runs: the bundled transformer, and networks that memorise random labels."""

import importlib.util

_NEEDED = {
    "matplotlib": "matplotlib",
    "orbax.checkpoint": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "zarr": "zarr",
}


def missing_packages() -> list[str]:
    """Name the packages of the ``quickstart`` extra that are not installed."""
    return [name for module, name in _NEEDED.items() if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # A part of a package that is not installed.
        return False
