"""The text behind the tokens of a result: which token an entry is about, and how it reads."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Int

PLACE = ("dataset", "sequence", "position")


class TokenText(NamedTuple):
    """The token sequences that were probed, and what turns token ids into text.

    Attributes:
        tokens: data set → token ids ``[sequence, length]``, as they were given as probes.
        decode: gives the text of a list of ids. It must keep leading spaces, also of a single id.
        shift: an entry at ``position`` p is about token p + shift of its sequence: 1 for the loss
            of a language model, which predicts the next token.

    >>> text = TokenText({"d": np.array([[0, 1]])}, lambda ids: "".join("ab"[i] for i in ids))
    >>> text.decode([0, 1, 1])
    'abb'
    """

    tokens: Mapping[str, Int[np.ndarray, "sequence length"]]
    decode: Callable[[list[int]], str]
    shift: int = 1


class Places(NamedTuple):
    """Where the tokens of a result stand: data set, sequence, and index in the sequence."""

    dataset: np.ndarray
    sequence: Int[np.ndarray, " token"]
    place: Int[np.ndarray, " token"]


def places_of(text: TokenText, frame: xr.Dataset | xr.DataArray) -> Places:
    """Find the tokens that the entries of a result are about.

    Args:
        text: the sequences that were probed.
        frame: anything along ``token`` with the coordinates ``dataset``, ``sequence`` and
            ``position``; a coordinate ``token_id`` is checked against the text.

    Returns:
        One place per token; ``text.tokens[dataset][sequence, place]`` is the token itself.

    Raises:
        ValueError: missing coordinates, places outside the text, or another text than was probed.
    """
    missing = [name for name in PLACE if name not in frame.coords]
    if missing:
        raise ValueError(
            f"the tokens have no coordinates {missing}: expected {list(PLACE)} along 'token', as "
            "chi.to_xarray() gives them"
        )
    dataset, sequence, position = (frame.coords[name].values for name in PLACE)
    place = position.astype(np.int64) + text.shift
    places = Places(dataset, sequence.astype(np.int64), place)
    _check_inside(text, places)
    if "token_id" in frame.coords:
        _check_ids(ids_at(text, places), frame.coords["token_id"].values)
    return places


def ids_at(text: TokenText, places: Places) -> Int[np.ndarray, " token"]:
    """Give the token ids at the places, int64 ``[token]``."""
    ids = np.empty(len(places.place), np.int64)
    for name in np.unique(places.dataset):
        here = places.dataset == name
        ids[here] = np.asarray(text.tokens[name])[places.sequence[here], places.place[here]]
    return ids


def pieces_of(
    ids: Int[np.ndarray, "*shape"], decode: Callable[[list[int]], str]
) -> tuple[list[str], Int[np.ndarray, "*shape"]]:
    """Decode every distinct id once.

    Returns:
        The texts of the distinct ids, and for every entry of ``ids`` the index of its text.

    >>> pieces_of(np.array([7, 3, 7]), lambda ids: f"<{ids[0]}>")
    (['<3>', '<7>'], array([1, 0, 1]))
    """
    distinct, inverse = np.unique(ids, return_inverse=True)
    return [decode([int(number)]) for number in distinct], inverse.reshape(ids.shape)


def _check_inside(text: TokenText, places: Places) -> None:
    for name in np.unique(places.dataset).tolist():
        if name not in text.tokens:
            raise ValueError(f"no text for the data set {name!r}: got {sorted(text.tokens)}")
        shape = np.shape(text.tokens[name])
        here = places.dataset == name
        ends = int(places.sequence[here].max()) + 1, int(places.place[here].max()) + 1
        if len(shape) != 2 or ends[0] > shape[0] or ends[1] > shape[1]:
            raise ValueError(
                f"the result has {ends[0]} sequences of at least {ends[1]} tokens in {name!r}, the "
                f"text has shape {shape}: it is not the text that was probed"
            )


def _check_ids(found: Int[np.ndarray, " token"], expected: np.ndarray) -> None:
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        first = int(wrong[0])
        raise ValueError(
            f"{wrong.size} of {len(found)} tokens are not those of the text, the first is {first}: "
            f"the result is about id {int(expected[first])}, the text has {int(found[first])}. "
            "Give the text that was probed, or its shift"
        )
