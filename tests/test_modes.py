"""JAX's other modes: each gives the numbers of the default mode, to the bit where it says so.

The tests run under strict dtype promotion (see ``conftest.py``). The mode users start with is that
of the process in ``test_compiles.py``, where whole estimates are compiled and made under guards.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from tests.helpers import (
    DATA,
    OBSERVABLES,
    PARAMS,
    assert_close,
    assert_same,
    make_posterior,
    numbers,
    sample,
)


@pytest.fixture(scope="module")
def default():
    return numbers(sample())


def test_without_implicit_transfers(default):
    key = jax.random.key(20)
    with jax.transfer_guard("disallow"):
        run = sample(make_posterior(), slt.sgld(1e-3), key=key, num_draws=13)
        run = slt.extend(run, 17, progress=False)
        found = numbers(run)
    assert_same(found, default)


def test_the_guard_is_on():
    guard = jax.transfer_guard("disallow")
    with guard, pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        jax.jit(jnp.sin)(np.ones(3, np.float32))


def test_batches_from_the_host_are_placed_explicitly(default):
    with jax.transfer_guard("disallow"):
        run = sample(execution=slt.Execution(device_data_bytes=0))
    assert_same(numbers(run), default)


def test_with_checks_for_nans(default):
    with jax.debug_nans(True):
        assert_same(numbers(sample()), default)


def test_with_wide_numbers_allowed(default):
    with jax.enable_x64(True):
        assert_same(numbers(sample()), default)


def test_with_weights_and_losses_in_float64():
    def wide_loss(params, batch):
        hidden = jnp.tanh(batch[0] @ params["attention"])
        return jnp.square(hidden @ params["output"] - batch[1])

    narrow = sample()
    with jax.enable_x64(True):
        params = {name: leaf.astype(np.float64) for name, leaf in PARAMS.items()}
        data = tuple(column.astype(np.float64) for column in DATA)
        target = make_posterior(wide_loss, params)
        assert target.loss_fn(target.params, data).dtype == np.float64
        probe = slt.Probe(tuple(column[:5] for column in data))
        observables = {"losses": slt.LossValues(probe, OBSERVABLES["losses"].statistic)}
        wide = sample(target, batches=slt.Batches(data, 8), observables=observables)
    assert wide.traces["gap"].dtype == np.float32
    assert_close(dict(wide.traces), dict(narrow.traces), 1e-4)
    assert_close(wide.positions, narrow.positions, 1e-5)
    expected = narrow.statistics["losses"].value
    assert_close(wide.statistics["losses"].value, expected, 1e-3)
