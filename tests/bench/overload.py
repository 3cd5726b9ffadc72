"""How fair and how steady the service is under more work than it can do.

    python tests/bench/overload.py --model reference --store store [--seconds S]

Fairness: what a request for one image waits beside two endless streams of 500 images, and quiet.
Overload: images/s at capacity, and when ten times as much is asked for in an open loop (requests are
sent when they are due, answered or not), with the memory of all processes before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from service.bench import family, free_port, pss_bytes

_STREAM_ROWS = 500
_REQUEST_ROWS = 64
_OVERLOAD = 10
_ROUNDS = 3


class Client:
    """Asks one server; counts statuses and the images of those made."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.images = 0
        self.statuses: Counter[int] = Counter()

    async def ask(self, n: int, fmt: str) -> float:
        """One request on a connection of its own; return the seconds it took."""
        body = json.dumps({"seed": 0, "n": n, "format": fmt}).encode()
        head = f"POST /v1/samples HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-length: {len(body)}"
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        try:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            status = int((await reader.readline()).split()[1])
            while await reader.read(2**20):
                pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        self.statuses[status] += 1
        self.images += n * (status == 200)
        return time.monotonic() - started

    async def ask_until(self, until: float, n: int, fmt: str) -> list[float]:
        """Ask again and again; return how long each answer took."""
        took_s = []
        while time.monotonic() < until:
            took_s.append(await self.ask(n, fmt))
        return took_s


async def together(*work: Awaitable[list[float]]) -> list[list[float]]:
    return list(await asyncio.gather(*work))


def quantiles_ms(took_s: list[float]) -> tuple[float, float]:
    """(p50, p95)"""
    cuts = statistics.quantiles(took_s, n=20)
    return 1000 * cuts[9], 1000 * cuts[18]


async def fairness(port: int, seconds: float) -> None:
    for title, streams in (("alone", 0), (f"beside two streams of {_STREAM_ROWS}", 2)):
        client = Client(port)
        until = time.monotonic() + seconds
        small, *_ = await together(
            client.ask_until(until, 1, "png"),
            *(client.ask_until(until, _STREAM_ROWS, "png") for _ in range(streams)),
        )
        p50, p95 = quantiles_ms(small)
        print(
            f"one image, {title}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {client.images / seconds:.0f} images/s"
        )


async def capacity(port: int, seconds: float) -> float:
    """Images/s of eight clients that wait for their answers."""
    client = Client(port)
    started = time.monotonic()
    await together(*(client.ask_until(started + seconds, _REQUEST_ROWS, "npy") for _ in range(8)))
    return client.images / (time.monotonic() - started)


async def overload(port: int, seconds: float, rate: float) -> tuple[float, Counter[int]]:
    """Images/s, and the statuses, when `rate` requests a second are sent whether or not any is answered."""
    client, waiting = Client(port), set()
    begun = due = time.monotonic()
    counted_from, images_before = begun + seconds / 3, 0  # once the queue is full
    while (now := time.monotonic()) < begun + 4 * seconds / 3:
        if now < counted_from:
            images_before = client.images
        if now < due:
            await asyncio.sleep(due - now)
        due += 1 / rate
        task = asyncio.create_task(client.ask(_REQUEST_ROWS, "npy"))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    goodput = (client.images - images_before) / (time.monotonic() - counted_from)
    statuses = client.statuses.copy()
    await asyncio.gather(*waiting, return_exceptions=True)
    return goodput, statuses


async def overload_rounds(port: int, seconds: float, memory: Callable[[], float]) -> None:
    """Capacity and overload in turn, since the machine may be another a minute later."""
    within, beyond, mib = [], [], [memory()]
    statuses: Counter[int] = Counter()
    for _ in range(_ROUNDS):
        within.append(await capacity(port, seconds))
        goodput, answered = await overload(port, seconds, _OVERLOAD * within[-1] / _REQUEST_ROWS)
        beyond.append(goodput)
        statuses += answered
        mib.append(memory())
    ratios = [over / capacity for over, capacity in zip(beyond, within, strict=True)]
    print(
        f"capacity {statistics.median(within):.0f} images/s; asked for {_OVERLOAD} times as much "
        f"{statistics.median(beyond):.0f}: {', '.join(f'{one:.0%}' for one in ratios)} of it; "
        f"answers {dict(statuses)}; MiB before and after each round {', '.join(f'{one:.0f}' for one in mib)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fairness and overload, measured.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--seconds", type=float, default=15.0, help="a measurement")
    arguments = parser.parse_args()
    port = free_port()
    command = [str(Path(sys.executable).parent / "ganserve"), "serve", "--store", str(arguments.store)]
    command += ["--model", arguments.model, "--workers", "2", "--port", str(port), "--log-level", "warning"]
    command += ["--max-queued-rows", "2048"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        print(server.stdout.readline().strip())
        asyncio.run(Client(port).ask(200, "npy"))  # so that rows have a measured cost
        asyncio.run(fairness(port, arguments.seconds))
        asyncio.run(
            overload_rounds(
                port, arguments.seconds, lambda: sum(pss_bytes(one) for one in family(server.pid)) / 2**20
            )
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
