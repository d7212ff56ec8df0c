"""Disks that are full, at every kind of write: a clear error, and nothing lost."""

import errno
import json
import os

import orbax.checkpoint
import pytest
import zarr.storage

import slt_jax as slt
from slt_jax.storage import checkpoints
from tests.helpers import assert_same, numbers, sample
from tests.storage.interruption import STEP_BY_STEP, sample_again


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_arrays(*arguments, **options):
    """What orbax says of a full disk."""
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write to file: No space left on device")


def full_from(monkeypatch, owner, name, number, failure):
    """Let a function that writes fail from its call of this number on."""
    real, calls = getattr(owner, name), []

    def write(*arguments, **options):
        calls.append(name)
        return (real if len(calls) < number else failure)(*arguments, **options)

    monkeypatch.setattr(owner, name, write)


LOCAL = zarr.storage._local
WRITES = {
    "appending": (LOCAL, "_put", 12, full),
    "appending later": (LOCAL, "_put", 25, full),
    "estimates": (LOCAL, "_put", 2, full),
    "the root": (LOCAL, "_put", 60, full),
    "arrays": (orbax.checkpoint.Checkpointer, "save", 1, full_for_arrays),
    "arrays later": (orbax.checkpoint.Checkpointer, "save", 2, full_for_arrays),
    "digests": (checkpoints, "digests", 3, full),
    "the manifest": (checkpoints, "write_json", 1, full),
    "the manifest later": (json, "dump", 2, full),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_full_disk_loses_nothing(left, whole, monkeypatch, write):
    with monkeypatch.context() as patch:
        full_from(patch, *write)
        with pytest.raises(slt.NotStored, match="No space left on device") as caught:
            sample_again(left)
    message, run = str(caught.value), caught.value.run
    assert f"could not write to {left.path}" in message
    assert "Make room" in message
    # The run in memory goes on; and so does that on the disk, when there is room.
    remaining = 30 - run.num_draws
    if remaining:
        assert_same(numbers(slt.extend(run, remaining, progress=False)), whole)
    assert not left.status.startswith("complete")
    saved = [folder.name for folder in (left.path / "checkpoints").iterdir()]
    assert [name for name in saved if name.isdigit()]
    assert_same(numbers(sample_again(left)), whole)


def test_a_full_disk_at_the_start_is_an_error_before_anything_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(LOCAL, "_put", full)
    with pytest.raises(OSError, match=r"No space left on device.*Nothing was sampled"):
        sample(store=slt.Store(tmp_path), execution=STEP_BY_STEP)


def test_a_full_disk_while_resuming_is_an_error(left, monkeypatch):
    monkeypatch.setattr(LOCAL, "_put", full)
    with pytest.raises(OSError, match=r"could not write.*checkpoint at step 24 is intact"):
        sample_again(left)
