"""What a decoder reads: token ids, labels of the predicted ones, and where padding is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float32

from slt_jax._tree import on_device
from slt_jax.models.config import DecoderConfig

IGNORED_LABEL = -100
"""The label of a token that is not predicted."""


class Sequences(NamedTuple):
    """What a layer needs to know of the sequences besides the residual stream.

    ``angles`` are rotary angles ``[rope, pos, half]`` or None; ``is_key`` is False where nothing
    may attend to, or None.
    """

    angles: Float32[Array, "rope pos half"] | None
    is_key: Bool[Array, "batch pos"] | None


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


def predicted(batch: Any) -> tuple[Array, Array | None]:
    """Give the tokens to predict, all but the first of every sequence, and their weights.

    Args:
        batch: as for the decoder.

    Returns:
        integers ``[batch, pos − 1]``, and float32 0 or 1 of that shape, or None if all count. Where
        nothing is predicted stands a token all the same.

    Raises:
        ValueError: sequences of a single token.
    """
    ids, labels, mask = token_arrays(batch)
    if ids.shape[1] < 2:
        raise ValueError(
            f"sequences of {ids.shape[1]} tokens predict nothing: the first token is only read, so "
            "give at least 2"
        )
    targets = (ids if labels is None else labels)[:, 1:]
    if labels is None and mask is None:
        return targets, None
    counted = targets != IGNORED_LABEL
    safe = targets if labels is None else jnp.where(counted, targets, 0)
    if mask is not None:
        counted = counted & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    return safe, counted.astype(jnp.float32)


def check_token_ids(ids: Array, config: DecoderConfig) -> None:
    """Refuse what is no batch of token ids of this model; values are looked at if they are known.

    Raises:
        TypeError: no integers ``[batch, pos]``.
        ValueError: ids outside the vocabulary, sequences longer than the model was made for.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim != 2:
        raise TypeError(
            f"token ids must be integers [batch, pos], got {ids.dtype} of shape {ids.shape}"
        )
    is_here = not isinstance(ids, Tracer) and getattr(ids, "is_fully_addressable", True)
    if is_here and ids.size:
        check_vocabulary("token id", np.asarray(jax.device_get(ids)), config.vocab_size)
    _check_length(ids.shape[1], config)


def check_batch(batch: Any, config: DecoderConfig) -> None:
    """Refuse examples that are no batch of this model, looking at all their values.

    Raises:
        TypeError, ValueError: as ``token_arrays`` and ``check_token_ids``; labels that are neither
            a token's id nor ``IGNORED_LABEL``.
    """
    ids, labels, _ = token_arrays(on_device(batch))
    check_token_ids(ids, config)
    if labels is not None:
        values = np.asarray(jax.device_get(labels))
        check_vocabulary("label", values, config.vocab_size, may_be_ignored=True)


def check_vocabulary(
    name: str,
    ids: np.ndarray,
    vocab_size: int,
    *,
    may_be_ignored: bool = False,
    first_sequence: int = 0,
) -> None:
    """Raise ValueError for the first of some ids that is no token's.

    Args:
        name: of an id, for the error.
        ids: integers ``[n, pos]``.
        vocab_size: ids are below it.
        may_be_ignored: whether they are labels, which may be ``IGNORED_LABEL``.
        first_sequence: the number of the first row, if it is not the first of all.
    """
    wrong = (ids < 0) | (ids >= vocab_size)
    if may_be_ignored:
        wrong &= ids != IGNORED_LABEL
    if wrong.any():
        row, position = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} {ids[row, position]} (sequence {first_sequence + row}, position {position}) "
            f"is outside the vocabulary of {vocab_size}: it comes from another model's tokenizer, "
            "or padding was not given a token's id"
        )


def _check_length(length: int, config: DecoderConfig) -> None:
    if config.max_length is None or length <= config.max_length:
        return
    if config.num_positions is not None:
        raise ValueError(
            f"sequences of {length} tokens do not fit the {config.num_positions} learned positions "
            "of this model; cut them shorter"
        )
    raise ValueError(
        f"sequences of {length} tokens are longer than the {config.context_length} that this model "
        "was made for, as its config.json says: positions beyond were never trained. Cut them "
        "shorter, or, to measure just that, raise max_position_embeddings there"
    )
