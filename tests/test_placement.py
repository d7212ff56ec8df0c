"""Chains spread over devices: the numbers of one device, from devices that each do their share."""

from typing import Literal

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import slt_jax as slt
from slt_jax import sampling
from slt_jax.placement import BY_ROW, BY_SECOND_AXIS, EVERYWHERE, hand_over, place
from tests.helpers import (
    BATCHES,
    DATA,
    KEY,
    NUM_CHAINS,
    PARAMS,
    assert_close,
    assert_same,
    compiled_programs,
    head,
    make_posterior,
    network_loss,
    numbers,
    sample,
    unchecked_annotations,
)
from tests.storage.interruption import interrupt_at

if jax.local_device_count() < NUM_CHAINS:
    pytest.skip(f"needs {NUM_CHAINS} devices of a kind", allow_module_level=True)

HEADS = {f"head {number}": head(number) for number in range(2)}


def laid_out(chain, rows: Literal["vmap", "map"] = "map", **options):
    layout = None if chain is None else slt.Layout(chain=chain)
    return slt.Execution(rows=rows, layout=layout, **options)


def series(run):
    return {"burn-in": run.burnin_gap, "state": run.carry.state} | dict(run.traces)


@pytest.fixture(scope="module")
def alone():
    """The run of one device, one row after the other."""
    return sample(execution=laid_out(None))


@pytest.mark.parametrize("chain", [1, 2, 4])
def test_rows_one_after_the_other_give_the_same_bits_on_any_number_of_devices(alone, chain):
    assert_same(numbers(sample(execution=laid_out(chain))), numbers(alone))


def test_rows_at_once_give_the_same_numbers_to_rounding():
    together = sample(execution=laid_out(None, rows="vmap"))
    assert_close(series(together), series(sample(execution=laid_out(2, rows="vmap"))), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"components": HEADS},
        {"batches": slt.Batches(DATA, 8, per_chain=True)},
        {"kernel": slt.sghmc(1e-3, friction=1.0)},
        {"kernel": slt.sgld(1e-3, preconditioner=slt.rms())},
    ],
    ids=["components", "batches of their own", "momentum", "preconditioner"],
)
def test_every_row_takes_what_is_its_own_to_its_device(options):
    short = options | {"num_draws": 6, "num_burnin_steps": 3}
    expected = sample(execution=laid_out(None, steps_per_chunk=4), **short)
    assert_same(
        numbers(sample(execution=laid_out(2, steps_per_chunk=4), **short)), numbers(expected)
    )


def test_batches_from_the_host_are_the_same():
    execution = laid_out(2, device_data_bytes=0, steps_per_chunk=7)
    assert_same(numbers(sample(execution=execution)), numbers(sample(execution=laid_out(2))))


def test_every_device_does_its_share(monkeypatch):
    """Both the state and what is measured of half of the rows lie on each of two devices."""
    seen, run_chunk = [], sampling.run_chunk

    def watched(*arguments, **options):
        carry, records = run_chunk(*arguments, **options)
        for leaf in jax.tree.leaves((carry.state, carry.alive, carry.partials, records.traces)):
            shards = {shard.device: shard.data.size for shard in leaf.addressable_shards}
            seen.append((leaf.size, shards))
        return carry, records

    monkeypatch.setattr(sampling, "run_chunk", watched)
    sample(execution=laid_out(2), num_draws=3, num_burnin_steps=1)
    for size, shards in seen:
        assert shards == dict.fromkeys(jax.local_devices()[:2], size // 2)


def test_a_run_lies_where_it_lay_before(alone):
    spread = sample(execution=laid_out(2))
    for before, after in zip(
        jax.tree.leaves(alone.carry), jax.tree.leaves(spread.carry), strict=True
    ):
        assert after.sharding == before.sharding
    assert float(slt.llc_from(spread).mean) == float(slt.llc_from(alone).mean)


def test_a_run_goes_on_in_another_layout(alone):
    begun = sample(execution=laid_out(2), num_draws=11)
    assert_same(
        numbers(slt.extend(begun, 19, execution=laid_out(4), progress=False)), numbers(alone)
    )
    assert_same(
        numbers(slt.extend(begun, 19, execution=laid_out(None), progress=False)), numbers(alone)
    )
    # Continued as it was, twice: the run in the user's hands is not consumed.
    for _ in range(2):
        assert_same(numbers(slt.extend(begun, 19, progress=False)), numbers(alone))


def test_a_hook_keeps_runs_that_stay_valid(alone):
    kept = []
    hooks = [lambda progress: kept.append(progress.snapshot()) and None]
    sample(execution=laid_out(2, steps_per_chunk=10), hooks=hooks)
    assert_same(numbers(slt.extend(kept[1], 20, progress=False)), numbers(alone))


def test_chunks_are_shorter_where_devices_share_a_processor(alone, monkeypatch):
    monkeypatch.setattr(sampling, "_LONGEST_SIDE_BY_SIDE", 7)
    seen = {1: [], 2: []}
    for chain, steps in seen.items():
        hooks = [lambda progress, steps=steps: steps.append(progress.step) and None]
        assert_same(numbers(sample(execution=laid_out(chain), hooks=hooks)), numbers(alone))
    assert max(np.diff(seen[2])) == 7 < max(np.diff(seen[1]))


def test_an_interrupted_run_goes_on_in_another_layout(alone, tmp_path):
    interrupt_at(slt.Store(tmp_path, every_draws=4), 21)
    resumed = sample(store=slt.Store(tmp_path, every_draws=4), execution=laid_out(2))
    assert resumed.metadata["store_use"] == "resumed at step 20"
    assert_close(series(resumed), series(alone), 1e-5)


def test_a_spread_run_is_kept_and_read_back(alone, tmp_path):
    sample(store=slt.Store(tmp_path), execution=laid_out(2))
    with pytest.warns(UserWarning, match="reused"):
        again = sample(store=slt.Store(tmp_path))
    assert_same(numbers(again), numbers(alone))


def test_other_numbers_compile_nothing():
    short = {"num_draws": 6, "num_burnin_steps": 3, "execution": laid_out(2)}
    key, posterior = jax.random.key(1), make_posterior(n_beta=7.0)
    sample(**short)
    with compiled_programs() as names:
        sample(posterior=posterior, key=key, **short)
    assert names == []


def test_nothing_moves_unasked():
    """Under a transfer guard: all that goes to a device is put there by name."""
    with jax.transfer_guard("disallow"):
        sample(execution=laid_out(2, steps_per_chunk=8))


def test_susceptibilities_are_the_same():
    options = {
        "components": HEADS,
        "probes": {"few": tuple(column[:6] for column in DATA)},
        "num_chains": NUM_CHAINS,
        "num_draws": 20,
        "num_burnin_steps": 5,
        "progress": False,
    }

    def measure(chain):
        posterior, execution = make_posterior(), laid_out(chain)
        return slt.susceptibilities(
            posterior, slt.sgld(1e-3), BATCHES, KEY, execution=execution, **options
        )

    one, two = measure(None), measure(2)
    for name in ("susceptibility", "standard_error", "control"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_arrays_go_where_they_are_told():
    tree = {"rows": np.arange(8.0), "later": np.zeros((3, 4)), "all": np.arange(3)}
    where = {"rows": BY_ROW, "later": BY_SECOND_AXIS, "all": EVERYWHERE}
    shapes = {
        name: {shard.data.shape for shard in leaf.addressable_shards}
        for name, leaf in place(slt.Layout(chain=2), tree, where).items()
    }
    assert shapes == {"rows": {(4,)}, "later": {(3, 2)}, "all": {(3,)}}
    assert place(None, tree, where) is tree


def pointers(leaf):
    return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]


on_a_processor = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="only parts of a CPU share their memory"
)


