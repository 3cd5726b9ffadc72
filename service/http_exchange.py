"""One request and its answer on a connection: uvicorn's, with the usual answer as one write.

uvicorn checks an answer's head field by field and sends head and body apart: sixteen searches, two
system calls, and two times that the caller wakes to read. An answer that is whole in one message and
says its length goes out here; every other (streams, 1xx, none) goes uvicorn's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Headers' names, of a request in lower case, and values."""
Fields = Mapping[bytes, bytes]
"""A request's headers by name, in lower case; of several of one name the last."""

_LITTLE_BYTES: Final = 2**16
"""A body of so many is copied behind its head: cheaper than a write of two parts."""

_CLOSE: Final = (b"connection", b"close")


def header(headers: RawHeaders, name: bytes) -> str | None:
    """The value of the header `name` (lower case), the first of several; None where there is none."""
    for key, value in headers:
        if key == name:
            return str(value, "latin-1")
    return None


def send_answer(
    transport: asyncio.Transport,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    keep_alive: bool,
) -> bool:
    """Send a whole answer; return whether the connection may stay, which `headers`, one at least, can forbid.

    Raises ValueError, having sent nothing, for a header that holds a line break.
    """
    if _CLOSE in headers:
        keep_alive = False
    elif not keep_alive:
        headers.append(_CLOSE)
    head = STATUS_LINE[status] + b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
    if len(head.splitlines()) != 1 + len(headers):
        raise ValueError("a header of this answer holds a line break")
    if len(body) <= _LITTLE_BYTES:
        transport.write(head + b"\r\n" + body)
    else:
        transport.writelines([head + b"\r\n", body])
    return keep_alive


class Exchange(RequestResponseCycle):
    """uvicorn's cycle; `of` turns one into it."""

    _start: Any = None
    """The message that begins the answer: it waits for its body."""

    @classmethod
    def of(cls, cycle: RequestResponseCycle) -> Exchange:
        """`cycle`, before its task ran: uvicorn names its class nowhere that another could be given."""
        cycle.__class__ = cls
        assert isinstance(cycle, Exchange)
        return cycle

    def body_at_hand(self) -> bytes | None:
        """What `receive` would give if the request's body has come to its end, without a wait; else None."""
        if self.more_body or self.disconnected or self.response_complete:
            return None
        self.flow.resume_reading()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return body

    async def send(self, message: Any) -> None:
        """Take a message of the answer (ASGI)."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            if not message.get("more_body") and self._is_plain(start, message):
                if self.flow.write_paused and not self.disconnected:
                    await self.flow.drain()
                if not self.disconnected:
                    self._answer(start, message.get("body", b""))
                return
            await super().send(start)
        await super().send(message)

    def _is_plain(self, start: Any, message: Any) -> bool:
        """An answer to no HEAD that says how long its body is, and has one of that length."""
        length = dict(start["headers"]).get(b"content-length")
        return length == b"%d" % len(message.get("body", b"")) and self.scope["method"] != "HEAD"

    def _answer(self, start: Any, body: bytes) -> None:
        """Send the whole answer."""
        headers = [*self.default_headers, *start["headers"]]
        self.keep_alive = send_answer(self.transport, start["status"], headers, body, self.keep_alive)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
