"""Loading a large checkpoint onto several devices needs little memory beyond the weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from slt_jax.models.hf_config import parse_config
from slt_jax.models.hf_weights import stored_form
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.safetensors_writer import Pending, write_folder

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 4096,
    "rope_theta": 5e5,
}
MAX_OVERHEAD_BYTES = 0.2e9

LOAD = """
import re, sys, threading, time
import jax
from slt_jax.models.hf import from_hf

def anonymous():
    status = open("/proc/self/status").read()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) * 1024

class Layout:
    def parameter_sharding(self, axes, shape):
        mesh = jax.make_mesh((2, 4), ("chain", "model"), (jax.sharding.AxisType.Auto,) * 2)
        split = ["model" if axis in "hgfv" else None for axis in axes.split()]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))

jax.block_until_ready(jax.numpy.zeros(3))
before, peaks, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peaks.append(anonymous())

thread = threading.Thread(target=watch)
thread.start()
model = from_hf(sys.argv[1], layout=Layout())
peaks.append(anonymous())
done.set()
thread.join()
shards = [s.data.nbytes for leaf in model.params.values() for s in leaf.addressable_shards]
print(sum(shards), max(peaks) - before - sum(shards))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_overhead_of_loading_a_sharded_checkpoint(tmp_path):
    config = parse_config(json.dumps(CONFIG))
    dtype = np.dtype(ml_dtypes.bfloat16)
    params = parameter_shapes(config, dtype)

    def zeros(tensor):
        return Pending(tensor.dtype, tensor.shape, lambda: np.zeros(tensor.shape, dtype))

    tensors = {name: zeros(tensor) for name, tensor in stored_form(config, params).items()}
    write_folder(tmp_path, tensors, max_shard_bytes=100_000_000)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert len(list(tmp_path.glob("*.safetensors"))) >= 8
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    weights, overhead = map(int, output.stdout.split())
    # The mesh has two copies of every weight.
    assert weights > 1.7e9
    assert overhead < MAX_OVERHEAD_BYTES
