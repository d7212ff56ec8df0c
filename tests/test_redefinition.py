"""A loss that is made anew for every call is warned about, once, and never kept alive."""

import gc
import warnings
import weakref

import equinox as eqx
import jax
import numpy as np
import pytest

from slt_jax import redefinition
from slt_jax.preparation import prepare
from slt_jax.redefinition import note_use
from tests.helpers import BATCHES, KERNEL, KEY, make_posterior, network_loss

COPY = "new function object of the same code"


@pytest.fixture(autouse=True)
def _nothing_was_used_before(monkeypatch):
    monkeypatch.setattr(redefinition, "_last_used", weakref.WeakKeyDictionary())
    monkeypatch.setattr(redefinition, "_warned", weakref.WeakSet())


def warnings_of(*losses):
    """The warnings that these losses give when they are used one after the other."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for loss in losses:
            note_use(loss)
    return [str(warning.message) for warning in caught]


def test_a_fresh_function_in_every_call_is_warned_about_once_and_where_it_was_used():
    def estimate():
        posterior = make_posterior(lambda params, batch: network_loss(params, batch))
        prepare(posterior, KERNEL, BATCHES, KEY, {"num_chains": 1})

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate()
        assert caught == []
        estimate()
        estimate()
    (warning,) = caught
    assert COPY in str(warning.message)
    assert "Define the loss once" in str(warning.message)
    assert warning.filename == __file__


def around(held):
    return lambda params, batch: network_loss(params, batch) + 0 * len(str(held))


@pytest.mark.parametrize(
    "make",
    [
        lambda: around(None),
        lambda: around(2.0),
        lambda: around(network_loss),
        lambda: around(around(1)),
        lambda: around(np.random.default_rng().normal(size=3)),
        lambda: around(jax.device_put(np.ones(3))),
        lambda: eqx.Partial(around(1), np.ones(2)),
    ],
    ids=["nothing", "number", "function", "closure", "array", "on the device", "partial"],
)
def test_closures_over_the_same_are_copies(make):
    losses = [make() for _ in range(3)]
    (message,) = warnings_of(*losses)
    assert COPY in message
    assert "'around.<locals>.<lambda>'" in message


def test_what_holds_something_else_is_another_loss():
    pairs = [(object(), object()), (1, 2), (1, 1.0), (around(1), around(2)), (np.ones(3), [1.0])]
    for first, second in [*pairs, (np.ones(3), np.ones(4)), (np.ones(3), np.ones(3, np.float32))]:
        assert warnings_of(around(first), around(second)) == []


def test_one_loss_used_again_and_again_is_as_it_should_be():
    loss = around(1)
    assert warnings_of(loss, loss, jax.tree_util.Partial(loss), eqx.Partial(loss, 1.0)) == []


def test_nothing_is_kept_alive():
    loss = around(1)
    note_use(loss)
    gone = weakref.ref(loss)
    del loss
    gc.collect()
    assert gone() is None
    assert warnings_of(around(1)) == []
