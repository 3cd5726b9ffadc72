"""More work than the device can do: fair, bounded, refused in time. Real processes, made slow on purpose."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
from server_process import Server, wait_for

Serve = Callable[..., Server]

# One row a run makes the toy slow: a few thousand rows a second on one worker.
ROW_BY_ROW = ("--model", "toy", "--workers", "1", "--max-microbatch", "1")


def ask(server: Server, **fields: object) -> httpx.Response:
    return server.http.post("/v1/samples", json={"seed": 0, "format": "npy", **fields})


@contextmanager
def streams(server: Server, count: int, rows: int) -> Iterator[list[float]]:
    """Clients that ask for `rows` rows again and again; how long each answer took, in seconds."""
    stop = threading.Event()
    took_s: list[float] = []

    def stream() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                started = time.monotonic()
                answer = client.post("/v1/samples", json={"seed": 0, "n": rows, "format": "npy"})
                assert answer.status_code == 200, answer.text
                took_s.append(time.monotonic() - started)

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(stream) for _ in range(count)]
        try:
            yield took_s
        finally:
            stop.set()
        for one in running:
            one.result()


def test_a_request_for_one_image_does_not_wait_for_those_for_thousands(serve: Serve) -> None:
    server = serve(*ROW_BY_ROW, "--max-rows", "4000", "--max-queued-rows", "10000")
    ask(server, n=1)

    with streams(server, 2, rows=4000) as large_s:
        wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") > 2000)
        small_s = []
        while len(large_s) < 3:
            started = time.monotonic()
            assert ask(server, n=1).status_code == 200
            small_s.append(time.monotonic() - started)

    # In order of arrival each would wait for a large one.
    assert statistics.quantiles(small_s, n=20)[-1] < min(large_s) / 5


def test_rows_of_two_hundred_callers_who_left_are_not_run(serve: Serve) -> None:
    server = serve(*ROW_BY_ROW, "--worker-timeout-s", "60")
    ask(server, n=1)
    (worker,) = server.workers()
    worker.suspend()
    body = json.dumps({"seed": 0, "n": 20, "format": "npy"}).encode()
    head = f"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    callers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for caller in callers:
        caller.sendall(head + body)
    wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") == 200 * 20 - 2)
    for caller in callers:
        caller.close()
    wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") == 0, seconds=5)
    worker.resume()
    assert ask(server, n=1).status_code == 200

    assert server.metric("ganserve_batch_rows_sum", model="toy") <= 1 + 2 + 1  # two were handed out already
    assert server.metric("ganserve_cancelled_total", stage="caller_left") == 200


def test_a_deadline_is_kept_wherever_the_request_is(serve: Serve) -> None:
    server = serve(*ROW_BY_ROW, "--worker-timeout-s", "60")
    ask(server, n=1)
    (worker,) = server.workers()
    worker.suspend()

    def late(number: int) -> tuple[int, float]:
        started = time.monotonic()
        answer = server.http.post("/v1/samples", json={"seed": number, "n": 1, "timeout_ms": 300})
        return answer.status_code, time.monotonic() - started

    with ThreadPoolExecutor(5) as clients:  # on the device, in its second slot, in the queue
        answers = list(clients.map(late, range(5)))
    worker.resume()

    assert {status for status, _ in answers} == {504}
    assert all(0.3 <= seconds < 1.5 for _, seconds in answers)
    assert server.metric("ganserve_queued_rows", model="toy") == 0


def test_retry_after_says_how_long_what_waits_will_take(serve: Serve) -> None:
    server = serve(*ROW_BY_ROW, "--max-rows", "20000", "--max-queued-rows", "20000")
    ask(server, n=1000)  # the server measures what a row costs

    started = time.monotonic()
    with ThreadPoolExecutor(1) as client:
        first = client.submit(ask, server, n=20_000)
        wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") > 15_000)
        refused = ask(server, n=20_000)
        assert first.result().status_code == 200
    total_s = time.monotonic() - started  # of 20,000 rows

    assert refused.status_code == 429
    assert "the queue of toy has room for 20000 rows" in refused.json()["error"]
    assert 1 <= int(refused.headers["retry-after"]) <= 2 + 2 * total_s


def test_under_ten_times_its_capacity_a_server_makes_as_much_and_takes_no_more_memory(serve: Serve) -> None:
    server = serve(*ROW_BY_ROW, "--max-queued-rows", "2000", "--max-rows", "500")
    processes = [psutil.Process(one.pid) for one in server.family()]

    def images_in(seconds: float, clients: int) -> float:
        """Images a second that `clients` who never wait get; refused ones ask again five times a second."""
        made, until = [0] * clients, time.monotonic() + seconds

        def ask_on(number: int) -> None:
            while time.monotonic() < until:
                answer = ask(server, n=500)
                assert answer.status_code in (200, 429)
                made[number] += 500 * (answer.status_code == 200)
                if answer.status_code == 429:
                    time.sleep(0.2)

        started = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask_on, range(clients)))
        return sum(made) / (time.monotonic() - started)

    def memory() -> int:
        return sum(one.memory_info().rss for one in processes)

    at_capacity = images_in(1.5, clients=4)  # what the queue holds
    before = memory()
    overloaded = images_in(2.5, clients=40)

    assert server.metric("ganserve_rejected_total", reason="overloaded") > 50
    assert overloaded > at_capacity / 4  # no collapse; tests/bench/overload.py says how near it is
    assert memory() - before < 60 * 2**20
