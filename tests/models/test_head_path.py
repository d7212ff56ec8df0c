"""The fast path of one head: the same numbers, and one head's work instead of a layer's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.flops import count_flops
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.head_path import HeadStreams, moves_one_head
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope
from slt_jax.posterior import LocalPosterior
from slt_jax.preparation import _stack_components as stack_components
from tests.models.drawn import components_of, displacements, weights_of

QUICK = {"xla_backend_optimization_level": 0}
SEQUENTIAL = DecoderConfig(
    vocab_size=13,
    width=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    mlp_width=11,
    mlp_bias=True,
    qkv_bias=True,
    attn_out_bias=True,
    norm=Norm(1e-5),
    ropes=(Rope(100.0, 6),),
    rope_of_layer=(0, 0, 0),
)
ARCHITECTURES = {
    "sequential": SEQUENTIAL,
    "parallel, one norm": dataclasses.replace(SEQUENTIAL, parallel=True, norms=("attn",)),
    "parallel, two norms": dataclasses.replace(SEQUENTIAL, parallel=True),
    "attention only": dataclasses.replace(SEQUENTIAL, mlp_width=0, norms=("attn",)),
}


IDS = jnp.asarray(np.random.default_rng(2).integers(0, 13, (2, 7)), jnp.int32)


def mean_and_losses(losses):
    return losses.mean(), losses


@jax.jit(compiler_options=QUICK)
def by_the_head(decoder, params, restriction, displacement):
    def loss(displacement):
        return mean_and_losses(decoder.losses_at(params, restriction, displacement, IDS))

    return jax.grad(loss, has_aux=True)(displacement)


@jax.jit(compiler_options=QUICK)
def by_the_whole_model(decoder, params, restriction, displacement):
    def loss(displacement):
        return mean_and_losses(decoder(restriction.insert(params, displacement), IDS))

    return jax.grad(loss, has_aux=True)(displacement)


def assert_equal_to_the_whole_model(config, component):
    decoder, params = Decoder(config), weights_of(config)
    restriction = components_of(config)[component]
    assert moves_one_head(config, restriction)
    displacement = displacements(restriction)
    gradient, losses = by_the_head(decoder, params, restriction, displacement)
    expected, whole = by_the_whole_model(decoder, params, restriction, displacement)
    np.testing.assert_allclose(losses, whole, rtol=0, atol=4e-6)
    for ours, theirs in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert np.any(np.asarray(expected[0]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_whole_model(name):
    for component in ("l0h3", "l2h0"):
        assert_equal_to_the_whole_model(ARCHITECTURES[name], component)


@jax.jit(compiler_options=QUICK)
def by_the_head_from_all_that_is_known(decoder, params, restriction, displacement):
    known = decoder.losses_prefix_in_full(params, restriction, IDS)

    def loss(displacement):
        return mean_and_losses(decoder.losses_at(params, restriction, displacement, IDS, known))

    return jax.grad(loss, has_aux=True)(displacement)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_every_head_adds_at_the_center_can_be_known_before(name):
    config = ARCHITECTURES[name]
    for component in ("l0h3", "l2h0"):
        restriction = components_of(config)[component]
        arguments = Decoder(config), weights_of(config), restriction, displacements(restriction)
        found = by_the_head_from_all_that_is_known(*arguments)
        for ours, theirs in zip(
            *map(jax.tree.leaves, (found, by_the_head(*arguments))), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_then_a_head_costs_half():
    """Its part of the layer, in a model without an MLP and with nothing above."""
    config = ARCHITECTURES["attention only"]
    decoder, params = Decoder(config), parameter_shapes(config)
    restriction = components_of(config)["l2h1"]
    zeros = jax.eval_shape(restriction.zeros)

    def cost(prefix_of):
        prefix = jax.eval_shape(prefix_of, params, restriction, IDS)
        hidden = jax.eval_shape(decoder.hidden, params_of(params), IDS)
        unembedding = count_flops(decoder.losses_from, params, hidden, IDS)

        def losses(params, displacement, prefix):
            return decoder.losses_at(params, restriction, displacement, IDS, prefix)

        return count_flops(losses, params, zeros, prefix) - unembedding

    assert cost(decoder.losses_prefix_in_full) == pytest.approx(
        cost(decoder.losses_prefix) / 2, rel=0.1
    )


@pytest.mark.parametrize("component", ["l1h2 o", "l1h1 q"])
def test_so_are_those_of_a_part_of_a_head(component):
    assert_equal_to_the_whole_model(SEQUENTIAL, component)


def test_without_displacement_every_head_gives_the_losses_at_the_center_to_the_bit():
    decoder, params = Decoder(SEQUENTIAL), weights_of(SEQUENTIAL)
    heads = [components_of(SEQUENTIAL)[name] for name in ("l1h0", "l1h3")]
    values = [by_the_head(decoder, params, head, head.zeros())[1] for head in heads]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    "component", ["l1h0+l1h3", "l1h0 q+l1h1 k", "l1 attn", "l1", "l1h0+l1 mlp"]
)
def test_what_is_not_one_head_is_computed_as_a_layer(component):
    restriction = components_of(SEQUENTIAL)[component]
    assert not moves_one_head(SEQUENTIAL, restriction)
    params = parameter_shapes(SEQUENTIAL)
    prefix = jax.eval_shape(
        lambda r: Decoder(SEQUENTIAL).losses_prefix(params_of(params), r, IDS), restriction
    )
    assert not isinstance(prefix, HeadStreams)


def params_of(shapes):
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}


def test_a_head_that_shares_its_keys_or_is_normed_with_others_is_not_alone():
    grouped = dataclasses.replace(SEQUENTIAL, num_kv_heads=2)
    normed = dataclasses.replace(SEQUENTIAL, norms=("attn", "attn_post", "mlp"))
    for config in (grouped, normed):
        for component in ("l0h0", "l0h0 q", "l2h3"):
            assert not moves_one_head(config, components_of(config)[component])


def test_heads_side_by_side_are_told_to_be_heads_and_mixtures_are_not():
    components = components_of(SEQUENTIAL)
    posterior = LocalPosterior(Decoder(SEQUENTIAL), weights_of(SEQUENTIAL), 1.0, 1.0)
    own = {name: components[name] for name in ("l1h0", "l1h2")}
    stacked, _ = stack_components(posterior, own)
    assert moves_one_head(SEQUENTIAL, stacked.restriction)
    # Of equal signature, but the second reads one head and writes another.
    mixed = {"one": components["l1h0 qo"], "two": components["l1h1 q+l1h2 o"]}
    stacked, _ = stack_components(posterior, mixed)
    assert not moves_one_head(SEQUENTIAL, stacked.restriction)


def test_it_costs_less_than_half_of_what_the_layer_does():
    config = dataclasses.replace(
        SEQUENTIAL, parallel=True, width=64, head_dim=16, mlp_width=256, ropes=(Rope(100.0, 16),)
    )
    params, components = parameter_shapes(config), components_of(config)
    decoder = Decoder(config)

    def cost(name):
        restriction = components[name]
        zeros = jax.eval_shape(restriction.zeros)
        prefix = jax.eval_shape(decoder.losses_prefix, params, restriction, IDS)

        def loss(params, displacement, prefix):
            losses = decoder.losses_at(params, restriction, displacement, IDS, prefix)
            return jnp.mean(jnp.asarray(losses))

        return count_flops(jax.grad(loss, argnums=1), params, zeros, prefix)

    assert cost("l2h1") < 0.5 * cost("l2 attn")
