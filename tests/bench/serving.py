"""How fast the service is beside what the machine could do: one run, so that the ratio holds.

Starts `ganserve serve`, asks it from a client process of few instructions an answer, and measures
in the same run what the same work costs in this process without HTTP, in batches of 16 (of 1 for one
client).

    python tests/bench/serving.py [--model NAME] [--store DIR] [--seconds S]

CPU time an image is the figure that repeats on shared machines; images/s is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from models.sampling import LatentSampler
from models.store import SHIPPED_STORE, Artifact, Store
from service.encoding import encode_image
from service.session import Session


@dataclass(frozen=True)
class Case:
    title: str
    clients: int
    body: dict[str, object]
    images_a_request: int


CASES = (
    Case("1 client, one PNG a request", 1, {"n": 1}, 1),
    Case("32 clients, one PNG a request", 32, {"n": 1}, 1),
    Case("4 clients, 64 images a request as npy", 4, {"n": 64, "format": "npy"}, 64),
)


@dataclass(frozen=True)
class Load:
    """What one closed loop of clients saw."""

    images_a_second: float
    images: int
    p50_ms: float
    p99_ms: float


async def one_client(port: int, number: int, case: Case, until: float, latencies_ms: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seed = number * 1_000_000
    while time.monotonic() < until:
        body = json.dumps({"seed": seed, **case.body}).encode()
        seed += case.images_a_request
        head = (
            "POST /v1/samples HTTP/1.1\r\nhost: bench\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}"
        )
        started = time.perf_counter()
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        status = answer.split(b" ", 2)[1]
        length = int(answer.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        if status != b"200":
            raise RuntimeError(answer.decode())
        latencies_ms.append((time.perf_counter() - started) * 1000)
    writer.close()


def clients(port: int, case: Case, seconds: float) -> Load:
    async def run() -> Load:
        latencies_ms: list[float] = []
        started = time.monotonic()
        until = started + seconds
        await asyncio.gather(*(one_client(port, k, case, until, latencies_ms) for k in range(case.clients)))
        images = len(latencies_ms) * case.images_a_request
        cuts = statistics.quantiles(latencies_ms, n=100)
        return Load(images / (time.monotonic() - started), images, cuts[49], cuts[98])

    return asyncio.run(run())


def in_process_ms(artifact: Artifact, batch: int, png: bool, seconds: float = 1.5) -> float:
    """CPU milliseconds an image of this process: latents, graph and PNG, no HTTP, one thread."""
    session, manifest = Session(artifact), artifact.manifest
    sampler = LatentSampler(manifest.z_dim, manifest.prior)
    class_idx, psi = np.zeros(batch, np.int64), np.ones(batch, np.float32)
    images, started, until = 0, None, 0.0
    while started is None or time.monotonic() < until:
        pixels = session.run(sampler.draw(range(images, images + batch)), class_idx, psi)
        if png:
            for one in pixels:
                encode_image(one, "png")
        if started is None:  # the first run is warm-up
            started, until = time.process_time(), time.monotonic() + seconds
            continue
        images += batch
    return (time.process_time() - started) / images * 1000


def cpu_s(family: list[psutil.Process]) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in family)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--store", default=SHIPPED_STORE, type=Path)
    parser.add_argument("--seconds", default=5.0, type=float)
    arguments = parser.parse_args()
    artifact = Store(arguments.store).resolve(arguments.model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ganserve = Path(sys.executable).parent / "ganserve"
    command = [ganserve, "serve", "--port", str(port), "--store", arguments.store, "--model", arguments.model]
    server = subprocess.Popen([*map(str, command), "--log-level", "warning"], stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(port)
        parent = psutil.Process(server.pid)
        family = [parent, *parent.children(recursive=True)]
        print(f"{artifact.address}, {os.cpu_count()} CPUs, {arguments.seconds:g} s a case\n")
        print("| | images/s | p50 ms | p99 ms | server CPU ms an image | in process | ratio |")
        print("|---|---|---|---|---|---|---|")
        with multiprocessing.get_context("spawn").Pool(1) as client:
            for case in CASES:
                png = case.body.get("format") != "npy"
                batch = 1 if case.clients == 1 else 16
                floors = [in_process_ms(artifact, batch, png)]
                before = cpu_s(family)
                load = client.apply(clients, (port, case, arguments.seconds))
                server_ms = (cpu_s(family) - before) / load.images * 1000
                floors.append(in_process_ms(artifact, batch, png))
                floor_ms = statistics.mean(floors)
                print(
                    f"| {case.title} | {load.images_a_second:.0f} | {load.p50_ms:.1f} | {load.p99_ms:.1f} "
                    f"| {server_ms:.2f} | {floor_ms:.2f} | {server_ms / floor_ms:.2f} |"
                )
        memory = sum(one.memory_full_info().pss for one in family) / 2**20
        print(f"\nmemory of all {len(family)} server processes: {memory:.0f} MiB (PSS)")
    finally:
        server.terminate()
        server.wait(30)


def wait_until_ready(port: int) -> None:
    for _ in range(600):
        try:
            if urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server was not ready after 30 s")


if __name__ == "__main__":
    main()
