"""Batches: uniform subsets that are a pure function of (key, step), and how they reach the device.

The chi-square tests reject a correct generator with probability 1e-5 each, 5e-5 together; their
seeds are constants.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import slt_jax as slt
from slt_jax.data import batch_key, uniform_subset
from slt_jax.inputs import Feed
from slt_jax.sampling import _chunk_length
from tests.helpers import (
    BATCHES,
    DATA,
    KEY,
    NUM_CHAINS,
    NUM_EXAMPLES,
    assert_same,
    numbers,
    sample,
    unchecked_annotations,
)

FALSE_ALARM = 1e-5
NUM_DRAWS = 20_000


def subsets(num_examples, size):
    """Many subsets, int ``[draw, size]``."""
    draw = jax.vmap(lambda key: uniform_subset(key, num_examples, size))
    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(3), NUM_DRAWS)))


def assert_uniform(counts):
    """Reject equal cell probabilities with probability FALSE_ALARM if they hold."""
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("num_examples", "size"), [(5, 2), (7, 4), (6, 5)])
def test_every_subset_is_equally_likely(num_examples, size):
    drawn = np.sort(subsets(num_examples, size), axis=1)
    assert np.all(np.diff(drawn, axis=1) > 0), "no example twice"
    assert drawn.min() == 0
    assert drawn.max() == num_examples - 1
    cells = {cell: i for i, cell in enumerate(itertools.combinations(range(num_examples), size))}
    counts = np.bincount([cells[tuple(row)] for row in drawn.tolist()], minlength=len(cells))
    assert_uniform(counts)


def test_single_examples_and_pairs_of_a_larger_set_are_equally_likely():
    drawn = subsets(40, 6)
    assert all(len(set(row)) == 6 for row in drawn[:500].tolist())
    # One pair per subset, at random: a subset is in no particular order, but its places differ.
    pair = np.random.default_rng(4).permuted(drawn, axis=1)[:, :2]
    assert_uniform(np.bincount(pair[:, 0], minlength=40))
    first, last = np.sort(pair, axis=1).T
    pairs = np.bincount(first * 40 + last, minlength=1600)
    assert_uniform(pairs[[a * 40 + b for a, b in itertools.combinations(range(40), 2)]])


def test_the_whole_set_is_everything_once():
    assert sorted(uniform_subset(jax.random.key(0), 9, 9).tolist()) == list(range(9))


def test_a_batch_is_a_pure_function_of_key_and_step():
    step = jnp.int32(7)
    first = BATCHES.indices(KEY, step)
    assert np.array_equal(first, slt.Batches(DATA, 8).indices(KEY, step))
    assert not np.array_equal(first, BATCHES.indices(KEY, step + 1))
    assert not np.array_equal(first, BATCHES.indices(jax.random.key(21), step))
    assert first.dtype == jnp.int32


def test_streams_of_purposes_and_chains_differ():
    keys = [batch_key(KEY, purpose) for purpose in ("batches", "fresh batches")]
    keys += [batch_key(KEY, "batches", jnp.int32(chain)) for chain in range(3)]
    words = [tuple(jax.random.key_data(key).tolist()) for key in [KEY, *keys]]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(("num_examples", "size"), [(12, 4), (13, 4), (5, 5)])
def test_epoch_order_shows_every_example_once_per_epoch(num_examples, size):
    order = slt.epoch_order(num_examples, size)
    per_epoch = num_examples // size
    drawn = [order(KEY, step).tolist() for step in range(3 * per_epoch)]
    epochs = [
        [*itertools.chain(*drawn[i : i + per_epoch])] for i in range(0, len(drawn), per_epoch)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == per_epoch * size
        assert set(epoch) <= set(range(num_examples))
    assert epochs[0] != epochs[1] or num_examples == size
    batches = slt.Batches(np.zeros(num_examples, np.float32), size, order=order)
    assert not batches.independent
    assert batches.indices(KEY, 1).tolist() == order(KEY, 1).tolist()


def test_runs_use_a_given_order():
    order = slt.epoch_order(NUM_EXAMPLES, 8)
    batches = slt.Batches(DATA, 8, order=order)
    run = sample(batches=batches, num_draws=2, num_burnin_steps=0)
    uniform = sample(num_draws=2, num_burnin_steps=0)
    # The noise does not depend on the order, the gradient of the first batch does.
    assert np.array_equal(run.traces["noise_norm"], uniform.traces["noise_norm"])
    assert not np.array_equal(run.traces["gradient_norm"], uniform.traces["gradient_norm"])


WEIGHTS = np.random.default_rng(0).uniform(0, 2, NUM_EXAMPLES).astype(np.float32)
OWN_BATCHES = slt.Batches(DATA, 8, weights=WEIGHTS, per_chain=True)


@pytest.mark.parametrize("batches", [BATCHES, OWN_BATCHES], ids=["shared", "per chain, weighted"])
def test_batches_gathered_by_the_host_are_the_same_to_the_bit(batches):
    on_device = sample(batches=batches)
    on_host = sample(batches=batches, execution=slt.Execution(device_data_bytes=0))
    assert_same(numbers(on_device), numbers(on_host))


def test_the_form_of_the_data_does_not_matter(tmp_path):
    inputs, targets = DATA
    np.save(tmp_path / "inputs.npy", inputs)
    mapped = (np.load(tmp_path / "inputs.npy", mmap_mode="r"), targets)
    rows = [(x, y) for x, y in zip(inputs, targets, strict=True)]
    expected = numbers(sample())
    for form in (mapped, tuple(map(jnp.asarray, DATA)), rows):
        assert_same(numbers(sample(batches=slt.Batches(form, 8))), expected)


def test_chains_share_batches_unless_they_are_told_not_to():
    options = {"num_draws": 3, "num_burnin_steps": 0}
    shared = sample(**options).traces["gradient_norm"]
    own = sample(batches=OWN_BATCHES, **options).traces["gradient_norm"]
    # All chains stand at w* before the first step: equal batches give equal gradients.
    assert np.all(shared[0, :, 0] == shared[0, 0, 0])
    assert len(set(own[0, :, 0].tolist())) == own.shape[1]


def test_chunks_of_large_batches_are_cut_to_what_memory_holds():
    """A chunk that gathers 256 batches of 3 MB would take 768 MB of the device."""
    row = 100_000
    wide = slt.Batches(np.zeros((NUM_EXAMPLES, row), np.float32), 8)
    run = sample()
    lengths = [
        _chunk_length(run, Feed(wide, KEY, None, NUM_CHAINS, on_device_bytes, False, None))
        for on_device_bytes in (0, 2**28)
    ]
    assert lengths == [2**28 // (8 * 4 * row), 256]


@pytest.mark.parametrize("size", [0, -1, NUM_EXAMPLES + 1])
def test_batch_size_must_fit_the_data(size):
    with pytest.raises(ValueError, match=f"between 1 and the {NUM_EXAMPLES} examples"):
        slt.Batches(DATA, size)


@pytest.mark.parametrize("size", [2.5, True, "8", None])
def test_batch_size_must_be_an_integer(size):
    with unchecked_annotations(), pytest.raises(TypeError, match="batch_size must be an integer"):
        slt.Batches(DATA, size)


@pytest.mark.parametrize(
    "weights",
    [
        np.full(NUM_EXAMPLES, np.nan),
        np.full(NUM_EXAMPLES, -1.0),
        np.zeros(NUM_EXAMPLES),
        np.r_[np.inf, np.ones(NUM_EXAMPLES - 1)],
    ],
)
def test_weights_must_be_finite_and_positive_somewhere(weights):
    with pytest.raises(ValueError, match="finite, at least 0, and not all 0"):
        slt.Batches(DATA, 8, weights=weights)
    with pytest.raises(ValueError, match="finite, at least 0, and not all 0"):
        slt.Probe(DATA, weights)


@pytest.mark.parametrize("shape", [(), (NUM_EXAMPLES - 1,), (1, NUM_EXAMPLES)])
def test_weights_must_have_one_entry_per_example(shape):
    with pytest.raises(ValueError, match="one entry per example"):
        slt.Batches(DATA, 8, weights=np.ones(shape))


def test_rows_of_any_shape_of_numbers_come_with_their_weights():
    weights = np.arange(1, NUM_EXAMPLES + 1, dtype=np.float32)[:, None] * np.ones(
        (1, 2), np.float32
    )
    numbers = np.asarray([[3, 1, 4], [1, 5, 9]])
    examples, own = slt.Batches(DATA, 8, weights=weights).rows(numbers)
    assert np.array_equal(examples[0], DATA[0][numbers])
    assert np.array_equal(examples[1], DATA[1][numbers])
    assert own is not None
    assert np.array_equal(own, weights[numbers])


def test_default_temperature_counts_examples():
    assert slt.default_n_beta(1000) == pytest.approx(1000 / np.log(1000))
    with pytest.raises(ValueError, match="at least 2 examples"):
        slt.default_n_beta(1)