@on_a_processor
def test_parts_of_a_processor_look_at_one_copy_of_the_weights():
    weights = jax.device_put(np.arange(4096.0, dtype=np.float32))
    placed = place(slt.Layout(chain=2), {"weights": weights}, EVERYWHERE)["weights"]
    assert set(pointers(placed)) == {weights.unsafe_buffer_pointer()}


@on_a_processor
@pytest.mark.parametrize("chain", [1, 2])
def test_what_is_handed_over_is_overwritten_and_nowhere_else(chain):
    layout, where = slt.Layout(chain=chain), {"state": BY_ROW, "step": EVERYWHERE}
    values = np.arange(8192.0, dtype=np.float32).reshape(4, -1)
    state, keys = jax.device_put(values), jax.random.split(jax.random.key(0), 4)
    words = jax.device_get(jax.random.key_data(keys))
    given = {"state": (state, keys), "step": jax.device_put(np.int32(3))}
    held = hand_over(layout, given, where)
    assert state.is_deleted()
    assert keys.is_deleted()
    np.testing.assert_array_equal(jax.random.key_data(held["state"][1]), words)
    assert held["step"] == 3
    (share, _), before = held["state"], pointers(held["state"][0])
    after = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)(share)
    assert pointers(after) == before
    np.testing.assert_array_equal(after, values + 1)


def test_without_a_layout_nothing_is_handed_over():
    given = {"state": jax.device_put(np.zeros(3))}
    assert hand_over(None, given, BY_ROW) is given
    assert not given["state"].is_deleted()


def test_more_devices_than_there_are():
    count = 1 + jax.local_device_count()
    with pytest.raises(ValueError, match=rf"needs {count} devices, .*jax_num_cpu_devices"):
        sample(execution=laid_out(count), num_chains=count)


def test_chains_that_cannot_be_shared_equally(alone):
    with pytest.raises(ValueError, match="num_chains must be a multiple of 2, got 3"):
        sample(execution=laid_out(2), num_chains=3)
    with pytest.raises(ValueError, match="num_chains must be a multiple of 3, got 4"):
        slt.extend(alone, 1, execution=laid_out(3), progress=False)


def test_weights_that_are_spread_already():
    mesh = jax.make_mesh((2,), ("model",), devices=jax.local_devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = PARAMS | {"attention": jax.device_put(PARAMS["attention"], sharding)}
    with pytest.raises(ValueError, match=r"spread over devices already, as NamedSharding.*Layout"):
        sample(make_posterior(params=params), execution=laid_out(2))
    # So are those that a loss holds.
    loss = eqx.Partial(lambda held, params, batch: network_loss(held | params, batch), params)
    with pytest.raises(ValueError, match="spread over devices already"):
        sample(make_posterior(loss, {"output": PARAMS["output"]}), execution=laid_out(2))


@pytest.mark.parametrize("chain", [0, -1, 1.5, True])
def test_a_number_of_devices_that_is_none(chain):
    with unchecked_annotations(), pytest.raises(ValueError, match="number of devices"):
        slt.Layout(chain=chain)


def test_a_layout_that_is_none():
    with unchecked_annotations(), pytest.raises(TypeError, match=r"must be an slt\.Layout"):
        slt.Execution(layout=2)  # pyright: ignore[reportArgumentType]
