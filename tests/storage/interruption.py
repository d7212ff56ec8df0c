"""Runs that end before their time, and what they are compared with."""

import contextlib
import warnings

import slt_jax as slt
from tests.helpers import sample

STEP_BY_STEP = slt.Execution(steps_per_chunk=1)
NUM_BURNIN_STEPS, NUM_DRAWS = 10, 30


class Interruption(Exception):
    """What ends a process, as far as the loop can tell."""


def interrupt_at(store, step, **options):
    """Sample into a store, ending without notice after this step."""

    def hook(progress):
        if progress.step == step:
            raise Interruption

    with contextlib.suppress(Interruption):
        sample(store=store, hooks=[hook], execution=STEP_BY_STEP, **options)
        raise AssertionError(f"step {step} was never reached")


def sample_again(store, **options):
    """Make the call of an interrupted run again."""
    return sample(store=store, execution=STEP_BY_STEP, **options)


def sample_reused(store, **options):
    """Make the call of a complete run again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="store .* reused")
        return sample_again(store, **options)
