"""The bundled transformer: small, loaded like any other, good at its text, with induction heads."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import zoo
from slt_jax.models.zoo.text import common_tokens

INDUCTION = {"l1h0", "l1h5", "l1h6"}
PREVIOUS = "l0h2"
LENGTH = 128


@pytest.fixture(scope="module")
def model():
    return zoo.stdlib_transformer()


@pytest.fixture(scope="module")
def scores(model):
    """Of 8 sequences of random tokens, none of which any model was trained on."""
    drawn = common_tokens(zoo.stdlib_vocabulary())
    rows = zoo.repeated_tokens(drawn, 8, LENGTH, start=zoo.START, seed=1)
    return zoo.head_scores(model.loss_fn, model.params, jnp.asarray(rows))


def test_is_a_checkpoint_folder_of_less_than_two_megabytes(model):
    files = list(zoo.STDLIB_TRANSFORMER.iterdir())
    assert sum(file.stat().st_size for file in files) < 2e6
    loaded = slt.models.from_hf(zoo.STDLIB_TRANSFORMER)
    assert loaded.loss_fn == model.loss_fn
    for name, leaf in loaded.params.items():
        np.testing.assert_array_equal(leaf, model.params[name], err_msg=name)


def test_three_heads_attend_to_what_followed_before(scores):
    """The others hardly do; 1/64 would be attention without preference."""
    assert set(scores.heads_above(0.25)) == INDUCTION
    assert set(scores.heads_above(0.03)) == INDUCTION


def test_one_head_below_attends_to_the_token_before(scores):
    layer, head = np.unravel_index(np.argmax(scores.previous), scores.previous.shape)
    assert f"l{layer}h{head}" == PREVIOUS
    assert scores.previous.max() > 0.8


def test_what_comes_again_is_predicted(scores):
    assert scores.second_loss < scores.first_loss - 3


def test_knows_its_language(model):
    """2.7 nats per token of files it was not trained on; a uniform guess costs log 512 = 6.2."""
    rows = zoo.held_out_rows(zoo.stdlib_vocabulary(), 32, LENGTH)
    assert float(jnp.mean(model.loss_fn(model.params, jnp.asarray(rows)))) < 3.2


def test_its_card_is_that_of_these_weights(scores):
    card = json.loads((zoo.STDLIB_TRANSFORMER / "training.json").read_text())
    last = card["checkpoints"][-1]
    assert last["step"] == card["settings"]["num_steps"]
    assert len(card["checkpoints"]) >= 12
    # Other random tokens than those of the card, so not equal.
    np.testing.assert_allclose(scores.induction, last["induction"], atol=0.1)
    np.testing.assert_allclose(scores.previous, last["previous"], atol=0.1)
