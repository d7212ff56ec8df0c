"""What a step of one head of an 8B model takes on every chip of a TPU, compiled ahead of time.

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


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu to compile for a TPU: pip install libtpu",
)
def test_a_head_of_an_8b_model_takes_less_than_a_gigabyte_beside_the_weights():
    """Four chains, weights in bfloat16 over four chips: a stack gathered anywhere takes more."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.tpu_memory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    memory = json.loads(done.stdout.splitlines()[-1])
    assert 0.95 < memory["arguments"] / (2 * NUM_WEIGHTS / 4) < 1.1
    assert 1e6 < memory["temporary"] < 1e9
