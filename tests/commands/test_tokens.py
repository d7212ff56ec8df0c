"""Token ids from files: every kind is read as written, and every bad one is named."""

import json

import numpy as np
import pytest

from slt_jax.commands.tokens import Limits, load_tokenizer, load_tokens

IDS = np.arange(24).reshape(4, 6) % 11
LIMITS = Limits(vocab_size=11, max_length=8)


def no_tokenizer(text):
    raise AssertionError("no text to tokenize")


def read(path, limits=LIMITS, *, length=None, encode=no_tokenizer):
    return load_tokens(path, limits, length=length, encode=encode)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    return tmp_path / "ids.npy"


def test_arrays(npy, tmp_path):
    np.testing.assert_array_equal(read(npy), IDS)
    np.testing.assert_array_equal(read(npy, length=3), IDS[:, :3])
    np.savez(tmp_path / "one.npz", tokens=IDS)
    np.testing.assert_array_equal(read(tmp_path / "one.npz"), IDS)
    labels = np.where(IDS > 5, IDS, -100)
    np.savez(tmp_path / "two.npz", input_ids=IDS, labels=labels)
    columns = read(tmp_path / "two.npz", length=4)
    assert columns.keys() == {"input_ids", "labels"}
    np.testing.assert_array_equal(columns["labels"], labels[:, :4])


def test_lines_of_json_are_padded_to_the_longest(tmp_path):
    rows = [{"input_ids": [1, 2, 3], "text": "kept out"}, {"input_ids": [4, 5]}]
    columns = read(write_lines(tmp_path / "ids.jsonl", rows))
    assert columns["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert columns["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    equal = write_lines(tmp_path / "equal.jsonl", [{"input_ids": [1, 2]}, {"input_ids": [4, 5]}])
    assert read(equal).tolist() == [[1, 2], [4, 5]]
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [4, 5], "labels": [4, 5]},
    ]
    columns = read(write_lines(tmp_path / "labels.jsonl", rows))
    assert columns["labels"].tolist() == [[-100, 2, 3], [4, 5, -100]]


def test_text_is_cut_into_sequences(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ä" * 10 + "b" * 9, encoding="utf-8")

    def encode(text):
        return [int(letter == "b") for letter in text]

    assert read(path, length=4, encode=encode).tolist() == [
        [0] * 4,
        [0] * 4,
        [0, 0, 1, 1],
        [1, 1, 1, 1],
    ]
    assert read(path, encode=encode).shape == (2, 8)
    assert read(path, Limits(11, None), length=9, encode=encode).shape == (2, 9)
    with pytest.raises(ValueError, match="19 tokens, fewer than one sequence of 128"):
        read(path, Limits(11, None), encode=encode)


def test_the_tokenizer_of_the_folder_is_used(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "to": 1, "be": 2, "or": 3}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path)("to be or not to be") == [1, 2, 3, 0, 1, 2]


def test_what_a_tokenizer_needs(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json: tokenize the text yourself"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slt-jax\[hf\]'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IDS + 1, r"input_ids 11 \(sequence 1, position 4\) is outside the vocabulary of 11"),
        (IDS - 1, r"input_ids -1 \(sequence 0, position 0\)"),
        (IDS.astype(np.float32), r"must be integers \[n, pos\].*float32 \[4, 6\]"),
        (IDS.reshape(-1), r"int64 \[24\]; cut a single stream of tokens by reshape"),
        (IDS[:1], r"at least 2 sequences of 2 tokens are needed, got \[1, 6\]"),
        (IDS[:, :1], r"got \[4, 1\]"),
        (
            np.zeros((2, 9), int),
            "9 tokens do not fit the 8 that .*--sequence-length 8",
        ),
    ],
)
def test_arrays_that_are_no_tokens(tmp_path, array, message):
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ids.npy")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ids": IDS, "labels": IDS}, "must have input_ids.*got ids, labels"),
        ({"input_ids": IDS, "labels": IDS[:2]}, "all of one shape"),
        ({"input_ids": IDS, "labels": IDS - 50}, r"labels -50 \(sequence 0"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, message):
    np.savez(tmp_path / "ids.npz", **columns)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ids.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", r"line 1 is not JSON"),
        ("[1, 2]", "line 1 must be an object with input_ids, got list"),
        ('{"ids": [1, 2]}', "line 1 must have input_ids.*got ids"),
        ('{"input_ids": [1, 2.5]}', "line 1: input_ids must be a list of integers"),
        ('{"input_ids": [1, 2], "labels": [1]}', "labels must be a list of integers, as long as"),
        (
            '{"input_ids": [1, 2]}\n\n{"input_ids": [1, 2], "labels": [1, 2]}',
            r"line 3 has \['input_ids', 'labels'\], the lines before",
        ),
    ],
)
def test_lines_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "ids.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ids.jsonl")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no data file"):
        read(tmp_path / "ids.npy")
    for name in ("ids.npy", "ids.npz"):
        (tmp_path / name).write_bytes(b"no array")
        with pytest.raises(ValueError, match=f"{name} cannot be read as"):
            read(tmp_path / name)
    (tmp_path / "ids.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"are \.npy, \.npz, \.jsonl, \.txt, got '\.csv'"):
        read(tmp_path / "ids.csv")
    pickled = np.asarray([None, None])
    np.save(tmp_path / "ids.npy", pickled, allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot be read as \.npy: .*Python objects"):
        read(tmp_path / "ids.npy")
