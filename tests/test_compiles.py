"""What compiles: a constant number of programs, none for new numbers, and no memory per draw."""

import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.kernels.sgld import Sgld
from tests.helpers import (
    DATA,
    PARAMS,
    POSTERIOR,
    compiled_programs,
    head,
    make_posterior,
    network_loss,
    sample,
)

ROOT = Path(__file__).parent.parent
MAX_PROGRAMS = 6

FRESH_PROCESS = """
import json
import jax
import jax.numpy as jnp
import optax
import slt_jax as slt
from tests.helpers import BATCHES, KEY, POSTERIOR, compiled_programs, make_posterior, network_loss

def masked_loss(params, batch):
    return slt.Losses(network_loss(params, batch), (batch[1] > 0).astype(jnp.float32))

def programs(posterior, step_size, num_draws, **options):
    with compiled_programs() as names:
        slt.llc(posterior, slt.sgld(step_size), BATCHES, KEY, num_chains=8, num_draws=num_draws,
                num_burnin_steps=20, progress=False, **options)
    return list(names)

posteriors = POSTERIOR, make_posterior(n_beta=9.0, localization=3.0)
everything = make_posterior(masked_loss, weight_decay=1.0, bounding_box=9.0)
# Under guards, since this is where whole estimates are made from nothing.
jax.config.update("jax_numpy_rank_promotion", "raise")
with jax.transfer_guard("disallow"), jax.debug_nans(True):
    report = {
        "first": programs(posteriors[0], 1e-3, 40),
        "other numbers": programs(posteriors[1], 2e-3, 40),
        "more draws": programs(posteriors[0], 1e-3, 2000),
        "everything": programs(
            everything, optax.cosine_decay_schedule(1e-3, 100), 44, survey_examples=20
        ),
    }
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def in_a_fresh_process():
    """The programs that three estimates compile, one after the other, in a process of their own."""
    finished = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(finished.stdout)


def test_an_estimate_compiles_a_few_programs(in_a_fresh_process):
    for kind in ("first", "everything"):
        assert 1 <= len(in_a_fresh_process[kind]) <= MAX_PROGRAMS, in_a_fresh_process


def test_an_estimate_with_other_numbers_compiles_nothing(in_a_fresh_process):
    assert in_a_fresh_process["other numbers"] == []


def test_an_estimate_of_more_draws_compiles_only_r_hat_for_so_many(in_a_fresh_process):
    assert in_a_fresh_process["more draws"] == ["jit(_diagnose)"]


class CountingSgld(Sgld):
    """SGLD that counts how often its step is traced."""

    def step(self, key, target, state, batch):
        TRACES.append(self)
        return super().step(key, target, state, batch)


TRACES: list[Sgld] = []
PLAIN = {"observables": None, "collect": None}


def counting_sgld(step_size):
    kernel = slt.sgld(step_size)
    return CountingSgld(**vars(kernel))


@pytest.fixture(scope="module")
def warm():
    """What a first run of this structure traced and compiled."""
    TRACES.clear()
    with compiled_programs() as names:
        sample(kernel=counting_sgld(1e-3), **PLAIN)
    return len(TRACES), list(names)


def test_the_step_is_traced_twice_at_most(warm):
    traces, names = warm
    assert 1 <= traces <= 2
    assert 1 <= len(names) <= MAX_PROGRAMS


def moved(params):
    return {name: leaf + np.float32(0.01) for name, leaf in params.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": lambda: counting_sgld(2e-3)},
        {"posterior": lambda: make_posterior(n_beta=3.0)},
        {"posterior": lambda: make_posterior(n_beta=7, localization=1)},
        {"posterior": lambda: make_posterior(localization=np.float64(9.0))},
        {"posterior": lambda: make_posterior(params=moved(PARAMS))},
        {"posterior": lambda: make_posterior(params=jax.tree.map(jnp.asarray, PARAMS))},
        {"key": lambda: jax.random.key(5)},
        {"batches": lambda: slt.Batches(tuple(column + 1 for column in DATA), 8)},
        {"num_draws": lambda: 700},
        {"num_burnin_steps": lambda: 0},
        {"num_burnin_steps": lambda: 300},
    ],
    ids=lambda change: next(iter(change)),
)
def test_new_numbers_trace_and_compile_nothing(warm, change):
    options = {"kernel": counting_sgld(1e-3)} | {name: make() for name, make in change.items()}
    options |= PLAIN
    TRACES.clear()
    with compiled_programs() as names:
        sample(**options)
    assert names == []
    assert TRACES == []


def test_extending_compiles_nothing_however_often(warm):
    run = sample(kernel=counting_sgld(1e-3), **PLAIN)
    TRACES.clear()
    with compiled_programs() as names:
        for _ in range(2):
            run = slt.extend(run, 300, progress=False)
    assert names == []
    assert TRACES == []


def test_arrays_inside_a_loss_are_arguments_of_its_programs():
    def scaled(scale, params, batch):
        return scale * network_loss(params, batch)

    sample(make_posterior(eqx.Partial(scaled, np.float32(1.0))), num_draws=2, **PLAIN)
    with compiled_programs() as names:
        sample(make_posterior(eqx.Partial(scaled, np.float32(2.0))), num_draws=2, **PLAIN)
    assert names == []


def test_a_component_of_the_same_shape_compiles_nothing():
    sample(POSTERIOR.restrict(head(0)))
    with compiled_programs() as names:
        sample(POSTERIOR.restrict(head(1)))
    assert names == []


def test_components_that_differ_in_the_same_axes_compile_nothing_elsewhere():
    def heads_of(kind):
        block = slt.Block("attention", (3, 3, 2, 2), (3, 1, 1, 2))
        places = {f"head {number}": (0, kind, number, 0) for number in range(2)}
        return {name: slt.Restriction([block.at(place)]) for name, place in places.items()}

    sample(components=heads_of(0), num_draws=2)
    with compiled_programs() as names:
        sample(components=heads_of(2), num_draws=2)
    assert names == []


def bytes_alive():
    return sum(array.nbytes for array in jax.live_arrays())


def test_the_device_holds_no_more_after_more_draws():
    held = []
    for num_draws in (100, 2000):
        before = bytes_alive()
        run = sample(num_draws=num_draws, collect=slt.Positions())
        held.append(bytes_alive() - before)
        shapes = [array.shape for array in jax.live_arrays()]
        assert not any(num_draws in shape for shape in shapes), "nothing has an axis of draws"
        assert run.positions["output"].shape[2] == num_draws
        del run
    assert held[0] == held[1]
