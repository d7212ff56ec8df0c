"""Where the figures of a result file come from: command, versions, machine, settings.

report = provenance(problem, sys.modules[__name__]) | {"result": ...}
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

import slt_jax

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "xarray", "optax", "scikit-learn", "matplotlib")


def provenance(*modules: ModuleType) -> dict[str, Any]:
    """Give the command, the versions, the machine, and the constants in capitals of modules."""
    script = Path(sys.argv[0])
    return {
        "command": " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "slt_jax": slt_jax.__version__}
        | {name: found for name in PACKAGES if (found := _version(name))},
        "machine": f"{platform.machine()}, {len(_processors())} processors used",
        "device": jax.devices()[0].device_kind,
        "settings": {
            name: value._asdict() if hasattr(value, "_asdict") else value
            for module in modules
            for name, value in vars(module).items()
            if name.isupper() and isinstance(value, int | float | str | tuple | dict)
        },
    }


def told(report: dict[str, Any]) -> str:
    """Write it as the last lines of a Markdown file."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"`{report['command']}` on {report['device']} ({report['machine']}); {versions}."


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
