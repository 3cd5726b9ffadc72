"""Callers that do not take their answer hold nothing for long, and the log says what became of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from server_process import Server, wait_for

Serve = Callable[..., Server]
ROWS = 4096
SEND_TIMEOUT_S = 0.8


def ask(server: Server, request_id: str) -> socket.socket:
    """A caller that asked for an answer of megabytes, with little room to take it."""
    tensor = {"name": "seed", "shape": [ROWS, 1], "datatype": "INT64", "data": list(range(ROWS))}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.settimeout(20)
    one.connect(("127.0.0.1", server.port))
    one.sendall(b"POST /v2/models/toy_seed/infer HTTP/1.1\r\nhost: x\r\n" + head.encode() + body)
    return one


def lines_of(server: Server, request_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines() if f'"{request_id}"' in line]


@pytest.fixture(scope="module")
def impatient(toy_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that cuts callers off who take nothing for a moment."""
    log = tmp_path_factory.mktemp("impatient") / "server.log"
    flags = (
        "--model",
        "toy",
        "--workers",
        "1",
        "--max-rows",
        str(ROWS),
        "--send-timeout-s",
        str(SEND_TIMEOUT_S),
    )
    server = Server(toy_store, *flags, log=log).wait_until_ready()
    yield server
    server.stop()


def test_who_takes_nothing_is_cut_off_and_was_in_flight_until_then(impatient: Server) -> None:
    with ask(impatient, "dead") as caller:
        caller.recv(100)
        in_flight = impatient.metric("ganserve_inflight_requests")
        wait_for(lambda: lines_of(impatient, "dead") != [])
        (line,) = lines_of(impatient, "dead")

    assert in_flight == 2  # it, and the one that reads the metric
    assert (line["status"], line["code"]) == (499, "caller_left")
    assert line["error"] == "the caller took nothing of the answer for send_timeout_s (0.8 s)"
    assert line["total_ms"] >= SEND_TIMEOUT_S * 1000
    assert impatient.metric("ganserve_inflight_requests") == 1


def test_who_takes_it_slowly_has_all_of_it(impatient: Server) -> None:
    received = b""
    with ask(impatient, "slow") as caller:
        started = time.monotonic()
        while time.monotonic() - started < 2.5 * SEND_TIMEOUT_S:
            received += caller.recv(20_000)
            time.sleep(SEND_TIMEOUT_S / 10)
        while data := caller.recv(2**20):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    wait_for(lambda: lines_of(impatient, "slow") != [])

    assert b"content-length: %d\r\n" % len(body) in head
    assert json.loads(body)["outputs"][0]["shape"][0] == ROWS
    assert lines_of(impatient, "slow")[0]["status"] == 200


def test_who_takes_nothing_while_the_server_drains_is_one_line_and_no_traceback(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-rows", str(ROWS), "--drain-s", "1")
    with ask(server, "dead") as caller:
        caller.recv(100)
        assert server.terminate() == 0

    (line,) = lines_of(server, "dead")
    assert (line["status"], line["code"]) == (499, "caller_left")
    assert "Traceback" not in server.log
    assert "Exception in ASGI application" not in server.log
