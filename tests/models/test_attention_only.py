"""Attention-only models: rotary positions, and what the heads of any decoder attend to."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.models.decoder import Decoder
from slt_jax.models.hf_config import parse_config
from slt_jax.models.layout import parameter_shapes

SIZES = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 12, "vocab_size": 11}
ROPE = {"rope_type": "default", "rope_theta": 20.0, "partial_rotary_factor": 0.5}
ROTARY = {
    "model_type": "attention_only",
    "layer_norm_epsilon": 1e-3,
    "tie_word_embeddings": False,
    "rope_parameters": ROPE,
} | SIZES
SAME_AS_NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "intermediate_size": 3,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 11,
    "layer_norm_eps": 1e-3,
    "use_parallel_residual": False,
    "rope_parameters": ROPE,
}


def decoder_of(settings):
    return Decoder(parse_config(json.dumps(settings)))


def gaussian_weights(config, seed=0):
    generator = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.4 * generator.standard_normal(leaf.shape), jnp.float32)
        for name, leaf in parameter_shapes(config).items()
    }


IDS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 9)), jnp.int32)


def test_rotary_attention_only_is_neox_without_its_mlp():
    # GPT-NeoX is compared with torch elsewhere; an MLP whose output is zero adds nothing.
    neox, only = decoder_of(SAME_AS_NEOX), decoder_of(ROTARY)
    weights = gaussian_weights(neox.config)
    weights |= {name: jnp.zeros_like(weights[name]) for name in ("mlp.down", "mlp.down_b")}
    kept = {name: weights[name] for name in parameter_shapes(only.config)}
    np.testing.assert_allclose(only(kept, IDS), neox(weights, IDS), rtol=0, atol=1e-6)


def test_without_rope_parameters_positions_are_learned():
    learned = decoder_of({key: ROTARY[key] for key in ROTARY if key != "rope_parameters"})
    assert "embed.pos" in parameter_shapes(learned.config)
    assert "embed.pos" not in parameter_shapes(decoder_of(ROTARY).config)


def pattern_of(decoder, params, layer=0):
    sequences = decoder.sequences(IDS)
    x = decoder.embed(params, IDS)
    return decoder.attention_pattern(decoder.layer_weights(params, layer), layer, x, sequences)


@pytest.mark.parametrize("window", [None, 3])
def test_without_queries_attention_is_even_over_what_is_seen(window):
    decoder = decoder_of(ROTARY)
    decoder = Decoder(dataclasses.replace(decoder.config, windows=(window, None)))
    params = gaussian_weights(decoder.config)
    params |= {name: jnp.zeros_like(params[name]) for name in ("attn.q", "attn.q_b")}
    distance = np.arange(9)[:, None] - np.arange(9)[None, :]
    seen = (distance >= 0) & (distance < (window or 9))
    expected = np.broadcast_to((seen / seen.sum(1, keepdims=True))[None, :, None], (2, 9, 2, 9))
    np.testing.assert_allclose(pattern_of(decoder, params), expected, rtol=0, atol=1e-6)


def test_patterns_are_the_weights_that_mix_the_values():
    # With values that are all one constant vector the layer adds the same everywhere; with values
    # read from the residual stream it adds what the pattern says.
    decoder = decoder_of(ROTARY)
    params = gaussian_weights(decoder.config)
    weights, x = decoder.layer_weights(params, 0), decoder.embed(params, IDS)
    sequences = decoder.sequences(IDS)
    pattern = decoder.attention_pattern(weights, 0, x, sequences)
    np.testing.assert_allclose(jnp.sum(pattern, -1), 1.0, rtol=0, atol=1e-6)
    normed = decoder.config.norm(x, weights["norm.attn"], weights["norm.attn_b"])
    values = jnp.einsum("bsd,dhk->bshk", normed, weights["attn.v"]) + weights["attn.v_b"]
    mixed = jnp.einsum("bqhs,bshk,hkd->bqd", pattern, values, weights["attn.o"])
    expected = x + mixed + weights["attn.o_b"]
    added = jax.jit(decoder.block)(weights, 0, x, sequences)
    np.testing.assert_allclose(added, expected, rtol=0, atol=2e-6)
