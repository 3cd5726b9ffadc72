"""`ganserve bench`: how fast a server is, beside what the machine could do in the same run.

Starts a server, asks it from a client process of few instructions an answer, and measures, in turns
with it, the *in-process limit*: the same latents, graph and encoding in as many processes and
threads as the server has workers, without HTTP. Every figure is the median of the rounds.

CPU time an image is the figure that repeats on shared machines; images/s is not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from models.sampling import LatentSampler
from models.store import Artifact, Store
from service.device import Accelerator, DeviceOptions
from service.encoding import Format, encode_image, encode_npy
from service.errors import StartError
from service.session import Session, check_runtime
from service.settings import Settings, check_devices

_START_S: Final = 60.0
_ENDS_WITHIN_S: Final = 30.0
_SCHEDULED: Final = 2  # CPUCLOCK_SCHED: with the inverted pid above it, the id that Linux gives the clock
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Case:
    """One kind of load."""

    clients: int
    """Connections; each sends its next request when it has its answer (closed loop)."""
    n: int
    """Images a request."""
    format: Format
    rate: float | None = None
    """Requests a second, sent when they are due whether or not earlier ones are answered (open loop)."""

    @property
    def title(self) -> str:
        load = (
            f"{self.clients} client{'s' * (self.clients > 1)}"
            if self.rate is None
            else f"{self.rate:g} requests/s"
        )
        images = f"one {self.format}" if self.n == 1 else f"{self.n} images as {self.format}"
        return f"{load}, {images} a request"


CASES: Final = (Case(1, 1, "png"), Case(32, 1, "png"), Case(4, 64, "npy"))
"""What is measured unless a case is asked for."""


@dataclass(frozen=True)
class Load:
    """What the clients saw in one round."""

    images: int
    seconds: float
    latencies_ms: list[float]
    refused: int
    """Answers that were no 200."""


@dataclass(frozen=True)
class Limit:
    """The in-process limit of one round."""

    images_a_second: float
    cpu_ms: float
    """CPU milliseconds an image, all processes."""


@dataclass
class Rounds:
    """One case's rounds."""

    case: Case
    images_a_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    refused: int = 0
    limits: list[Limit] = field(default_factory=list)

    def add(self, load: Load, cpu_s: float, limit: Limit) -> None:
        self.images_a_second.append(load.images / load.seconds)
        self.cpu_ms.append(cpu_s / max(1, load.images) * 1000)
        self.latencies_ms += load.latencies_ms
        self.refused += load.refused
        self.limits.append(limit)

    def row(self) -> str:
        """The case's line of the table."""
        cuts = statistics.quantiles(self.latencies_ms, n=100) if len(self.latencies_ms) > 1 else [0.0] * 99
        speed_ratios = [
            speed / limit.images_a_second
            for speed, limit in zip(self.images_a_second, self.limits, strict=True)
        ]
        cpu_ratios = [cpu / limit.cpu_ms for cpu, limit in zip(self.cpu_ms, self.limits, strict=True)]
        median = statistics.median
        cells = [
            self.case.title + (f" ({self.refused} refused)" if self.refused else ""),
            f"{median(self.images_a_second):.0f}",
            f"{median(limit.images_a_second for limit in self.limits):.0f}",
            f"{median(speed_ratios):.2f}",
            f"{cuts[49]:.1f}",
            f"{cuts[98]:.1f}",
            f"{median(self.cpu_ms):.3f}",
            f"{median(limit.cpu_ms for limit in self.limits):.3f}",
            f"**{median(cpu_ratios):.2f}**",
        ]
        return f"| {' | '.join(cells)} |"


