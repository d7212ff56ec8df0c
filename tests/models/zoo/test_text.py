"""The text of the bundled model and the sequences of different kinds that are cut from it."""

import ast
import re

import numpy as np
import pytest

from slt_jax.models import zoo
from slt_jax.models.zoo import source, text

VOCABULARY = zoo.stdlib_vocabulary()
KINDS = ("code", "docstrings", "licences", "numbers", "repeated")
SOURCE = '''# Copyright nobody
"""The module."""

import os  # why


class C:
    """Its class.

    At length."""

    x = "# no comment"

    def f(self):
        """Only this."""
'''


@pytest.fixture(scope="module")
def probes():
    return zoo.probe_rows(VOCABULARY, 24, 64)


def test_files_are_those_of_the_library_and_not_of_this_machine():
    names = source.source_files().keys()
    assert {"calendar.py", "json/decoder.py", "asyncio/events.py"} <= names
    assert not [name for name in names if {"test", "site-packages"} & set(name.split("/"))]
    assert not [name for name in names if name.startswith("_sysconfigdata")]


def test_a_tenth_is_held_out_and_never_trained_on():
    training, held_out = source.training_texts(), source.held_out_texts()
    assert len(training) + len(held_out) == len(source.source_files())
    assert 0.07 < len(held_out) / (len(training) + len(held_out)) < 0.15
    # Packages may be marked by files that all say the same.
    assert max(map(len, set(held_out) & set(training)), default=0) < 200


def test_digest_tells_texts_and_their_borders_apart():
    texts = [["a", "b"], ["ab"], ["b", "a"], ["a", "b", ""]]
    assert len({source.digest(parts) for parts in texts}) == 4


def test_a_file_is_taken_apart():
    parts = text.Parts(SOURCE)
    assert parts.docstrings == ["The module.", "Its class.\n\nAt length.", "Only this."]
    assert re.sub(r"\s+", " ", parts.code) == (
        'import os class C: x = "# no comment" def f(self): '
    ).replace("  ", " ")
    assert "\n\n\n" not in parts.code


def test_code_has_the_tree_of_the_file_without_docstrings():
    name = "calendar.py"
    whole = source.source_files()[name]
    kept = {node.name for node in ast.walk(ast.parse(whole)) if hasattr(node, "name")}
    code = text.Parts(whole).code
    assert all(re.search(rf"(def|class|as|import) .*\b{name}\b", code) for name in kept if name)
    assert '"""' not in code


def test_probes_are_rows_of_tokens_that_begin_with_start(probes):
    assert tuple(probes) == KINDS
    for name, rows in probes.items():
        assert rows.shape == (24, 64), name
        assert rows.dtype == np.int32, name
        assert (rows[:, 0] == zoo.START).all(), name
        assert (rows[:, 1:] != zoo.START).all(), name
        assert rows.max() < VOCABULARY.size, name
        assert len(np.unique(rows, axis=0)) > 20, name


def test_probes_are_the_same_every_time(probes):
    again = zoo.probe_rows(VOCABULARY, 24, 64)
    other = zoo.probe_rows(VOCABULARY, 24, 64, seed=1)
    for name, rows in probes.items():
        np.testing.assert_array_equal(again[name], rows)
        assert np.array_equal(other[name], rows) == (name != "repeated")


def test_probes_are_of_their_kinds(probes):
    texts = {name: VOCABULARY.decode(rows[:, 1:].ravel()) for name, rows in probes.items()}
    digits = {name: sum(map(str.isdigit, words)) / len(words) for name, words in texts.items()}
    assert digits["numbers"] > 0.25
    assert max(share for name, share in digits.items() if name != "numbers") < 0.1
    keywords = {name: len(re.findall(r"\b(self|def|return|if)\b", texts[name])) for name in KINDS}
    assert keywords["code"] > 3 * keywords["docstrings"]
    lawful = {name: len(text.OF_LICENCES.findall(words)) for name, words in texts.items()}
    assert lawful["licences"] > 20 * max(lawful["code"], lawful["docstrings"], 1) / 4


def test_more_sequences_than_there_is_text_are_refused():
    with pytest.raises(ValueError, match=r"docstrings: the text holds \d+ sequences of 128 tokens"):
        zoo.probe_rows(VOCABULARY, 1000, 128)
    with pytest.raises(ValueError, match="0 were asked for"):
        zoo.held_out_rows(VOCABULARY, 0, 128)


def test_rows_are_spread_over_the_text_and_all_of_it_can_be_had():
    words = "".join(f"{number:04d}" for number in range(100))
    everything = text.rows_of(VOCABULARY, words, None, 5)
    assert VOCABULARY.decode(everything[:, 1:].ravel()) == words
    some = text.rows_of(VOCABULARY, words, 4, 5)
    assert [VOCABULARY.decode(row[1:]) for row in some] == ["0000", "0025", "0050", "0075"]


def test_every_fourth_training_row_is_a_stretch_again_and_again():
    rows = zoo.training_rows(VOCABULARY, 40, 64)[:, 1:]
    natural = text.rows_of(VOCABULARY, text.BETWEEN.join(source.training_texts()), 40, 64)[:, 1:]
    periods = []
    for number, (row, plain) in enumerate(zip(rows, natural, strict=True)):
        if number % 4:
            np.testing.assert_array_equal(row, plain)
            continue
        period = next(n for n in range(1, 64) if np.array_equal(row[n:], row[:-n]))
        np.testing.assert_array_equal(row[:period], plain[:period])
        periods.append(period)
    assert 16 <= min(periods) < max(periods) <= 31
