"""Models from Hugging Face checkpoints, and back: config and safetensors only, never code."""

import json
import os
from pathlib import Path

import jax

from slt_jax._types import Params
from slt_jax.models.attention import AbstractAttention, BlockwiseAttention
from slt_jax.models.base import Model, from_functions
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.hf_config import parse_config
from slt_jax.models.hf_weights import (
    PlacesParameters,
    load_parameters,
    plan_parameters,
    stored_form,
)
from slt_jax.models.hub import fetch, is_repo_id
from slt_jax.models.layout import parameter_axes
from slt_jax.models.safetensors_reader import open_folder
from slt_jax.models.safetensors_writer import write_folder


def from_hf(
    path_or_repo_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    layout: PlacesParameters | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
    attention: AbstractAttention = BlockwiseAttention(),
) -> Model:
    """Load a decoder from a folder with ``config.json`` and safetensors, or from the hub.

    Each tensor is read from its file straight into the shards that need it. Nothing in the
    checkpoint is executed. Dropout is off. Losses and gradients are those of torch, except that
    torch gives the embedding of the padding token no gradient, and here it has its own.

    Args:
        path_or_repo_id: a local folder, or a hub id such as ``"EleutherAI/pythia-70m"``, which
            needs ``huggingface_hub``.
        revision: branch, tag or commit of a hub id.
        dtype: dtype in which the weights are kept; None for the files' own.
        layout: where the weights go; None for the default device.
        compute_dtype: dtype of the activations; None for that of the weights.
        attention: how attention is computed, ``BlockwiseAttention()``, ``SplashAttention()`` (TPU)
            or ``CudnnAttention()`` (NVIDIA GPUs) of ``slt.models``; never replaced by another.

    Returns:
        the model; its ``loss_fn`` is a ``Decoder``.

    Raises:
        FileNotFoundError: no such folder, no config, missing or only pickled weights.
        ValueError: unknown architecture, damaged files, missing, unused or misshapen tensors, an
            attention that cannot compute this model; all found before any weight is loaded. An
            attention that does not run on the devices where the weights are.
    """
    folder = _folder(path_or_repo_id, revision)
    config = read_config(folder)
    stored = open_folder(folder)
    kept = plan_parameters(config, stored, dtype)["embed.tok"].dtype
    Decoder(config, kept if compute_dtype is None else compute_dtype, attention)
    params = load_parameters(config, stored, dtype=dtype, layout=layout)
    return decoder_model(config, params, compute_dtype, attention)


def decoder_model(
    config: DecoderConfig,
    params: Params,
    compute_dtype: jax.typing.DTypeLike | None = None,
    attention: AbstractAttention = BlockwiseAttention(),
) -> Model:
    """Make a model of a decoder's config and parameters, which may be shapes alone.

    Args:
        config: the architecture.
        params: arrays or ``jax.ShapeDtypeStruct``, named as in ``parameter_shapes(config)``.
        compute_dtype: dtype of the activations; None for that of the weights.
        attention: how attention is computed.

    Raises:
        ValueError: an attention that cannot compute this model where its weights are.
    """
    kept = params["embed.tok"].dtype if compute_dtype is None else compute_dtype
    decoder = Decoder(config, kept, attention)
    placed = (leaf for leaf in params.values() if isinstance(leaf, jax.Array))
    attention.check_devices({device for leaf in placed for device in leaf.sharding.device_set})
    axes = {name: " ".join(letters) for name, letters in parameter_axes(config).items()}
    return from_functions(params, decoder, axes)


def save_hf(
    model: Model, path: str | os.PathLike[str], *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write a model that ``from_hf`` loaded in the format it was loaded from.

    Law: ``from_hf`` of what was written gives the same weights to the bit.

    Args:
        model: with a ``Decoder`` as its loss.
        path: a folder, made if needed; one that holds other weights already is refused.
        max_shard_bytes: largest total size of the tensors of one file.
    """
    decoder = model.loss_fn
    if not isinstance(decoder, Decoder) or not decoder.config.source:
        raise TypeError("only models loaded by from_hf can be saved as Hugging Face checkpoints")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(file.name for file in folder.glob("*.safetensors*"))
    if present:
        raise FileExistsError(f"{folder} already holds {', '.join(present)}; choose another folder")
    raw = decoder.config.raw()
    for key in {"dtype", "torch_dtype"} & set(raw):
        raw[key] = str(model.params["embed.tok"].dtype)
    write_folder(folder, stored_form(decoder.config, model.params), max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> DecoderConfig:
    """Read the ``config.json`` of a checkpoint folder.

    With ``parameter_shapes`` it describes a model of any size without loading it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an architecture or a setting that is not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no config.json, so the architecture is unknown; give the folder that "
            "save_pretrained wrote"
        )
    return parse_config(path.read_text(encoding="utf-8"))


def _folder(path_or_repo_id: str | os.PathLike[str], revision: str | None) -> Path:
    """Give the local folder of a checkpoint, downloading config and safetensors from the hub."""
    path = Path(path_or_repo_id)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{path} is a local folder: revision={revision!r} is for hub ids only")
        return path
    name = str(path_or_repo_id)
    if path.exists() or not is_repo_id(name):
        raise FileNotFoundError(
            f"{name} is not a folder; give one with config.json and safetensors, or a hub id "
            "such as 'EleutherAI/pythia-70m'"
        )
    return fetch(name, revision)
