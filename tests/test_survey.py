"""The survey of w*: mean loss, gradient and gradient noise, against NumPy in float64."""

import numpy as np
import pytest

import slt_jax as slt
from slt_jax.preparation import _stack_components as stack_components
from slt_jax.survey import survey_order, take_survey
from tests.helpers import (
    DATA,
    NUM_EXAMPLES,
    PARAMS,
    POSTERIOR,
    head,
    make_posterior,
    network_loss,
    sample,
)

WEIGHTS = np.random.default_rng(4).integers(0, 3, NUM_EXAMPLES).astype(np.float32)


def losses_and_gradients():
    """Losses ``[n]`` and their gradients ``[n, weight]`` in float64, by hand."""
    inputs, targets = (column.astype(np.float64) for column in DATA)
    hidden = np.tanh(inputs @ PARAMS["attention"])
    error = hidden @ PARAMS["output"].astype(np.float64) - targets
    of_output = 2 * error[:, None] * hidden
    slope = 2 * error[:, None] * PARAMS["output"] * (1 - hidden**2)
    of_attention = inputs[:, :, None] * slope[:, None, :]
    return error**2, np.concatenate([of_attention.reshape(NUM_EXAMPLES, -1), of_output], axis=1)


LOSSES, GRADIENTS = losses_and_gradients()


def survey(size, weights=None, count=None, posterior=POSTERIOR):
    batches = slt.Batches(DATA, size, weights=weights)
    return take_survey(posterior, batches, None, count)


def flat(gradient):
    return np.concatenate([np.ravel(leaf[0]) for leaf in gradient])


@pytest.mark.parametrize("size", [8, 24, NUM_EXAMPLES])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_loss_and_gradient_are_those_of_the_whole_data_set(size, weights):
    found = survey(size, weights)
    per_example = np.ones(NUM_EXAMPLES) if weights is None else weights
    gradient = np.average(GRADIENTS, axis=0, weights=per_example)
    assert found.is_whole
    assert found.num_examples == NUM_EXAMPLES
    assert found.loss == pytest.approx(np.average(LOSSES, weights=per_example), rel=1e-6)
    expected = None if weights is None else pytest.approx(per_example.mean())
    assert found.mean_weight == expected
    np.testing.assert_allclose(flat(found.gradient), gradient, atol=1e-6)
    assert found.gradient_norm_squared == pytest.approx(np.sum(gradient**2), rel=1e-4)
    assert np.all(found.subset_noise == 0)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_noise_is_the_scatter_of_the_gradients_of_batches(weights):
    per_example = np.ones(NUM_EXAMPLES) if weights is None else weights
    order = survey_order(slt.Batches(DATA, 8), None)
    batches = (GRADIENTS * per_example[:, None])[order].reshape(8, 8, -1).sum(axis=1)
    batches /= 8 * per_example.mean()
    expected = batches.var(axis=0, ddof=1).sum()
    assert survey(8, weights).batch_noise == pytest.approx(expected, rel=1e-4)


def test_noise_needs_two_batches():
    assert np.isnan(survey(NUM_EXAMPLES).batch_noise).all()


def test_a_part_of_the_data_is_a_random_one_and_says_so():
    found = survey(8, count=24)
    numbers = survey_order(slt.Batches(DATA, 8), 24)
    assert len(set(numbers)) == 24
    gradient = GRADIENTS[numbers].mean(axis=0)
    assert not found.is_whole
    assert found.num_examples == 24
    assert found.loss == pytest.approx(LOSSES[numbers].mean(), rel=1e-6)
    np.testing.assert_allclose(flat(found.gradient), gradient, atol=1e-6)
    # The variance of a mean of 24 without replacement, in units of that of a batch of 8.
    expected = found.batch_noise * (8 / 24) * (40 / 56)
    assert found.subset_noise == pytest.approx(expected, rel=1e-6)
    unbiased = max(np.sum(gradient**2) - float(expected[0]), 0.0)
    assert found.gradient_norm_squared == pytest.approx(unbiased, rel=1e-4, abs=1e-6)


