"""Limits on what one connection and one request may take, held with raw sockets against a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import Server, read_to_end
from toy import SIZE, Z_DIM

HEADER_TIMEOUT_S = 0.5
ASK = b"POST /v1/samples HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def limited(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits: 2 kB of headers in half a second, 64 kB of body, 20 images' pixels."""
    flags = {
        "model": "toy",
        "workers": "1",
        "header-timeout-s": str(HEADER_TIMEOUT_S),
        "max-header-bytes": "2048",
        "max-body-bytes": str(64 * 1024),
        "max-pixel-bytes": str(20 * SIZE * SIZE * 3),
        "timeout-ms": "1000",
    }
    log = tmp_path_factory.mktemp("limited") / "server.log"
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    server = Server(toy_store, *arguments, log=log).wait_until_ready()
    yield server
    server.stop()


@pytest.fixture
def connection(limited: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", limited.port), timeout=10) as one:
        yield one


def read_answer(connection: socket.socket) -> bytes:
    """One answer with a JSON object as its body."""
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65536)
    return received


def trickle(connection: socket.socket, data: bytes, every_s: float) -> None:
    """Send a byte at a time, until the connection is closed."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(every_s)
    except OSError:
        pass


def is_alive(server: Server) -> bool:
    return httpx.post(f"{server.url}/v1/samples", json={"seed": 1}).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"GET /v1/mod", ASK])
def test_a_connection_that_sends_no_whole_head_is_closed(connection: socket.socket, begun: bytes) -> None:
    started = time.monotonic()
    connection.sendall(begun)

    assert read_to_end(connection) == b""
    assert HEADER_TIMEOUT_S * 0.9 < time.monotonic() - started < 5 * HEADER_TIMEOUT_S


def test_a_head_that_comes_byte_by_byte_is_closed_though_it_never_rests(connection: socket.socket) -> None:
    started = time.monotonic()
    sender = threading.Thread(target=trickle, args=(connection, ASK * 10, 0.02))
    sender.start()

    assert read_to_end(connection) == b""
    assert time.monotonic() - started < 5 * HEADER_TIMEOUT_S
    sender.join()


def test_the_same_holds_for_a_connections_next_request(connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = read_answer(connection)
    started = time.monotonic()
    connection.sendall(b"GET /livez HTTP/1.1\r\n")

    assert answer.startswith(b"HTTP/1.1 200")
    assert read_to_end(connection) == b""
    assert time.monotonic() - started < 5 * HEADER_TIMEOUT_S


def test_a_slow_head_that_is_whole_in_time_is_answered(connection: socket.socket) -> None:
    for piece in (b"GET /livez HT", b"TP/1.1\r\nhost: x\r\n", b"connection: close\r\n\r\n"):
        connection.sendall(piece)
        time.sleep(HEADER_TIMEOUT_S / 10)

    assert read_to_end(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_head_larger_than_its_limit_is_refused(
    limited: Server, connection: socket.socket, pieces: int
) -> None:
    head = b"GET /livez HTTP/1.1\r\nhost: x\r\nx-large: " + b"x" * 100_000
    for start in range(0, len(head), len(head) // pieces):
        connection.sendall(head[start : start + len(head) // pieces])

    assert read_to_end(connection).startswith(b"HTTP/1.1 431 ")
    assert is_alive(limited)


def test_a_head_a_little_too_large_is_told_the_limit(connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.1\r\nx-large: ".ljust(2049, b"x"))
    head, _, body = read_to_end(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert b"x-content-type-options: nosniff" in head.lower()
    told = json.loads(body)
    assert told["error"] == "max_header_bytes is 2048 bytes of request line and headers, got more"
    assert told["code"] == "too_large"


def head_of(size: int, padding: bytes = b"x") -> bytes:
    """A whole head of `size` bytes."""
    begun = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large:"
    return begun.ljust(size - 5, padding) + b"x\r\n\r\n"


@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["first", "second"])
def test_a_head_sent_at_once_has_the_same_limit(connection: socket.socket, before: bytes) -> None:
    connection.sendall(before + head_of(2100))

    assert read_to_end(connection).rpartition(b"HTTP/1.1 ")[2].startswith(b"431 ")


@pytest.mark.parametrize("size", [2049, 3000, 4096])
def test_spaces_count_in_a_head_too(connection: socket.socket, size: int) -> None:
    connection.sendall(head_of(size, b" "))

    assert read_to_end(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("before", [b"", ASK + b"content-length: 2040\r\n\r\n" + b" " * 2040])
def test_a_head_of_the_limit_is_read_wherever_it_stands(connection: socket.socket, before: bytes) -> None:
    connection.sendall(before + head_of(2048))

    assert read_to_end(connection).rpartition(b"HTTP/1.1 ")[2].startswith(b"200 ")


def test_a_large_body_is_no_large_head(limited: Server) -> None:
    latents = [[0.123456789] * Z_DIM] * 20
    answer = httpx.post(f"{limited.url}/v1/samples", json={"latents": latents, "format": "npy"})

    assert answer.status_code == 200


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_gets_400_in_the_form_of_every_error(
    connection: socket.socket, garbage: bytes
) -> None:
    connection.sendall(garbage)
    head, _, body = read_to_end(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert set(json.loads(body)) == {"error", "code", "request_id"}


def test_a_body_declared_larger_than_the_limit_is_refused_before_it_is_sent(
    connection: socket.socket,
) -> None:
    connection.sendall(ASK + b"content-length: 1000000000000\r\n\r\n")
    answer = read_answer(connection)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"max_body_bytes is 65536 bytes a body, got 1000000000000" in answer


def test_who_goes_on_sending_a_refused_body_is_cut_off(connection: socket.socket) -> None:
    connection.sendall(ASK + b"content-length: 1000000\r\n\r\n")
    answer = read_answer(connection)
    started = time.monotonic()
    sender = threading.Thread(target=trickle, args=(connection, b"x" * 1000, 0.02))
    sender.start()
    read_to_end(connection)

    assert answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - started < 5 * HEADER_TIMEOUT_S
    sender.join()


def test_a_body_that_comes_byte_by_byte_ends_at_the_deadline(connection: socket.socket) -> None:
    started = time.monotonic()
    sender = threading.Thread(target=trickle, args=(connection, ASK + b"content-length: 999\r\n\r\n", 0))
    sender.start()
    sender.join()
    sender = threading.Thread(target=trickle, args=(connection, b" " * 998, 0.02))
    sender.start()
    answer = read_to_end(connection)

    assert answer.startswith(b"HTTP/1.1 504")
    assert b"the body was not sent within 1000 ms" in answer
    assert time.monotonic() - started < 5
    sender.join()


@pytest.mark.parametrize(
    "path", ["/v1/samples", f"/v1/models/toy/walk?from=1&to=2&frames={21}"], ids=["samples", "walk"]
)
def test_more_pixels_than_the_limit_are_refused_by_its_name(limited: Server, path: str) -> None:
    if path == "/v1/samples":
        answer = httpx.post(limited.url + path, json={"seed": 1, "n": 21, "format": "npy"})
    else:
        answer = httpx.get(limited.url + path)

    assert answer.status_code == 413
    limit = 20 * SIZE * SIZE * 3
    assert answer.json()["error"] == (
        f"max_pixel_bytes is {limit} bytes of pixels a request, got {21 * SIZE * SIZE * 3} in 21 images"
    )


LARGE_BODIES = {
    "nested": b'{"seeds": [' + b"[[[[]]]]," * 1_700_000 + b"1]}",
    "integers": b'{"seeds": [' + b"1," * 8_000_000 + b"1]}",
    "fields": b"{" + b",".join(b'"%d":1' % k for k in range(1_300_000)) + b"}",
}


@pytest.mark.parametrize("path", ["/v1/samples", "/v2/models/toy/infer", "/v2/repository/index"])
@pytest.mark.parametrize("kind", LARGE_BODIES)
def test_a_body_that_would_take_long_to_read_holds_nobody_up(
    shared_server: Server, kind: str, path: str
) -> None:
    started = time.perf_counter()
    answer = httpx.post(
        shared_server.url + path,
        content=LARGE_BODIES[kind],
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 413
    limit = "the body must be at most 65536 bytes" if "index" in path else "max_rows is 1024 rows a request"
    assert answer.json()["error"].startswith(limit)
    assert time.perf_counter() - started < 1  # parsing the first takes three seconds


def test_every_answer_forbids_to_guess_its_type(limited: Server) -> None:
    for path in ("/", "/livez", "/metrics", "/nowhere", "/v1/models/toy/1.png", "/docs", "/openapi.json"):
        answer = httpx.get(limited.url + path, follow_redirects=True)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
