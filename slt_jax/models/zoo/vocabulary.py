"""Byte-pair tokens: a small vocabulary learnt from a text, and the way to it and back."""

import collections
import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

NUM_ASCII = 128
START = 128
"""The token that every sequence begins with; it stands for no text."""

HIGH = 129
"""The token before an ASCII one that stands for the byte 128 higher."""

NUM_BASE = 130
WORDS = re.compile(r" ?[A-Za-z]+|\n+ *|[0-9]| ?[^A-Za-z0-9\s]+| +|\s")
"""What no token reaches across: words, digits, runs of signs, line ends with what indents."""


class Vocabulary:
    """Tokens made by merging the most frequent pairs (Sennrich et al., arXiv 1508.07909).

    Token 0…127 is the ASCII character of that number, 128 begins a sequence, 129 adds 128 to the
    byte that follows, and token 130 + i is the i-th merge, of two tokens before it.

    Laws: ``decode(encode(text)) == text`` for any text that UTF-8 can hold; the tokens of a word
    do not depend on the words around it.

    Args:
        merges: pairs of tokens in the order in which they were learnt.

    >>> vocabulary = Vocabulary([(105, 102), (32, 130)])
    >>> vocabulary.encode("x if y").tolist(), vocabulary.decode([131])
    ([120, 131, 32, 121], ' if')
    """

    def __init__(self, merges: Iterable[Sequence[int]]):
        self.merges = [(int(first), int(second)) for first, second in merges]
        self._token_of = {pair: NUM_BASE + i for i, pair in enumerate(self.merges)}
        self._bases: list[tuple[int, ...]] = [(token,) for token in range(NUM_BASE)]
        for first, second in self.merges:
            self._bases.append(self._bases[first] + self._bases[second])
        self._tokens_of_word = functools.cache(self._merged)

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self._bases)

    def encode(self, text: str) -> Int[np.ndarray, " token"]:
        """Give the int32 tokens of a text, without the one that begins a sequence."""
        tokens = [token for word in WORDS.findall(text) for token in self._tokens_of_word(word)]
        return np.array(tokens, np.int32)

    def decode(self, tokens: Iterable[int] | Int[np.ndarray, " token"]) -> str:
        """Give the text of tokens; a character that they hold only a part of becomes U+FFFD.

        Raises:
            ValueError: a number that is no token.
        """
        numbers = [int(token) for token in tokens]
        if wrong := sorted({number for number in numbers if not 0 <= number < self.size}):
            raise ValueError(f"tokens are numbers from 0 to {self.size - 1}, got {wrong[:6]}")
        bases = [base for number in numbers for base in self._bases[number]]
        found, high = bytearray(), 0
        for base in bases:
            if base < NUM_ASCII:
                found.append(base + high)
            high = NUM_ASCII if base == HIGH else 0
        return found.decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        """Write the merges as JSON."""
        path.write_text(json.dumps({"merges": self.merges}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what ``save`` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8"))["merges"])

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Merge the most frequent pair of the texts, of equals the smallest, up to a size.

        Raises:
            ValueError: texts too short for a vocabulary of that size.
        """
        counts = collections.Counter(word for text in texts for word in WORDS.findall(text))
        words = [(list(_base_tokens(word)), count) for word, count in counts.items()]
        pairs: collections.Counter[tuple[int, int]] = collections.Counter()
        holders: dict[tuple[int, int], set[int]] = collections.defaultdict(set)

        def tally(number: int, sign: int) -> None:
            tokens, count = words[number]
            for pair in itertools.pairwise(tokens):
                pairs[pair] += sign * count
                if sign > 0:
                    holders[pair].add(number)

        for number in range(len(words)):
            tally(number, 1)
        merges = []
        for new in range(NUM_BASE, size):
            best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]), default=None)
            if best is None or pairs[best] == 0:
                raise ValueError(f"the texts have no pairs left for more than {new} tokens")
            merges.append(best)
            for number in holders.pop(best):
                tally(number, -1)
                tokens, count = words[number]
                words[number] = (_with_merged(tokens, best, new), count)
                tally(number, 1)
        return cls(merges)

    def _merged(self, word: str) -> list[int]:
        tokens = _base_tokens(word)
        while pairs := set(itertools.pairwise(tokens)) & self._token_of.keys():
            earliest = min(pairs, key=self._token_of.__getitem__)
            tokens = _with_merged(tokens, earliest, self._token_of[earliest])
        return tokens


def _base_tokens(word: str) -> list[int]:
    bytes_and_marks = (
        (byte,) if byte < NUM_ASCII else (HIGH, byte - NUM_ASCII) for byte in word.encode()
    )
    return [token for tokens in bytes_and_marks for token in tokens]


def _with_merged(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace every occurrence of a pair, from left to right."""
    merged: list[int] = []
    skip = False
    for first, second in zip(tokens, [*tokens[1:], None], strict=True):
        if skip:
            skip = False
        elif (first, second) == pair:
            merged.append(new)
            skip = True
        else:
            merged.append(first)
    return merged
