"""What a request leaves behind: one line in the log, its ids, and its place in the caller's trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from server_process import Server, wait_for

Serve = Callable[..., Server]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    """The one log line of a request."""

    def lines() -> list[str]:
        return [line for line in server.log.splitlines() if request_id in line]

    wait_for(lambda: lines() != [])
    (line,) = lines()
    read: dict[str, Any] = json.loads(line)
    return read


def test_a_request_is_one_line_with_its_ids_rows_stage_times_and_status(shared_server: Server) -> None:
    shared_server.http.post("/v1/samples", json={"seed": 1, "n": 3}, headers={"x-request-id": "one-line"})
    line = line_of(shared_server, "one-line")

    assert (line["status"], line["model"], line["rows"]) == (200, "toy", 3)
    assert (line["method"], line["path"]) == ("POST", "/v1/samples")
    assert all(line[name] >= 0 for name in ("queue_ms", "device_ms", "encode_ms", "total_ms"))
    assert "trace_id" not in line


def test_a_request_takes_its_place_in_the_callers_trace(shared_server: Server) -> None:
    headers = {"traceparent": TRACEPARENT, "x-request-id": "traced"}
    answer = shared_server.http.post("/v1/samples", json={"seed": 1}, headers=headers)
    refused = shared_server.http.post("/v1/samples", json={}, headers={"traceparent": TRACEPARENT})
    line = line_of(shared_server, "traced")

    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", answer.headers["traceparent"])
    assert (line["trace_id"], line["parent_id"]) == (TRACE, PARENT)
    assert line["span_id"] == answer.headers["traceparent"].split("-")[2] != PARENT
    assert refused.headers["traceparent"].split("-")[1] == TRACE


def test_of_several_ids_the_last_plain_one_is_the_requests(shared_server: Server) -> None:
    ids = [("x-request-id", "first"), ("x-request-id", "plain"), ("x-request-id", "not plain")]
    answer = shared_server.http.post("/v1/samples", json={"seed": 1}, headers=ids)

    assert answer.headers["x-request-id"] == "plain"


def test_without_one_valid_traceparent_there_is_no_trace(shared_server: Server) -> None:
    none = shared_server.http.get("/v1/models")
    bad = shared_server.http.get("/v1/models", headers={"traceparent": TRACEPARENT.upper()})
    two = shared_server.http.get("/v1/models", headers=[("traceparent", TRACEPARENT)] * 2)

    for answer in (none, bad, two):
        assert answer.status_code == 200
        assert "traceparent" not in answer.headers


def test_a_server_that_is_to_be_quiet_is_quiet(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--log-level", "warning")
    server.http.post("/v1/samples", json={"seed": 1})
    server.http.post("/v1/samples", json={"seed": -1})
    server.terminate()

    lines = server.log.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ganserve serves toy:1")
