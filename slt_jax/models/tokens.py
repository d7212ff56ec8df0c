"""What a decoder reads: token ids, labels of the predicted ones, and where padding is."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from slt_jax.models.config import DecoderConfig

IGNORED_LABEL = -100
"""The label of a token that is not predicted."""


def token_arrays(batch: Any) -> tuple[Array, Array | None, Array | None]:
    """Give the token ids of a batch, and its labels and attention mask or None.

    Raises:
        TypeError: labels that are no integers.
        ValueError: entries that are none of these, no token ids, parts of other shapes.
    """
    if not isinstance(batch, Mapping):
        return batch, None, None
    unknown = sorted(set(batch) - {"input_ids", "labels", "attention_mask"})
    if unknown or "input_ids" not in batch:
        raise ValueError(
            "a batch holds input_ids and optionally labels and attention_mask, each [batch, pos]; "
            f"got {sorted(batch)}"
        )
    ids, labels, mask = batch["input_ids"], batch.get("labels"), batch.get("attention_mask")
    for name, part in {"labels": labels, "attention_mask": mask}.items():
        if part is not None and np.shape(part) != np.shape(ids):
            raise ValueError(
                f"{name} must have the shape of input_ids, {np.shape(ids)}, got {np.shape(part)}"
            )
    if labels is not None and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    return ids, labels, mask


def check_token_ids(ids: Array, config: DecoderConfig) -> None:
    """Refuse what is no batch of token ids of this model; values are looked at if they are known.

    Raises:
        TypeError: no integers ``[batch, pos]``.
        ValueError: ids outside the vocabulary, more tokens than learned positions.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim != 2:
        raise TypeError(
            f"token ids must be integers [batch, pos], got {ids.dtype} of shape {ids.shape}"
        )
    is_here = not isinstance(ids, Tracer) and getattr(ids, "is_fully_addressable", True)
    if is_here and ids.size:
        values = np.asarray(jax.device_get(ids))
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"token ids from {low} to {high} do not fit the vocabulary of {config.vocab_size}: "
                "they come from another model's tokenizer, or padding was not given a token's id"
            )
    if config.num_positions is not None and ids.shape[1] > config.num_positions:
        raise ValueError(
            f"sequences of {ids.shape[1]} tokens do not fit the {config.num_positions} learned "
            "positions of this model; cut them shorter"
        )
