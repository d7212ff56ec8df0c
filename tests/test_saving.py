"""Results in files: what is read back is what was written."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest
import xarray

import slt_jax as slt
from slt_jax.storage import results
from tests.helpers import BATCHES, DATA, KERNEL, KEY, POSTERIOR, sample
from tests.storage.interruption import interrupt_at, sample_again


@pytest.fixture(scope="module")
def result():
    return slt.llc_from(sample(), surroundings=False)


def estimate(store, num_draws=100):
    options = {"num_draws": num_draws, "num_burnin_steps": 50, "progress": False}
    return slt.llc(POSTERIOR, KERNEL, BATCHES, KEY, surroundings=False, store=store, **options)


def test_a_result_is_read_back_as_it_was(result, tmp_path):
    slt.save(result, tmp_path / "llc")
    found = slt.load(tmp_path / "llc")
    assert found == result
    assert str(found) == str(result)
    assert found.to_dict() == result.to_dict()
    assert found.to_xarray().identical(result.to_xarray())
    assert found - result == result - found
    for field in dataclasses.fields(slt.LLCResult):
        if field.name != "source":
            there, here = getattr(result, field.name), getattr(found, field.name)
            assert type(there) is type(here), field.name
    assert found.gap.tobytes() == result.gap.tobytes()
    assert np.isnan(found.control)


def test_results_that_differ_are_not_equal(result):
    for name, value in {"ess": result.ess + 1, "gap": result.gap + 1, "adapting": True}.items():
        assert dataclasses.replace(result, **{name: value}) != result
    changed = dict(result.metadata) | {"n_beta": 1.0}
    assert dataclasses.replace(result, metadata=changed) != result
    assert result != "LLC"


def test_what_needs_the_run_says_where_to_get_it(result, tmp_path):
    assert result.run.num_draws == 30
    slt.save(result, tmp_path / "llc")
    with pytest.raises(ValueError, match=r"read from a file, .* store=slt"):
        slt.extend(slt.load(tmp_path / "llc").run, 10)


def test_files_are_open_to_xarray(result, tmp_path):
    slt.save(result, tmp_path / "llc")
    with xarray.open_datatree(tmp_path / "llc", engine="zarr", consolidated=False) as tree:
        assert tree.attrs["slt_jax_result"] == "LLCResult"
        assert json.loads(tree.attrs["metadata"])["fingerprint"] == result.metadata["fingerprint"]
        assert tree["mean"].item() == result.mean
        np.testing.assert_array_equal(tree["loss_trace"], result.init_loss + result.gap)
        assert tree["loss_trace"].attrs["units"] == "nats"


def test_an_estimate_is_kept_with_its_runs(tmp_path):
    store = slt.Store(tmp_path)
    whole = estimate(store)
    assert store.status.startswith("complete: LLCResult")
    assert slt.load(tmp_path) == whole
    with pytest.warns(UserWarning, match="reused, complete since"):
        again = estimate(store)
    assert again.gap.tobytes() == whole.gap.tobytes()
    assert "reused, complete since" in str(again)
    assert dataclasses.replace(again, metadata=whole.metadata) == whole


def test_influences_are_kept_with_their_runs(tmp_path):
    store, options = slt.Store(tmp_path / "store"), {"num_draws": 30, "num_burnin_steps": 5}
    query = tuple(column[:4] for column in DATA)
    result = slt.bif(
        *(POSTERIOR, KERNEL, BATCHES, KEY), query=query, store=store, progress=False, **options
    )
    assert slt.load(tmp_path / "store") == result
    slt.save(slt.LossKernel(result), tmp_path / "kernel")
    assert slt.load(tmp_path / "kernel") == slt.LossKernel(result)


def test_a_result_of_fewer_draws_is_not_that_of_a_run_that_goes_on(tmp_path):
    store = slt.Store(tmp_path, every_draws=10)
    estimate(store)

    def fail(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slt.llc(
            *(POSTERIOR, KERNEL, BATCHES, KEY),
            num_draws=150,
            num_burnin_steps=50,
            progress=False,
            store=store,
            hooks=[fail],
        )
    with pytest.raises(slt.StoreIncomplete, match=r"incomplete: at step 200 of 200"):
        slt.load(tmp_path)
    assert estimate(store, num_draws=150).num_draws == 150
    assert slt.load(tmp_path).num_draws == 150


def test_an_incomplete_store_has_no_result(tmp_path):
    store = slt.Store(tmp_path, every_draws=8)
    interrupt_at(store, 20)
    with pytest.raises(slt.StoreIncomplete, match=r"incomplete: at step 16 of 40\. Make the call"):
        slt.load(tmp_path)
    run = sample_again(store)
    tree = slt.load(tmp_path)
    assert tree["traces/gap"].values.tobytes() == run.traces["gap"].tobytes()
    assert tree["traces/gap"].coords["component"].values.tolist() == ["weights"]
    error = tree["statistics/losses/standard_error"]
    np.testing.assert_array_equal(error, run.statistics["losses"].standard_error)


def test_the_result_of_several_runs_waits_for_all(tmp_path):
    store = slt.Store(tmp_path)
    assert store.status == "empty"
    sample_again(store.within("first"))
    with pytest.raises(slt.StoreIncomplete, match="1 runs begun, 1 of them complete"):
        slt.load(tmp_path)
    whole = slt.llc_from(sample(), surroundings=False)
    store.keep("LLCResult", whole.to_tree())
    assert slt.load(tmp_path) == whole
    sample_again(store.within("second"))
    with pytest.raises(slt.StoreIncomplete, match="2 runs begun, 2 of them complete"):
        slt.load(tmp_path)


def test_other_things_are_neither_overwritten_nor_read(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(slt.StoreMismatch, match="is not a result of slt_jax: choose another"):
        slt.save(result, tmp_path)
    with pytest.raises(slt.StoreMismatch, match="there is no result of slt_jax at"):
        slt.load(tmp_path)
    with pytest.raises(TypeError, match="a float cannot be saved"):
        slt.save(1.0, tmp_path / "number")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def edit_root(path, **changes):
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"] |= changes
    (path / "zarr.json").write_text(json.dumps(root))


def test_results_of_newer_versions_are_refused(result, tmp_path):
    slt.save(result, tmp_path / "llc")
    edit_root(tmp_path / "llc", slt_jax_result="NewResult")
    with pytest.raises(slt.StoreMismatch, match="holds a NewResult, which this version"):
        slt.load(tmp_path / "llc")
    edit_root(tmp_path / "llc", slt_jax_result_format=2)
    with pytest.raises(slt.StoreMismatch, match=r"written by a newer slt_jax \(format 2"):
        slt.load(tmp_path / "llc")


def test_damaged_results_are_named(result, tmp_path):
    slt.save(result, tmp_path / "llc")
    gap = next(path for path in (tmp_path / "llc" / "gap").rglob("*") if path.name == "0")
    (gap if gap.is_file() else gap / "0").write_bytes(b"x")
    with pytest.raises(slt.StoreDamaged, match="llc cannot be read"):
        slt.load(tmp_path / "llc")
    slt.save(result, tmp_path / "llc")
    assert slt.load(tmp_path / "llc") == result
    with pytest.raises(ValueError, match="not the tree of an LLCResult: it lacks"):
        slt.LLCResult.from_tree(xarray.DataTree())


def test_a_full_disk_leaves_the_older_result(result, tmp_path, monkeypatch):
    slt.save(result, tmp_path / "llc")
    other = dataclasses.replace(result, mean=result.mean + 1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(xarray.DataTree, "to_zarr", full)
        with pytest.raises(OSError, match=r"No space left .* What was there before still is"):
            slt.save(other, tmp_path / "llc")
        with pytest.raises(slt.NotStored, match="No space left") as caught:
            estimate(slt.Store(tmp_path / "store"))
    assert caught.value.result.num_draws == 100
    assert slt.load(tmp_path / "llc") == result


def test_a_result_is_there_even_if_its_replacement_was_killed(result, tmp_path):
    slt.save(result, tmp_path / "llc")
    (tmp_path / "llc").rename(results._former(tmp_path / "llc"))
    assert slt.load(tmp_path / "llc") == result
