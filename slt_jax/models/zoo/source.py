"""The text of the bundled model: the source of the Python standard library that is running."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

LEFT_OUT = {
    *("test", "tests", "idle_test"),  # not part of every installation
    *("site-packages", "dist-packages"),
    *("encodings", "pydoc_data"),  # tables
}
MADE_FOR_THIS_MACHINE = "_sysconfigdata"
HELD_OUT_SHARE = 0.1


@functools.cache
def source_files() -> dict[str, str]:
    """Read the source files of the standard library: path from its root → text, sorted.

    Without tests, tables, and what describes the machine that Python was built on.

    Raises:
        FileNotFoundError: this Python has no source files.

    >>> "import" in source_files()["json/decoder.py"]
    True
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    wanted = sorted(name for name in found if _is_wanted(name))
    if not wanted:
        raise FileNotFoundError(f"{root} holds no Python source: the standard library is needed")
    return {name: found[name].read_text(encoding="utf-8", errors="replace") for name in wanted}


def is_held_out(name: str) -> bool:
    """Say whether a file is kept from training: a tenth of them, by a hash of the path.

    >>> is_held_out("calendar.py"), is_held_out("json/decoder.py")
    (True, False)
    """
    return hashlib.sha256(name.encode()).digest()[0] < HELD_OUT_SHARE * 256


def training_texts() -> list[str]:
    """Give the texts that the bundled model is trained on."""
    return [text for name, text in source_files().items() if not is_held_out(name)]


def held_out_texts() -> list[str]:
    """Give the texts that it is not trained on."""
    return [text for name, text in source_files().items() if is_held_out(name)]


def digest(texts: Iterable[str]) -> str:
    """Give the SHA-256 of texts in their order, in hexadecimal."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()


def _is_wanted(name: str) -> bool:
    *folders, file = name.split("/")
    return LEFT_OUT.isdisjoint(folders) and not file.startswith(MADE_FOR_THIS_MACHINE)
