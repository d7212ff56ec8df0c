"""The committed reference checkpoints, as tests read them."""

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(folder.name for folder in FIXTURES.iterdir() if (folder / "config.json").exists())


def reference(name):
    """The stored ids, logits and bfloat16 error of a fixture."""
    with np.load(FIXTURES / name / "reference.npz") as stored:
        return dict(stored)
