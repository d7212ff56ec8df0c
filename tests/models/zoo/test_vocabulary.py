"""Byte-pair tokens: there and back, and what learning merges."""

import random

import pytest

from slt_jax.models import zoo
from slt_jax.models.zoo.vocabulary import NUM_BASE, Vocabulary

TEXTS = [
    "",
    "def f(x):\n\treturn x  # ça — 日本語 😀\r\n",
    "\x00\x7f\x80\xff\u2028\xa0",
    "    \n\n   if   a:\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(text):
    vocabulary = zoo.stdlib_vocabulary()
    tokens = vocabulary.encode(text)
    assert tokens.dtype == "int32"
    assert vocabulary.decode(tokens) == text


def test_decoding_gives_any_characters_back():
    vocabulary, generator = zoo.stdlib_vocabulary(), random.Random(0)
    points = [generator.randrange(0x110000) for _ in range(2000)]
    text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_most_frequent_pair_is_merged_first_and_ties_go_to_the_smallest():
    # ab: 3 times, bc and " a": twice each, of which (32, ...) is the smaller pair.
    vocabulary = Vocabulary.learn(["abc abc ab"], NUM_BASE + 2)
    assert vocabulary.merges == [(97, 98), (32, 130)]
    assert vocabulary.encode("abc ab").tolist() == [130, 99, 131]


def test_a_pair_is_merged_from_left_to_right():
    assert Vocabulary([(97, 97)]).encode("aaa").tolist() == [130, 97]


def test_learning_is_encoding():
    # Encoding replays the merges: the counts that decided on the next one are those it leaves.
    text = "the cat and the hat and that rat " * 3
    short, long = Vocabulary.learn([text], 134), Vocabulary.learn([text], 138)
    assert long.merges[: len(short.merges)] == short.merges
    assert len(long.encode(text)) < len(short.encode(text))


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="no pairs left for more than 131 tokens"):
        Vocabulary.learn(["aa"], NUM_BASE + 2)


def test_a_token_may_be_part_of_a_character():
    vocabulary = zoo.stdlib_vocabulary()
    assert vocabulary.decode(vocabulary.encode("é")[:2]) == "\ufffd"


def test_numbers_that_are_no_tokens_are_refused():
    with pytest.raises(ValueError, match=r"from 0 to 511, got \[-1, 512\]"):
        zoo.stdlib_vocabulary().decode([512, 3, -1])


def test_saving_keeps_everything(tmp_path):
    vocabulary = zoo.stdlib_vocabulary()
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").merges == vocabulary.merges
