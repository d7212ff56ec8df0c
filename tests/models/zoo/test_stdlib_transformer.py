"""The bundled transformer: small, loaded like any other, good at its text, with induction heads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.models import from_hf, zoo
from slt_jax.models.zoo.text import common_tokens
from slt_jax.models.zoo.train import Settings

LARGEST = 2_000_000
"""Bytes of the folder."""

HELD_OUT_LOSS = 2.8
"""Nats per token; the entropy of single tokens is 5.4."""

CARD = json.loads((zoo.STDLIB_TRANSFORMER / "training.json").read_text())


@pytest.fixture(scope="module")
def model():
    return zoo.stdlib_transformer()


def scores_of(model, length):
    rows = zoo.repeated_tokens(
        common_tokens(zoo.stdlib_vocabulary()), 8, length, start=zoo.START, seed=5
    )
    return zoo.head_scores(model.loss_fn, model.params, rows)


def test_is_small_and_loads_like_any_other_checkpoint(model):
    assert sum(file.stat().st_size for file in zoo.STDLIB_TRANSFORMER.iterdir()) < LARGEST
    again = from_hf(zoo.STDLIB_TRANSFORMER)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert len(model.components.heads()) == 16
    assert model.loss_fn.config.mlp_width == 0
    assert model.loss_fn.config.vocab_size == zoo.stdlib_vocabulary().size


def test_committed_script_made_it():
    assert CARD["settings"] == {**vars(Settings())}
    config = (zoo.STDLIB_TRANSFORMER / "config.json").read_text()
    assert config == Settings().config_text()


def test_predicts_files_it_has_not_seen(model):
    rows = jnp.asarray(zoo.held_out_rows(zoo.stdlib_vocabulary(), 64, 128))
    loss = float(jnp.mean(model.loss_fn(model.params, rows)))
    assert loss < HELD_OUT_LOSS
    # Another Python has other files, but not by much.
    assert loss == pytest.approx(CARD["checkpoints"][-1]["held_out_loss"], abs=0.1)


@pytest.mark.parametrize("length", [128, 81])
def test_named_heads_are_induction_heads_and_no_others(model, length):
    # Two lengths: a head that looked a fixed number of positions back would fail at one of them.
    scores = scores_of(model, length)
    named = {(int(head[1]), int(head[3])) for head in zoo.INDUCTION_HEADS}
    for place, score in np.ndenumerate(scores.induction):
        assert score > 0.3 if place in named else score < 0.02, (place, score)
    assert scores.heads_above(0.3) == list(zoo.INDUCTION_HEADS)
    assert scores.second_loss < scores.first_loss - 3


def test_one_head_attends_to_the_token_before(model):
    previous = scores_of(model, 81).previous
    assert np.unravel_index(previous.argmax(), previous.shape) == (0, 2)
    assert previous[0, 2] > 0.8
    assert np.delete(previous, 2).max() < 0.5
