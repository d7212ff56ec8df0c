"""A program that samples into a store, to be killed.

``python -m tests.storage.program STORE OUT DRAWS`` prints a line when sampling begins, makes a
checkpoint every ten draws, and writes the arrays of the run to OUT when it is complete.
"""

import sys
import warnings

import jax
import numpy as np

import slt_jax as slt
from tests.helpers import numbers, sample

EXECUTION = slt.Execution(steps_per_chunk=5)


def run_in(store, num_draws):
    return sample(store=store, num_draws=num_draws, execution=EXECUTION)


def arrays(run):
    """Every number of a run, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(numbers(run))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def main(path, out, num_draws):
    warnings.filterwarnings("ignore", message="store .* reused")
    print("begins", flush=True)
    run = run_in(slt.Store(path, every_draws=10), int(num_draws))
    np.savez(out, **arrays(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
