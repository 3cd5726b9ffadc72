"""Files that appear whole or not at all.

A file is written beside its place, synced, and renamed into it; then the folder is synced. Killed at
any moment, or on a full disk, there is the old file or the new one. Refuses to own: what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from models.errors import InvalidValue

_PART: Final = ".part"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file that takes the place of `path` at the end of the block, or leaves no trace."""
    part = path.with_name(f".{path.name}{_PART}")
    try:
        with named(path), part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except Exception:
        part.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    sync_folder(path.parent)


def check_file_place(path: Path) -> None:
    """Raise InvalidValue where no file can be written at `path`, before the work whose result it is for."""
    if path.is_dir():
        raise InvalidValue(f"--out must be a file, {path} is a folder")
    if not path.parent.is_dir():
        raise InvalidValue(f"--out must be in a folder that is there, {path.parent} is none")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of a file that is written in this block say which file it is."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove what a killed writer left half-written in `folder`."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink()
