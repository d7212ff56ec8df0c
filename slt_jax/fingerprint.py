"""A short name for what a run was made from: settings, selection, weights and data."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from slt_jax._tree import path_table
from slt_jax._types import Params
from slt_jax.data import Batches

_SAMPLED_ROWS = 64


def fingerprint(
    settings: dict[str, Any],
    selections: list[int],
    params: Params,
    weight_sums: np.ndarray,
    batches: Batches,
) -> str:
    """Hash settings, selected weights, the weights' sums and a spread of data rows.

    Args:
        settings: plain values by name.
        selections: one hash per component.
        params: w*, for paths, shapes and dtypes.
        weight_sums: float32 ``[leaf, 2]``: sum and absolute sum of every leaf, computed on the
            device, so that weights never travel to the host for it.
        batches: the data; 64 evenly spread rows and all weights are hashed.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    structure = [
        (path, tuple(leaf.shape), str(leaf.dtype)) for path, leaf in path_table(params).items()
    ]
    digest.update(json.dumps([settings, selections, structure], default=str).encode())
    digest.update(np.ascontiguousarray(weight_sums).tobytes())
    rows = np.linspace(0, batches.num_examples - 1, min(_SAMPLED_ROWS, batches.num_examples))
    for leaf in jax.tree.leaves(batches.rows(rows.astype(np.int64))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    if batches.weights is not None:
        digest.update(batches.weights.tobytes())
    return digest.hexdigest()
