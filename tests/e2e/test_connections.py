"""What a connection's bytes mean, held with raw sockets against a real server."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
from server_process import Server, read_to_end

UPGRADES = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAA\r\n",
    "websocket": b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
}
JSON = b"content-type: application/json\r\n"
SEED_1 = b'{"seed": 1}'
LIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture
def connection(shared_server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=10) as one:
        yield one


def post(body: bytes, fields: bytes = b"", length: int | None = None) -> bytes:
    """A request for samples whose head says `length`, or the truth."""
    told = b"content-length: %d\r\n" % (len(body) if length is None else length)
    return b"POST /v1/samples HTTP/1.1\r\nhost: x\r\n" + JSON + fields + told + b"\r\n" + body


def statuses(received: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def refusal(received: bytes) -> tuple[int, str]:
    """The status and the sentence of the last answer, which is an error in the form of all."""
    head, _, body = received.rpartition(b"\r\n\r\n")
    told = json.loads(body)
    assert set(told) == {"error", "code", "request_id"}
    return statuses(head)[-1], told["error"]


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("later", [False, True], ids=["in one packet", "body later"])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_the_requests(
    connection: socket.socket, upgrade: bytes, later: bool
) -> None:
    request = post(SEED_1, upgrade)
    if later:
        connection.sendall(request[: -len(SEED_1)])
        time.sleep(0.1)
        connection.sendall(request[-len(SEED_1) :])
    else:
        connection.sendall(request)
    connection.sendall(LAST)

    received = read_to_end(connection)
    assert statuses(received) == [200, 200]
    assert b"content-type: image/png" in received


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_looks_like_a_request_is_never_one(
    connection: socket.socket, upgrade: bytes, framing: str
) -> None:
    if framing == "length":
        connection.sendall(post(LIVE, upgrade)[: -len(LIVE)])
        hidden = LIVE
    else:
        head = b"POST /v1/samples HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + JSON + upgrade
        connection.sendall(head + b"\r\n")
        hidden = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LIVE), LIVE)
    time.sleep(0.1)
    connection.sendall(hidden + LAST)

    assert statuses(read_to_end(connection)) == [400, 200]


def test_requests_that_offer_upgrades_may_follow_each_other_at_once(connection: socket.socket) -> None:
    offers = [post(SEED_1, UPGRADES[name]) for name in ("h2c", "websocket", "h2c")]
    connection.sendall(LIVE.join([b"", *offers]) + LAST)

    assert statuses(read_to_end(connection)) == [200] * 7


def test_no_library_for_websockets_is_missed(shared_server: Server, connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + UPGRADES["websocket"] + b"\r\n" + LAST)

    assert statuses(read_to_end(connection)) == [200, 200]
    assert "WebSocket" not in shared_server.log
    assert "Unsupported upgrade" not in shared_server.log


def test_connect_is_refused_and_what_follows_it_is_not_read(connection: socket.socket) -> None:
    connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n" + LIVE)

    received = read_to_end(connection)
    assert statuses(received) == [400]
    assert refusal(received) == (400, "the method CONNECT is for proxies, and this is none")


@pytest.mark.parametrize("pieces", [[b"zz\r\n"], [b"4\r\n    ", b"no chunk ends so"]], ids=["size", "end"])
def test_a_chunk_that_is_none_is_told_and_the_connection_closed(
    connection: socket.socket, pieces: list[bytes]
) -> None:
    head = b"POST /v1/samples HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + JSON + b"\r\n"
    for piece in (head, *pieces):
        connection.sendall(piece)
        time.sleep(0.05)

    status, sentence = refusal(read_to_end(connection))
    assert status == 400
    assert sentence.startswith("the request must be HTTP/1.1: ")
    assert "chunk" in sentence


BROKEN = {
    "two lengths": (
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        (400, "the request must be HTTP/1.1: Duplicate Content-Length"),
    ),
    "endless length": (
        post(b"").replace(b"length: 0", b"length: " + b"9" * 26),
        (413, "max_body_bytes is 16777216 bytes a body, got more"),
    ),
    "character in path": (
        "GET /é HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
        (400, "the request must be HTTP/1.1: Invalid char in url path"),
    ),
    "character in query": (
        b"GET /v1/models?a\x80 HTTP/1.1\r\nhost: x\r\n\r\n",
        (400, "the request must be HTTP/1.1: Invalid char in url query"),
    ),
    "target": (
        b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n",
        (400, "the request's target must be a path, got 'http://['"),
    ),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", (400, "a request must have one Host header, got 0")),
    "two hosts": (
        b"GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        (400, "a request must have one Host header, got 2"),
    ),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "the request must be HTTP/1.1: this is HTTP/2")),
}


@pytest.mark.parametrize(("sent", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_refused_is_told_what_is_wrong_with_it(
    connection: socket.socket, sent: bytes, told: tuple[int, str]
) -> None:
    connection.sendall(sent)

    assert refusal(read_to_end(connection)) == told


def test_http_1_0_needs_no_host(connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")

    assert statuses(read_to_end(connection)) == [200]


def test_who_sends_rubbish_after_a_request_has_that_ones_answer_first(connection: socket.socket) -> None:
    connection.sendall(post(SEED_1) + b"rubbish\r\n\r\n")

    assert statuses(read_to_end(connection)) == [200, 400]


ANY = b"accept: */*\r\n"


@pytest.mark.parametrize(
    ("body", "accept"),
    [
        (SEED_1, ANY),
        (SEED_1, b"accept: image/png;q=0\r\n" + ANY),
        (b'{"seeds": [3], "format": "jpg", "truncation_psi": 1}', ANY),
        (b'{"seed": 1, "class_idx": 99}', ANY),
        (b'{"seed": 1, "class_idx": [0%b]}' % (b", 0" * 1024), ANY),
        (b'{"seed": 1, "model": "nobody"}', ANY),
        (b'{"seed": 1, "timeout_ms": 999999999}', ANY),
        (b'{"seed": 1, "timeout_ms": 1, "n": "x"}', ANY),
        (b'{"seed": ', ANY),
    ],
    ids=range(9),
)
def test_a_request_in_one_piece_is_answered_as_one_in_two(
    shared_server: Server, body: bytes, accept: bytes
) -> None:
    # The first is taken past ASGI where it can be, the second is not: its body is late.
    fields = b"x-request-id: mine\r\ntraceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\r\n"
    request = post(body, fields + accept)
    answers = []
    for pieces in ([request], [request[:-3], request[-3:]]):
        with socket.create_connection(("127.0.0.1", shared_server.port), timeout=10) as one:
            for piece in pieces:
                one.sendall(piece)
                time.sleep(0.15)  # ASGI gets it after 0.1
            one.sendall(LAST)
            head, _, rest = read_to_end(one).partition(b"\r\n\r\n")
        told = re.sub(rb"(dur=)[0-9.]+|(date: |traceparent: 00-a{32}-)[^\r]+", rb"\1\2", head)
        answers.append((told, rest.partition(b"HTTP/1.1 200 OK")[0]))

    assert answers[0] == answers[1]
    assert b"x-request-id: mine\r\n" in answers[0][0]


def test_requests_that_follow_each_other_at_once_are_answered_in_their_order(
    connection: socket.socket,
) -> None:
    connection.sendall(post(SEED_1))
    connection.sendall(post(b'{"seed": 2}') + post(b'{"seed": 3}'))
    time.sleep(0.05)
    connection.sendall(post(b'{"seed": 4}'))
    connection.sendall(LAST)

    received = read_to_end(connection)
    assert re.findall(rb"x-seeds: (\d)", received) == [b"1", b"2", b"3", b"4"]
    assert statuses(received) == [200] * 5


def test_who_is_refused_while_it_still_sends_has_its_answer(connection: socket.socket) -> None:
    """And no reset that overtakes it: the rest of the request comes after the server has closed its side."""
    body = bytes(2**20)
    connection.sendall(post(body, b"host: y\r\n")[: -len(body)])
    for start in range(0, len(body), 2**16):
        time.sleep(0.01)
        connection.sendall(body[start : start + 2**16])

    assert refusal(read_to_end(connection)) == (400, "a request must have one Host header, got 2")


def test_who_is_refused_and_never_ends_is_cut_off(connection: socket.socket) -> None:
    connection.sendall(b"rubbish\r\n\r\n")
    started = time.monotonic()
    try:
        while time.monotonic() - started < 20:
            time.sleep(0.1)
            connection.sendall(b"more")
    except ConnectionError:
        pass
    assert 1 < time.monotonic() - started < 20


def test_what_is_pipelined_without_end_is_answered_up_to_a_limit(connection: socket.socket) -> None:
    connection.sendall(post(SEED_1) + LIVE * 200)

    received = read_to_end(connection)
    assert statuses(received) == [200] * 65 + [400]
    assert refusal(received)[1] == "at most 64 requests may wait for one before them, got more"


CHUNKED = b"POST /v1/samples HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + JSON + b"\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(SEED_1), SEED_1)


def test_trailers_say_nothing_of_the_request(connection: socket.socket) -> None:
    connection.sendall(CHUNKED + CHUNKS + b"accept: image/webp\r\nx-request-id: of-a-trailer\r\n\r\n" + LAST)

    received = read_to_end(connection)
    assert statuses(received) == [200, 200]
    assert b"content-type: image/png" in received
    assert b"of-a-trailer" not in received


@pytest.mark.parametrize(
    "endless", [b"0\r\n" + b"a: b\r\n" * 10_000, b"0\r\na: " + b"b" * 60_000, b"5;" + b"x" * 60_000]
)
def test_what_is_no_body_of_a_body_has_a_limit(connection: socket.socket, endless: bytes) -> None:
    connection.sendall(CHUNKED)
    for start in range(0, 60_000, 20_000):
        time.sleep(0.05)
        connection.sendall(endless[start : start + 20_000])

    status, sentence = refusal(read_to_end(connection))
    assert status == 400
    assert "max_header_bytes is 32768 bytes of trailers and chunks' extensions, got more" in sentence
