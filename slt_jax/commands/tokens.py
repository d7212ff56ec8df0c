"""Token ids from files: arrays, JSON lines, or text through the model's own tokenizer."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slt_jax.models.tokens import IGNORED_LABEL, check_vocabulary

COLUMNS = ("input_ids", "labels", "attention_mask")
DEFAULT_LENGTH = 128
_PADDING = {"input_ids": 0, "labels": IGNORED_LABEL, "attention_mask": 0}
_ROWS_AT_ONCE = 4096


class Limits(NamedTuple):
    """What a model can read: ids below ``vocab_size``, ``max_length`` tokens or any number."""

    vocab_size: int
    max_length: int | None


def load_tokens(
    path: Path, limits: Limits, *, length: int | None, encode: Callable[[str], list[int]]
) -> Any:
    """Read a data set of token sequences.

    Args:
        path: ``.npy`` with ids ``[n, pos]``; ``.npz`` with ``input_ids`` and optionally ``labels``
            and ``attention_mask``, or one array; ``.jsonl`` with an object of such lists on every
            line, padded to the longest; ``.txt``, tokenized and cut into sequences.
        limits: what the model can read.
        length: tokens per sequence: longer ones are cut, text is cut into such pieces (128 at most
            if None). None otherwise leaves them as they are.
        encode: gives the token ids of a text; called for ``.txt`` only.

    Returns:
        integers ``[n, pos]``, or a dictionary of them, as ``Decoder`` takes a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file or content, ids out of range, sequences too short or long.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "ids.npy"
    ...     np.save(path, np.arange(6).reshape(2, 3))
    ...     load_tokens(path, Limits(6, None), length=2, encode=list).tolist()
    [[0, 1], [3, 4]]
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path}")
    if path.suffix == ".txt":
        columns = _from_text(path, limits, length, encode)
    elif path.suffix in _READERS:
        columns = _READERS[path.suffix](path)
        columns = {name: array[..., :length] for name, array in columns.items()}
    else:
        known = ", ".join([*_READERS, ".txt"])
        raise ValueError(f"{path}: the kinds of data files are {known}, got {path.suffix!r}")
    _check(path, columns, limits)
    return columns["input_ids"] if set(columns) == {"input_ids"} else columns


def load_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Give the encoder of the tokenizer in a checkpoint folder; no code in it is executed.

    Raises:
        FileNotFoundError: the folder has no tokenizer.
        ModuleNotFoundError: neither ``tokenizers`` nor ``transformers`` is installed.
    """
    file = folder / "tokenizer.json"
    if not file.exists() and not (folder / "tokenizer_config.json").exists():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: tokenize the text yourself and give the ids as .npy "
            "or .jsonl"
        )
    if file.exists() and importlib.util.find_spec("tokenizers") is not None:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(file))
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    if importlib.util.find_spec("transformers") is not None:
        automatic = importlib.import_module("transformers").AutoTokenizer
        slow = automatic.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return lambda text: slow.encode(text, add_special_tokens=False)
    raise ModuleNotFoundError(
        "text is tokenized by the package tokenizers or transformers: pip install 'slt-jax[hf]', "
        "or give token ids as .npy or .jsonl"
    )


def _from_npy(path: Path) -> dict[str, np.ndarray]:
    return {"input_ids": _load(path)}


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    with _load(path) as stored:
        names = list(stored.files)
        if len(names) == 1:
            return {"input_ids": stored[names[0]]}
        _check_names(str(path), names)
        return {name: stored[name] for name in names}


def _load(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error


def _from_json_lines(path: Path) -> dict[str, np.ndarray]:
    rows: list[Mapping[str, list[int]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            rows.append(_row(f"{path}, line {number}", line))
            if rows[-1].keys() != rows[0].keys():
                raise ValueError(
                    f"{path}, line {number} has {sorted(rows[-1])}, the lines before it have "
                    f"{sorted(rows[0])}"
                )
    if not rows:
        raise ValueError(f"{path} is empty")
    lengths = {len(row["input_ids"]) for row in rows}
    columns = {name: _padded([row[name] for row in rows], _PADDING[name]) for name in rows[0]}
    if len(lengths) > 1 and "attention_mask" not in columns:
        ones = [[1] * len(row["input_ids"]) for row in rows]
        columns["attention_mask"] = _padded(ones, 0)
    return columns


def _row(where: str, line: str) -> Mapping[str, list[int]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with input_ids, got {type(row).__name__}")
    kept = {name: row[name] for name in COLUMNS if name in row}
    _check_names(where, list(kept) or list(row))
    for name, numbers in kept.items():
        is_list = isinstance(numbers, list) and all(type(n) is int for n in numbers)
        if not is_list or len(numbers) != len(kept["input_ids"]):
            raise ValueError(f"{where}: {name} must be a list of integers, as long as input_ids")
    return kept


def _padded(rows: list[list[int]], value: int) -> np.ndarray:
    array = np.full((len(rows), max(map(len, rows))), value, np.int32)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array


def _from_text(
    path: Path, limits: Limits, length: int | None, encode: Callable[[str], list[int]]
) -> dict[str, np.ndarray]:
    size = length or min(DEFAULT_LENGTH, limits.max_length or DEFAULT_LENGTH)
    ids = np.asarray(encode(path.read_text(encoding="utf-8")), np.int32)
    if ids.size < size:
        raise ValueError(f"{path} has {ids.size} tokens, fewer than one sequence of {size}")
    return {"input_ids": ids[: ids.size // size * size].reshape(-1, size)}


def _check_names(where: str, names: list[str]) -> None:
    unknown = sorted(set(names) - set(COLUMNS))
    if unknown or "input_ids" not in names:
        raise ValueError(
            f"{where} must have input_ids, and may have labels and attention_mask; "
            f"got {', '.join(sorted(names))}"
        )


def _check(path: Path, columns: Mapping[str, np.ndarray], limits: Limits) -> None:
    shape = columns["input_ids"].shape
    for name, array in columns.items():
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or array.shape != shape:
            raise ValueError(
                f"{path}: {name} must be integers [n, pos], all of one shape, got {array.dtype} "
                f"{list(array.shape)}; cut a single stream of tokens by reshape(-1, pos)"
            )
    if shape[0] < 2 or shape[1] < 2:
        raise ValueError(f"{path}: at least 2 sequences of 2 tokens are needed, got {list(shape)}")
    if limits.max_length is not None and shape[1] > limits.max_length:
        raise ValueError(
            f"{path}: sequences of {shape[1]} tokens do not fit the {limits.max_length} "
            f"that the model was made for; cut them with --sequence-length {limits.max_length}"
        )
    for name in {"input_ids", "labels"} & set(columns):
        for start in range(0, shape[0], _ROWS_AT_ONCE):
            check_vocabulary(
                f"{path}: {name}",
                np.asarray(columns[name][start : start + _ROWS_AT_ONCE]),
                limits.vocab_size,
                may_be_ignored=name == "labels",
                first_sequence=start,
            )


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npy": _from_npy,
    ".npz": _from_npz,
    ".jsonl": _from_json_lines,
}
