"""Fused kernels for attention: the numbers of the plain path, and what is refused beforehand.

No accelerator is needed: the TPU's kernels run interpreted, cuDNN's are only translated.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import slt_jax as slt
from slt_jax.models.attention import BlockwiseAttention
from slt_jax.models.cudnn_attention import CudnnAttention
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf import decoder_model, from_hf
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.splash_attention import SplashAttention, block_and_length
from tests.models.drawn import weights_of
from tests.models.references import FIXTURES
from tests.models.test_decoder import QUICK, TINY, tokens

INTERPRETED = SplashAttention(block_size=128, interpret=True)
LENGTH = 150  # two blocks, the second one filled up
NUM_ROWS = 2
BFLOAT16 = jnp.dtype("bfloat16")


def queries_keys_values(dtype=np.float32):
    """Queries with a leading axis of rows; keys and values, of half as many heads, without."""
    rng = np.random.default_rng(3)
    shapes = (NUM_ROWS, 1, LENGTH, 4, 8), (1, LENGTH, 2, 8), (1, LENGTH, 2, 8)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def mixed_and_gradients(attention, settings, kept=True):
    """What a layer of each window mixes, and slopes, batched over rows of queries alone."""

    def loss(q, k, v, layer):
        mixed = jnp.where(kept, attention(q, k, v, scale=0.7, layer=layer, **settings), 0)
        return jnp.sum(jnp.sin(mixed)), mixed

    slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    program = jax.jit(jax.vmap(slopes, (0, None, None, None)), compiler_options=QUICK)
    layers = range(len(settings.get("windows", ())) or 1)
    return [program(*queries_keys_values(), jnp.int32(layer)) for layer in layers]


@pytest.mark.parametrize(
    "settings",
    [{}, {"windows": (70, None), "softcap": 1.5}, {"windows": (140,), "is_key": 61}],
    ids=["causal", "windows and soft cap", "window and padding"],
)
def test_splash_equals_blocks_of_queries(settings):
    kept = True
    if "is_key" in settings:
        is_key = (jnp.arange(LENGTH) < settings["is_key"])[None]
        kept, settings = is_key[..., None, None], settings | {"is_key": is_key}
    plain = mixed_and_gradients(BlockwiseAttention(), settings, kept)
    fused = mixed_and_gradients(INTERPRETED, settings, kept)
    for expected, found in zip(plain, fused, strict=True):
        assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(found))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), expected, found
        )


DIVIDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from slt_jax.models.attention import BlockwiseAttention
from slt_jax.models.splash_attention import SplashAttention

mesh = jax.make_mesh((2, 2), ("chain", "model"), (jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(5)
q, k, v = (rng.standard_normal((4, 1, 150, n, 8)).astype(np.float32) for n in (4, 2, 2))
is_key = (np.arange(150) < 120)[None]

def compiled(attention):
    def loss(q, k, v):
        mixed = attention(q, k, v, scale=0.7, windows=(70,), is_key=is_key)
        return jax.numpy.sum(jax.numpy.sin(mixed[:, :120]))
    rows = jax.vmap(jax.value_and_grad(loss, (0, 1, 2)), (0, None, None), spmd_axis_name="chain")
    return jax.jit(rows, compiler_options={"xla_backend_optimization_level": 0})

def placed(x, *names):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names)))

plain = compiled(BlockwiseAttention())(q, k[0], v[0])
attention = SplashAttention(128, mesh=mesh, head_axis="model", interpret=True)
heads = None, None, "model"
operands = placed(q, "chain", *heads), placed(k[0], *heads), placed(v[0], *heads)
fused = compiled(attention)(*operands)
assert fused[1][0].sharding.spec == PartitionSpec("chain", *heads), fused[1][0].sharding
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5), plain, fused)
"""


