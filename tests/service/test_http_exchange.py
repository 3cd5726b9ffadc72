"""A whole answer leaves in one write; what is no such answer goes uvicorn's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http_exchange import Exchange

LOG = logging.getLogger("test")
OK = b"HTTP/1.1 200 OK\r\n"


class Recorder:
    """A transport that records what reaches it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.seen.append(parts)

    def close(self) -> None:
        self.seen.append("closed")

    def resume_reading(self) -> None:
        pass


def exchange(there: Any, method: str = "GET", keep_alive: bool = True) -> Exchange:
    scope: Any = {"type": "http", "method": method}
    cycle = RequestResponseCycle(
        scope=scope,
        transport=there,
        flow=FlowControl(there),
        logger=LOG,
        access_logger=LOG,
        access_log=False,
        default_headers=[(b"x-always", b"1")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: there.seen.append("answered"),
    )
    return Exchange.of(cycle)


def answered(
    headers: Sequence[tuple[bytes, bytes]], *bodies: bytes, method: str = "GET", keep_alive: bool = True
) -> list[Any]:
    """What reaches the transport of an answer in these parts."""
    there = Recorder()

    async def answer() -> None:
        one = exchange(there, method, keep_alive)
        await one.send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        for left, body in zip(range(len(bodies) - 1, -1, -1), bodies, strict=True):
            await one.send({"type": "http.response.body", "body": body, "more_body": left > 0})

    asyncio.run(answer())
    return there.seen


def test_head_and_body_of_a_whole_answer_are_one_write() -> None:
    seen = answered([(b"content-length", b"4")], b"body")

    assert seen == [OK + b"x-always: 1\r\ncontent-length: 4\r\n\r\nbody", "answered"]


def test_a_large_body_is_not_copied() -> None:
    body = bytes(2**17)

    (head, sent), _ = answered([(b"content-length", b"131072")], body)

    assert head.endswith(b"content-length: 131072\r\n\r\n")
    assert sent is body


def test_the_connection_is_closed_after_an_answer_that_says_so_or_must() -> None:
    told = answered([(b"content-length", b"0"), (b"connection", b"close")], b"")
    must = answered([(b"content-length", b"0")], b"", keep_alive=False)
    both = answered([(b"content-length", b"0"), (b"connection", b"close")], b"", keep_alive=False)

    head = OK + b"x-always: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert told == must == both == [head, "closed", "answered"]


@pytest.mark.parametrize(
    ("parts", "sent"),
    [
        (((b"content-length", b"4"), b"bo", b"dy"), b"content-length: 4\r\n\r\nbody"),
        (
            ((b"vary", b"*"), b"bo", b"dy"),
            b"vary: *\r\ntransfer-encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        ),
    ],
)
def test_an_answer_in_parts_or_of_unknown_length_goes_uvicorns_way(parts: Any, sent: bytes) -> None:
    header, *bodies = parts

    *written, last = answered([header], *bodies)

    assert b"".join(written) == OK + b"x-always: 1\r\n" + sent
    assert last == "answered"


def test_a_head_is_answered_without_its_body() -> None:
    *written, _ = answered([(b"content-length", b"4")], b"body", method="HEAD")

    assert b"".join(written) == OK + b"x-always: 1\r\ncontent-length: 4\r\n\r\n"


def test_a_line_break_in_a_header_is_refused_and_nothing_sent() -> None:
    for value in (b"a\r\nset-cookie: stolen", b"a\nb", b"a\rb", b"a\n", b"a\r", b"a\r\n", b"\na"):
        with pytest.raises(ValueError, match="line break"):
            answered([(b"content-length", b"0"), (b"x-name", value)], b"")


def test_a_body_that_came_whole_is_at_hand_and_one_that_did_not_is_left() -> None:
    there: Any = Recorder()

    async def scenario() -> None:
        one = exchange(there)
        one.body += b"half"
        one.message_event.set()
        assert one.body_at_hand() is None
        assert await one.receive() == {"type": "http.request", "body": b"half", "more_body": True}
        one.body += b"rest"
        one.more_body = False
        assert one.body_at_hand() == b"rest"
        one.disconnected = True
        assert one.body_at_hand() is None

    asyncio.run(scenario())
