"""API keys: which are known, and which of them are admins'.

Keys come from files (read again when they change) and from settings. Only their hashes are kept, and
no message holds a key. How a request presents one is `http_access`' business.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from service.errors import Forbidden, StartError, Unauthorized
from service.settings import Settings

_KEY: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}", re.ASCII)
_RULE: Final = "16 to 256 characters of A-Z a-z 0-9 . _ ~ + / = -"
_LOOK_EVERY_S: Final = 1.0
_MAX_FILE_BYTES: Final = 2**20

logger = logging.getLogger(__name__)


class KeySet:
    """The keys of one kind: those of `text` (comma separated) and those of `file` (one a line).

    Raises StartError, one sentence without the key, for a key or file that breaks a rule.
    """

    def __init__(self, setting: str, text: SecretStr | None, file: Path | None) -> None:
        self._setting = setting
        self._file = file
        self._looked = time.monotonic()
        self._version = _version(file)
        self._given = frozenset() if text is None else _hashes_of_text(setting, text.get_secret_value())
        self._read = frozenset() if file is None else _hashes_of_file(setting, file)

    def __bool__(self) -> bool:
        """True where keys of this kind are set; a file that was emptied since keeps what it said."""
        return bool(self._given or self._read)

    def __contains__(self, key: str | None) -> bool:
        """True if `key` is one of them. Hashes are compared, so the time tells nothing of a known key."""
        self._look_again()
        if key is None:
            return False
        presented = _hash(key)
        return presented in self._given or presented in self._read

    def _look_again(self) -> None:
        """Read the file again if it changed; one that breaks a rule leaves the keys as they were."""
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._read = _hashes_of_file(self._setting, self._file)
            logger.info("%s was read again: %d keys", self._setting, len(self._read))
        except StartError as error:
            logger.error("the keys stay as they were: %s", error)


class Keys:
    """The keys of one server."""

    def __init__(self, settings: Settings) -> None:
        """Read every key. Raises StartError."""
        self._callers = KeySet("api_keys", settings.api_keys, settings.api_keys_file)
        self._admins = KeySet("admin_keys", settings.admin_keys, settings.admin_keys_file)
        self.needed: bool = bool(self._callers)
        """Callers must present a key; admin keys alone do not ask that of everybody."""

    def require_known(self, key: str | None) -> None:
        """Raise Unauthorized unless `key` is known; an admin key is."""
        if key is None:
            raise Unauthorized("an API key must be given, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        if not (key in self._callers) | (key in self._admins):
            raise Unauthorized("the API key must be one that is known here, got another")

    def require_admin(self, key: str | None) -> None:
        """Raise Unauthorized or Forbidden unless `key` is an admin key."""
        if not self._admins:
            raise Forbidden("this route needs an admin key: admin_keys or admin_keys_file must be set")
        self.require_known(key)
        if key not in self._admins:
            raise Forbidden("the API key must be one of the admin keys, got another")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _hashes_of_text(setting: str, text: str) -> frozenset[bytes]:
    keys = [key.strip() for key in text.split(",")]
    return frozenset(_checked(setting, f"number {place}", key) for place, key in enumerate(keys, 1))


def _hashes_of_file(setting: str, file: Path) -> frozenset[bytes]:
    """One key a line; empty lines and lines that begin with # are skipped. Raises StartError."""
    name = f"{setting}_file"
    try:
        # Not to wait for who writes a FIFO, should the file be one now.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise StartError(f"{name} must be a regular file, got {file}")
            content = opened.read(_MAX_FILE_BYTES + 1)
        lines = content.decode("ascii").splitlines()
    except OSError as error:
        raise StartError(f"{name} must be a readable file: {error.strerror}, got {file}") from None
    except UnicodeDecodeError:
        raise StartError(f"{name} must hold ASCII only, one key a line, got other bytes in {file}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise StartError(f"{name} must be at most {_MAX_FILE_BYTES} bytes, got more in {file}")
    hashes = frozenset(
        _checked(name, f"in line {number} of {file}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not hashes:
        raise StartError(f"{name} must hold at least one key, got none in {file}")
    return hashes


def _checked(setting: str, where: str, key: str) -> bytes:
    """The hash of `key`. Raises StartError, which never tells the key."""
    if not _KEY.fullmatch(key):
        raise StartError(f"{setting} must be keys of {_RULE}; the one {where}, {len(key)} long, is not")
    return _hash(key)


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file's content does, or None where it cannot be told."""
    try:
        facts = os.stat(file) if file is not None else None
    except OSError:
        return None
    return facts and (facts.st_ino, facts.st_mtime_ns, facts.st_size)
