"""Labels of tokens that can be read off the text: induction, delimiters, words, numbers, layout."""

import itertools
import unicodedata

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int

from slt_jax.analysis.token_text import PLACE, TokenText, pieces_of, places_of

PATTERNS = (
    "induction",
    "delimiter open",
    "delimiter close",
    "word start",
    "word part",
    "numeric",
    "formatting",
    "other",
)
"""The patterns, in the order of the rows of ``token_patterns``."""


def token_patterns(text: TokenText, frame: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Label the tokens that a result is about. A token can have several labels.

    - ``induction``: this token followed the one before it earlier in the sequence as well, so that
      copying what came next then predicts it.
    - ``delimiter open``, ``delimiter close``: no letter or digit, and an opening or a closing
      bracket or typographic quote (Unicode categories Ps, Pi and Pe, Pf).
    - ``word start``: has the first letter of a word; a word is a run of letters.
    - ``word part``: goes on with a word that the token before began.
    - ``numeric``: has a digit and no letter.
    - ``formatting``: white space only.
    - ``other``: none of these.

    The classes follow those that Structural Inference (Baker et al., arXiv 2504.18274) compares
    susceptibilities of.

    Args:
        text: the sequences that were probed; labels look back to the start of each.
        frame: anything along ``token`` with its ``dataset``, ``sequence`` and ``position``.

    Returns:
        bool (pattern, token), with the coordinates of the tokens.

    Raises:
        ValueError: another text than was probed.

    >>> words = ["f", "(", "x", ")"]
    >>> text = TokenText({"d": np.array([[0, 1, 2, 3, 0, 1]])}, lambda ids: words[ids[0]])
    >>> place = {"dataset": ("token", ["d"] * 5), "sequence": ("token", [0] * 5),
    ...          "position": ("token", np.arange(5))}
    >>> labels = token_patterns(text, xr.DataArray(np.zeros(5), dims="token", coords=place))
    >>> labels.sel(pattern="delimiter open").values.tolist()
    [True, False, False, False, True]
    >>> labels.sel(pattern="induction").values.tolist()
    [False, False, False, False, True]
    """
    places = places_of(text, frame)
    masks = np.zeros((len(PATTERNS), len(places.place)), bool)
    for name in np.unique(places.dataset):
        here = places.dataset == name
        grid = label_sequences(np.asarray(text.tokens[name]), text)
        masks[:, here] = grid[:, places.sequence[here], places.place[here]]
    coords = {name: frame.coords[name] for name in PLACE}
    return xr.DataArray(
        masks, dims=("pattern", "token"), coords={"pattern": list(PATTERNS), **coords}
    )


def label_sequences(
    tokens: Int[np.ndarray, "sequence length"], text: TokenText
) -> Bool[np.ndarray, "pattern sequence length"]:
    """Label every token of some sequences, as ``token_patterns`` describes."""
    pieces, number = pieces_of(tokens, text.decode)
    traits = np.array([_traits(piece) for piece in pieces], bool)
    opens, closes, numeric, blank, inner_start, first, last = traits[number].transpose(2, 0, 1)
    continues = np.zeros_like(first)
    continues[:, 1:] = first[:, 1:] & last[:, :-1]
    masks = [
        induction(tokens),
        opens,
        closes,
        inner_start | (first & ~continues),
        continues,
        numeric,
        blank,
    ]
    return np.stack([*masks, ~np.logical_or.reduce(masks)])


def induction(tokens: Int[np.ndarray, "sequence length"]) -> Bool[np.ndarray, "sequence length"]:
    """Tell which tokens complete a pair that has occurred before in their sequence.

    Equation: token t is one if (x_{t−1}, x_t) = (x_{s−1}, x_s) for some s < t.

    Args:
        tokens: ids.

    Returns:
        bool of the same shape, False for the first two tokens of every sequence.

    >>> induction(np.array([[5, 6, 7, 5, 6, 6, 6]])).tolist()
    [[False, False, False, False, True, False, True]]
    """
    found = np.zeros(tokens.shape, bool)
    if tokens.shape[1] < 3:
        return found
    _, ids = np.unique(tokens, return_inverse=True)
    ids = ids.reshape(tokens.shape).astype(np.int64)
    count = int(ids.max()) + 1
    row = np.arange(len(tokens))[:, None]
    pairs = (row * count + ids[:, :-1]) * count + ids[:, 1:]
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    earlier = first[inverse.reshape(-1)] < np.arange(pairs.size)
    found[:, 1:] = earlier.reshape(pairs.shape)
    return found


def _traits(piece: str) -> tuple[bool, bool, bool, bool, bool, bool, bool]:
    """Describe the text of one token, by itself.

    Returns:
        Whether it opens, closes, is numeric, is blank, begins a word after its first character, and
        whether its first and its last character are letters.
    """
    letters = [character.isalpha() for character in piece]
    categories = {unicodedata.category(character) for character in piece}
    has_letter = any(letters)
    has_digit = any(character.isdigit() for character in piece)
    plain = not has_letter and not has_digit
    return (
        plain and not categories.isdisjoint({"Ps", "Pi"}),
        plain and not categories.isdisjoint({"Pe", "Pf"}),
        has_digit and not has_letter,
        bool(piece) and piece.isspace(),
        any(now and not before for before, now in itertools.pairwise(letters)),
        bool(letters) and letters[0],
        bool(letters) and letters[-1],
    )
