"""Trees of numbered weights in the layout of a decoder, of several architectures."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SIZES = {"l": 3, "d": 10, "f": 14, "v": 11, "p": 5}

ATTENTION = {"attn.q": "l d h k", "attn.k": "l d g k", "attn.v": "l d g k", "attn.o": "l h k d"}
ATTENTION_BIASES = {
    "attn.q_b": "l h k",
    "attn.k_b": "l g k",
    "attn.v_b": "l g k",
    "attn.o_b": "l d",
}
MLP = {"mlp.up": "l d f", "mlp.down": "l f d"}
EMBEDDINGS = {"embed.tok": "v d", "unembed": "v d"}
NORMS = {"norm.attn": "l d", "norm.mlp": "l d", "final_norm": "d"}

# name: (axes, heads, key-value heads, width of a head); d / heads is never the width of a head.
ARCHITECTURES = {
    "gpt2": (
        {"embed.tok": "v d", "embed.pos": "p d"}
        | ATTENTION
        | ATTENTION_BIASES
        | MLP
        | {"mlp.up_b": "l f", "mlp.down_b": "l d"}
        | NORMS
        | {"norm.attn_b": "l d", "norm.mlp_b": "l d", "final_norm_b": "d"},
        4,
        4,
        3,
    ),
    "qwen3": (
        EMBEDDINGS
        | ATTENTION
        | {"attn.q_norm": "l k", "attn.k_norm": "l k"}
        | {"mlp.gate": "l d f"}
        | MLP
        | NORMS,
        6,
        2,
        4,
    ),
    "olmo2": (
        EMBEDDINGS
        | ATTENTION
        | {"attn.q_norm": "l h k", "attn.k_norm": "l g k"}
        | {"mlp.gate": "l d f"}
        | MLP
        | {"norm.attn_post": "l d", "norm.mlp_post": "l d", "final_norm": "d"},
        4,
        2,
        3,
    ),
    "attention only": (EMBEDDINGS | {"embed.pos": "p d"} | ATTENTION, 5, 5, 3),
    "phi": (
        EMBEDDINGS | {"unembed_b": "v"} | ATTENTION | ATTENTION_BIASES | MLP | NORMS,
        4,
        4,
        3,
    ),
}


def number_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Give arrays of these shapes in which every weight is a different whole number, from 1."""
    arrays, first = {}, 1
    for name in sorted(shapes):
        count = int(np.prod(shapes[name]))
        numbers = np.arange(first, first + count, dtype=np.float32)
        arrays[name] = numbers.reshape(shapes[name])
        first += count
    assert first < 2**24, "float32 does not hold these whole numbers"
    return arrays


def make(name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Give the weights of an architecture, and their axes."""
    axes, num_heads, num_groups, width = ARCHITECTURES[name]
    sizes = SIZES | {"h": num_heads, "g": num_groups, "k": width}
    shapes = {path: tuple(sizes[name] for name in names.split()) for path, names in axes.items()}
    return number_weights(shapes), axes


def selected(params: Mapping[str, np.ndarray], restriction: Any) -> np.ndarray:
    """Give the numbers of the selected weights in rising order, repeated if selected twice."""
    cuts = [
        np.asarray(params[block.path]).reshape(block.view)[
            tuple(
                slice(start, start + size)
                for start, size in zip(np.asarray(block.start), block.size, strict=True)
            )
        ]
        for block in restriction.blocks
    ]
    return np.sort(np.concatenate([np.ravel(cut) for cut in cuts]))


def digest(numbers: np.ndarray) -> list[Any]:
    """Give how many numbers there are, and a digest of which, in any order."""
    whole = np.sort(numbers).astype(np.int64)
    return [len(whole), hashlib.blake2b(whole.tobytes(), digest_size=6).hexdigest()]
