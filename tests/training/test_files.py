"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.files import atomic_file, remove_parts


def test_a_file_takes_the_place_of_the_old_one_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"old")

    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_gives_its_room_back(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"old")

    def write_until_the_disk_is_full() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*facts\.json'"):
        write_until_the_disk_is_full()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = {"facts.json", ".hidden", "some.part"}
    for name in (*names, ".facts.json.part"):
        (tmp_path / name).write_bytes(b"x")

    remove_parts(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == names
