"""Tensors of safetensors files as views of the mapped file: nothing is read until it is used.

Format: 8 bytes, the little-endian length of a JSON header; the header, which maps each name to
``{"dtype", "shape", "data_offsets"}``; then the tensors' bytes without gaps. A file is checked
against its header when it is opened, before anything is built from it.
"""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER_BYTES = 100_000_000
GIT_LFS_POINTER = b"version "
"""How a text file begins that stands for a large one; as a length it would be 2e18 bytes."""

INDEX = "model.safetensors.index.json"


class StoredTensor(NamedTuple):
    """A tensor in a file: where it is and what it is, without its numbers.

    ``begin`` is the position of its first byte in the file.
    """

    file: Path
    mapped: mmap.mmap
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    def view(self) -> np.ndarray:
        """Give a read-only array over the mapped file; pages are read when they are touched."""
        return np.ndarray(self.shape, self.dtype, buffer=self.mapped, offset=self.begin)


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Open one safetensors file and check all of its header against its size.

    Raises:
        ValueError: truncated or malformed, or a header that contradicts itself or the file's size.
    """
    size = path.stat().st_size
    if size < 8:
        _reject(path, f"{size} bytes are too few to hold a header; the file is truncated")
    with path.open("rb") as stream:
        first = stream.read(8)
        if first == GIT_LFS_POINTER:
            _reject(path, "this is what Git LFS leaves in place of the file; run `git lfs pull`")
        length = int.from_bytes(first, "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            _reject(
                path,
                f"its header should have {length} bytes, but {size - 8} follow: the file is "
                "truncated or no safetensors file",
            )
        header = _parse(path, stream.read(length))
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + length
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_cover(path, {name: span for name, (_, _, span) in entries.items()}, size - start)
    return {
        name: StoredTensor(path, mapped, dtype, shape, start + begin)
        for name, (dtype, shape, (begin, _)) in entries.items()
    }


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """Open all safetensors files of a checkpoint folder, sharded or not.

    Raises:
        FileNotFoundError: no weights, missing shards, or only pickled weights, which are never
            opened since reading them can run code.
        ValueError: a malformed file, or one that contradicts the index.
    """
    index = folder / INDEX
    if index.exists():
        return _open_shards(folder, _weight_map(index))
    files = sorted(folder.glob("*.safetensors"))
    whole = folder / "model.safetensors"
    if whole in files:
        return open_file(whole)
    if not files:
        _explain_absence(folder)
    if len(files) > 1:
        raise FileNotFoundError(
            f"{folder} has {len(files)} safetensors files but neither model.safetensors nor "
            f"{INDEX}: which tensors belong together is unknown. Download the index as well"
        )
    return open_file(files[0])


def _open_shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    shards = sorted(set(weight_map.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ValueError(f"{folder / INDEX} names files outside its folder: {outside}")
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing: {_few(missing)}. "
            "Download them again; nothing was loaded"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        opened = open_file(folder / shard)
        twice = sorted(set(opened) & set(tensors))
        if twice:
            raise ValueError(
                f"{folder}: {_few(twice)} in both {tensors[twice[0]].file.name} and {shard}"
            )
        strays = sorted(name for name in opened if weight_map.get(name) != shard)
        if strays:
            raise ValueError(
                f"{folder / INDEX} does not place {_few(strays)} in {shard}, where it is"
            )
        tensors |= opened
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ValueError(f"{folder}: {_few(absent)} in {INDEX} but not in the shard it names")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index with a weight_map: {error}") from error
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise ValueError(f"{index}: weight_map must map tensor names to file names")
    return weight_map


def _explain_absence(folder: Path) -> NoReturn:
    pickles = sorted(
        path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending)
    )
    if pickles:
        raise FileNotFoundError(
            f"{folder} has only pickled weights ({_few(pickles)}), which can run code when read "
            "and are refused. Convert them once, where you trust them: load the model with "
            "transformers and call model.save_pretrained(folder), which writes safetensors"
        )
    raise FileNotFoundError(f"{folder} has no .safetensors files")


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    twice: set[str] = set()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice.update(name for name in table if names.count(name) > 1)
        return table

    try:
        table = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _reject(path, f"its header is not JSON: {error}")
    if twice:
        _reject(path, f"its header names {_few(sorted(twice))} twice")
    if not isinstance(table, dict):
        _reject(path, "its header is not a JSON object")
    table.pop("__metadata__", None)
    return table


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """Check one tensor of the header: its dtype, its shape, and that they fill its bytes."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _reject(path, f"tensor {name!r} needs dtype, shape and data_offsets, got {entry!r}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        _reject(path, f"tensor {name!r} has the unknown dtype {entry['dtype']!r}")
    shape, span = entry["shape"], entry["data_offsets"]
    if not (_are_counts(shape) and _are_counts(span) and len(span) == 2):
        _reject(path, f"tensor {name!r} has shape {shape} and data_offsets {span}")
    dtype = DTYPES[entry["dtype"]]
    needed = math.prod(shape) * dtype.itemsize
    if span[1] - span[0] != needed:
        _reject(
            path,
            f"tensor {name!r} of shape {shape} and dtype {entry['dtype']} needs {needed} bytes, "
            f"but its data_offsets {span} hold {span[1] - span[0]}",
        )
    return dtype, tuple(shape), (span[0], span[1])


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _check_cover(path: Path, spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """Check that the tensors follow each other without gap or overlap to the end of the file."""
    at = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != at:
            kind = "overlaps the one before it" if begin < at else "leaves a gap before it"
            _reject(path, f"tensor {name!r} at {begin} {kind}, which ends at {at}")
        at = end
    if at != size:
        what = "the file is truncated" if size < at else "something was appended to it"
        _reject(path, f"its header describes {at} bytes of tensors, but {size} follow: {what}")


def _reject(path: Path, reason: str) -> NoReturn:
    raise ValueError(f"{path}: {reason}. Nothing was loaded; download or write the file again")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