def test_sorted_data_do_not_hide_the_gradient():
    """Batches in the order of a sorted data set differ far more than the sampler's batches do."""
    order = np.argsort(DATA[1], kind="stable")
    shuffled, ordered = (
        survey(8),
        take_survey(POSTERIOR, slt.Batches(tuple(column[order] for column in DATA), 8), None, None),
    )
    assert ordered.batch_noise == pytest.approx(shuffled.batch_noise, rel=0.6)


def test_components_have_gradients_of_their_own():
    run = sample(components={"first": head(0), "second": head(1)}, num_draws=1)
    attention = GRADIENTS.mean(axis=0)[:36].reshape(3, 3, 2, 2)
    expected = np.stack([attention[:, :, number : number + 1] for number in range(2)])
    np.testing.assert_allclose(run.survey.gradient[0], expected, atol=1e-6)
    assert run.survey.gradient_norm_squared.shape == (2,)


@pytest.mark.parametrize("example", [0, 7, 37, 63])
def test_a_loss_that_is_not_finite_is_named(example):
    inputs = DATA[0].copy()
    inputs[example] = np.inf
    with pytest.raises(ValueError, match=f"loss at w\\* is not finite for example {example}:"):
        take_survey(make_posterior(), slt.Batches((inputs, DATA[1]), 8), None, None)


def test_examples_that_all_weigh_nothing_are_refused():
    def weightless(params, batch):
        losses = POSTERIOR.loss_fn(params, batch)
        return slt.Losses(losses, 0 * losses)

    posterior = slt.LocalPosterior(weightless, POSTERIOR.params, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"64 examples .* has weight: nothing is predicted"):
        take_survey(posterior, slt.Batches(DATA, 8), None, None)


def test_weights_are_summed_over_all_data_even_if_the_survey_is_not():
    """Runs on a part of the data for the survey must not use its weights as if of the whole."""
    weights = np.ones(NUM_EXAMPLES, np.float32)
    weights[1::2] = 0.0
    batches = slt.Batches(DATA, 8, weights=weights, per_chain=True)
    runs = [sample(batches=batches, survey_examples=count) for count in (None, 5)]
    assert np.array_equal(runs[0].traces["gap"], runs[1].traces["gap"])


@pytest.mark.parametrize("count", [None, 20])
def test_weights_of_the_loss_are_summed_over_all_data_with_no_gradient_of_the_rest(count):
    def masked(params, batch):
        return slt.Losses(network_loss(params, batch), (batch[1] > 0).astype(np.float32))

    posterior, batches = make_posterior(masked), slt.Batches(DATA, 24)
    found = take_survey(posterior, batches, None, count)
    assert found.mean_weight == pytest.approx(np.mean(DATA[1] > 0))
    numbers = survey_order(batches, count)
    weights = (DATA[1] > 0)[numbers]
    assert found.loss == pytest.approx(np.average(LOSSES[numbers], weights=weights), rel=1e-6)
    gradient = np.average(GRADIENTS[numbers], axis=0, weights=weights)
    np.testing.assert_allclose(flat(found.gradient), gradient, atol=1e-6)


def test_survey_of_no_example_is_refused():
    with pytest.raises(ValueError, match="survey_examples must be at least 1"):
        survey(8, count=0)


@pytest.mark.parametrize("row", [0, 2])
def test_components_in_one_level_of_their_leaves_get_their_part_of_its_gradient(row):
    def component(column):
        shape, size = PARAMS["attention"].shape, (1, 6)
        blocks = [slt.Block("attention", shape, size, (row, column))]
        return slt.Restriction([*blocks, slt.Block("output", (3, 4), (1, 4), (row, 0))])

    components = {"left": component(0), "right": component(6)}
    posterior, starts = stack_components(POSTERIOR, components)
    assert posterior.restriction.is_level
    found = take_survey(posterior, slt.Batches(DATA, 8), starts, None)
    gradient = GRADIENTS.mean(axis=0)
    of_attention, of_output = gradient[:-12].reshape(3, 12), gradient[-12:].reshape(3, 4)
    expected = of_attention[row].reshape(2, 1, 6)
    np.testing.assert_allclose(found.gradient[0], expected, atol=1e-6)
    np.testing.assert_allclose(found.gradient[1], [of_output[[row]]] * 2, atol=1e-6)
