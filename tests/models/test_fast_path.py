"""The fast path of components: the same numbers, less work, one program for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.flops import count_flops
from slt_jax.grouping import groups
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf import from_hf, read_config
from slt_jax.models.hf_weights import load_parameters
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope
from slt_jax.models.safetensors_reader import open_file
from tests.helpers import compiled_programs
from tests.models.drawn import components_of, displacements, weights_of
from tests.models.programs import equations_in, shapes_in
from tests.models.references import FIXTURES, NAMES, reference

QUICK = {"xla_backend_optimization_level": 0}
FAMILIES = (
    *("attention_only", "gemma", "gemma2", "gemma3", "gpt2_inverse_layer", "gpt_neox"),
    *("llama3_scaled", "mistral", "olmo", "olmo2", "phi", "phi3", "qwen2_windows"),
    "qwen3_bias_windows",
)
ROWS = 7  # no size of the model, so that a row axis shows in a shape


def config_of(num_layers, width=8, mlp_width=11):
    """A decoder with grouped heads; every size is a number of its own where it is small."""
    return DecoderConfig(
        vocab_size=13,
        width=width,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        mlp_width=mlp_width,
        norm=Norm(1e-5),
        ropes=(Rope(100.0, 12),),
        rope_of_layer=(0,) * num_layers,
    )


@pytest.fixture(scope="module")
def small():
    config = config_of(3)
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 13, (2, 5)), jnp.int32)
    return Decoder(config), weights_of(config), components_of(config), ids


@jax.jit(compiler_options=QUICK)
def by_the_fast_path(decoder, params, restriction, displacement, ids):
    """Losses, and the gradient of their mean."""

    def mean_loss(displacement):
        losses = decoder.losses_at(params, restriction, displacement, ids)
        return losses.mean(), losses

    return jax.grad(mean_loss, has_aux=True)(displacement)[::-1]


@jax.jit(compiler_options=QUICK)
def by_the_whole_model(decoder, params, ids):
    """Losses, and the gradient of their mean for all weights."""

    def mean_loss(params):
        losses = decoder(params, ids)
        return losses.mean(), losses

    return jax.grad(mean_loss, has_aux=True)(params)[::-1]


def assert_gradient(restriction, gradient, expected, tolerance):
    """Compare with the gradient for all weights, block by block."""
    for label, ours, theirs in zip(
        restriction.labels, gradient, restriction.read(expected), strict=True
    ):
        assert np.any(np.asarray(theirs)), label
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=label)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAMILIES else pytest.mark.slow) for n in NAMES]
)
def test_every_family_equals_torch_by_the_fast_path(name):
    model, stored = from_hf(FIXTURES / name, dtype="float32"), reference(name)
    ids = jnp.asarray(stored["ids"])
    logp = jax.nn.log_softmax(jnp.asarray(stored["logits"][:, :-1]))
    expected_losses = -jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1)[..., 0]
    gradients = open_file(FIXTURES / name / "gradients.safetensors")
    of_model = load_parameters(model.loss_fn.config, gradients)

    programs = by_the_fast_path._cache_size()
    for layer in range(2):
        restriction = model.components[f"l{layer}h{1 - layer}"]
        zeros = restriction.zeros()
        losses, gradient = by_the_fast_path(model.loss_fn, model.params, restriction, zeros, ids)
        np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=2e-5)
        assert_gradient(restriction, gradient, of_model, 2e-6)
    assert by_the_fast_path._cache_size() == programs + 1


def test_one_configuration_of_every_architecture_is_among_the_quick_ones():
    types = {name: read_config(FIXTURES / name).model_type for name in NAMES}
    assert {types[name] for name in FAMILIES} == set(types.values())


@pytest.mark.parametrize(
    "name", ["l0h3", "l1g1", "l2 mlp", "l2", "l1h0+l1h3 o", "final_norm+unembed", "l0h1+l2h1"]
)
def test_every_kind_of_component_has_the_same_numbers_either_way(small, name):
    decoder, params, components, ids = small
    restriction = components[name]
    displacement = displacements(restriction)
    losses, gradient = by_the_fast_path(decoder, params, restriction, displacement, ids)
    moved = restriction.insert(params, displacement)
    expected_losses, expected = by_the_whole_model(decoder, moved, ids)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=4e-6)
    assert_gradient(restriction, gradient, expected, 1e-6)


@pytest.mark.parametrize(
    ("names", "is_shared"),
    [
        (("l0h3", "l1 norm", "l2", "l1 attn.o", "l0h0 q+l0 mlp", "unembed", "final_norm"), True),
        (("embed", "l0h1+l2h1", "l0h0+unembed", "l1h1+embed", "attn.q", "full"), False),
    ],
)
def test_what_lies_in_one_layer_or_above_all_shares_what_is_below(small, names, is_shared):
    decoder, params, components, ids = small
    for name in names:
        prefix = jax.eval_shape(lambda r: decoder.losses_prefix(params, r, ids), components[name])
        assert (prefix is not None) == is_shared, name


def gradients_of_rows(decoder, params, restriction, displacement, ids):
    """One gradient per row, all rows on the same batch."""
    posterior = slt.LocalPosterior(decoder, params, 30.0, 10.0, restriction=restriction)
    batch = slt.Minibatch(ids)
    batch = batch.with_center(posterior.center(batch))
    return jax.vmap(jax.grad(posterior.gap), (0, None))(displacement, batch)


def test_only_the_weights_that_move_and_what_follows_them_have_a_row_axis(small):
    decoder, params, components, ids = small
    restriction, config = components["l1h2"], decoder.config
    moved = displacements(restriction, ROWS)
    traced = jax.make_jaxpr(gradients_of_rows, static_argnums=0)
    jaxpr = traced(decoder, params, restriction, moved, ids).jaxpr
    stream = (*ids.shape, config.width)
    below, *above = [
        {atom.aval.shape for atom in equation.outvars}
        for equation in equations_in(jaxpr)
        if equation.primitive.name == "while"
    ]
    assert stream in below
    assert not any(ROWS in shape for shape in below)
    assert any((ROWS, *stream) in shapes for shapes in above), "rows do differ above"
    with_rows = {shape for shape in shapes_in(jaxpr) if ROWS in shape}
    assert with_rows, "the shapes that are looked at include those of the rows"
    # A stack of layers with a row axis is a stack per chain: neither weights nor gradients are.
    of_stacks = [shape for shape in with_rows if config.num_layers in shape]
    assert set(of_stacks) <= {(ROWS, config.num_layers, *stream), (config.num_layers, *stream)}
    # Nor is there a gradient of a frozen matrix, which would have both of its axes.
    assert not [s for s in with_rows if config.mlp_width in s and config.width in s]


def test_one_trace_serves_all_heads_of_all_layers(small):
    decoder, params, components, ids = small
    count = 0

    @jax.jit(compiler_options=QUICK)
    def program(restriction, displacement):
        nonlocal count
        count += 1
        return gradients_of_rows(decoder, params, restriction, displacement, ids)

    _, expected = by_the_whole_model(decoder, params, ids)
    for restriction in components.heads().values():
        zeros = tuple(jnp.zeros((ROWS, *block.size), jnp.float32) for block in restriction.blocks)
        gradients = program(restriction, zeros)
        for row in range(0, ROWS, ROWS - 1):
            assert_gradient(restriction, [leaf[row] for leaf in gradients], expected, 1e-6)
    assert count == 1


SAMPLED = {"num_chains": 2, "num_draws": 6, "num_burnin_steps": 2, "progress": False}


def test_sampling_every_head_of_every_layer_compiles_one_set_of_programs(small):
    decoder, params, components, _ = small
    ids = np.random.default_rng(3).integers(0, 13, (16, 5)).astype(np.int32)
    observables = {"probe": slt.LossValues(slt.Probe(ids[:3]))}
    posterior = slt.LocalPosterior(decoder, params, 20.0, 300.0)
    compiled = []
    for group in groups(components.heads()):
        with compiled_programs() as names:
            run = slt.sample(
                posterior,
                slt.sgld(1e-4),
                slt.Batches(ids, 4),
                jax.random.key(0),
                components=group,
                observables=observables,
                **SAMPLED,
            )
        compiled.append(len(names))
        assert run.health.alive.all()
        assert np.all(run.statistics["probe"].value != 0)
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0]


def step_of_rows(decoder, params, restriction, state, ids):
    """What a chain-step costs: the loss at w*, then gradient, noise and update of every row."""
    posterior = slt.LocalPosterior(decoder, params, 30.0, 10.0, restriction=restriction)
    kernel = slt.sgld(1e-5)
    batch = kernel.prepare(posterior, slt.Minibatch(ids))
    keys = jax.random.split(jax.random.key(0), 4)
    step = jax.vmap(kernel.step, (0, None, 0, None))
    return step(keys, posterior, state, batch)


def states_of_rows(decoder, params, restriction):
    state = slt.sgld(1e-5).init(slt.LocalPosterior(decoder, params, 1.0, 1.0, restriction))
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state)


def test_a_component_of_the_last_of_twelve_layers_costs_a_fifth_of_a_full_step():
    config = config_of(12, width=64, mlp_width=256)
    params = parameter_shapes(config)
    components, decoder = components_of(config), Decoder(config)
    ids = jax.ShapeDtypeStruct((4, 33), jnp.int32)

    def cost(name):
        restriction = components[name]
        states = jax.eval_shape(states_of_rows, decoder, params, restriction)
        return count_flops(step_of_rows, decoder, params, restriction, states, ids)

    full = cost("full")
    assert cost("l11h3") < 0.2 * full
    assert cost("l6h0") < 0.5 * full
    # It is where the component lies that decides, and half of the layers are below the middle.
    assert cost("l11 mlp") < 0.25 * full < cost("l0h0") < full


def test_the_counter_agrees_with_a_compiled_program_without_loops():
    config = config_of(3, width=64, mlp_width=256)
    decoder, params = Decoder(config), parameter_shapes(config)
    ids = jax.ShapeDtypeStruct((4, 33), jnp.int32)

    def unrolled(params, ids):
        x, sequences = decoder.embed(params, ids), decoder.sequences(ids)
        for layer in range(config.num_layers):
            weights = {k: params[k][layer] for k in decoder.layer_weights(params, 0)}
            x = decoder.block(weights, layer, x, sequences)
        return decoder.losses_from(params, x, ids).mean()

    def in_a_loop(params, ids):
        return decoder(params, ids).mean()

    def compiled(fn):
        cost = jax.jit(fn, compiler_options=QUICK).lower(params, ids).compile().cost_analysis()
        return cost["flops"] + cost["transcendentals"]

    for forward, tolerance in ((unrolled, 0.02), (in_a_loop, 0.02)):
        counted = count_flops(forward, params, ids)
        assert counted == pytest.approx(compiled(unrolled), rel=tolerance)
    counted = count_flops(jax.grad(unrolled), params, ids)
    assert counted == pytest.approx(compiled(jax.grad(unrolled)), rel=0.02)
