"""Between the tensors of a checkpoint and a decoder's parameters, in both directions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from slt_jax.models.config import DecoderConfig, floating_dtype
from slt_jax.models.hf_names import IGNORED_SUFFIXES, tensor_views
from slt_jax.models.layout import axis_sizes, parameter_axes, parameter_shapes
from slt_jax.models.safetensors_reader import StoredTensor
from slt_jax.models.safetensors_writer import Pending
from slt_jax.models.tensor_view import TensorView

KEPT_DTYPES = ("float16", "bfloat16", "float32")
"""Dtypes of the tensors of a checkpoint that parameters keep."""

TIED_NAMES = ("lm_head.weight", "embed_out.weight")
_SHOWN = 6


@runtime_checkable
class PlacesParameters(Protocol):
    """What loading asks of a layout."""

    def parameter_sharding(self, axes: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        """Give the sharding of a parameter with these axes, such as ``"l d h k"``."""
        ...


def load_parameters(
    config: DecoderConfig,
    stored: Mapping[str, StoredTensor],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    layout: PlacesParameters | None = None,
) -> dict[str, jax.Array]:
    """Build a decoder's parameters from the tensors of a checkpoint.

    All names, shapes and dtypes are checked first. Then every shard of every parameter is filled
    from the mapped files: beyond the parameters, one shard of one of them is in memory.

    Args:
        config: the architecture.
        stored: name → tensor of the checkpoint.
        dtype: dtype of the parameters; None for the files' own.
        layout: where they go; None for the default device.

    Raises:
        ValueError: tensors that are missing, unused, misshapen, of mixed dtypes or no floats, and
            an unembedding that differs from the embedding to which the config ties it.
    """
    planned = plan_parameters(config, stored, dtype)
    _check_tied(config, stored)
    sources, axes = _sources(config, stored), parameter_axes(config)
    params = {}
    for name, leaf in planned.items():
        shape = leaf.shape
        make = partial(_shard, config, name, sources[name], shape, leaf.dtype)
        if layout is None:
            params[name] = jax.block_until_ready(jax.device_put(make(tuple(map(slice, shape)))))
        else:
            sharding = layout.parameter_sharding(" ".join(axes[name]), shape)
            params[name] = _placed(shape, sharding, make)
    return params


def plan_parameters(
    config: DecoderConfig,
    stored: Mapping[str, Any],
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the shapes and dtypes of the parameters that ``load_parameters`` would build.

    Args:
        config: the architecture.
        stored: name → anything with the ``shape`` and ``dtype`` of the tensor; no more is read.
        dtype: dtype of the parameters; None for the files' own.

    Raises:
        ValueError: tensors that are missing, unused, misshapen, of mixed dtypes or no floats.
    """
    dtypes = _dtypes(_sources(config, stored), dtype)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name])
        for name, leaf in parameter_shapes(config).items()
    }


