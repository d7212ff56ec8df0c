"""Scores of attention heads, on decoders whose attention is known."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.models import zoo
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf_config import parse_config
from slt_jax.models.layout import parameter_shapes

WIDTH, LENGTH, VOCAB = 16, 11, 7
PERIOD = (LENGTH - 1) // 2


def looks_back(distance):
    """A layer with one head that attends from every position to the one some distance before."""
    settings = {"model_type": "attention_only", "n_embd": WIDTH, "n_head": 1, "n_layer": 1}
    config = parse_config(json.dumps(settings | {"n_positions": LENGTH, "vocab_size": VOCAB}))
    params = {name: jnp.zeros(leaf.shape) for name, leaf in parameter_shapes(config).items()}
    params |= {name: jnp.ones_like(params[name]) for name in ("norm.attn", "final_norm")}
    units = np.eye(WIDTH, dtype=np.float32)
    params["embed.pos"] = jnp.asarray(units[:LENGTH])
    params["attn.q"] = jnp.asarray(5 * units).reshape(1, WIDTH, 1, WIDTH)
    params["attn.k"] = jnp.asarray(5 * np.roll(units, distance, 1)).reshape(1, WIDTH, 1, WIDTH)
    return Decoder(config), params


def rows():
    return zoo.repeated_tokens(np.arange(VOCAB - 1), 3, LENGTH, start=VOCAB - 1, seed=0)


@pytest.mark.parametrize(
    ("distance", "induction", "previous"),
    [(1, 0, 1), (PERIOD - 1, 1, 0), (PERIOD, 0, 0), (2, 0, 0)],
)
def test_scores_tell_where_a_head_looks(distance, induction, previous):
    scores = zoo.head_scores(*looks_back(distance), rows())
    np.testing.assert_allclose(scores.induction, [[induction]], rtol=0, atol=1e-3)
    # Positions before which there is nothing so far back attend evenly.
    np.testing.assert_allclose(scores.previous, [[previous]], rtol=0, atol=0.1)
    assert scores.heads_above(0.5) == ["l0h0"] * induction


def test_losses_are_those_of_the_first_and_of_the_second_time():
    # Logits that depend on the position alone: the one token there is, surely from the first
    # repeated position on, and before that surely not.
    decoder, params = looks_back(1)
    decoder = Decoder(dataclasses.replace(decoder.config, tied=False))
    repeats = (np.arange(VOCAB) == 3)[:, None] & (np.arange(WIDTH) > PERIOD)[None, :]
    params["unembed"] = jnp.asarray(20.0 * repeats, jnp.float32)
    same = zoo.repeated_tokens(np.array([3]), 2, LENGTH, start=6, seed=0)
    scores = zoo.head_scores(decoder, params, same)
    assert scores.second_loss < 1e-3
    assert scores.first_loss > 10


def test_repeated_tokens_are_drawn_twice():
    tokens = zoo.repeated_tokens(np.array([2, 4]), 5, 10, start=9, seed=1)
    assert tokens.shape == (5, 10)
    assert set(tokens[:, 0]) == {9}
    assert set(np.unique(tokens[:, 1:])) == {2, 4}
    np.testing.assert_array_equal(tokens[:, 1:5], tokens[:, 5:9])
    np.testing.assert_array_equal(tokens[:, 9], tokens[:, 1])


def test_too_short_a_sequence_is_refused():
    with pytest.raises(ValueError, match="at least 5 tokens to repeat 2 of them, got 4"):
        zoo.repeated_tokens(np.arange(3), 1, 4, start=0, seed=0)
