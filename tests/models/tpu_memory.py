"""Compile for TPU chips, and print as JSON what the programs take and which kernels they call.

One is a step of one head of an 8B decoder on eight chips, the other the gradient of all weights of
a small decoder at long context, with fused attention.

Run as a program of its own: ``python -m tests.models.tpu_memory``. No TPU is needed, only libtpu.
"""

import json
import os
import re

# Asking a metadata server that is not there would take minutes.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import slt_jax as slt
from slt_jax.models.components import Components
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.layout import parameter_axes, parameter_shapes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope

NUM_LAYERS = 32
SHAPE_OF_LLAMA_3_8B = DecoderConfig(
    vocab_size=128256,
    width=4096,
    num_layers=NUM_LAYERS,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=14336,
    norm=Norm(1e-5),
    ropes=(Rope(5e5, 128),),
    rope_of_layer=(0,) * NUM_LAYERS,
)
NUM_CHAINS, BATCH_SIZE, NUM_TOKENS = 4, 1, 512
CHAIN_DEVICES, MODEL_DEVICES = 2, 4
LONG = 8192
SHAPE_OF_LONG_CONTEXT = DecoderConfig(
    vocab_size=256,
    width=256,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    mlp_width=0,
    norm=Norm(1e-5),
    ropes=(Rope(5e5, 64),),
    rope_of_layer=(0, 0),
    windows=(1024, None),
    attn_scale=0.125,
)
SHARDED = "hgfv"  # heads, groups, hidden units of the MLP, vocabulary


def as_shapes(tree: Any, sharding: NamedSharding) -> Any:
    """Give the tree as shapes and dtypes placed on the devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding), tree
    )


def chips() -> Mesh:
    """Give eight chips, for chains and for parts of the model."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    return Mesh(np.array(devices).reshape(CHAIN_DEVICES, MODEL_DEVICES), ("chain", "model"))


def placed(mesh: Mesh, leading: str, axes: str) -> NamedSharding:
    """Divide a leaf with these axes, and with a leading one if that is named."""
    names = ["model" if axis in SHARDED else None for axis in axes]
    return NamedSharding(mesh, PartitionSpec(*([leading] if leading else []), *names))


def compile_step(component: str) -> Any:
    """Compile one SGLD step of all chains, weights sharded over 4 chips and chains over 2."""
    mesh = chips()
    config = SHAPE_OF_LLAMA_3_8B
    decoder, axes = Decoder(config, jnp.bfloat16), parameter_axes(config)
    everywhere = NamedSharding(mesh, PartitionSpec())
    over_chains = NamedSharding(mesh, PartitionSpec("chain"))

    params = {
        name: as_shapes(shape, placed(mesh, "", axes[name]))
        for name, shape in parameter_shapes(config, jnp.bfloat16).items()
    }
    described = {name: " ".join(own) for name, own in axes.items()}
    restriction = Components(parameter_shapes(config), described)[component]
    kernel = slt.sgld(1e-5)

    def posterior(params: Any, restriction: slt.Restriction) -> slt.LocalPosterior:
        return slt.LocalPosterior(decoder, params, 30.0, 10.0, restriction=restriction)

    def step(kernel: Any, params: Any, restriction: Any, states: Any, ids: Any, keys: Any) -> Any:
        target = posterior(params, restriction)
        batch = kernel.prepare(target, slt.Minibatch(ids))
        rows = jax.vmap(kernel.step, (0, None, 0, None), spmd_axis_name="chain")
        return rows(keys, target, states, batch)

    def initial(params: Any) -> Any:
        state = kernel.init(posterior(params, restriction))
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * NUM_CHAINS), state)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), NUM_CHAINS))
    traced = jax.jit(step).trace(
        as_shapes(kernel, everywhere),
        params,
        as_shapes(restriction, everywhere),
        as_shapes(jax.eval_shape(initial, params), over_chains),
        jax.ShapeDtypeStruct((BATCH_SIZE, NUM_TOKENS), jnp.int32, sharding=everywhere),
        as_shapes(keys, over_chains),
    )
    return traced.lower(lowering_platforms=("tpu",)).compile()


def compile_long_context() -> Any:
    """Compile the gradients of four chains with the splash kernels, in bfloat16.

    Chains are divided over 2 chips and heads over 4.
    """
    mesh = chips()
    everywhere = NamedSharding(mesh, PartitionSpec())
    attention = slt.models.SplashAttention(mesh=mesh, head_axis="model")
    decoder = Decoder(SHAPE_OF_LONG_CONTEXT, jnp.bfloat16, attention)
    axes = parameter_axes(SHAPE_OF_LONG_CONTEXT)
    shapes = parameter_shapes(SHAPE_OF_LONG_CONTEXT, jnp.bfloat16)
    rows = {
        name: jax.ShapeDtypeStruct(
            (NUM_CHAINS, *leaf.shape), leaf.dtype, sharding=placed(mesh, "chain", axes[name])
        )
        for name, leaf in shapes.items()
    }
    ids = jax.ShapeDtypeStruct((1, LONG), jnp.int32, sharding=everywhere)

    def mean_loss(params: Any, ids: Any) -> Any:
        return jnp.mean(jnp.asarray(decoder(params, ids)))

    slopes = jax.vmap(jax.grad(mean_loss), (0, None), spmd_axis_name="chain")
    return jax.jit(slopes).trace(rows, ids).lower(lowering_platforms=("tpu",)).compile()


def report(program: Any) -> dict[str, Any]:
    """Give the bytes per device, and the attention kernels that the program calls."""
    memory = program.memory_analysis()
    return {
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "kernels": sorted(set(re.findall(r"splash_mha_[a-z]+", program.as_text()))),
    }


def main() -> None:
    """Print what both programs take."""
    long_context = report(compile_long_context())
    print(json.dumps({"head": report(compile_step("l16h3")), "long_context": long_context}))


if __name__ == "__main__":
    main()
