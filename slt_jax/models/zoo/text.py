"""Token sequences of different kinds, from the source of the running standard library."""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

from slt_jax.models.zoo.induction import repeated_tokens
from slt_jax.models.zoo.source import held_out_texts, source_files, training_texts
from slt_jax.models.zoo.vocabulary import START, Vocabulary

Rows = Int[np.ndarray, "sequence pos"]

COMMENTS = re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE)
OF_LICENCES = re.compile(r"licen[cs]e|copyright|warrant|redistribut|permission to use", re.I)
BETWEEN = "\n\n\n"
COPIED_SHARE = 0.25
"""The share of the sequences in training that are a stretch of text again and again."""

MIN_PERIOD = 16
"""The shortest stretch, in tokens."""

MIN_CHARACTERS, MIN_DIGITS = 4, 0.25
COMMON = 20
"""How often a token must occur in the held-out files to be drawn at random."""


def training_rows(vocabulary: Vocabulary, num_rows: int | None, length: int) -> Rows:
    """Give sequences as the bundled model is trained on them, evenly spread over its text.

    Every fourth is a stretch of text that comes again and again, as in its training: the mean loss
    of these sequences is the one that its weights minimise.

    Args:
        vocabulary: of the model.
        num_rows: number of sequences; None for all that the text holds.
        length: tokens per sequence, the first of them ``START``.
    """
    rows = rows_of(vocabulary, BETWEEN.join(training_texts()), num_rows, length)
    repeat_stretches(rows[:: round(1 / COPIED_SHARE), 1:], MIN_PERIOD, np.random.default_rng(0))
    return rows


def repeat_stretches(
    rows: Int[np.ndarray, "sequence pos"], min_period: int, generator: np.random.Generator
) -> None:
    """Replace each sequence, in place, by its beginning again and again, of a random length.

    Args:
        rows: sequences without ``START``.
        min_period: the shortest length; the longest is half of a sequence.
        generator: of the lengths, uniform.
    """
    length = rows.shape[1]
    for row in rows:
        period = generator.integers(min(min_period, length // 2), length // 2 + 1)
        row[:] = row[np.arange(length) % period]


def held_out_rows(vocabulary: Vocabulary, num_rows: int | None, length: int) -> Rows:
    """Give sequences of the files that it is not trained on, evenly spread over them."""
    return rows_of(vocabulary, BETWEEN.join(held_out_texts()), num_rows, length)


def probe_rows(
    vocabulary: Vocabulary, num_rows: int, length: int, *, seed: int = 0
) -> dict[str, Rows]:
    """Give data sets of five kinds, the first four of text.

    ``code`` and ``docstrings`` are of held-out files: the code without docstrings and comments,
    and the docstrings alone. ``licences`` are comments that speak of licence or copyright, and
    ``numbers`` are lines of which a quarter or more is digits; there are few of either, so they
    are of all files, most of which the model is trained on. ``repeated`` are random tokens (of
    those that occur at least 20 times in held-out files), then the same again.

    Law: the same for the same standard library and arguments.

    Args:
        vocabulary: of the model.
        num_rows: sequences per data set.
        length: tokens per sequence, the first of them ``START``.
        seed: of the random tokens.

    Raises:
        ValueError: more sequences than there is text of a kind.
    """
    held_out = [Parts(text) for text in held_out_texts()]
    texts = {
        "code": BETWEEN.join(parts.code for parts in held_out),
        "docstrings": BETWEEN.join(text for parts in held_out for text in parts.docstrings),
        "licences": "\n".join(licences(source_files())),
        "numbers": "\n".join(lines_of_digits(source_files())),
    }
    rows = {}
    for name, text in texts.items():
        try:
            rows[name] = rows_of(vocabulary, text, num_rows, length)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    drawn = common_tokens(vocabulary)
    return rows | {"repeated": repeated_tokens(drawn, num_rows, length, start=START, seed=seed)}


def rows_of(vocabulary: Vocabulary, text: str, num_rows: int | None, length: int) -> Rows:
    """Cut a text into sequences that begin with ``START``, and take some evenly spread over it.

    Args:
        vocabulary: of the model.
        text: at least as long as the sequences asked for.
        num_rows: number of sequences; None for all.
        length: tokens per sequence, at least 2.

    Raises:
        ValueError: the text is too short, or no sequence is asked for.
    """
    tokens = vocabulary.encode(text)
    available = len(tokens) // (length - 1)
    wanted = available if num_rows is None else num_rows
    if not 1 <= wanted <= available:
        raise ValueError(
            f"the text holds {available} sequences of {length} tokens, {wanted} were asked for"
        )
    rows = tokens[: available * (length - 1)].reshape(available, length - 1)
    chosen = rows[np.arange(wanted) * available // wanted]
    return np.concatenate([np.full((wanted, 1), START, np.int32), chosen], axis=1)


def common_tokens(vocabulary: Vocabulary) -> Int[np.ndarray, " token"]:
    """Give the tokens that occur at least 20 times in the held-out files."""
    tokens = vocabulary.encode(BETWEEN.join(held_out_texts()))
    counts = np.bincount(tokens, minlength=vocabulary.size)
    return np.flatnonzero(counts >= COMMON).astype(np.int32)


def licences(files: Mapping[str, str]) -> Iterator[str]:
    """Give the blocks of comments that speak of licence or copyright, each distinct one once."""
    blocks = (match.group() for text in files.values() for match in COMMENTS.finditer(text))
    return (block for block in dict.fromkeys(blocks) if OF_LICENCES.search(block))


def lines_of_digits(files: Mapping[str, str]) -> Iterator[str]:
    """Give the lines of four characters or more of which at least a quarter are digits."""
    lines = (line for text in files.values() for line in text.splitlines())
    long = (line for line in lines if len(line.strip()) >= MIN_CHARACTERS)
    return (line for line in long if _num_digits(line) >= MIN_DIGITS * len(line.strip()))


def _num_digits(line: str) -> int:
    return sum(map(str.isdigit, line))


class Parts:
    r"""A source file taken apart: ``code`` without docstrings and comments, and ``docstrings``.

    >>> parts = Parts('def f():\n    "Give one."\n    return 1  # always\n')
    >>> parts.code, parts.docstrings
    ('def f():\n    return 1\n', ['Give one.'])
    """

    def __init__(self, text: str):
        tree = ast.parse(text)
        holders = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        found = {node.body[0].lineno: ast.get_docstring(node) for node in holders if node.body}
        self.docstrings = [written for line in sorted(found) if (written := found[line])]
        without = {
            line
            for node in holders
            if ast.get_docstring(node) is not None
            for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        }
        lines = io.StringIO(text).readlines()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                rest = lines[row - 1][:column].rstrip()
                lines[row - 1] = f"{rest}\n" if rest else ""
        kept = [line for number, line in enumerate(lines, 1) if number not in without]
        self.code = "".join(_single_blanks(kept))


def _single_blanks(lines: list[str]) -> Iterator[str]:
    """Leave out blank lines that follow a blank line: where comments and docstrings were."""
    yield from lines[:1]
    yield from (b for a, b in itertools.pairwise(lines) if a.strip() or b.strip())
