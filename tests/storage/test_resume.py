"""A run that was cut anywhere, and taken up again, is the run that was not."""

import signal
import threading

import numpy as np
import pytest
import xarray

import slt_jax as slt
from tests.helpers import assert_same, numbers, sample
from tests.storage.interruption import (
    NUM_BURNIN_STEPS,
    NUM_DRAWS,
    STEP_BY_STEP,
    interrupt_at,
    sample_again,
    sample_reused,
)

# In the burn-in, at its end, after one draw, and within batches of 2, 3 and 4 observations.
CUTS = (4, 10, 23, 39)


@pytest.mark.parametrize("step", CUTS)
def test_a_cut_run_goes_on_to_the_same_bits(tmp_path, whole, step):
    store = slt.Store(tmp_path, every_draws=9)
    interrupt_at(store, step)
    assert store.status == f"incomplete: at step {step - step % 9} of 40"
    assert_same(numbers(sample_again(store)), whole)
    assert store.status.startswith("complete: 30 draws")


def test_a_store_may_be_named_relative_to_the_current_folder(tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = slt.Store("here", every_draws=9)
    interrupt_at(store, 10)
    assert_same(numbers(sample_again(store)), whole)
    assert str(store).startswith("here: complete")


def test_a_run_cut_again_and_again(tmp_path, whole):
    store = slt.Store(tmp_path, every_draws=8)
    for step in (9, 10, 18, 36):
        interrupt_at(store, step)
    run = sample_again(store)
    assert_same(numbers(run), whole)
    assert run.metadata["store"] == str(tmp_path)
    assert run.metadata["store_use"] == "resumed at step 32"
    assert f"{tmp_path}: resumed at step 32" in str(run)


def test_a_run_cut_before_its_first_checkpoint_begins_anew(tmp_path, whole):
    store = slt.Store(tmp_path)
    interrupt_at(store, 25)
    assert store.status == "incomplete: at step 0 of 40"
    assert_same(numbers(sample_again(store)), whole)


def test_keeping_a_run_changes_none_of_its_numbers(complete, whole):
    run = sample_reused(complete)
    assert_same(numbers(run), whole)


def test_a_complete_run_is_read_back_and_says_so(complete, whole):
    with pytest.warns(UserWarning, match="reused, complete since .*; nothing was sampled"):
        run = sample_again(complete)
    assert_same(numbers(run), whole)
    assert run.metadata["store_use"] == "reused"
    with pytest.warns(UserWarning, match="reused"):
        run = sample(store=complete)
    result = slt.llc_from(run, surroundings=False)
    assert "reused" in str(run)
    assert "reused, complete since" in str(result)
    assert result.to_xarray().attrs["store_use"] == "reused"


def test_a_complete_run_is_extended(complete):
    run = sample_again(complete, num_draws=37)
    assert_same(numbers(run), numbers(sample(num_draws=37, execution=STEP_BY_STEP)))
    assert complete.status.startswith("complete: 37 draws")
    assert run.metadata["store_use"] == "resumed at step 40"


def test_fewer_draws_than_there_are_are_refused(complete):
    with pytest.raises(slt.StoreMismatch, match="at step 40, and this call asks for 39 only"):
        sample_again(complete, num_draws=29)
    assert complete.status.startswith("complete: 30 draws")


def test_extending_a_run_into_a_store(tmp_path, whole):
    short = sample(num_draws=12, execution=STEP_BY_STEP)
    run = slt.extend(short, 18, progress=False, store=slt.Store(tmp_path))
    assert_same(numbers(run), whole)
    with xarray.open_datatree(tmp_path / "run.zarr", engine="zarr", consolidated=False) as tree:
        assert_same(tree["traces/gap"].values, whole["traces"]["gap"])
    with pytest.warns(UserWarning, match="reused"):
        again = sample_again(slt.Store(tmp_path))
    assert_same(numbers(again), whole)


def test_a_run_that_a_hook_ended_is_complete_for_calls_with_hooks(tmp_path, whole):
    store = slt.Store(tmp_path)
    options = {"hooks": [lambda progress: progress.num_draws == 12], "store": store}
    ended = sample(execution=STEP_BY_STEP, **options)
    assert ended.num_draws == 12
    with pytest.warns(UserWarning, match="reused"):
        again = sample(execution=STEP_BY_STEP, **options)
    assert_same(numbers(again), numbers(ended))
    assert_same(numbers(sample_again(store)), whole)


def test_several_chains_that_die_are_kept_as_they_are(tmp_path):
    """The step size is far too large: all chains become non-finite, at steps of their own."""
    kernel = slt.sgld(1.0)
    store = slt.Store(tmp_path, every_draws=8)
    interrupt_at(store, 30, kernel=kernel)
    run = sample_again(store, kernel=kernel)
    assert not run.health.alive.all()
    expected = sample(kernel=kernel, execution=STEP_BY_STEP)
    assert_same(numbers(run), numbers(expected))
    with xarray.open_datatree(tmp_path / "run.zarr", engine="zarr", consolidated=False) as tree:
        assert_same(tree["traces/gap"].values, expected.traces["gap"])


def test_termination_saves_and_ends(tmp_path, whole, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def terminate(progress):
        if progress.step == 21:
            signal.raise_signal(signal.SIGTERM)

    store = slt.Store(tmp_path)
    with pytest.raises(SystemExit) as caught:
        sample(store=store, hooks=[terminate], execution=STEP_BY_STEP)
    assert caught.value.code == 143
    assert "the same command, goes on from there" in capsys.readouterr().err
    assert store.status == "incomplete: at step 22 of 40"
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(numbers(sample_again(store)), whole)


def test_termination_of_a_run_that_fails_is_passed_on(tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))

    def fail(progress):
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("a hook that fails")

    try:
        with pytest.raises(ValueError, match="a hook that fails"):
            sample(store=slt.Store(tmp_path), hooks=[fail], execution=STEP_BY_STEP)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_a_run_is_kept_without_a_handler(tmp_path, whole):
    found, before = [], signal.getsignal(signal.SIGTERM)

    def work():
        def look(progress):
            found.append(signal.getsignal(signal.SIGTERM))

        found.append(sample(store=slt.Store(tmp_path), hooks=[look], execution=STEP_BY_STEP))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    *handlers, run = found
    assert set(handlers) == {before}
    assert_same(numbers(run), whole)


def test_series_are_readable_while_a_run_is_incomplete(left, whole):
    hierarchy = left.path / "run.zarr"
    with xarray.open_datatree(hierarchy, engine="zarr", consolidated=False) as tree:
        assert not tree.attrs["completed"]
        count = tree.attrs["num_draws"]
        assert count == 14
        gap = tree["traces/gap"].values
        assert_same(gap[..., :count], whole["traces"]["gap"][..., :count])
        assert gap.shape[-1] == NUM_DRAWS
        assert np.isnan(gap[..., -1]).all()
        assert tree["burnin/gap"].shape[-1] == NUM_BURNIN_STEPS
        assert tree["statistics/losses/value"].dims[:2] == ("component", "chain")


def test_runs_within_a_store_do_not_meet(tmp_path):
    store = slt.Store(tmp_path, every_draws=7)
    inner = store.within("l0 attn/q")
    assert inner.path.parent == tmp_path / "runs"
    assert inner.every_draws == 7
    assert inner.path != store.within("l0 attn").path
