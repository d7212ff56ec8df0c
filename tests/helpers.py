"""One small network, the options most tests sample it with, and how runs are compared.

A new loss, kernel structure or shape costs a compiled program of seconds. The tests of the engine
therefore share this network, its observables and its number of chains, and vary what is traced.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax import monitoring

import slt_jax as slt
from slt_jax.observables import GapPair

NUM_EXAMPLES = 64
BATCH_SIZE = 8
NUM_CHAINS = 4
NUM_INPUTS = 3
NUM_HEADS = 2
NUM_HIDDEN = 12

KEY = jax.random.key(20)

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def network_loss(params: Any, batch: Any) -> jax.Array:
    """Squared errors of a network of one hidden layer, its weights used as they are given."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["attention"].astype(jnp.float32))
    return jnp.square(hidden @ params["output"].astype(jnp.float32) - targets)


def _problem() -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(1)
    params = {
        "attention": generator.normal(size=(NUM_INPUTS, NUM_HIDDEN)).astype(np.float32),
        "output": generator.normal(size=NUM_HIDDEN).astype(np.float32),
    }
    inputs = generator.normal(size=(NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32)
    noise = 0.3 * generator.normal(size=NUM_EXAMPLES)
    targets = np.tanh(inputs @ params["attention"]) @ params["output"] + noise
    return params, (inputs, targets.astype(np.float32))


PARAMS, DATA = _problem()
KERNEL = slt.sgld(1e-3)
BATCHES = slt.Batches(DATA, BATCH_SIZE)
PROBE = slt.Probe(tuple(column[:5] for column in DATA))


def make_posterior(loss: Any = network_loss, params: Any = PARAMS, **settings: Any) -> Any:
    """Give the posterior of the network, at settings that keep chains near w*."""
    return slt.LocalPosterior(loss, params, **({"n_beta": 20.0, "localization": 50.0} | settings))


POSTERIOR = make_posterior()


def head(number: int) -> slt.Restriction:
    """Select query, key and value of one head of the fused leaf ``[inputs, 3 · heads · 2]``."""
    view, size = (NUM_INPUTS, 3, NUM_HEADS, 2), (NUM_INPUTS, 3, 1, 2)
    return slt.Restriction([slt.Block("attention", view, size, (0, 0, number, 0))])


def read_output(params: Any, examples: Any) -> jax.Array:
    """Observe the output weights."""
    return params["output"]


OBSERVABLES = {
    "losses": slt.LossValues(PROBE, slt.Mean(batch_length=4)),
    "output": slt.Observable(read_output, PROBE, slt.Variance(batch_length=3), every=2),
    "fresh": GapPair(every=3),
}
"""Sums, draws and fresh batches, in batches and at intervals that do not divide each other."""


def sample(
    posterior: Any = POSTERIOR,
    kernel: Any = KERNEL,
    batches: Any = BATCHES,
    key: Any = KEY,
    **options: Any,
) -> slt.Run:
    """Sample with the shared options: 4 chains, 30 draws after 10 steps, everything observed."""
    shared = {
        "num_chains": NUM_CHAINS,
        "num_draws": 30,
        "num_burnin_steps": 10,
        "observables": OBSERVABLES,
        "collect": slt.Positions(),
        "progress": False,
    }
    return slt.sample(posterior, kernel, batches, key, **(shared | options))


def numbers(run: slt.Run) -> dict[str, Any]:
    """Give every number that a run reports, and the state it goes on from."""
    return {
        "traces": dict(run.traces),
        "burnin_gap": run.burnin_gap,
        "statistics": {name: tuple(estimate) for name, estimate in run.statistics.items()},
        "health": tuple(run.health),
        "state": run.carry.state,
        "partials": run.carry.partials,
        "smallest_step_size": run.smallest_step_size,
    }


def assert_same(first: Any, second: Any) -> None:
    """Check that two pytrees are equal to the bit, and name the leaves that are not."""
    paths, structure = jax.tree_util.tree_flatten_with_path(first)
    others, other_structure = jax.tree.flatten(second)
    assert structure == other_structure
    unequal = [
        jax.tree_util.keystr(path)
        for (path, leaf), other in zip(paths, others, strict=True)
        if not same_bits(leaf, other)
    ]
    assert unequal == []


def same_bits(first: Any, second: Any) -> bool:
    """Tell whether two arrays have the same dtype, shape and bits."""
    first, second = np.asarray(first), np.asarray(second)
    alike = first.dtype == second.dtype and first.shape == second.shape
    return alike and first.tobytes() == second.tobytes()


def of_chains(run: slt.Run, chains: Any) -> dict[str, Any]:
    """Give the traces and draws of some of the chains of a run."""
    picked = {name: trace[:, chains] for name, trace in run.traces.items()}
    return picked | {name: draws[:, chains] for name, draws in run.positions.items()}


def assert_close(first: Any, second: Any, relative: float) -> None:
    """Check that corresponding leaves differ by ``relative`` times the largest at most."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        other = dict(jax.tree_util.tree_leaves_with_path(second))[path]
        scale = max(np.max(np.abs(leaf)), np.finfo(np.float32).tiny)
        error = np.max(np.abs(np.asarray(leaf, np.float64) - np.asarray(other, np.float64)))
        assert error <= relative * scale, f"{jax.tree_util.keystr(path)}: {error / scale:.1e}"


@contextlib.contextmanager
def unchecked_annotations() -> Iterator[None]:
    """Let arguments of the wrong type reach the library's own checks, as a user's do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Collect the names of the programs that XLA compiles inside the block."""
    names: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == _COMPILE_EVENT:
            names.append(str(details.get("fun_name", "unnamed")))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        monitoring.unregister_event_duration_listener(listen)
