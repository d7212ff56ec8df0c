"""What traces of losses will take on the host and on disk, said before anything is sampled."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from slt_jax.data import Batches
from slt_jax.examples import abstract_value
from slt_jax.observables import AbstractObservable
from slt_jax.posterior import LocalPosterior

_BYTES_PER_ENTRY = 28
_MIN_DRAWS = 8


def announce_traces(
    posterior: LocalPosterior,
    batches: Batches,
    observables: Mapping[str, AbstractObservable],
    options: Any,
    out: str | Path | None,
) -> None:
    """Print the size of traces and matrices, unless progress is off; refuse what cannot fit.

    Raises:
        ValueError: examples that the loss does not take, too few draws for an error, or traces
            larger than the host's memory.
        OSError: matrices larger than the room on the disk of ``out``.
    """
    rows = [num_rows(name, posterior, batches, o) for name, o in observables.items()]
    every = next(iter(observables.values())).every
    num_chains = options.get("num_chains", 4)
    num_draws = -(-options.get("num_draws", 1000) // every)
    check_num_draws(num_draws)
    # Once as it comes from the device, once stacked.
    traces = 2 * 4 * num_chains * num_draws * sum(rows)
    matrices = _BYTES_PER_ENTRY * rows[0] * rows[-1]
    if options.get("progress", True):
        shape = " + ".join(f"{count:,}" for count in rows)
        print(
            f"{shape} rows at {num_chains} × {num_draws:,} draws: {traces / 1e6:,.1f} MB of "
            f"traces, {matrices / 1e6:,.1f} MB of matrices",
            file=sys.stderr,
        )
    if "SC_PHYS_PAGES" in os.sysconf_names and traces > _physical_memory():
        raise ValueError(
            f"the traces would take {traces / 1e9:.1f} GB, this host has "
            f"{_physical_memory() / 1e9:.1f} GB: take fewer draws, measure every so many with "
            "every=…, or fewer rows"
        )
    if out is not None and matrices > (free := shutil.disk_usage(_existing(Path(out))).free):
        raise OSError(
            f"the matrices take {matrices / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB left"
        )


def check_num_draws(num_draws: int) -> None:
    """Raise ValueError unless there are enough measured draws per chain for a standard error."""
    if num_draws < _MIN_DRAWS:
        raise ValueError(
            f"a standard error needs at least {_MIN_DRAWS} measured draws per chain, got "
            f"{num_draws}: raise num_draws or measure more often"
        )


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def num_rows(
    name: str, posterior: LocalPosterior, batches: Batches, observable: AbstractObservable
) -> int:
    """Give the number of values of an observable, without computing any.

    Raises:
        ValueError: the loss does not take its examples.
    """
    shapes = abstract_value(name, posterior, batches, observable)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
