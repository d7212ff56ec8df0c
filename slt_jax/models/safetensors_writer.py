"""Write safetensors files, in shards where they are large."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slt_jax.models.safetensors_reader import DTYPES, INDEX

CODES = {dtype: code for code, dtype in DTYPES.items()}


class Pending(NamedTuple):
    """A tensor that is made when it is its turn to be written."""

    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_folder(folder: Path, tensors: Mapping[str, Pending], max_shard_bytes: int) -> None:
    """Write tensors into ``model.safetensors``, or into numbered shards and their index.

    Every file is written under another name and renamed when it is complete.

    Args:
        folder: an existing folder.
        tensors: name → tensor; one at a time is in memory.
        max_shard_bytes: largest total of the tensors of one file; a larger tensor is alone in its.
    """
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Mapping[str, Pending]) -> None:
    """Write one safetensors file, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        span = [at, at + tensor.num_bytes]
        code = CODES[tensor.dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": span}
        at = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format's own writer pads the header so that the tensors are aligned.
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data)
    partial.replace(path)


def _shards(tensors: Mapping[str, Pending], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.num_bytes
    return shards
