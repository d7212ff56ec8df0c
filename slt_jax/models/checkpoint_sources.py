"""Where the checkpoints of a training run are: in folders, on the hub, or in someone's hands."""

import abc
import dataclasses
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from slt_jax._types import Params
from slt_jax.models import hub
from slt_jax.models.base import Model, check_weights_only
from slt_jax.models.config import DecoderConfig
from slt_jax.models.hf import decoder_model, read_config
from slt_jax.models.hf_config import parse_config
from slt_jax.models.hf_weights import PlacesParameters, load_parameters, plan_parameters
from slt_jax.models.safetensors_reader import open_folder

_STEP = re.compile(r"step[-_]?(\d+)(?:-.*)?")
_SHOWN = 6


class Options(NamedTuple):
    """How Hugging Face checkpoints are loaded, as ``from_hf`` takes it."""

    dtype: Any
    layout: PlacesParameters | None
    compute_dtype: Any


class AbstractSource(abc.ABC):
    """The checkpoints of a training run by step.

    ``has_headers`` tells whether ``structure`` reads headers only, or loads the weights.
    """

    steps: list[int]
    has_headers: bool

    @abc.abstractmethod
    def structure(self, step: int) -> Params:
        """Give the shapes and dtypes of one checkpoint, as ``jax.ShapeDtypeStruct``."""

    @abc.abstractmethod
    def load(self, step: int) -> Params:
        """Give the weights of one checkpoint."""

    @abc.abstractmethod
    def model(self, structure: Params) -> Model | None:
        """Give the model that all checkpoints are of, if it is known."""


class WeightsSource(AbstractSource):
    """Weights that a function gives, or a mapping holds."""

    has_headers = False

    def __init__(self, load: Callable[[int], Params], steps: Iterable[int]):
        self.function, self.steps = load, list(steps)

    def structure(self, step: int) -> Params:
        return shapes_of(self.load(step))

    def load(self, step: int) -> Params:
        return self.function(step)

    def model(self, structure: Params) -> None:
        return None

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__name__)


class AbstractPlace(abc.ABC):
    """One Hugging Face checkpoint, wherever it is."""

    @abc.abstractmethod
    def config(self) -> DecoderConfig:
        """Read its ``config.json``."""

    @abc.abstractmethod
    def headers(self) -> Mapping[str, Any]:
        """Give name → something with the shape and dtype of every tensor."""

    @abc.abstractmethod
    def folder(self) -> Path:
        """Give the local folder, once the weights are wanted."""


@dataclasses.dataclass(frozen=True)
class FolderPlace(AbstractPlace):
    """A local folder."""

    path: Path

    def config(self) -> DecoderConfig:
        return read_config(self.path)

    def headers(self) -> Mapping[str, Any]:
        return open_folder(self.path)

    def folder(self) -> Path:
        return self.path


@dataclasses.dataclass(frozen=True)
class RevisionPlace(AbstractPlace):
    """A revision on the hub."""

    name: str
    revision: str

    def config(self) -> DecoderConfig:
        return parse_config(hub.fetch_config(self.name, self.revision))

    def headers(self) -> Mapping[str, Any]:
        return hub.fetch_headers(self.name, self.revision)

    def folder(self) -> Path:
        return hub.fetch(self.name, self.revision)


class HuggingFaceSource(AbstractSource):
    """Hugging Face checkpoints of one architecture."""

    has_headers = True

    def __init__(self, title: str, places: Mapping[int, AbstractPlace], options: Options):
        self.title, self.places, self.options = title, dict(places), options
        self.steps = list(self.places)
        self._config: tuple[int, DecoderConfig] | None = None

    def structure(self, step: int) -> Params:
        place = self.places[step]
        config = self._known(step, place.config())
        return plan_parameters(config, place.headers(), self.options.dtype)

    def load(self, step: int) -> Params:
        folder = self.places[step].folder()
        config = self._known(step, read_config(folder))
        dtype, layout, _ = self.options
        return load_parameters(config, open_folder(folder), dtype=dtype, layout=layout)

    def model(self, structure: Params) -> Model:
        assert self._config is not None
        return decoder_model(self._config[1], structure, self.options.compute_dtype)

    def __str__(self) -> str:
        return self.title

    def _known(self, step: int, config: DecoderConfig) -> DecoderConfig:
        """Give the config, which must be that of the first checkpoint that was looked at."""
        if self._config is None:
            self._config = (step, config)
        first, expected = self._config
        if config != expected:
            differing = [
                f"{field.name} is {getattr(config, field.name)!r} instead of "
                f"{getattr(expected, field.name)!r}"
                for field in dataclasses.fields(config)
                if field.compare and getattr(config, field.name) != getattr(expected, field.name)
            ]
            raise ValueError(
                f"step {step} is of another architecture than step {first}: {'; '.join(differing)}"
            )
        return config


