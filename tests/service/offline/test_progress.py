"""What a run says while it goes on."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from server_process import GANSERVE

from service.offline import progress
from service.offline.progress import Progress, Style


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock: what stands in the list."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def told(clock: list[float], style: Style) -> str:
    """What a run of 4,000 images says, 1,000 of which were there: 100 images a second."""
    to = io.StringIO()
    run = Progress(style, 4000, 40, to)
    run.keep(1000, 10)
    for second in range(1, 31):
        clock[0] = float(second)
        run.made(100, 1)
    run.end()
    return to.getvalue()


def test_lines_come_every_ten_seconds_with_rate_eta_and_shards(clock: list[float]) -> None:
    assert told(clock, "lines").splitlines() == [
        "2,000/4,000 images, 100 images/s, 20/40 shards, ETA 00:20",
        "3,000/4,000 images, 100 images/s, 30/40 shards, ETA 00:10",
        "4,000/4,000 images, 100 images/s, 40/40 shards, ETA 00:00",
        "4,000/4,000 images, 100 images/s, 40/40 shards, ETA 00:00",
    ]


def test_json_has_the_same_facts(clock: list[float]) -> None:
    assert json.loads(told(clock, "json").splitlines()[9]) == {
        "event": "progress",
        "images": 2000,
        "images_total": 4000,
        "shards": 20,
        "shards_total": 40,
        "images_per_s": 100.0,
        "eta_s": 20.0,
    }


def test_a_bar_is_one_line_that_grows(clock: list[float]) -> None:
    bar = told(clock, "bar")

    assert bar.count("\n") == 1
    assert "\r[============            ] 2,000/4,000 images" in bar
    assert bar.rstrip().rpartition("\r")[2].startswith("[========================] 4,000/4,000")


def test_an_eta_of_hours_is_told_and_one_that_nobody_knows_is_not(clock: list[float]) -> None:
    to = io.StringIO()
    run = Progress("lines", 1_000_000, 100, to)
    run.end()
    clock[0] = 10.0
    run.made(1000, 0)

    assert to.getvalue().splitlines() == [
        "0/1,000,000 images, 0 images/s, 0/100 shards, ETA unknown",
        "1,000/1,000,000 images, 100 images/s, 0/100 shards, ETA 2:46:30",
    ]


def test_a_terminal_gets_the_bar(toy_store: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        GANSERVE,
        "sample",
        "--store",
        toy_store,
        "--model",
        "toy",
        "--seeds",
        "0-9",
        "--out",
        tmp_path,
    ]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs)
        said = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert done.returncode == 0
    assert "\r[========================] 10/10 images, " in said
    assert "1/1 shards, ETA 00:00" in said
