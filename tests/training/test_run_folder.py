"""A run folder has one writer, and a resume takes back what is newer than its snapshot."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from training.errors import RunError
from training.run_folder import RunFolder


def test_a_held_folder_is_refused_to_a_second_writer_and_free_again_afterwards(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")

    with (
        run.held(),
        pytest.raises(RunError, match=rf"is in use: process {os.getpid()} trains in it"),
        RunFolder(run.path).held(),
    ):
        pytest.fail("two held it")

    with run.held():
        assert (run.path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    child = os.fork()
    if child == 0:
        with run.held():
            os._exit(0)  # as a kill would: nothing is cleaned up
    os.waitpid(child, 0)

    with run.held():
        pass


def test_what_the_package_logs_while_the_folder_is_held_is_in_its_log(tmp_path: Path) -> None:
    run, logger = RunFolder(tmp_path), logging.getLogger("training.loop")
    with run.held():
        logger.warning("not bit-exact: %s", "threads")
    logger.warning("of another run")

    (line,) = run.log_file.read_text().splitlines()

    moment, _, said = line.partition(" ")
    assert moment.endswith("Z")
    assert said == "warning: not bit-exact: threads"


@pytest.mark.parametrize("torn", [b"", b'{"cur_nimg": 1', b'{"cur_nimg": 48}', b"\0\0\0\0\n", b"7\n"])
def test_lines_grids_and_snapshots_of_after_the_snapshot_are_taken_back(tmp_path: Path, torn: bytes) -> None:
    run = RunFolder(tmp_path)
    with run.held():
        for cur_nimg in (16, 32, 48, 1_000):
            run.append_metrics({"cur_nimg": cur_nimg})
            run.grid_file(cur_nimg).write_bytes(b"a grid")
            run.snapshot_file(cur_nimg).write_bytes(b"a snapshot")
        with run.metrics_file.open("ab") as file:
            file.write(torn)
        (tmp_path / ".snapshot-nimg0000000048.pt.part").write_bytes(b"half")
        (tmp_path / "grids" / ".nimg0000000048.png.part").write_bytes(b"half")

        run.take_back(32)

    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["cur_nimg"] for row in rows] == [16, 32]
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [
        "nimg0000000016.png",
        "nimg0000000032.png",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "grids",
        "lock",
        "metrics.jsonl",
        "snapshot-nimg0000000016.pt",
        "snapshot-nimg0000000032.pt",
    ]