HEADER: Final = (
    "| | images/s | limit | ratio | p50 ms | p99 ms | server CPU ms an image | limit | ratio |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def bench(
    settings: Settings, flags: Sequence[str], cases: Sequence[Case], *, seconds: float, rounds: int
) -> Iterator[str]:
    """Measure `cases` on a server started with `flags`, which `settings` were read from; yield lines of text.

    Raises StartError if the server cannot start, ContractError for a model that is not there.
    """
    check_runtime(settings.accelerator)
    check_devices(settings)
    artifact = Store(settings.store).resolve(settings.model_addresses[0])
    started = time.monotonic()
    with _server(settings.port, flags) as server, in_process(settings, artifact) as limits:
        first_image_s = first_image(settings.port, server) - started
        workers = settings.devices * settings.workers_per_model
        yield (
            f"{artifact.address}, {settings.accelerator}, {workers} workers x {settings.threads} threads, "
            f"{os.cpu_count()} CPUs, median of {rounds} rounds of {seconds:g} s\n"
        )
        yield HEADER
        with multiprocessing.get_context("spawn").Pool(1) as client:
            for case in cases:
                measured = Rounds(case)
                client.apply(ask, (settings.port, case, min(1.0, seconds)))  # warm
                for _ in range(rounds):
                    limit = limits(case, seconds)
                    before = cpu_seconds(family(server.pid))
                    load = client.apply(ask, (settings.port, case, seconds))
                    measured.add(load, cpu_seconds(family(server.pid)) - before, limit)
                yield measured.row()
        idle_before, since = cpu_seconds(family(server.pid)), time.monotonic()
        time.sleep(seconds)
        idle = (cpu_seconds(family(server.pid)) - idle_before) / (time.monotonic() - since)
        pids = family(server.pid)
        memory = sum(map(pss_bytes, pids)) / 1e6
        yield (
            f"\nstart to first image {first_image_s:.2f} s; idle {idle * 100:.1f} % of a core; "
            f"memory of all {len(pids)} processes {memory:.0f} MB (PSS)"
        )


# -- the server -----------------------------------------------------------------------------------


@contextmanager
def _server(port: int, flags: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "service",
        "serve",
        *flags,
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_ENDS_WITHIN_S)


def first_image(port: int, server: subprocess.Popen[bytes]) -> float:
    """Ask until an image comes; return when (monotonic). Raises StartError if none does."""
    deadline = time.monotonic() + _START_S
    request = request_bytes(0, Case(1, 1, "png"))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StartError("the server ended before it was ready; the reason is above")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_START_S) as connection:
                connection.sendall(request)
                if connection.recv(65536).startswith(b"HTTP/1.1 200"):
                    return time.monotonic()
        except OSError:
            pass
        time.sleep(0.02)
    raise StartError(f"the server was not ready after {_START_S:.0f} s")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [
        pid,
        *(one for file in children for child in file.read_text().split() for one in family(int(child))),
    ]


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of the processes, in seconds, from the kernel's clock of each.

    /proc would tell it in steps of 10 ms: too few of them in a short round.
    """
    return sum(time.clock_gettime(~pid << 3 | _SCHEDULED) for pid in pids)


def pss_bytes(pid: int) -> int:
    """Memory of one process, shared pages by their share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no Pss")


# -- the client, a process of its own -------------------------------------------------------------


def request_bytes(seed: int, case: Case) -> bytes:
    """One request as it goes over the wire."""
    body = json.dumps({"seed": seed, "n": case.n, "format": case.format})
    head = ["POST /v1/samples HTTP/1.1", "host: bench", "content-type: application/json"]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", body]).encode()


class Connection(asyncio.Protocol):
    """One HTTP connection that reads no more of an answer than its status and its length."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._head = bytearray()
        self._missing = 0
        self._ok = False
        self._answered: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> bool:
        """Send one request; return whether its answer was a 200."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._head[:end]).lower()
            self._ok = head.startswith(b"http/1.1 200")
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            self._missing = end + 4 + length - len(self._head)
            self._head.clear()
        else:
            self._missing -= len(data)
        if not self._missing and self._answered is not None:
            self._answered.set_result(self._ok)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


def ask(port: int, case: Case, seconds: float) -> Load:
    """Ask the server on `port` for `seconds` seconds."""
    # uvicorn's own event loop: the client takes the server's cores while it works.
    return uvloop.run(
        _closed_loop(port, case, seconds) if case.rate is None else _open_loop(port, case, seconds)
    )


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def _closed_loop(port: int, case: Case, seconds: float) -> Load:
    latencies_ms: list[float] = []
    refused = 0
    seeds = itertools.count(step=case.n)
    started = time.monotonic()

    async def one_client() -> None:
        nonlocal refused
        connection = await _connect(port)
        while time.monotonic() < started + seconds:
            asked = time.perf_counter()
            if await connection.ask(request_bytes(next(seeds), case)):
                latencies_ms.append((time.perf_counter() - asked) * 1000)
            else:
                refused += 1
                await asyncio.sleep(0.01)
        connection.close()

    await asyncio.gather(*(one_client() for _ in range(case.clients)))
    return Load(len(latencies_ms) * case.n, time.monotonic() - started, latencies_ms, refused)


