"""Weighted means: unbiased with the fixed denominator, wherever the weights come from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.minibatch import values_and_weights, weighted_mean
from slt_jax.observables import GapPair
from slt_jax.preparation import prepare
from tests.helpers import KERNEL, KEY, NUM_EXAMPLES, assert_close, assert_same, numbers

NUM_POSITIONS = 5
SEQUENCES = np.random.default_rng(2).normal(size=(NUM_EXAMPLES, NUM_POSITIONS)).astype(np.float32)
LENGTHS = np.random.default_rng(3).integers(1, NUM_POSITIONS + 1, NUM_EXAMPLES)
MASK = (np.arange(NUM_POSITIONS) < LENGTHS[:, None]).astype(np.float32)
PARAMS = {"w": np.asarray([0.3, -0.2], np.float32)}
OPTIONS = {"num_chains": 4, "num_draws": 20, "num_burnin_steps": 5, "progress": False}


def position_loss(params, batch):
    """One loss per position, in a form that the padding cannot make infinite."""
    sequences = batch["tokens"]
    return jnp.square(jnp.tanh(params["w"][0] * sequences) - params["w"][1]) + 0.5


def position_losses_with_weights(params, batch):
    return slt.Losses(position_loss(params, batch), batch["mask"])


def position_loss_nan_on_padding(params, batch):
    losses = position_loss(params, batch)
    return jnp.where(batch["tokens"] > 90, jnp.nan, losses)


def posterior_of(loss):
    return slt.LocalPosterior(loss, PARAMS, n_beta=30.0, localization=5.0)


def sample(loss, batches):
    return slt.sample(posterior_of(loss), KERNEL, batches, KEY, **OPTIONS)


def pad(sequences, mask, width, value):
    """Append positions of weight 0 that hold ``value``."""
    extra = ((0, 0), (0, width))
    return np.pad(sequences, extra, constant_values=value), np.pad(mask, extra)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_fixed_denominator_is_unbiased_over_all_subsets_and_the_batch_ratio_is_not(shape):
    generator = np.random.default_rng(5)
    values = generator.normal(size=shape).astype(np.float32)
    weights = generator.integers(1, 4, shape).astype(np.float32)
    weights[0] = 9.0
    truth = np.sum(values * weights, dtype=np.float64) / weights.sum()
    mean_weight = jnp.float32(weights.sum() / len(weights))
    fixed, ratio = [], []
    for subset in itertools.combinations(range(6), 3):
        chosen = jnp.asarray(values[list(subset)]), jnp.asarray(weights[list(subset)])
        batch = slt.Minibatch(chosen[0], chosen[1], mean_weight)
        fixed.append(float(weighted_mean(*chosen, batch)))
        ratio.append(float(weighted_mean(*chosen, slt.Minibatch(*chosen))))
    assert np.mean(fixed) == pytest.approx(truth, abs=1e-6)
    assert abs(np.mean(ratio) - truth) > 0.02


def test_a_mean_without_weights_is_the_mean():
    values = jnp.asarray([1.0, 2.0, 6.0])
    assert float(weighted_mean(values, None, slt.Minibatch(values))) == 3.0


def test_weights_of_loss_and_batch_multiply():
    values = jnp.ones((2, 3))
    own = jnp.asarray([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    batch = slt.Minibatch(values, jnp.asarray([2.0, 0.0]))
    _, weights = values_and_weights(slt.Losses(values, own), batch)
    assert np.array_equal(weights, [[2.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    _, weights = values_and_weights(slt.Losses(values, jnp.asarray([3.0, 4.0])), batch)
    assert np.array_equal(weights, [[6.0, 6.0, 6.0], [0.0, 0.0, 0.0]])
    assert values_and_weights(values, slt.Minibatch(values))[1] is None


def test_weights_from_the_loss_and_from_the_batches_give_the_same_run():
    data = {"tokens": SEQUENCES, "mask": MASK}
    from_loss = sample(position_losses_with_weights, slt.Batches(data, 8))
    from_batches = sample(position_loss, slt.Batches(data, 8, weights=MASK))
    assert from_loss.survey.mean_weight == from_batches.survey.mean_weight == MASK.mean() * 5
    assert_same(numbers(from_loss), numbers(from_batches))


def test_weights_per_example_reach_every_position():
    per_example = np.random.default_rng(6).uniform(0.5, 2, NUM_EXAMPLES).astype(np.float32)
    data = {"tokens": SEQUENCES, "mask": MASK}
    short = sample(position_loss, slt.Batches(data, 8, weights=per_example))
    spread = np.repeat(per_example[:, None], NUM_POSITIONS, axis=1)
    full = sample(position_loss, slt.Batches(data, 8, weights=spread))
    assert_close(dict(short.traces), dict(full.traces), 1e-5)
    assert short.survey.loss == pytest.approx(full.survey.loss, rel=1e-6)


def test_appended_padding_changes_no_number():
    data = {"tokens": SEQUENCES, "mask": MASK}
    plain = sample(position_loss, slt.Batches(data, 8, weights=MASK))
    tokens, mask = pad(SEQUENCES, MASK, 3, 7.0)
    padded = sample(position_loss, slt.Batches({"tokens": tokens, "mask": mask}, 8, weights=mask))
    assert padded.survey.loss == pytest.approx(plain.survey.loss, rel=1e-6)
    assert padded.survey.mean_weight == plain.survey.mean_weight
    # Not to the bit: another number of terms is summed in another order.
    assert_close(dict(padded.traces), dict(plain.traces), 1e-5)
    unmasked = sample(position_loss, slt.Batches({"tokens": tokens, "mask": mask}, 8))
    assert abs(unmasked.survey.loss - plain.survey.loss) > 0.01, "the padding itself is visible"


def test_padding_of_other_content_changes_no_bit():
    runs = []
    for value in (0.0, 80.0):
        tokens, mask = pad(SEQUENCES, MASK, 3, value)
        data = {"tokens": tokens, "mask": mask}
        runs.append(sample(position_loss, slt.Batches(data, 8, weights=mask)))
    assert_same(numbers(runs[0]), numbers(runs[1]))


def test_losses_that_are_not_finite_where_they_are_masked_are_refused():
    tokens, mask = pad(SEQUENCES, MASK, 3, 7.0)
    tokens[11, -1] = 99.0
    batches = slt.Batches({"tokens": tokens, "mask": mask}, 8, weights=mask)
    with pytest.raises(ValueError, match=r"not finite for example 11.*masked ones included"):
        sample(position_loss_nan_on_padding, batches)


def test_a_first_batch_that_is_all_padding_spoils_nothing():
    weights = MASK.copy()
    weights[:8] = 0.0
    batches = slt.Batches({"tokens": SEQUENCES, "mask": MASK}, 8, weights=weights)
    options = {"num_chains": 4, "observables": {"fresh": GapPair()}}
    run = prepare(posterior_of(position_loss), KERNEL, batches, KEY, options)
    assert np.isfinite(run.centers["fresh"]).all()


def test_the_loss_of_a_weighted_run_is_the_weighted_mean():
    data = {"tokens": SEQUENCES, "mask": MASK}
    run = sample(position_loss, slt.Batches(data, 8, weights=MASK))
    losses = np.asarray(jax.jit(position_loss)(PARAMS, data), np.float64)
    assert run.survey.loss == pytest.approx(np.sum(losses * MASK) / MASK.sum(), rel=1e-6)
