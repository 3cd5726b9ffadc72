"""Where files appear: a local folder, or any address that fsspec knows (`s3://bucket/folder`).

A file is seen under its name whole or not at all: local ones are renamed from a scratch folder beside
them, and an object store shows an upload when it is complete; anything else is uploaded under another name
and moved. What a remote place refuses for a moment is tried again. Files of our own, of which nothing is
left when a set is complete, are below `.ganserve/`.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeVar

from models.errors import show
from service.errors import StartError
from service.offline.errors import DiskFull, PlaceLost, SampleError

OWN_FOLDER: Final = ".ganserve"

_SCRATCH_PREFIX: Final = "ganserve-work-"
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OBJECT_STORES: Final = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"}
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.2

T = TypeVar("T")


class Place(Protocol):
    """A folder of files, here or elsewhere. Each call raises PlaceLost or DiskFull, with a sentence."""

    def read(self, name: str) -> bytes | None:
        """A whole file, None where there is none."""

    def size(self, name: str) -> int | None:
        """A file's size in bytes, None where there is none."""

    def sizes(self) -> Callable[[str], int | None]:
        """`size`, as it is now, for many files: where that asks over a network, in one look."""

    def open(self, name: str) -> IO[bytes]:
        """A file to be read from its beginning."""

    def names(self, folder: str) -> list[str]:
        """The files in `folder`."""

    def put(self, files: Sequence[Path], folder: str = "") -> None:
        """Have local files appear, in their order; those on the place's own disk are moved."""

    def claim(self, file: Path, folder: str) -> None:
        """Have a local file appear, unless one of its name is there: of two at once, the first stays.

        At an address, where nothing can be asked and done in one step, the later of two that come within the
        time of an answer may stay instead.
        """

    def tidy(self) -> None:
        """Remove all files of our own but those that a run at work prepares."""

    @property
    def scratch_root(self) -> Path:
        """A local folder in which files are prepared."""


