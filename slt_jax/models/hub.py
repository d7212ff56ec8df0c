"""What is fetched from the Hugging Face hub: configs, headers and safetensors, never code."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import jax

from slt_jax.models.safetensors_reader import DTYPES

WANTED_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


def is_repo_id(name: str) -> bool:
    """Tell whether a name could be that of a repository, such as ``"EleutherAI/pythia-70m"``."""
    return 1 <= len(name.split("/")) <= 2 and not name.startswith((".", "/", "~"))


def fetch(name: str, revision: str | None) -> Path:
    """Give the local folder of one revision, downloading config and safetensors if needed.

    Raises:
        ModuleNotFoundError: ``huggingface_hub`` is not installed.
    """
    folder = _client(name).snapshot_download(
        name, revision=revision, allow_patterns=list(WANTED_FILES)
    )
    return Path(folder)


def fetch_config(name: str, revision: str) -> str:
    """Give the text of the ``config.json`` of one revision."""
    path = _client(name).hf_hub_download(name, "config.json", revision=revision)
    return Path(path).read_text(encoding="utf-8")


def fetch_headers(name: str, revision: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the shapes and dtypes of a revision's tensors; their numbers are not downloaded.

    Raises:
        FileNotFoundError: the revision has no safetensors.
        ValueError: a dtype that is not known.
    """
    client = _client(name)
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        metadata = client.get_safetensors_metadata(name, revision=revision)
    except errors.NotASafetensorsRepoError as error:
        raise FileNotFoundError(
            f"revision {revision!r} of {name} has no safetensors; pickled weights are refused, "
            "since reading them can run code. Leave it out with steps=…"
        ) from error
    headers = {}
    for file in metadata.files_metadata.values():
        for tensor, info in file.tensors.items():
            if info.dtype not in DTYPES:
                raise ValueError(
                    f"{name} at {revision!r}: tensor {tensor!r} has the unknown dtype "
                    f"{info.dtype!r}"
                )
            headers[tensor] = jax.ShapeDtypeStruct(tuple(info.shape), DTYPES[info.dtype])
    return headers


def fetch_tokenizer(name: str, revision: str | None) -> Path:
    """Give the local folder with the tokenizer's data of one revision, downloading it if needed."""
    patterns = ["*token*.json", "vocab.*", "merges.txt", "tokenizer.model"]
    return Path(_client(name).snapshot_download(name, revision=revision, allow_patterns=patterns))


def revision_names(name: str) -> list[str]:
    """Give the names of all branches and tags."""
    references = _client(name).list_repo_refs(name)
    return [reference.name for reference in (*references.branches, *references.tags)]


def _client(name: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModuleNotFoundError(
            f"{name} is no local folder, and reading it from the hub needs huggingface_hub: "
            "pip install 'slt-jax[hf]'"
        )
    return importlib.import_module("huggingface_hub")
