"""Which chains of a run an estimate rests on, and what they share."""

import numpy as np

from slt_jax.run import ChainsDiverged, Run

SINGLE_CHAIN = (
    "one chain only: the errors come from batches of its draws, which do not show whether other "
    "chains would agree"
)


def count_of_chains(num_chains: int) -> str:
    """Write how many chains there are.

    >>> count_of_chains(1), count_of_chains(4)
    ('1 chain', '4 chains')
    """
    return f"{num_chains} chain" + ("" if num_chains == 1 else "s")


def component_number(run: Run, component: str | None) -> int:
    """Give the number of a component by its name, or of the only one.

    Raises:
        ValueError: a run without draws, several components and no name, or an unknown name.
    """
    names = list(run.components)
    if run.num_draws == 0:
        raise ValueError("the run has no draws: it was stopped during burn-in")
    if component is None:
        if len(names) > 1:
            raise ValueError(f"the run has {len(names)} components: name one of {names}")
        return 0
    if component not in names:
        raise ValueError(f"unknown component {component!r}: the run has {names}")
    return names.index(component)


def live_chains(run: Run, number: int, drop_diverged: bool, estimator: str) -> np.ndarray:
    """Tell which chains stayed finite, bool ``[chain]``.

    Args:
        run: the run.
        number: of the component.
        drop_diverged: whether chains may be left out.
        estimator: named in the error, such as ``"llc_from"``.

    Raises:
        ChainsDiverged: chains may not be left out and some must be, or none is left.
    """
    alive = run.health.alive[number]
    if not alive.all() and not drop_diverged:
        raise ChainsDiverged(
            f"{run.health}: an average over them is not an estimate. Lower the step size, raise "
            "the localization, or go on without them: "
            f"slt.{estimator}(error.run, drop_diverged=True)",
            run,
        )
    if not alive.any():
        raise ChainsDiverged(f"{run.health}: no chain is left to estimate from", run)
    return alive


def are_independent(run: Run) -> bool:
    """Tell whether chains share nothing but w*: no minibatches."""
    return run.batches.per_chain or run.kernel.full_batch


def draw_weights(run: Run, number: int, alive: np.ndarray) -> np.ndarray:
    """Give the weight of every draw, float64 ``[draw]``: the time that it stands for (D16)."""
    return run.traces["weight"][number][alive].mean(axis=0).astype(np.float64)
