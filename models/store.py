"""The store: published artifacts under one root, `<root>/<name>/<version>/`.

Owns addresses (`name[:version]`), listing, publishing (a draft folder, then one rename) and the
check that files are what their manifest says. A version once published is never written again.
Laid out as Triton, KServe and MLServer lay out a model repository.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import DamagedArtifact, InvalidValue, UnknownModel, VersionExists, show
from models.manifest import MANIFEST_FILE, MAX_VERSION, Manifest, check_name

# The store that the package ships: `ganserve` uses it when no other is named.
SHIPPED_STORE = Path(__file__).parent / "store"

_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_DRAFT_PREFIX = ".draft-"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """One published version: its folder and its manifest. Its files are checked by `verify`."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """sha256 (64 hex) of all that makes the pixels."""
        return self.manifest.digest

    @property
    def address(self) -> str:
        return f"{self.manifest.name}:{self.manifest.version}"

    def file(self, name: str) -> Path:
        """The path of one file of the artifact."""
        return self.path / name

    def verify(self) -> None:
        """Hash every file that the manifest lists. Raises DamagedArtifact naming the first that differs."""
        for name in self.manifest.files:
            self.verified_file(name)

    def verified_file(self, name: str) -> Path:
        """The path of one file, after hashing it. Raises DamagedArtifact if it is not what was published."""
        wanted = self.manifest.files.get(name)
        if wanted is None:
            raise DamagedArtifact(f"{self.address}: the manifest lists no {name}")
        path = self.file(name)
        try:
            found = sha256_of(path)
        except OSError as error:
            raise DamagedArtifact(f"{self.address}: {name} cannot be read: {error.strerror}") from None
        if found != wanted:
            raise DamagedArtifact(
                f"{self.address}: {name} is not the file that was published: "
                f"its sha256 is {found[:12]}…, the manifest says {wanted[:12]}…"
            )
        return path


class Draft:
    """A folder in which an artifact is put together; nothing is visible until `publish`."""

    def __init__(self, path: Path, name: str, version: int) -> None:
        self.path = path
        self.name = name
        self.version = version
        self.published: Artifact | None = None

    def publish(self, manifest: Manifest) -> Artifact:
        """Hash the files, write the manifest, rename the folder to its version.

        `manifest.name` and `manifest.version` must be the draft's; `manifest.files` is filled in here.
        Raises VersionExists if that version appeared meanwhile, InvalidValue if a required file lacks.
        """
        assert (manifest.name, manifest.version) == (self.name, self.version)
        names = sorted(file.name for file in self.path.iterdir())
        required = manifest.required_files
        if missing := [name for name in required if name not in names]:
            raise InvalidValue(
                f"an artifact must hold {' and '.join(required)}, missing: {', '.join(missing)}"
            )
        manifest = replace(manifest, files={name: sha256_of(self.path / name) for name in names})
        (self.path / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        for file in self.path.iterdir():
            file.chmod(0o644)
            _fsync(file)
        self.path.chmod(0o755)
        _fsync(self.path)
        target = self.path.parent / str(self.version)
        try:
            self.path.rename(target)
        except OSError:
            if not target.exists():
                raise
            raise VersionExists(
                f"{self.name}:{self.version} is published already; versions are never overwritten"
            ) from None
        _fsync(target.parent)
        self.published = Artifact(target, manifest)
        return self.published


class Store:
    """Artifacts under one root folder. Reading needs no write access; the root may not exist yet."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        """Names that have at least one published version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if _is_name(entry.name) and self.versions(entry.name)
        )

    def versions(self, name: str) -> list[int]:
        """Published versions of `name`, ascending. Raises InvalidValue for a name that cannot be one."""
        folder = self.root / check_name(name)
        if not folder.is_dir():
            return []
        return sorted(
            int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()
        )

    def resolve(self, address: str) -> Artifact:
        """Return the artifact at `name` (highest version) or `name:version`, its manifest checked.

        Files are hashed by `Artifact.verify`, not here. Raises InvalidValue, UnknownModel or
        DamagedArtifact.
        """
        name, version = parse_address(address)
        if not self.root.is_dir():
            raise UnknownModel(
                f"no model named {show(name)}: the store {self.root} is not a folder; --store names another"
            )
        versions = self.versions(name)
        if not versions:
            raise UnknownModel(
                f"no model named {show(name)} in the store {self.root}; "
                f"it has: {', '.join(self.names()) or 'none'}"
            )
        if version is None:
            version = versions[-1]
        elif version not in versions:
            have = ", ".join(map(str, versions))
            raise UnknownModel(f"no version {version} of {show(name)} in the store; it has: {have}")
        return self._read(name, version)

    def _read(self, name: str, version: int) -> Artifact:
        path = self.root / name / str(version)
        try:
            text = (path / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise DamagedArtifact(
                f"{name}:{version}: {MANIFEST_FILE} cannot be read: {error.strerror}"
            ) from None
        try:
            manifest = Manifest.from_json(text)
        except DamagedArtifact as error:
            raise DamagedArtifact(f"{name}:{version}: {error}") from None
        if (manifest.name, manifest.version) != (name, version):
            raise DamagedArtifact(
                f"{name}:{version}: its manifest is that of {manifest.name}:{manifest.version}; "
                "was the folder renamed?"
            )
        if missing := [file for file in manifest.required_files if file not in manifest.files]:
            raise DamagedArtifact(f"{name}:{version}: the manifest lists no {' and no '.join(missing)}")
        return Artifact(path, manifest)

    @contextmanager
    def draft(self, name: str, version: int | None = None) -> Iterator[Draft]:
        """Open a draft for `name`, at `version` or at the highest there is plus one.

        The folder is removed when the block ends without `Draft.publish`. Raises InvalidValue for a
        name or version that cannot be one, VersionExists for a version that is there.
        """
        versions = self.versions(name)
        if version is None:
            version = max(versions, default=0) + 1
        if type(version) is not int or not 1 <= version <= MAX_VERSION:
            raise InvalidValue(f"version must be an integer between 1 and {MAX_VERSION}, got {show(version)}")
        if version in versions:
            raise VersionExists(f"{name}:{version} is published already; versions are never overwritten")
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=folder))
        draft = Draft(path, name, version)
        try:
            yield draft
        finally:
            if draft.published is None:
                shutil.rmtree(path, ignore_errors=True)
                if not any(folder.iterdir()):
                    folder.rmdir()


def parse_address(address: str) -> tuple[str, int | None]:
    """Split `name[:version]`. Raises InvalidValue naming what is wrong."""
    name, colon, version = address.partition(":")
    check_name(name)
    if not colon:
        return name, None
    if _VERSION.fullmatch(version) is None:
        raise InvalidValue(f"version must be an integer between 1 and {MAX_VERSION}, got {show(version)}")
    return name, int(version)


def sha256_of(path: Path) -> str:
    """sha256 (64 hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidValue:
        return False
    return True


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
