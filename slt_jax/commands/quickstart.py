"""``slt-jax quickstart``: a first run, on the bundled transformer or on digits."""

import argparse
import math
import os
import sys
from pathlib import Path

import jax

import slt_jax as slt
from slt_jax import quickstart as package
from slt_jax.commands import common

_TRANSFORMER, _DIGITS = "transformer", "digits"
_FOLDERS = {_TRANSFORMER: "slt-jax-quickstart", _DIGITS: "slt-jax-quickstart-digits"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slt-jax quickstart``."""
    parser.add_argument(
        "what",
        nargs="?",
        choices=_FOLDERS,
        default=_TRANSFORMER,
        help="transformer: the bundled one, whole and head by head (default); digits: three "
        "networks that memorise more and more random labels",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for results and pictures, from which the same command goes on (default: "
        f"{' or '.join(_FOLDERS.values())})",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Run the quickstart that was asked for.

    Returns:
        its exit status, or 2 if a package is missing.

    Raises:
        ImportError, OSError, TypeError, ValueError: the folder cannot be used.
    """
    missing = package.missing_packages()
    if missing:
        print(
            f"slt-jax quickstart needs {' and '.join(missing)}: pip install 'slt-jax[quickstart]'",
            file=sys.stderr,
        )
        return 2
    output = arguments.output or _FOLDERS[arguments.what]
    if arguments.what == _DIGITS:
        from slt_jax.quickstart import digits

        return digits.run(output, seed=arguments.seed)
    from slt_jax.quickstart import transformer

    settings = transformer.Settings()
    settings = settings._replace(layout=_layout(settings.num_chains))
    return transformer.run(Path(output), seed=arguments.seed, settings=settings)


def _layout(num_chains: int) -> slt.Layout | None:
    """Give every chain a device of its own, as far as there are processors or accelerators.

    The operations of one chain of a small model are too small to keep two processors busy.
    """
    # A container may be lent fewer than there are.
    lent = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = math.gcd(num_chains, lent or 1)
    common.split_processor(devices)
    return slt.Layout(chain=devices) if 1 < devices <= jax.local_device_count() else None
