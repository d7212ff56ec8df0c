"""Train the bundled transformer: ``python -m slt_jax.models.zoo.train --out DIR --seed 0``.

What comes out is a function of the settings, the seed, the standard library and the versions of
Python, JAX and its compiler: on one machine it is the same to the bit.
"""

import argparse
import dataclasses
import functools
import json
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from slt_jax._types import Params
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf import decoder_model, save_hf
from slt_jax.models.hf_config import parse_config
from slt_jax.models.layout import parameter_shapes
from slt_jax.models.zoo.induction import head_scores, repeated_tokens
from slt_jax.models.zoo.source import digest, training_texts
from slt_jax.models.zoo.text import (
    BETWEEN,
    COPIED_SHARE,
    MIN_PERIOD,
    common_tokens,
    held_out_rows,
    repeat_stretches,
)
from slt_jax.models.zoo.vocabulary import START, Vocabulary

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The architecture and how it is trained.

    Weights start at random: matrices of standard deviation 1/√``width``, the biases of queries and
    keys of ``bias_std``. With rotary positions those give every head a preference for some
    distances, from which one that looks at the token before grows, and induction after it. Half of
    a head is not rotated: what it finds does not depend on how far away it is.

    ``copied_share`` of every batch are stretches of text of a random length, ``min_period`` or
    more, that come again and again: source text repeats itself, but not often enough for strong
    induction heads to grow in a few minutes. No random tokens are ever trained on.
    """

    vocab_size: int = 512
    width: int = 128
    num_heads: int = 8
    num_layers: int = 2
    length: int = 128
    rotary_base: float = 30.0
    rotary_share: float = 0.5
    embedding_std: float = 0.3
    unembedding_std: float = 0.02
    bias_std: float = 1.5
    batch_size: int = 8
    copied_share: float = COPIED_SHARE
    min_period: int = MIN_PERIOD
    num_steps: int = 6000
    num_warmup_steps: int = 100
    learning_rate: float = 3e-3
    decay_share: float = 0.5
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    num_checkpoints: int = 24

    def config_text(self) -> str:
        """Give the ``config.json``."""
        rope = {
            "rope_type": "default",
            "rope_theta": self.rotary_base,
            "partial_rotary_factor": self.rotary_share,
        }
        fields = {
            "model_type": "attention_only",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "n_embd": self.width,
            "n_head": self.num_heads,
            "n_layer": self.num_layers,
            "n_positions": self.length,
            "rope_parameters": rope,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": START,
        }
        return json.dumps(fields, indent=2) + "\n"

    def learning_rate_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Give the learning rate: a linear rise, a plateau, and a linear fall to zero."""
        done = step.astype(jnp.float32)
        risen = (done + 1) / self.num_warmup_steps
        left = (self.num_steps - done) / max(1.0, self.decay_share * self.num_steps)
        return self.learning_rate * jnp.clip(jnp.minimum(risen, left), 0, 1)

    def checkpoint_steps(self) -> list[int]:
        """Give the steps after which weights are written: 0, then log-spaced, the last included."""
        spaced = np.geomspace(1, self.num_steps, self.num_checkpoints)
        return sorted({0, *np.rint(spaced).astype(int).tolist()})


def train(
    settings: Settings, vocabulary: Vocabulary, seed: int, write: Callable[[int, Params], None]
) -> list[Record]:
    """Train from scratch.

    Args:
        settings: what and how.
        vocabulary: the tokens.
        seed: of the initial weights and the batches.
        write: called with every step at which there is a checkpoint, and the weights then.

    Returns:
        for every checkpoint its ``step``, ``training_loss`` (mean since the one before; nats per
        token), ``held_out_loss``, and the largest ``induction`` and ``previous`` attention scores.
    """
    decoder = Decoder(parse_config(settings.config_text()))
    params = initial_params(decoder, settings, seed)
    optimizer = _optimizer(settings)
    state, advance = optimizer.init(params), _stepper(decoder, optimizer)
    tokens = vocabulary.encode(BETWEEN.join(training_texts()))
    measure = _measurements(decoder, vocabulary, settings.length)
    records, losses = [], []
    due = settings.checkpoint_steps()
    for step in range(settings.num_steps + 1):
        if step in due:
            write(step, params)
            mean = np.mean(losses) if losses else None
            record = {"training_loss": mean} | measure(params)
            rounded = {name: _rounded(value) for name, value in record.items()}
            records.append({"step": step} | rounded)
            losses = []
            print(json.dumps(records[-1]), flush=True)
        if step < settings.num_steps:
            rows = jnp.asarray(batch_at(tokens, settings, seed, step))
            params, state, loss = advance(params, state, rows)
            losses.append(float(loss))
    return records


