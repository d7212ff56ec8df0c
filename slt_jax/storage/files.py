"""Folders that appear whole or not at all, locks, and files that are known by their digests."""

import contextlib
import errno
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def require(module: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"keeping runs and results on disk needs {error.name}: pip install 'slt-jax[storage]'"
        ) from error


@contextlib.contextmanager
def writing(path: Path, remains: str) -> Iterator[None]:
    """Say of a failed write what the disk still holds and what to do.

    Raises:
        OSError: whatever failed; the array library reports a full disk as a ValueError.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(
            number,
            f"could not write to {path} ({error}). {remains} Make room, or free what the disk "
            "lacks, and make the same call again to go on from there",
        ) from error


def replace_folder(new: Path, folder: Path, old: Path) -> None:
    """Put a finished folder in the place of another, which is moved away and then deleted."""
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    """Hash every file below a folder, by relative path, and see that it is on the disk."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    file, lambda: hashlib.blake2b(digest_size=16)
                ).hexdigest()
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there in full or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; the lock goes when the process does.

    Raises:
        BlockingIOError: another process writes to it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        yield
        return
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, f"another process is writing to {folder}: wait for it to end"
            ) from error
        yield