@contextmanager
def scratch(root: Path | None = None) -> Iterator[Path]:
    """A new folder to prepare files in, below `root` or where temporary files are; gone at the end."""
    root = root or Path(tempfile.gettempdir())
    with sentences("a folder to work in", root):
        folder = _although_tidied(lambda: _make_scratch(root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_scratch(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{_mine()}{os.getpid()}-", dir=root))


def _although_tidied(call: Callable[[], T]) -> T:
    """What `call` returns, which makes a folder and uses it: another run may remove it in between."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return call()
    return call()


def remove_stale_scratch(place: Place) -> None:
    """Remove what killed processes of this machine left."""
    for folder in place.scratch_root.glob(f"{_mine()}*"):
        pid = folder.name.removeprefix(_mine()).partition("-")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not Path("/proc", pid).exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _mine() -> str:
    return f"{_SCRATCH_PREFIX}{socket.gethostname()}-"


def put_text(place: Place, name: str, data: bytes, folder: str = "") -> None:
    """Have a small file appear."""
    with _text(place, name, data) as path:
        place.put([path], folder)


def claim_text(place: Place, name: str, data: bytes, folder: str) -> None:
    """Have a small file appear, unless one of its name is there."""
    with _text(place, name, data) as path:
        place.claim(path, folder)


@contextmanager
def _text(place: Place, name: str, data: bytes) -> Iterator[Path]:
    with scratch(place.scratch_root) as work:
        path = work / name
        with sentences("a file", path):
            path.write_bytes(data)
        yield path


def open_place(out: str) -> Place:
    """The place that `out` names. Raises PlaceLost, or StartError for a scheme that needs a package."""
    scheme, separator, path = out.partition("://")
    if not out:
        raise StartError("out must be a folder or an address, got ''")
    if not separator:
        return LocalPlace(Path(out))
    if scheme == "file":
        return LocalPlace(Path(path))
    return RemotePlace(out)


class LocalPlace:
    """A folder of this machine, or of one that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def scratch_root(self) -> Path:
        return self.folder / OWN_FOLDER

    def read(self, name: str) -> bytes | None:
        with sentences(name, self.folder):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        with sentences(name, self.folder):
            try:
                return (self.folder / name).stat().st_size
            except FileNotFoundError:
                return None

    def sizes(self) -> Callable[[str], int | None]:
        prefix = f"{self.folder}/"

        def size_of(name: str) -> int | None:
            try:
                return os.stat(prefix + name).st_size  # a Path would cost three times as much
            except FileNotFoundError:
                return None
            except OSError as error:
                raise told(error, name, self.folder) from None

        return size_of

    def open(self, name: str) -> IO[bytes]:
        with sentences(name, self.folder):
            return (self.folder / name).open("rb")

    def names(self, folder: str) -> list[str]:
        with sentences(folder or "its list", self.folder):
            try:
                return sorted(entry.name for entry in os.scandir(self.folder / folder) if entry.is_file())
            except FileNotFoundError:
                return []

    def put(self, files: Sequence[Path], folder: str = "") -> None:
        with sentences(folder or "a file", self.folder):
            for file in files:
                _although_tidied(lambda file=file: _move(file, self.folder / folder))  # type: ignore[misc]

    def claim(self, file: Path, folder: str) -> None:
        with sentences(folder or "a file", self.folder):
            _although_tidied(lambda: _link(file, self.folder / folder))

    def tidy(self) -> None:
        own = self.folder / OWN_FOLDER
        remove_stale_scratch(self)
        with suppress(OSError):
            for entry in own.iterdir():
                if entry.name.startswith(_SCRATCH_PREFIX):
                    continue  # the same job, begun twice
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            own.rmdir()


def _move(file: Path, folder: Path) -> None:
    try:
        os.replace(file, folder / file.name)
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / file.name)


def _link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        try:
            os.link(file, folder / file.name)
        except PermissionError:  # a file system without links
            if not (folder / file.name).exists():
                _move(file, folder)


class RemotePlace:
    """An address of fsspec's. Each process opens its own."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        extra = "s3" if scheme in ("s3", "s3a") else None
        try:
            import fsspec

            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            way_out = (
                "install the extra 's3' beside the others: pip install -e '.[cpu,s3]' in a clone"
                if extra
                else str(error)
            )
            raise StartError(f"out {scheme}:// needs a package that is not installed; {way_out}") from None
        except ValueError as error:
            raise StartError(f"out must be a folder or an address, got {show(url)}: {error}") from None
        self._shows_whole_files_only = scheme in _OBJECT_STORES

    def __str__(self) -> str:
        return self.url

    @property
    def scratch_root(self) -> Path:
        return Path(tempfile.gettempdir())

    def read(self, name: str) -> bytes | None:
        return self._or_none(lambda: bytes(self._fs.cat_file(self._path(name))))

    def size(self, name: str) -> int | None:
        return self._or_none(lambda: int(self._fs.info(self._path(name))["size"]))

    def sizes(self) -> Callable[[str], int | None]:
        found = self._or_none(lambda: self._fs.ls(self._root, detail=True))
        return {one["name"].rpartition("/")[2]: one["size"] for one in found or []}.get

    def open(self, name: str) -> IO[bytes]:
        file: IO[bytes] = self._tried(lambda: self._fs.open(self._path(name), "rb"))
        return file

    def names(self, folder: str) -> list[str]:
        found = self._or_none(lambda: self._fs.ls(self._path(folder), detail=False))
        return sorted(one.rpartition("/")[2] for one in found or [])

    def put(self, files: Sequence[Path], folder: str = "") -> None:
        targets = [self._path("/".join(filter(None, (folder, file.name)))) for file in files]
        locals_ = [str(file) for file in files]
        if not self._shows_whole_files_only:
            hidden = [
                f"{target.rpartition('/')[0]}/.{target.rpartition('/')[2]}.{os.getpid()}.tmp"
                for target in targets
            ]
            self._tried(lambda: self._fs.makedirs(self._path(folder), exist_ok=True))
            self._tried(lambda: self._fs.put(locals_, hidden))
            for one, target in zip(hidden, targets, strict=True):
                self._tried(lambda one=one, target=target: self._fs.mv(one, target))  # type: ignore[misc]
        elif len(files) == 1:
            self._tried(lambda: self._fs.put_file(locals_[0], targets[0]))
        else:
            self._tried(lambda: self._fs.put(locals_, targets))

    def claim(self, file: Path, folder: str) -> None:
        if self.size(f"{folder}/{file.name}") is None:
            self.put([file], folder)

    def tidy(self) -> None:
        with suppress(SampleError):
            self._or_none(lambda: self._fs.rm(self._path(OWN_FOLDER), recursive=True))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def _or_none(self, call: Callable[[], T]) -> T | None:
        try:
            return self._tried(call, absent=True)
        except FileNotFoundError:
            return None

    def _tried(self, call: Callable[[], T], absent: bool = False) -> T:
        """What `call` returns, tried again where what it met may pass.

        `absent`: FileNotFoundError is an answer, and raised as it is.
        """
        for attempt in range(_TRIES):
            try:
                return call()
            except (FileNotFoundError, PermissionError) as error:
                if absent and isinstance(error, FileNotFoundError):
                    raise
                raise PlaceLost(f"{self.url} cannot be used: {_short(error)}") from None
            except Exception as error:  # each file system raises what its client library does
                if attempt == _TRIES - 1:
                    raise PlaceLost(
                        f"{self.url} cannot be used, after {_TRIES} tries: {_short(error)}"
                    ) from None
                time.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError


@contextmanager
def sentences(what: str, where: Any) -> Iterator[None]:
    """Have an OSError become one of ours."""
    try:
        yield
    except OSError as error:
        raise told(error, what, where) from None


def told(error: OSError, what: str, where: Any) -> SampleError:
    """The error of ours that says what an OSError met."""
    if error.errno in _NO_ROOM:
        return DiskFull(f"there is no room left in {where}: {error.strerror}")
    return PlaceLost(f"out must be a folder that can be written: {error.strerror or error}, got {where}")


def _short(error: Exception) -> str:
    return show(str(error).partition("\n")[0] or type(error).__name__)