def initial_params(decoder: Decoder, settings: Settings, seed: int) -> dict[str, Array]:
    """Draw the weights that training starts from."""
    stds: dict[str, float] = {
        "embed.tok": settings.embedding_std,
        "unembed": settings.unembedding_std,
        "attn.q_b": settings.bias_std,
        "attn.k_b": settings.bias_std,
    }
    params = {}
    for number, (name, leaf) in enumerate(sorted(parameter_shapes(decoder.config).items())):
        key = jax.random.fold_in(jax.random.key(seed), number)
        if "norm" in name:
            params[name] = jnp.full(leaf.shape, float(not name.endswith("_b")))
        elif name.endswith("_b") and name not in stds:
            params[name] = jnp.zeros(leaf.shape)
        else:
            std = stds.get(name, 1 / math.sqrt(settings.width))
            params[name] = std * jax.random.normal(key, leaf.shape)
    return params


def batch_at(
    tokens: Int[np.ndarray, " token"], settings: Settings, seed: int, step: int
) -> Int[np.ndarray, "batch pos"]:
    """Give the batch of one step: stretches of the text from anywhere in it, after ``START``.

    The first ``copied_share`` of them are repeated beginnings.
    """
    generator = np.random.default_rng([seed, step])
    length, batch = settings.length - 1, settings.batch_size
    starts = generator.integers(0, len(tokens) - length, batch)
    rows = tokens[starts[:, None] + np.arange(length)]
    repeat_stretches(rows[: round(settings.copied_share * batch)], settings.min_period, generator)
    return np.concatenate([np.full((batch, 1), START, rows.dtype), rows], axis=1)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    def is_matrix(params: Params) -> dict[str, bool]:
        return {name: "norm" not in name and not name.endswith("_b") for name in params}

    return optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.adamw(
            lambda count: settings.learning_rate_at(jnp.asarray(count)),
            b2=0.99,
            weight_decay=settings.weight_decay,
            mask=is_matrix,
        ),
    )


def _stepper(decoder: Decoder, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Compile one step: (weights, state, rows) to new weights and state, and the mean loss."""

    def mean_loss(params: Params, rows: Array) -> Array:
        # As the decoder's own loss, but small enough to recompute nothing.
        sequences, x = decoder.sequences(rows), decoder.embed(params, rows)
        for layer in range(decoder.config.num_layers):
            x = decoder.block(decoder.layer_weights(params, layer), layer, x, sequences)
        logits = decoder.unembed(params, x[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def advance(params: Params, state: Any, rows: Array) -> tuple[Params, Any, Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(params, rows)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return advance


def _measurements(
    decoder: Decoder, vocabulary: Vocabulary, length: int
) -> Callable[[Params], Record]:
    """Prepare what is measured at every checkpoint."""
    held_out = jnp.asarray(held_out_rows(vocabulary, 64, length))
    drawn = common_tokens(vocabulary)
    repeated = repeated_tokens(drawn, 16, length, start=START, seed=0)

    @jax.jit
    def mean_loss(params: Params) -> Array:
        losses = decoder(params, held_out)
        assert isinstance(losses, jax.Array)
        return jnp.mean(losses)

    def measure(params: Params) -> Record:
        scores = head_scores(decoder, params, repeated)
        return {"held_out_loss": float(mean_loss(params)), **scores._asdict()}

    return measure


def _rounded(value: Any) -> Any:
    """Give a number or an array as lists of numbers, with four decimals."""
    return value if value is None else np.round(np.asarray(value, np.float64), 4).tolist()


def _card_text(card: Record, records: list[Record]) -> str:
    """Give JSON with one line for each checkpoint."""
    lines = ",\n    ".join(map(json.dumps, records))
    fields = json.dumps(card, indent=2).removesuffix("\n}")
    return f'{fields},\n  "checkpoints": [\n    {lines}\n  ]\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m slt_jax.models.zoo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    parser.add_argument(
        "--checkpoints", action="store_true", help="also write step* folders, log-spaced"
    )
    parser.add_argument("--num-steps", type=int, help="train for fewer steps, for trying out")
    given = parser.parse_args(arguments)
    settings = Settings()
    if given.num_steps is not None:
        settings = dataclasses.replace(settings, num_steps=given.num_steps)
    given.out.mkdir(parents=True)
    texts = training_texts()
    vocabulary = Vocabulary.learn(texts, settings.vocab_size)
    config = parse_config(settings.config_text())

    def write(step: int, params: Params) -> None:
        model = decoder_model(config, params)
        if given.checkpoints:
            save_hf(model, given.out / f"step{step:08d}")
        if step == settings.num_steps:
            save_hf(model, given.out)

    records = train(settings, vocabulary, given.seed, write)
    vocabulary.save(given.out / "vocabulary.json")
    card = {
        "seed": given.seed,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "sha256_of_training_text": digest(texts),
        "settings": dataclasses.asdict(settings),
    }
    (given.out / "training.json").write_text(_card_text(card, records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
