"""The decoder: equal to torch for every family, and the laws of its loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import slt_jax as slt
from slt_jax.models.attention import attention, block_size
from slt_jax.models.config import DecoderConfig
from slt_jax.models.cross_entropy import token_losses
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf import from_hf, read_config
from slt_jax.models.hf_weights import load_parameters
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope
from slt_jax.models.safetensors_reader import open_file
from tests.models.drawn import weights_of
from tests.models.references import FIXTURES, NAMES, reference

LOGITS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 2e-6
QUICK = {"xla_backend_optimization_level": 0}

TINY = DecoderConfig(
    vocab_size=13,
    width=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=12,
    norm=Norm(1e-5),
    ropes=(Rope(100.0, 4),),
    rope_of_layer=(0, 0),
)


def quick(fn):
    """Compile with few optimizations: these programs run once."""
    return jax.jit(fn, compiler_options=QUICK)


def tokens(batch=2, length=9, vocab=13, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocab, (batch, length))
    return jnp.asarray(ids, jnp.int32)


def results(decoder, params, ids):
    """Losses, logits and the gradient of the mean loss, compiled in one piece."""

    def mean_loss(params):
        losses = decoder(params, ids)
        return losses.mean(), (losses, decoder.logits(params, ids))

    program = jax.jit(jax.value_and_grad(mean_loss, has_aux=True), compiler_options=QUICK)
    (_, (losses, logits)), gradient = program(params)
    return losses, logits, gradient


def without_pad_row(gradients, folder):
    """The padding row left out: torch's embedding has no gradient there, ours the natural one."""
    pad = json.loads((folder / "config.json").read_text()).get("pad_token_id")
    if pad is None:
        return gradients
    rows = np.delete(np.asarray(gradients["embed.tok"]), pad, axis=0)
    return gradients | {"embed.tok": rows}


@pytest.mark.parametrize("name", NAMES)
def test_float32_equals_torch(name):
    stored = reference(name)
    model = from_hf(FIXTURES / name, dtype="float32")
    ids = jnp.asarray(stored["ids"])
    losses, logits, gradient = results(model.loss_fn, model.params, ids)
    np.testing.assert_allclose(logits, stored["logits"], rtol=0, atol=LOGITS_TOLERANCE)
    logp = jax.nn.log_softmax(jnp.asarray(stored["logits"][:, :-1]))
    expected = -jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=LOGITS_TOLERANCE)
    gradients_file = open_file(FIXTURES / name / "gradients.safetensors")
    torch_gradient = load_parameters(model.loss_fn.config, gradients_file)
    assert gradient.keys() == torch_gradient.keys()
    ours, theirs = (without_pad_row(g, FIXTURES / name) for g in (gradient, torch_gradient))
    for path, expected in theirs.items():
        assert np.any(np.asarray(expected)), path
        np.testing.assert_allclose(
            ours[path], expected, rtol=0, atol=GRADIENT_TOLERANCE, err_msg=path
        )


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_no_worse_than_torch(name):
    stored = reference(name)
    model = from_hf(FIXTURES / name)
    assert {leaf.dtype for leaf in model.params.values()} == {jnp.bfloat16.dtype}
    program = jax.jit(model.loss_fn.logits, compiler_options=QUICK)
    error = np.abs(program(model.params, jnp.asarray(stored["ids"])) - stored["logits"]).max()
    assert error <= 2 * stored["bf16_error"]


@pytest.mark.parametrize("name", NAMES)
def test_references_are_not_default_and_every_weight_counts(name):
    # A parity test proves nothing about a setting that has its default value.
    config = read_config(FIXTURES / name)
    assert all(rope.theta not in (1e4, 1e6) for rope in config.ropes)
    shapes = parameter_shapes(config)
    flat = open_file(FIXTURES / name / "gradients.safetensors")
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes.values()) == sum(
        int(np.prod(tensor.shape)) for tensor in flat.values()
    )


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 5])
def test_blocks_of_queries_change_nothing(monkeypatch, softcap, window):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 21, n, 4)), jnp.float32) for n in (4, 2, 2))
    settings = {"scale": 0.4, "softcap": softcap}
    settings["window"] = None if window is None else jnp.asarray(window, jnp.int32)
    settings["is_key"] = jnp.arange(21)[None] < jnp.asarray([21, 16])[:, None]

    def loss(q, k, v):
        return jnp.sum(jnp.sin(attention(q, k, v, **settings)))

    whole = quick(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
    monkeypatch.setattr("slt_jax.models.attention.MAX_QUERIES", 4)
    # Another function, since a compiled program would not see the smaller blocks.
    again = jax.value_and_grad(lambda *qkv: loss(*qkv), argnums=(0, 1, 2))
    blocks = quick(again)(q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), whole, blocks)


