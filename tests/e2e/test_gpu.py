"""The commands in buckets, on the CPU provider and, where there is one, on a CUDA device: `pytest -m gpu`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import GANSERVE, Server, wait_for

Serve = Callable[..., Server]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and shutil.which("nvidia-smi") is None:
        pytest.skip("needs a CUDA device and the extra gpu")
    return str(request.param)


def ganserve(*arguments: str | Path) -> str:
    done = subprocess.run([GANSERVE, *arguments], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_endpoint_and_offline_run_make_the_same_bytes_and_verify_proves_them(
    serve: Serve, toy_store: Path, tmp_path: Path, accelerator: str
) -> None:
    flags = ("--store", toy_store, "--accelerator", accelerator)
    server = serve("--model", "toy", "--accelerator", accelerator, "--workers", "1", "--buckets", "1,4,16,64")

    ganserve("sample", *flags, "--model", "toy", "--seeds", "0-20", "--out", tmp_path / "offline")
    for seed in (0, 7, 20):
        image = server.http.post("/v1/samples", json={"seed": seed})
        assert image.content == (tmp_path / "offline" / f"seed{seed:010}.png").read_bytes()
    verdict = ganserve("verify", *flags, tmp_path / "offline")

    assert verdict.endswith("21 images: 21 identical\n")
    assert server.metric("ganserve_batches_total", model="toy") == 3


def test_workers_that_die_are_replaced_and_make_the_same_image(serve: Serve, accelerator: str) -> None:
    server = serve("--model", "toy", "--accelerator", accelerator, "--workers", "1", "--buckets", "1,4")
    before = server.http.post("/v1/samples", json={"seed": 3}).content
    workers = server.workers()  # one a device

    for worker in workers:
        worker.kill()
    wait_for(lambda: server.metric("ganserve_worker_restarts_total", model="toy") == len(workers))

    assert server.http.post("/v1/samples", json={"seed": 3}).content == before


def test_bench_measures_a_server_in_buckets_beside_the_same_buckets_without_http(
    toy_store: Path, accelerator: str
) -> None:
    load = ("--clients", "4", "--seconds", "0.3", "--rounds", "1", "--workers", "1", "--buckets", "1,4")

    table = ganserve("bench", "--store", toy_store, "--model", "toy", "--accelerator", accelerator, *load)

    head, row = table.splitlines()[0], next(line for line in table.splitlines() if "4 clients" in line)
    assert head.startswith(f"toy:1, {accelerator}, ")
    images_s, limit_s = (float(cell) for cell in row.split("|")[2:4])
    assert images_s > 0
    assert limit_s > 0
