"""API keys: which are known, and what a file of them may hold."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from service import keys as keys_module
from service.errors import Forbidden, StartError, Unauthorized
from service.keys import Keys
from service.settings import Settings

ALICE, BOB, ADMIN = "alice-key-0123456789", "bob-key-0123456789", "admin-key-0123456789"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# the web shop\n{ALICE}\n\n  # and its batch jobs\n{BOB}\n")
    return path


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_S", 0.0)


def is_known(keys: Keys, key: str | None) -> bool:
    try:
        keys.require_known(key)
    except Unauthorized:
        return False
    return True


def test_keys_of_file_and_environment_are_known_and_others_are_not(file: Path) -> None:
    keys = Keys(Settings(api_keys_file=file, api_keys=SecretStr(f"{'c' * 16}, {'d' * 16}")))

    assert all(is_known(keys, key) for key in (ALICE, BOB, "c" * 16, "d" * 16))
    assert not any(is_known(keys, key) for key in (None, "", ALICE[:-1], ALICE + "x", "# the web shop", "é"))


def test_a_server_without_keys_needs_none() -> None:
    assert not Keys(Settings()).needed
    assert not Keys(Settings(admin_keys=SecretStr(ADMIN))).needed
    assert Keys(Settings(api_keys=SecretStr(ALICE))).needed


def test_an_admin_key_opens_both_doors_and_a_callers_key_one() -> None:
    keys = Keys(Settings(api_keys=SecretStr(ALICE), admin_keys=SecretStr(ADMIN)))

    assert is_known(keys, ADMIN)
    keys.require_admin(ADMIN)
    with pytest.raises(Forbidden, match="must be one of the admin keys"):
        keys.require_admin(ALICE)
    for key in (None, BOB):
        with pytest.raises(Unauthorized):
            keys.require_admin(key)


def test_without_admin_keys_nobody_is_an_admin() -> None:
    keys = Keys(Settings(api_keys=SecretStr(ALICE)))

    with pytest.raises(Forbidden, match="admin_keys or admin_keys_file must be set"):
        keys.require_admin(ALICE)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "api_keys_file must hold at least one key, got none in"),
        ("# only a comment\n", "must hold at least one key"),
        ("short\n", r"16 to 256 characters of A-Z.*the one in line 1 of .*, 5 long, is not"),
        (f"{ALICE}\n{'x' * 257}\n", "the one in line 2"),
        (f"{ALICE} # alice\n", "the one in line 1"),
        ("schlüssel-0123456789\n", "must hold ASCII only"),
        ("x" * (2**20 + 1), "must be at most 1048576 bytes"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_without_telling_a_key(
    tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "keys").write_text(content)

    with pytest.raises(StartError, match=sentence) as refused:
        Keys(Settings(api_keys_file=tmp_path / "keys"))

    assert ALICE not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="api_keys_file must be a readable file: No such file"):
        Keys(Settings(api_keys_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ["", ",", f"{ALICE},", "short"])
def test_keys_of_the_environment_follow_the_same_rule(text: str) -> None:
    with pytest.raises(StartError, match="api_keys must be keys of 16 to 256 characters"):
        Keys(Settings(api_keys=SecretStr(text)))


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    keys = Keys(Settings(api_keys_file=file))

    replacement = file.with_name("new")
    replacement.write_text(f"{BOB}\n")
    os.replace(replacement, file)

    assert (is_known(keys, ALICE), is_known(keys, BOB)) == (False, True)


@pytest.mark.parametrize("broken", ["short\n", "", None])
def test_a_file_that_breaks_later_keeps_the_old_keys_and_logs_it_once(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(Settings(api_keys_file=file))
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)

    with caplog.at_level(logging.ERROR):
        assert all(is_known(keys, ALICE) for _ in range(3))

    (record,) = caplog.records
    assert "the keys stay as they were: api_keys_file must" in record.getMessage()


def test_the_file_is_looked_at_once_a_second_at_most(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_S", 3600.0)
    keys = Keys(Settings(api_keys_file=file))

    file.write_text(f"{BOB}\n")

    assert is_known(keys, ALICE)


def test_no_key_is_in_the_repr_of_anything(file: Path) -> None:
    settings = Settings(api_keys_file=file, api_keys=SecretStr(ALICE))

    assert ALICE not in repr(settings) + str(settings) + repr(vars(Keys(settings)))


def test_a_file_that_becomes_a_fifo_is_refused_without_waiting_for_its_writer(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(Settings(api_keys_file=file))
    file.unlink()
    os.mkfifo(file)

    assert is_known(keys, ALICE)
    assert f"api_keys_file must be a regular file, got {file}" in caplog.text
