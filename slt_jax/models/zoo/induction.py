"""What attention heads attend to: the token before, or what followed the same token earlier."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from slt_jax.models.decoder import Decoder


class HeadScores(NamedTuple):
    """Mean attention of every head on sequences of random tokens that come twice.

    Attributes:
        induction: from a token's second occurrence to what followed its first, ``[layer, head]``,
            between 0 and 1.
        previous: from every token to the one before it, ``[layer, head]``.
        first_loss: mean loss of the tokens when they come first, in nats per token.
        second_loss: when they come again.
    """

    induction: Float32[np.ndarray, "layer head"]
    previous: Float32[np.ndarray, "layer head"]
    first_loss: float
    second_loss: float

    def heads_above(self, threshold: float) -> list[str]:
        """Name the heads whose induction score is above a threshold, such as ``l1h3``."""
        return [f"l{layer}h{head}" for layer, head in np.argwhere(self.induction > threshold)]


def repeated_tokens(
    drawn: Int[np.ndarray, " token"], num_rows: int, length: int, *, start: int, seed: int
) -> Int[np.ndarray, "sequence pos"]:
    """Give sequences of random tokens that come twice, after a token that starts them.

    The period is ``(length − 1) // 2``; a position that is left over begins a third time.

    Args:
        drawn: the tokens to draw from, uniformly and with replacement.
        num_rows: number of sequences.
        length: tokens per sequence, at least 5.
        start: the first token of each.
        seed: of the draw.

    >>> repeated_tokens(np.arange(9), 1, 7, start=9, seed=0).tolist()
    [[9, 7, 5, 4, 7, 5, 4]]
    """
    half = _period(length)
    unique = np.random.default_rng(seed).choice(drawn, (num_rows, half))
    rows = np.tile(unique, (1, 3))[:, : length - 1]
    return np.concatenate([np.full((num_rows, 1), start), rows], axis=1).astype(np.int32)


def head_scores(
    decoder: Decoder,
    params: Mapping[str, Array],
    rows: Int[Array, "sequence pos"] | Int[np.ndarray, "sequence pos"],
) -> HeadScores:
    """Measure every head on sequences that ``repeated_tokens`` gave.

    The induction score is that of Olsson et al., arXiv 2209.11895: an induction head attends from
    the second A in A B … A to B.

    Args:
        decoder: any decoder of one window, ``model.loss_fn``.
        params: its weights.
        rows: as from ``repeated_tokens``.
    """
    half, rows = _period(rows.shape[1]), jnp.asarray(rows)
    patterns = attention_patterns(decoder, params, rows)
    second = jnp.arange(half + 1, 2 * half + 1)
    copied = patterns[..., second, second - half + 1]
    later = jnp.arange(2, 2 * half + 1)
    before = patterns[..., later, later - 1]
    losses = decoder(params, rows)
    assert isinstance(losses, jax.Array)
    first_loss, second_loss = jnp.mean(losses[:, :half]), jnp.mean(losses[:, half + 1 : 2 * half])
    scores = (jnp.mean(copied, (1, 3)), jnp.mean(before, (1, 3)), first_loss, second_loss)
    induction, previous, first, again = jax.device_get(scores)
    return HeadScores(induction, previous, float(first), float(again))


def attention_patterns(
    decoder: Decoder, params: Mapping[str, Array], ids: Int[Array, "batch pos"]
) -> Float32[Array, "layer batch head query key"]:
    """Give how much every head attends from each position to each position before it or to itself.

    All of it is held at once: this is for looking at small models.

    Args:
        decoder: any decoder.
        params: its weights.
        ids: token ids.

    Returns:
        rows of the softmax, which sum to 1 over the keys.
    """
    sequences = decoder.sequences(ids)
    x = decoder.embed(params, ids)
    patterns = []
    for layer in range(decoder.config.num_layers):
        weights = decoder.layer_weights(params, layer)
        pattern = decoder.attention_pattern(weights, layer, x, sequences)
        patterns.append(pattern.transpose(0, 2, 1, 3))
        x = decoder.block(weights, layer, x, sequences)
    return jnp.stack(patterns)


def _period(length: int) -> int:
    """The number of tokens that are repeated in a sequence of some length."""
    half = (length - 1) // 2
    if half < 2:
        raise ValueError(f"a sequence needs at least 5 tokens to repeat 2 of them, got {length}")
    return half
