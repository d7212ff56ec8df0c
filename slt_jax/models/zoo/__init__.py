"""A small transformer that comes with the library, and the text it was trained on.

>>> import jax.numpy as jnp
>>> from slt_jax.models import zoo
>>> model = zoo.stdlib_transformer()
>>> rows = jnp.asarray(zoo.held_out_rows(zoo.stdlib_vocabulary(), 4, 32))
>>> model.loss_fn(model.params, rows).shape
(4, 31)
"""

import functools
from pathlib import Path

from slt_jax.models.base import Model
from slt_jax.models.hf import from_hf
from slt_jax.models.zoo.induction import HeadScores as HeadScores
from slt_jax.models.zoo.induction import attention_patterns as attention_patterns
from slt_jax.models.zoo.induction import head_scores as head_scores
from slt_jax.models.zoo.induction import repeated_tokens as repeated_tokens
from slt_jax.models.zoo.text import held_out_rows as held_out_rows
from slt_jax.models.zoo.text import probe_rows as probe_rows
from slt_jax.models.zoo.text import training_rows as training_rows
from slt_jax.models.zoo.vocabulary import START as START
from slt_jax.models.zoo.vocabulary import Vocabulary as Vocabulary

STDLIB_TRANSFORMER = Path(__file__).parent / "stdlib_transformer"
"""The folder of the bundled checkpoint, for ``from_hf`` and for ``--model``."""


INDUCTION_HEADS = ("l1h0", "l1h5", "l1h6")
"""The induction heads of the bundled transformer, by their attention to repeated random tokens."""


def stdlib_transformer() -> Model:
    """Load the bundled attention-only transformer, trained on the Python standard library.

    Two layers of eight heads and nothing else, as in Hoogland et al. (arXiv 2402.02364), but
    small: 0.26 million weights in float32, 512 tokens, sequences of 128 tokens. ``l1h0``, ``l1h5``
    and ``l1h6`` are induction heads (attention scores 0.37 to 0.41, all others below 0.01) and
    ``l0h2`` attends to the token before (0.88). Held-out source text costs 2.69 nats per token.

    A quarter of its training sequences are a stretch of text again and again, as in
    ``training_rows``; none are random tokens. ``training.json`` in its folder holds the settings,
    the loss and the scores through training, and the hash of the text;
    ``python -m slt_jax.models.zoo.train`` makes it and a series of checkpoints in a few minutes.

    >>> model = stdlib_transformer()
    >>> len(model.components.heads())
    16
    """
    return from_hf(STDLIB_TRANSFORMER)


@functools.cache
def stdlib_vocabulary() -> Vocabulary:
    """Give the tokens of the bundled transformer.

    >>> vocabulary = stdlib_vocabulary()
    >>> vocabulary.decode(vocabulary.encode("return self._größe"))
    'return self._größe'
    """
    return Vocabulary.load(STDLIB_TRANSFORMER / "vocabulary.json")