def test_attention_equals_that_of_jax():
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 15, n, 4)), jnp.float32) for n in (6, 2, 2))
    ours = attention(q, k, v, scale=0.3, window=jnp.asarray(4, jnp.int32))
    theirs = jax.nn.dot_product_attention(
        q, k, v, scale=0.3, is_causal=True, local_window_size=(3, 0)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def is_program(value):
    return hasattr(value, "eqns")


def shapes_in(jaxpr):
    """Every shape that occurs anywhere in a program."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from shapes_in(getattr(inner, "jaxpr", inner))


def test_neither_all_scores_nor_all_logits_are_ever_held():
    config = DecoderConfig(**{**vars(TINY), "vocab_size": 100_000})
    length, batch = 4096, 2
    decoder = Decoder(config, jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    params = parameter_shapes(config, jnp.bfloat16)
    program = jax.make_jaxpr(jax.grad(lambda p, x: decoder(p, x).mean()))(params, ids)
    shapes = set(shapes_in(program.jaxpr))
    assert not [s for s in shapes if s.count(length) + s.count(length - 1) >= 2]
    assert max(int(np.prod(s)) for s in shapes) < batch * length * config.vocab_size / 10
    assert block_size(batch * config.num_heads, length) < length


def test_blocks_of_logits_change_nothing(monkeypatch):
    matrix = jnp.asarray(np.random.default_rng(3).standard_normal((6, 13)), jnp.float32)
    hidden = jnp.asarray(np.random.default_rng(4).standard_normal((2, 11, 6)), jnp.float32)

    def results():
        def mean_loss(matrix, hidden):
            losses = token_losses(lambda x: x @ matrix, hidden, tokens(2, 11), 13)
            return losses.mean(), losses

        return quick(jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True))(matrix, hidden)

    whole = results()
    monkeypatch.setattr("slt_jax.models.cross_entropy.MAX_LOGITS", 2 * 13 * 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), whole, results())


def test_labels_and_padding_are_weights():
    decoder, params, ids = Decoder(TINY), weights_of(TINY), tokens()
    plain = quick(decoder)(params, ids)
    labels = ids.at[0, :4].set(-100)
    masked = quick(decoder)(params, {"input_ids": ids, "labels": labels})
    assert isinstance(masked, slt.Losses)
    np.testing.assert_array_equal(masked.weights, (labels[:, 1:] != -100).astype(np.float32))
    counted = np.asarray(masked.weights) == 1
    np.testing.assert_allclose(masked.values[counted], plain[counted], atol=1e-6)
    assert np.all(np.isfinite(masked.values))

    mask = jnp.ones_like(ids).at[1, 6:].set(0)
    padded = {"input_ids": ids.at[1, 6:].set(0), "attention_mask": mask}
    losses = quick(decoder)(params, padded)
    np.testing.assert_array_equal(losses.weights[1], [1] * 5 + [0] * 3)
    np.testing.assert_allclose(losses.values[1, :5], plain[1, :5], atol=1e-6)


def test_padding_on_the_left_is_not_seen():
    decoder, params, ids = Decoder(TINY), weights_of(TINY), tokens(1)
    shifted = jnp.concatenate([jnp.full((1, 3), 7, jnp.int32), ids], axis=1)
    mask = jnp.concatenate([jnp.zeros((1, 3), jnp.int32), jnp.ones_like(ids)], axis=1)
    losses = quick(decoder)(params, {"input_ids": shifted, "attention_mask": mask})
    # Rotary positions are relative, so the shift itself changes nothing.
    plain = quick(decoder)(params, ids)
    np.testing.assert_allclose(losses.values[:, 3:], plain, atol=2e-6)
    np.testing.assert_array_equal(losses.weights[0, :3], 0)


@pytest.mark.parametrize("bad", [-1, 13, 4000])
def test_ids_outside_the_vocabulary_give_nan(bad):
    decoder, params, ids = Decoder(TINY), weights_of(TINY), tokens()
    losses = np.asarray(quick(decoder)(params, ids.at[1, 4].set(bad)))
    assert np.all(np.isnan(losses[1]))
    assert np.all(np.isfinite(losses[0]))
    with pytest.raises(ValueError, match="is outside the vocabulary of 13"):
        decoder(params, ids.at[1, 4].set(bad))


def test_what_is_no_batch_is_refused():
    decoder, params = Decoder(TINY), weights_of(TINY)
    with pytest.raises(ValueError, match="input_ids"):
        decoder(params, {"tokens": tokens()})
    with pytest.raises((TypeError, TypeCheckError)):
        decoder(params, jnp.ones((2, 9), jnp.float32))
    with pytest.raises(
        ValueError, match=r"attention_mask must have the shape .*\(2, 9\), got \(2, 1"
    ):
        decoder(params, {"input_ids": tokens(), "attention_mask": jnp.ones((2, 1), jnp.int32)})
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        decoder(params, {"input_ids": tokens(), "labels": jnp.zeros((2, 9))})
    with pytest.raises(ValueError, match="sequences of 1 tokens predict nothing"):
        jax.eval_shape(decoder, params, tokens(length=1))
    learned = DecoderConfig(**{**vars(TINY), "num_positions": 5, "ropes": (), "rope_of_layer": ()})
    with pytest.raises(ValueError, match="9 tokens do not fit the 5 learned positions"):
        Decoder(learned)(weights_of(learned), tokens())
    rotary = DecoderConfig(**{**vars(TINY), "context_length": 8})
    with pytest.raises(ValueError, match=r"9 tokens are longer than the 8 .*config.json says"):
        jax.eval_shape(Decoder(rotary), weights_of(rotary), tokens())
    jax.eval_shape(Decoder(rotary), weights_of(rotary), tokens(length=8))


def test_a_small_displacement_of_bfloat16_weights_is_felt():
    params = {name: leaf.astype(jnp.bfloat16) for name, leaf in weights_of(TINY).items()}
    decoder, ids = Decoder(TINY, jnp.float32), tokens(8, 30)
    restriction = slt.Restriction.from_paths(params, ["mlp.down"])
    posterior = slt.LocalPosterior(decoder, params, 1.0, 1.0, restriction=restriction)
    both = quick(jax.value_and_grad(lambda delta: decoder(posterior.params_at(delta), ids).mean()))
    _, gradient = both(restriction.zeros())
    size = 3e-3 / jnp.linalg.norm(gradient[0])
    ahead, behind = (both((sign * size * gradient[0],))[0] for sign in (1.0, -1.0))
    expected = 2 * size * jnp.sum(gradient[0] ** 2)
    # Entries move by less than bfloat16 could tell, so rounding them would lose most of this.
    assert float(jnp.median(jnp.abs(size * gradient[0]))) < 2.0**-9 * 0.2
    np.testing.assert_allclose(ahead - behind, expected, rtol=0.05)


def test_equal_configs_share_one_program():
    first, second = (Decoder(DecoderConfig(**vars(TINY)), jnp.float32) for _ in range(2))
    count = 0

    @jax.jit
    def loss(decoder, params, ids):
        nonlocal count
        count += 1
        return decoder(params, ids)

    for decoder in (first, second):
        loss(decoder, weights_of(TINY), tokens())
    assert count == 1


def test_a_70b_shape_is_built_without_memory():
    config = DecoderConfig(
        vocab_size=128_256,
        width=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        mlp_width=28_672,
        norm=Norm(1e-5),
        ropes=(Rope(5e5, 128),),
        rope_of_layer=(0,) * 80,
    )
    params = parameter_shapes(config, jnp.bfloat16)
    assert 70e9 < sum(float(np.prod(leaf.shape)) for leaf in params.values()) < 71e9
    ids = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
    assert jax.eval_shape(Decoder(config, jnp.bfloat16), params, ids).shape == (4, 1023)


def test_chains_of_a_head_get_slices_of_the_gradient():
    params, decoder, ids = weights_of(TINY), Decoder(TINY), tokens()
    head = slt.Restriction([slt.Block("attn.q", (2, 8, 4, 4), (1, 8, 1, 4), (1, 0, 2, 0))])
    posterior = slt.LocalPosterior(decoder, params, 30.0, 10.0, restriction=head)
    batch = slt.Minibatch({"input_ids": ids})

    @quick
    def gradients(displacements):
        return jax.vmap(jax.grad(posterior.gap), (0, None))(displacements, batch)

    (chains,) = gradients((jnp.zeros((3, 1, 8, 1, 4), jnp.float32),))
    full = quick(jax.grad(lambda params: decoder(params, ids).mean()))(params)["attn.q"]
    for chain in chains:
        np.testing.assert_allclose(chain[0, :, 0], full[1, :, 2], atol=1e-7)
