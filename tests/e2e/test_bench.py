"""`ganserve bench`: a server, load on it, and what was seen."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from server_process import GANSERVE

QUICK = ("--model", "toy", "--seconds", "0.3", "--rounds", "1", "--workers", "1")


def bench(store: Path, *flags: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(GANSERVE), "bench", "--store", str(store), *QUICK, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize(
    ("load", "title"),
    [
        (("--clients", "2", "--n", "3", "--format", "npy"), "2 clients, 3 images as npy a request"),
        (("--rate", "50"), "50 requests/s, one png a request"),
    ],
)
def test_a_load_is_told_in_one_line_beside_the_in_process_limit(
    toy_store: Path, load: tuple[str, ...], title: str
) -> None:
    done = bench(toy_store, *load)

    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {title} |")]
    speed, limit, ratio, p50_ms, p99_ms, cpu_ms, cpu_limit_ms, cpu_ratio = (
        float(cell.strip(" *")) for cell in row.split("|")[2:-1]
    )
    assert 0 < speed < limit
    assert 0 <= ratio < 1 < cpu_ratio
    assert 0 < p50_ms <= p99_ms
    assert cpu_ms > cpu_limit_ms > 0
    assert re.search(r"start to first image [\d.]+ s; idle [\d.]+ % of a core; memory of all", done.stdout)


def test_a_loop_is_closed_or_open_and_a_server_that_cannot_start_is_a_sentence(toy_store: Path) -> None:
    both = bench(toy_store, "--clients", "2", "--rate", "50")
    unknown = bench(toy_store, "--model", "nobody")
    no_device = bench(toy_store, "--accelerator", "cuda", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})

    assert (both.returncode, unknown.returncode, no_device.returncode) == (2, 2, 2)
    assert "clients and rate must not be given together" in both.stderr
    assert "nobody" in unknown.stderr
    assert no_device.stderr.startswith("ganserve: accelerator cuda was asked for, but ")
    assert no_device.stderr.count("\n") == 1
