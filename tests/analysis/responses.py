"""Made-up response matrices and texts, small enough to know everything about them."""

import numpy as np
import xarray as xr

from slt_jax.analysis import TokenText

WORDS = ["def", " the", "(", ")", "x", " 12", "\n", "ing"]


def make_response(num_components=6, num_sequences=4, length=10, seed=0, errors=True):
    """A response with two planted directions, a scale per component, and errors."""
    generator = np.random.default_rng(seed)
    num_tokens = num_sequences * length
    directions = np.linalg.qr(generator.normal(size=(num_components, 2)))[0]
    scores = np.array([[5.0], [2.0]]) * generator.normal(size=(2, num_tokens))
    values = directions @ scores + 0.1 * generator.normal(size=(num_components, num_tokens))
    values += generator.normal(size=(num_components, 1))
    variables = {"susceptibility": (("component", "token"), values)}
    if errors:
        gap = generator.uniform(-0.1, 1.0, num_components)
        full_error = generator.uniform(0.1, 0.2, num_tokens)
        own_error = generator.uniform(0.05, 0.2, values.shape)
        shared_error = np.abs(gap)[:, None] * full_error
        variables |= {
            "standard_error": (("component", "token"), np.hypot(own_error, shared_error)),
            "shared_error": (("component", "token"), shared_error),
            "observable_mean": ("component", gap),
            "full_error": ("token", full_error),
        }
    return xr.Dataset(variables, coords=make_coords(num_components, num_sequences, length))


def make_coords(num_components, num_sequences, length):
    sequence, position = np.divmod(np.arange(num_sequences * length), length)
    dataset = np.where(sequence < num_sequences // 2, "code", "prose")
    first = np.where(dataset == "code", 0, num_sequences // 2)
    return {
        "component": [f"l{number // 2}h{number % 2}" for number in range(num_components)],
        "dataset": ("token", dataset),
        "sequence": ("token", sequence - first),
        "position": ("token", position),
    }


def make_text(num_sequences=4, length=10, seed=0):
    """The text of a response: every sequence has one token more than there are losses."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, len(WORDS), (num_sequences, length + 1))
    half = num_sequences // 2
    return TokenText({"code": tokens[:half], "prose": tokens[half:]}, read)


def read(ids):
    return "".join(WORDS[number] for number in ids)