def open_source(source: Any, steps: list[int] | None, options: Options) -> AbstractSource:
    """Recognise where checkpoints are; see ``Checkpoints``."""
    if isinstance(source, Iterator):
        raise TypeError(
            f"checkpoints are gone through more than once, first to see that they are equal: a "
            f"{type(source).__name__} can be read only once. Give a mapping {{step: params}}, or a "
            "function with its steps: Checkpoints(load, steps=[0, 1000])"
        )
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.exists() or not hub.is_repo_id(str(source)):
            return _folders(path, options)
        return _revisions(str(source), options)
    if isinstance(source, Mapping):
        return _mapping(source, options)
    if callable(source):
        if steps is None:
            raise TypeError("a function needs to be told the steps: Checkpoints(load, steps=[…])")
        return WeightsSource(source, steps)
    raise TypeError(
        "checkpoints are a folder, a hub id, a mapping {step: params or folder} or a function "
        f"load(step), got {type(source).__name__}; a list of pairs becomes a mapping by dict(pairs)"
    )


def shapes_of(params: Params) -> Params:
    """Give the shapes and dtypes of weights, as ``jax.ShapeDtypeStruct``.

    Raises:
        TypeError: leaves that are no floating-point arrays.
    """
    check_weights_only(params)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def _mapping(source: Mapping[Any, Any], options: Options) -> AbstractSource:
    for step in source:
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError(f"the keys of a mapping of checkpoints must be steps, got {step!r}")
    probe = next(iter(source), None)
    if probe is None:
        raise ValueError("the mapping has no checkpoints")
    steps = [operator.index(step) for step in source]
    if not isinstance(source[probe], (str, os.PathLike)):
        return WeightsSource(source.__getitem__, steps)
    places = {step: FolderPlace(Path(source[step])) for step in steps}
    return HuggingFaceSource("folders", places, options)


def _folders(path: Path, options: Options) -> HuggingFaceSource:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder; give one that holds step0, step1000, …, or a hub id such as "
            "'EleutherAI/pythia-70m'"
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    strange = [name for name in names if name.startswith("step") and not _STEP.fullmatch(name)]
    if strange:
        raise ValueError(
            f"{path}: {strange[0]!r} names no step as step1000 does; move it away, or give a "
            "mapping {step: folder}"
        )
    found = _by_step(str(path), names)
    if not found:
        raise FileNotFoundError(
            f"{path} has no folders called step0, step1000, …; it has {few(names) or 'none'}. "
            "Folders of other names can be given as a mapping {step: folder}"
        )
    places = {step: FolderPlace(path / name) for step, name in found.items()}
    return HuggingFaceSource(str(path), places, options)


def _revisions(name: str, options: Options) -> HuggingFaceSource:
    names = hub.revision_names(name)
    found = _by_step(name, names)
    if not found:
        raise FileNotFoundError(
            f"{name} has no revisions called step0, step1000, …; it has {few(names) or 'none'}"
        )
    places = {step: RevisionPlace(name, revision) for step, revision in found.items()}
    return HuggingFaceSource(name, places, options)


def _by_step(where: str, names: Iterable[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        match = _STEP.fullmatch(name)
        if match is None:
            continue
        step = int(match[1])
        if step in found:
            raise ValueError(f"{where}: both {found[step]!r} and {name!r} are step {step}")
        found[step] = name
    return found


def few(names: Iterable[Any]) -> str:
    """Write the first of some names, and how many more there are.

    >>> few(range(10))
    '0, 1, 2, 3, 4, 5 and 4 more'
    """
    names = [str(name) for name in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
