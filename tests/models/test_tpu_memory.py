"""What programs take on every chip of a TPU, compiled ahead of time in one other process.

Skipped where libtpu is not installed: it exists for Linux only. `.ci/run` installs it.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NUM_WEIGHTS = 8.03e9
LONG = 8192


@pytest.fixture(scope="module")
def compiled():
    """The reports of the programs; libtpu lets in one process at a time."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu to compile for a TPU: pip install libtpu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.tpu_memory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_head_of_an_8b_model_takes_less_than_a_gigabyte_beside_the_weights(compiled):
    """Four chains, weights in bfloat16 over four chips: a stack gathered anywhere takes more."""
    memory = compiled["head"]
    assert 0.95 < memory["arguments"] / (2 * NUM_WEIGHTS / 4) < 1.1
    assert 1e6 < memory["temporary"] < 1e9


def test_fused_attention_at_long_context_holds_no_scores(compiled):
    """Two chains and two heads on every chip; float32 scores of one of them would take 268 MB."""
    memory = compiled["long_context"]
    assert memory["kernels"] == ["splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd"]
    assert 1e6 < memory["temporary"] < 4 * LONG**2 / 2