def _placed(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    make: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """Build a sharded array, one host copy of one shard at a time."""
    places: dict[Any, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(map(slice, shape)) if index is None else index
        places.setdefault(tuple((part.start, part.stop) for part in bounds), []).append(device)
    shards = []
    for bounds, devices in places.items():
        shard = make(tuple(slice(*bound) for bound in bounds))
        # Waiting lets go of the host copy before the next one is made.
        shards += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def stored_form(config: DecoderConfig, params: Mapping[str, Any]) -> dict[str, Pending]:
    """Give the tensors of a checkpoint that holds these parameters, each made when written."""
    sizes = axis_sizes(config)
    places: dict[str, list[tuple[str, int | None]]] = {}
    for name, view in tensor_views(config).items():
        for layer in _layers(config, name):
            places.setdefault(_spell(view.names[0], layer), []).append((name, layer))
    views = tensor_views(config)
    return {
        tensor: Pending(
            np.dtype(params[parts[0][0]].dtype),
            views[parts[0][0]].shape(sizes),
            partial(_assemble, config, params, parts),
        )
        for tensor, parts in places.items()
    }


def _assemble(
    config: DecoderConfig, params: Mapping[str, Any], parts: list[tuple[str, int | None]]
) -> np.ndarray:
    """Make one tensor of a checkpoint from the parameters that lie in it."""
    views, axes, sizes = tensor_views(config), parameter_axes(config), axis_sizes(config)
    first = parts[0][0]
    tensor = np.zeros(views[first].shape(sizes), np.dtype(params[first].dtype))
    for name, layer in parts:
        leaf = params[name]
        if layer is not None:
            leaf = jax.lax.dynamic_index_in_dim(leaf, np.int32(layer), keepdims=False)
        views[name].of(tensor, axes[name].removeprefix("l"), sizes)[...] = np.asarray(leaf)
    return tensor


def _layers(config: DecoderConfig, name: str) -> range | tuple[None]:
    return range(config.num_layers) if parameter_axes(config)[name].startswith("l") else (None,)


def _spell(template: str, layer: int | None) -> str:
    return template if layer is None else template.replace("{l}", str(layer))


def _sources(config: DecoderConfig, stored: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Find every parameter's tensors, one per layer; check that they fit and none is left."""
    sizes = axis_sizes(config)
    sources: dict[str, list[Any]] = {}
    missing, misshapen, used = [], [], set()
    for name, view in tensor_views(config).items():
        sources[name] = []
        for layer in _layers(config, name):
            found = _find(view, layer, stored)
            if found is None:
                missing.append(_spell(view.names[0], layer))
                continue
            used.add(found)
            sources[name].append(stored[found])
            if stored[found].shape != view.shape(sizes):
                shapes = f"{stored[found].shape}, the config says {view.shape(sizes)}"
                misshapen.append(f"{found} has shape {shapes}")
    unused = [name for name in stored if name not in used and not name.endswith(IGNORED_SUFFIXES)]
    if config.tied:
        unused = [name for name in unused if name not in TIED_NAMES]
    _report(config, missing, sorted(set(misshapen)), unused)
    return sources


def _find(view: TensorView, layer: int | None, stored: Mapping[str, Any]) -> str | None:
    spelled = (_spell(name, layer) for name in view.names)
    return next((name for name in spelled if name in stored), None)


def _check_tied(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Check that an unembedding stored beside the embedding to which it is tied is the same."""
    embedding = _find(tensor_views(config)["embed.tok"], None, stored)
    for name in TIED_NAMES if config.tied else ():
        if name in stored and embedding is not None:
            one, other = stored[embedding], stored[name]
            if one[2:4] != other[2:4] or one.view().tobytes() != other.view().tobytes():
                raise ValueError(
                    f"config.json ties the unembedding to the embedding, but {name} and "
                    f"{embedding} differ; set tie_word_embeddings to false if both are meant"
                )


def _report(
    config: DecoderConfig, missing: list[str], misshapen: list[str], unused: list[str]
) -> None:
    problems = [
        f"{len(names)} {what}: {'; '.join(names[:_SHOWN])}" + ("; …" if len(names) > _SHOWN else "")
        for what, names in (
            ("missing tensors", missing),
            ("tensors of another shape", misshapen),
            ("tensors that the model has no place for", unused),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit a {config.model_type} as its config.json describes it. "
            + ". ".join(problems)
            + ". Nothing was loaded; check that weights and config.json belong together"
        )


def _dtypes(sources: Mapping[str, list[Any]], dtype: Any) -> dict[str, np.dtype]:
    """Choose every parameter's dtype, and refuse tensors that cannot be given it."""
    kept = None if dtype is None else floating_dtype("dtype", dtype)
    chosen = {}
    for name, tensors in sources.items():
        found = sorted({tensor.dtype.name for tensor in tensors})
        allowed = KEPT_DTYPES if kept is None else (*KEPT_DTYPES, "float64")
        strange = [one for one in found if one not in allowed]
        if strange:
            raise ValueError(
                f"the tensors of {name} have dtype {strange[0]}; weights are kept as "
                f"{', '.join(KEPT_DTYPES)}. Quantized checkpoints are not supported; float64 needs "
                "a dtype to be given"
            )
        if kept is None and len(found) > 1:
            raise ValueError(
                f"the layers of {name} have different dtypes, {', '.join(found)}: say which to "
                "keep, as in dtype='float32'"
            )
        chosen[name] = kept or tensors[0].dtype
    return chosen


def _shard(
    config: DecoderConfig,
    name: str,
    tensors: list[StoredTensor],
    shape: tuple[int, ...],
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """Copy one shard of a parameter out of the mapped files, layer by layer."""
    axes, view, sizes = parameter_axes(config)[name], tensor_views(config)[name], axis_sizes(config)
    ranges = [range(*part.indices(extent)) for part, extent in zip(index, shape, strict=True)]
    shard = np.empty([len(one) for one in ranges], dtype)
    if not axes.startswith("l"):
        shard[...] = view.of(tensors[0].view(), axes, sizes)[index]
        return shard
    for row, layer in enumerate(ranges[0]):
        shard[row] = view.of(tensors[layer].view(), axes[1:], sizes)[index[1:]]
    return shard