def test_splash_divided_over_devices_equals_blocks_of_queries():
    """Chains over one axis of the devices, heads over the other; queries alone differ by chain."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(FIXTURES.parents[2]),
    }
    subprocess.run([sys.executable, "-c", DIVIDED], check=True, env=environment)


def test_bfloat16_of_splash_is_no_worse_than_that_of_blocks():
    exact = queries_keys_values()
    q, k, v = (x.astype(BFLOAT16) for x in exact)
    truth = BlockwiseAttention()(exact[0][0], *exact[1:], scale=0.7)

    def error(attention):
        found = jax.jit(attention, compiler_options=QUICK)(q[0], k, v, scale=0.7)
        assert found.dtype == BFLOAT16
        return np.sqrt(np.mean((found.astype(np.float32) - truth) ** 2))

    assert error(INTERPRETED) < 1.5 * error(BlockwiseAttention())


def test_a_padded_batch_has_the_same_losses_and_slopes_along_the_fast_path():
    config = dataclasses.replace(TINY, windows=(70, None), attn_softcap=2.0)
    params = weights_of(config)
    restriction = decoder_model(config, params).components["l0h1"]
    rng = np.random.default_rng(4)
    rows = tuple(
        jnp.asarray(0.1 * rng.standard_normal((NUM_ROWS, *block.size)), jnp.float32)
        for block in restriction.blocks
    )
    seen = (np.arange(LENGTH) >= np.asarray([[0], [70]])).astype(np.int32)
    batch = {"input_ids": tokens(2, LENGTH), "attention_mask": jnp.asarray(seen)}

    def program(attention):
        decoder = Decoder(config, jnp.float32, attention)

        def mean_loss(displacement):
            losses = decoder.losses_at(params, restriction, displacement, batch)
            return jnp.sum(losses.values * losses.weights) / jnp.sum(losses.weights)

        rowwise = jax.vmap(jax.value_and_grad(mean_loss))
        return jax.jit(rowwise, compiler_options=QUICK)(rows)

    plain, fused = program(BlockwiseAttention()), program(INTERPRETED)
    assert abs(float(plain[0][0] - plain[0][1])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, fused)


def test_only_the_window_of_the_layer_is_computed():
    def mixed(q, k, v, layer):
        settings = {"scale": 0.7, "windows": (70, None, 70)}
        return SplashAttention()(q, k, v, layer=layer, **settings)

    rows = jax.vmap(mixed, (0, None, None, None))
    program = jax.make_jaxpr(rows)(*queries_keys_values(), jnp.int32(0))
    (choice,) = [e for e in program.jaxpr.eqns if e.primitive.name == "cond"]
    assert len(choice.params["branches"]) == 2


@pytest.mark.parametrize("length", [1, 127, 128, 513, 8192, 8193])
@pytest.mark.parametrize("block_size", [128, 512])
def test_blocks_fill_up_little(length, block_size):
    size, filled = block_and_length(length, block_size)
    assert size % 128 == 0
    assert size <= block_size
    assert filled % size == 0
    assert 0 <= filled - length < 128 * filled // size


def test_cudnn_is_called_forward_and_backward_with_the_windows_of_the_model(monkeypatch):
    """Translated for a GPU that is not there; that JAX looks for cuDNN itself is left out."""
    library = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(library, lambda: 91000)
    config = dataclasses.replace(TINY, head_dim=16, windows=(5, None), attn_scale=0.25)
    decoder, params = Decoder(config, BFLOAT16, CudnnAttention()), weights_of(config)
    components = decoder_model(config, params).components

    def slope(displacement, part, ids):
        return jax.grad(lambda d: decoder.losses_at(params, part, d, ids).mean())(displacement)

    # Queries of one head: they differ between rows, and keys and values do not.
    part = components["l0h1 q"]
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf] * NUM_ROWS), part.zeros())
    names = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    exported = jax.export.export(
        jax.jit(jax.vmap(slope, (0, None, None))),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in names],
    )(rows, part, tokens(2, 24))
    calls = re.findall(
        r"custom_call @(__cudnn\$\w+)\(.*?backend_config = \"(.*?)\", ", exported.mlir_module()
    )
    assert {name for name, _ in calls} == set(names)
    settings = [
        json.loads(text.replace("\\22", '"'))["cudnn_fmha_backend_config"] for _, text in calls
    ]
    assert {entry["sliding_window_length"] for entry in settings} == {0, 5}
    assert {entry["mask_type"] for entry in settings} == {"CAUSAL"}
    assert {entry["fmha_scale"] for entry in settings} == {0.25}


@pytest.mark.parametrize(
    ("attention", "changes", "dtype", "message"),
    [
        (SplashAttention(), {}, "float16", "float32 or bfloat16, got float16"),
        (CudnnAttention(), {}, "float32", "bfloat16 or float16, got float32"),
        (CudnnAttention(), {"head_dim": 20}, "bfloat16", "multiple of 8 up to 256, got 20"),
        (CudnnAttention(), {"head_dim": 264}, "bfloat16", "multiple of 8 up to 256, got 264"),
        (CudnnAttention(), {"attn_softcap": 50.0}, "bfloat16", "no soft cap, got attn_softcap 50"),
    ],
)
def test_a_model_that_a_kernel_cannot_compute_is_refused(attention, changes, dtype, message):
    with pytest.raises(ValueError, match=message):
        Decoder(dataclasses.replace(TINY, **{"head_dim": 8} | changes), dtype, attention)


def test_heads_are_divided_evenly_over_an_axis_of_the_mesh():
    mesh = jax.make_mesh((1,), ("model",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match=r"an axis of the mesh, \('model',\), got heads"):
        SplashAttention(mesh=mesh, head_axis="heads")
    two = Mesh(np.array([*mesh.devices, *mesh.devices]), ("model",))
    attention = SplashAttention(mesh=two, head_axis="model")
    assert (
        Decoder(TINY, jnp.float32, attention)
        .provenance["attention"]
        .endswith("(block_size=512, head_axis='model', interpret=False)")
    )
    with pytest.raises(ValueError, match="1 key heads cannot be divided over the 2 devices"):
        Decoder(dataclasses.replace(TINY, num_kv_heads=1), jnp.float32, attention)


def test_splash_refuses_64_bits_instead_of_failing_inside_a_kernel():
    with jax.enable_x64(True), pytest.raises(ValueError, match="leave it off, or use Block"):
        jax.eval_shape(Decoder(TINY, jnp.float32, SplashAttention()), weights_of(TINY), tokens())


def test_cudnn_refuses_padding_instead_of_ignoring_it():
    config = dataclasses.replace(TINY, head_dim=8)
    decoder = Decoder(config, BFLOAT16, CudnnAttention())
    batch = {"input_ids": tokens(), "attention_mask": jnp.ones((2, 9), jnp.int32)}
    with pytest.raises(ValueError, match="the batch has an attention_mask"):
        jax.eval_shape(decoder, weights_of(config), batch)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (slt.models.SplashAttention(), "runs on TPU, and the weights are on cpu"),
        (slt.models.CudnnAttention(), "runs on NVIDIA GPUs, and the weights are on cpu"),
    ],
)
def test_a_kernel_of_another_device_is_refused_where_the_weights_are(attention, message):
    config = dataclasses.replace(TINY, head_dim=8)
    with pytest.raises(ValueError, match=message):
        decoder_model(config, weights_of(config), BFLOAT16, attention)
    # Shapes alone may be compiled for any device.
    assert decoder_model(config, parameter_shapes(config), BFLOAT16, attention).components


def test_loading_hands_on_the_attention_and_checks_it_before_any_weight():
    model = from_hf(FIXTURES / "llama", dtype="float32", attention=INTERPRETED)
    assert model.loss_fn.attention == INTERPRETED
    with pytest.raises(ValueError, match="CudnnAttention computes in bfloat16 or float16"):
        from_hf(FIXTURES / "llama", dtype="float32", attention=CudnnAttention())


def test_a_decoder_says_how_it_computes_attention():
    decoder = Decoder(TINY, jnp.float32, INTERPRETED)
    assert decoder.provenance == {"compute_dtype": "float32", "attention": repr(INTERPRETED)}
    assert "SplashAttention(block_size=128, interpret=True)" in repr(decoder)
    assert decoder != Decoder(TINY, jnp.float32)
