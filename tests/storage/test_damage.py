"""Checkpoints and series that are not what they were."""

import json
import shutil

import pytest

import slt_jax as slt
from tests.helpers import assert_same, numbers
from tests.storage.interruption import interrupt_at, sample_again


def checkpoints(store):
    found = (store.path / "checkpoints").iterdir()
    return sorted(folder for folder in found if folder.name.isdigit())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


DAMAGES = {
    "a file cut short": lambda folder: truncate(largest_file(folder / "arrays")),
    "one bit": lambda folder: flip_a_bit(largest_file(folder / "arrays")),
    "a file gone": lambda folder: largest_file(folder / "arrays").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: truncate(folder / "manifest.json"),
    "nothing left": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(left, whole, damage):
    assert [int(folder.name) for folder in checkpoints(left)] == [16, 24]
    damage(checkpoints(left)[-1])
    with pytest.warns(UserWarning, match="checkpoint at step 24 .* is damaged .* the one before"):
        run = sample_again(left)
    assert_same(numbers(run), whole)
    assert str(run).endswith("resumed at step 16, the checkpoint after it being damaged")
    assert not list((left.path / "checkpoints").glob("damaged-*"))


def test_two_checkpoints_are_kept(left):
    interrupt_at(left, 36)
    assert [int(folder.name) for folder in checkpoints(left)] == [24, 32]


def test_without_a_checkpoint_that_can_be_read_a_store_is_refused(left):
    for folder in checkpoints(left):
        (folder / "manifest.json").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(slt.StoreDamaged, match="was at step 24, but none of its checkpoints"),
    ):
        sample_again(left)
    with pytest.raises(slt.StoreDamaged, match="was at step 24, but none of its checkpoints"):
        sample_again(left)


def test_series_that_were_changed_are_noticed(left):
    chunk = next(
        path for path in (left.path / "run.zarr/traces/gap/c").rglob("*") if path.is_file()
    )
    flip_a_bit_of_first_draw(chunk)
    with (
        pytest.warns(UserWarning, match="series traces/gap has changed"),
        pytest.raises(slt.StoreDamaged, match="none of its checkpoints can be read"),
    ):
        sample_again(left)


def flip_a_bit_of_first_draw(chunk):
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(bytes(content))


def test_a_missing_chunk_is_not_taken_for_draws(left):
    shutil.rmtree(left.path / "run.zarr/observed/positions/value.1/c")
    with (
        pytest.warns(UserWarning, match=r"series observed/positions/value\.1 has changed"),
        pytest.raises(slt.StoreDamaged),
    ):
        sample_again(left)


def test_draws_after_the_checkpoint_may_be_lost(left, whole):
    """What was appended since is made again, whatever became of it."""
    gap = left.path / "run.zarr/traces/gap"
    assert json.loads((left.path / "run.zarr/zarr.json").read_text())["attributes"]["step"] == 24
    chunk = next(path for path in (gap / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[4 * 15 : 4 * 30] = bytes(4 * 15)
    chunk.write_bytes(bytes(content))
    assert_same(numbers(sample_again(left)), whole)


def test_what_a_killed_process_left_unfinished_is_cleared_away(left, whole):
    unfinished = left.path / "checkpoints" / "unfinished-32" / "arrays"
    unfinished.mkdir(parents=True)
    (unfinished / "half").write_bytes(b"half a checkpoint")
    stray = left.path / "run.zarr" / "zarr.0f0f.partial"
    stray.write_bytes(b"half a root")
    assert_same(numbers(sample_again(left)), whole)
    assert not unfinished.exists()
    assert not stray.exists()
