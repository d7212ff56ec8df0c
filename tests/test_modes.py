"""JAX's other modes: each gives the numbers of the default mode, to the bit where it says so.

The tests run under strict dtype promotion (see ``conftest.py``). The mode users start with is that
of the process in ``test_compiles.py``, where whole estimates are compiled and made under guards.
"""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from tests.helpers import (
    BATCHES,
    DATA,
    KEY,
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


def test_nothing_is_read_from_the_device_unasked(monkeypatch):
    """Guards let reads pass where the device is the host: here every read must be a device_get."""
    array, asked, unasked = type(jax.device_put(1.0)), [0], []

    def get(tree, device_get=jax.device_get):
        asked[0] += 1
        try:
            return device_get(tree)
        finally:
            asked[0] -= 1

    def value(self, read=array._value.fget):
        if not asked[0]:
            unasked.extend(
                f"{frame.filename}:{frame.lineno}"
                for frame in traceback.extract_stack()
                if "/slt_jax/" in frame.filename
            )
        return read(self)

    monkeypatch.setattr(jax, "device_get", get)
    monkeypatch.setattr(array, "_value", property(value))
    decayed = make_posterior(weight_decay=1.0, bounding_box=9.0)
    result = slt.llc(decayed, slt.sghmc(1e-3, 1.0), BATCHES, KEY, num_draws=40, progress=False)
    _ = str(result), result.to_dict(), result.run.statistics, str(slt.extend(result.run, 3))
    assert unasked == []


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
