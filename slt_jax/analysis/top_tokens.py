"""The tokens with the most extreme values, each with the text around it."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Int

from slt_jax.analysis.token_text import Places, TokenText, places_of


class TokenInContext(NamedTuple):
    """A token with its value and the text on either side."""

    value: float
    dataset: str
    sequence: int
    position: int
    left: str
    token: str
    right: str

    def __str__(self) -> str:
        return f"{self.value:+.3g}  {self.left}⟦{self.token}⟧{self.right}"


class Extremes(NamedTuple):
    """The tokens of largest value, from the top, and of smallest value, from the bottom."""

    largest: tuple[TokenInContext, ...]
    smallest: tuple[TokenInContext, ...]

    def __str__(self) -> str:
        lines = ["largest", *map(str, self.largest), "smallest", *map(str, self.smallest)]
        return "\n".join(lines)


def top_tokens(values: xr.DataArray, text: TokenText, k: int = 10, *, width: int = 12) -> Extremes:
    """Show the k tokens with the largest and with the smallest value in their context.

    Args:
        values: along ``token`` alone, such as ``components["scores"].sel(principal_component=2)``;
            any unit.
        text: the sequences that were probed.
        k: tokens of each kind, at most the number of tokens.
        width: tokens of context on either side; fewer at the ends of a sequence.

    Returns:
        Both lists; of equal values the token that comes first stands first.

    Raises:
        ValueError: more dimensions than ``token``, a bad k, or another text than was probed.

    >>> text = TokenText({"d": np.array([[0, 1, 2]])}, lambda ids: "".join("abc"[i] for i in ids))
    >>> place = {"dataset": ("token", ["d", "d"]), "sequence": ("token", [0, 0]),
    ...          "position": ("token", [0, 1])}
    >>> values = xr.DataArray([0.5, -2.0], dims="token", coords=place)
    >>> print(top_tokens(values, text, k=1))
    largest
    +0.5  a⟦b⟧c
    smallest
    -2  ab⟦c⟧
    """
    if values.dims != ("token",):
        raise ValueError(
            f"top_tokens takes one value per token, got the dimensions {values.dims}: select one, "
            "as in scores.sel(principal_component=1)"
        )
    if not 1 <= k <= values.size:
        raise ValueError(f"k must be between 1 and the {values.size} tokens, got {k}")
    places = places_of(text, values)
    numbers = np.asarray(values.values, np.float64)
    return Extremes(
        _in_context(numbers, np.argsort(-numbers, kind="stable")[:k], places, text, width),
        _in_context(numbers, np.argsort(numbers, kind="stable")[:k], places, text, width),
    )


def _in_context(
    values: np.ndarray,
    chosen: Int[np.ndarray, " chosen"],
    places: Places,
    text: TokenText,
    width: int,
) -> tuple[TokenInContext, ...]:
    found = []
    for number in chosen:
        dataset, sequence = str(places.dataset[number]), int(places.sequence[number])
        index = int(places.place[number])
        ids = np.asarray(text.tokens[dataset])[sequence].tolist()
        left, right = ids[max(0, index - width) : index], ids[index + 1 : index + 1 + width]
        found.append(
            TokenInContext(
                value=float(values[number]),
                dataset=dataset,
                sequence=sequence,
                position=index - text.shift,
                left=text.decode(left) if left else "",
                token=text.decode([ids[index]]),
                right=text.decode(right) if right else "",
            )
        )
    return tuple(found)
