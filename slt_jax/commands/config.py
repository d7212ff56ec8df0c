"""Options from a file: ``--config FILE`` stands for the options that a TOML or YAML file states."""

import importlib
import importlib.util
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FLAG = "--config"


def expand(words: Sequence[str]) -> list[str]:
    r"""Replace ``--config FILE`` by the options in the file, before all that are typed.

    A key is the name of an option without dashes in front, ``true`` and ``false`` stand for
    ``--name`` and ``--no-name``, a list gives the option once per entry, and a table once per entry
    as ``key=value``. What is typed comes later, and so wins over the file; options that may be
    repeated add up. Paths are relative to the current folder.

    Args:
        words: the words after the program's name; the first is the subcommand.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: YAML without the package that reads it.
        ValueError: a file that cannot be read as what its name says, or nested too deeply.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "run.toml"
    ...     _ = path.write_text('draws = 50\nprogress = false\nprobe = {code = "code.npy"}')
    ...     expand(["bif", "--config", str(path), "--draws", "80"])
    ['bif', '--draws=50', '--no-progress', '--probe=code=code.npy', '--draws', '80']
    """
    typed, found = list(words), []
    while index := next((i for i, w in enumerate(typed) if w.split("=")[0] == _FLAG), 0):
        word = typed.pop(index)
        name, given, value = word.partition("=")
        if not given:
            if index == len(typed):
                raise ValueError(f"{name} needs the name of a file")
            value = typed.pop(index)
        found += _options(Path(value))
    return typed[:1] + found + typed[1:]


def _options(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    readers = {".toml": _read_toml, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a configuration is written as .toml, .yaml or .yml")
    content = readers[path.suffix](path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold options by name, got {type(content).__name__}")
    return [word for name, value in content.items() for word in _words(path, str(name), value)]


def _words(path: Path, name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if isinstance(value, list):
        entries = value
    elif isinstance(value, Mapping):
        entries = [f"{key}={_scalar(path, name, entry)}" for key, entry in value.items()]
    else:
        entries = [value]
    return [f"{option}={_scalar(path, name, entry)}" for entry in entries]


def _scalar(path: Path, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{path}: {name} must be a number, a text, true, false, a list or a table of numbers "
            f"or texts, got {value!r}"
        )
    return str(value)


def _read_toml(path: Path) -> Any:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error


def _read_yaml(path: Path) -> Any:
    if importlib.util.find_spec("yaml") is None:
        raise ModuleNotFoundError(
            f"{path}: YAML is read by the package pyyaml: pip install pyyaml, or write TOML"
        )
    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
