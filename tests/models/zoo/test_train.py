"""Training the bundled model: what it writes, and that it can be repeated."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import zoo
from slt_jax.models.zoo import text, train
from slt_jax.models.zoo.source import held_out_texts, training_texts

FULL = train.Settings()
FEW = train.Settings(
    vocab_size=300, width=16, num_heads=2, length=16, batch_size=4, min_period=3, num_steps=3
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function of the seed that trains for three steps on three files, from the command line."""
    folder = tmp_path_factory.mktemp("zoo")
    # Adam of optax counts its steps with integers, which strict promotion refuses to mix.
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(train, "training_texts", lambda: training_texts()[:3])
        patch.setattr(text, "held_out_texts", lambda: held_out_texts()[:20])
        patch.setattr(train, "Settings", lambda: FEW)

        def trained(name, seed, *more):
            out = folder / name
            assert train.main(["--out", str(out), "--seed", str(seed), *more]) == 0
            return out

        yield trained


def test_writes_what_can_be_loaded_and_repeated(run):
    first = run("first", 1, "--checkpoints")
    checkpoints = slt.Checkpoints(first)
    assert checkpoints.steps == (0, 1, 2, 3)
    model = slt.models.from_hf(first)
    last = checkpoints.load(3)
    initial = checkpoints.load(0)
    again, other = slt.models.from_hf(run("again", 1)), slt.models.from_hf(run("other", 2))
    assert not list((first.parent / "again").glob("step*"))
    for name, leaf in model.params.items():
        np.testing.assert_array_equal(leaf, last[name], err_msg=name)
        np.testing.assert_array_equal(leaf, again.params[name], err_msg=name)
        assert not np.array_equal(leaf, initial[name]), name
        assert not np.array_equal(leaf, other.params[name]), name
    card = json.loads((first / "training.json").read_text())
    assert [record["step"] for record in card["checkpoints"]] == [0, 1, 2, 3]
    assert np.shape(card["checkpoints"][-1]["induction"]) == (2, 2)
    assert zoo.Vocabulary.load(first / "vocabulary.json").size == 300


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError):
        train.main(["--out", str(tmp_path)])


def test_checkpoints_are_log_spaced_and_include_both_ends():
    steps = FULL.checkpoint_steps()
    assert len(steps) >= 12
    assert (steps[0], steps[-1]) == (0, FULL.num_steps)
    later = [step for step in steps if step > 50]
    ratios = np.divide(later[1:], later[:-1])
    assert ratios.max() / ratios.min() < 1.1


def test_learning_rate_rises_stays_and_falls():
    rates = [float(FULL.learning_rate_at(jnp.int32(step))) for step in (0, 99, 2999, 4500)]
    peak = FULL.learning_rate
    np.testing.assert_allclose(rates, [peak / 100, peak, peak, peak / 2], rtol=1e-3)


def test_batches_are_stretches_of_the_text_and_depend_on_seed_and_step():
    tokens = np.arange(1000, dtype=np.int32)
    rows = train.batch_at(tokens, FEW, seed=0, step=7)
    assert rows.shape == (4, 16)
    assert (rows[:, 0] == zoo.START).all()
    assert (np.diff(rows[1:, 1:], axis=1) == 1).all()
    np.testing.assert_array_equal(rows, train.batch_at(tokens, FEW, seed=0, step=7))
    others = [train.batch_at(tokens, FEW, seed, step) for seed, step in ((1, 7), (0, 8))]
    assert all(not np.array_equal(rows, other) for other in others)


def test_a_quarter_of_a_batch_repeats_stretches_of_random_length():
    tokens = np.arange(1000, dtype=np.int32)
    copied = [train.batch_at(tokens, FEW, 0, step)[0, 1:] for step in range(50)]
    periods = [len(np.unique(row)) for row in copied]
    assert set(periods) == set(range(3, 8))
    for row, period in zip(copied, periods, strict=True):
        np.testing.assert_array_equal(row, row[np.arange(15) % period])