async def _open_loop(port: int, case: Case, seconds: float) -> Load:
    """Send requests when they are due, in a Poisson stream; a latency counts from then."""
    assert case.rate is not None
    latencies_ms: list[float] = []
    refused = 0
    idle: list[Connection] = []
    arrivals = random.Random(0)
    seeds = itertools.count(step=case.n)

    async def one_request(due: float) -> None:
        nonlocal refused
        connection = idle.pop() if idle else await _connect(port)
        ok = await asyncio.wait_for(connection.ask(request_bytes(next(seeds), case)), _TIMEOUT_S)
        if ok:
            latencies_ms.append((time.monotonic() - due) * 1000)
        else:
            refused += 1
        idle.append(connection)

    started = due = time.monotonic()
    tasks = []
    while (due := due + arrivals.expovariate(case.rate)) < started + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one_request(due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return Load(len(latencies_ms) * case.n, time.monotonic() - started, latencies_ms, refused)


# -- the in-process limit -------------------------------------------------------------------------


@contextmanager
def in_process(settings: Settings, artifact: Artifact) -> Iterator[Callable[[Case, float], Limit]]:
    """Give the function that measures the in-process limit: as many processes as the server has workers."""
    processes = settings.devices * settings.workers_per_model
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(processes)
    devices = spawn.SimpleQueue()
    for number in range(processes):
        devices.put(number % settings.devices)
    runs_on = (settings.accelerator, settings.threads, settings.device_options)
    opened = (settings.store, artifact.address, *runs_on, devices, barrier)
    with spawn.Pool(processes, _open_session, opened) as pool:

        def limit(case: Case, seconds: float) -> Limit:
            # One client alone never fills a microbatch: its limit is one row a run, in one process.
            alone = case.clients == case.n == 1 and case.rate is None
            batch, busy = (1, 1) if alone else (settings.microbatch_rows, processes)
            return _limit(pool, busy, batch, case.format, seconds)

        yield limit


def _limit(pool: Pool, processes: int, batch: int, fmt: Format, seconds: float) -> Limit:
    made = pool.starmap(_make_images, [(batch, fmt, seconds, processes > 1)] * processes, chunksize=1)
    images = sum(one[0] for one in made)
    return Limit(sum(one[0] / one[1] for one in made), sum(one[2] for one in made) / images * 1000)


_here: dict[str, Any] = {}  # of one process of the pool: its session and the barrier


def _open_session(
    store: Path,
    address: str,
    accelerator: Accelerator,
    threads: int,
    options: DeviceOptions,
    devices: Any,
    barrier: Any,
) -> None:
    session = Session(Store(store).resolve(address), accelerator, threads, devices.get(), options)
    _here.update(session=session, barrier=barrier)


def _make_images(batch: int, fmt: Format, seconds: float, together: bool) -> tuple[int, float, float]:
    """Make images for `seconds`, with all of the pool or alone; return how many, seconds, CPU seconds."""
    session: Session = _here["session"]
    manifest = session.artifact.manifest
    sampler = LatentSampler(manifest.z_dim, manifest.prior)
    class_idx, psi = np.zeros(batch, np.int64), np.ones(batch, np.float32)

    def make(first_seed: int) -> None:
        pixels = session.run(sampler.draw(range(first_seed, first_seed + batch)), class_idx, psi)
        if fmt == "npy":
            encode_npy(pixels)
        else:
            for one in pixels:
                encode_image(one, fmt)

    make(0)
    if together:
        _here["barrier"].wait(_TIMEOUT_S)
    images, started, cpu = 0, time.monotonic(), _cpu()
    while time.monotonic() < started + seconds:
        make(images)
        images += batch
    return images, time.monotonic() - started, _cpu() - cpu


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
