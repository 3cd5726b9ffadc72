"""A connection's patience: uvicorn's HTTP protocol with limits on how long and how large a head may be.

uvicorn closes a connection that stays idle after an answer, but waits without end for the rest of a
request's head, and neither it nor its parser bounds a head's size. Both are attacks with a name
(Slowloris). The time and the size of a body are the routes' matter.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_CONNECTION: Final = "ganserve.connection"


class PatientProtocol(HttpToolsProtocol):
    """One connection; `patient_protocol` makes the class with its two limits.

    While no request is being answered, a whole head must come within `header_timeout_s`, and so must
    the rest of a body that was answered before it was read (one too large, say), or the connection is
    closed. A request line and headers of more than `max_header_bytes` get 431, what is no HTTP 400.
    """

    header_timeout_s: float
    max_header_bytes: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._when_lost: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # received of a head that is not whole yet

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self._when_lost is not None:
            self._when_lost()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[_CONNECTION] = self  # type: ignore[typeddict-unknown-key]

    def when_lost(self, call: Callable[[], object] | None) -> None:
        """Call `call` if the caller leaves while its request is answered; None: no longer.

        A task on ASGI's `receive` would tell the same, at ten times the cost.
        """
        self._when_lost = call
        if call is not None and self.transport.is_closing():
            call()

    def data_received(self, data: bytes) -> None:
        # A packet may be larger than a head may be: what may begin a request is looked at in pieces.
        limit = self.max_header_bytes
        while len(data) > limit and not self._is_answering and not self.transport.is_closing():
            self._take(data[:limit])
            data = data[limit:]
        if not self.transport.is_closing():
            self._take(data)

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "bad_request", "the request must be HTTP/1.1, got other bytes")

    def _take(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()
        if self.scope is None or "method" in self.scope:  # uvicorn adds the method once the head is whole
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.max_header_bytes and not self.transport.is_closing():
            sentence = (
                f"max_header_bytes is {self.max_header_bytes} bytes of request line and headers, got more"
            )
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", sentence)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: HTTPStatus, code: str, sentence: str) -> None:
        """Answer in the form of every error, without a route, and close."""
        if not self._is_answering:  # or these bytes would stand in the middle of another answer
            request_id = uuid.uuid4().hex
            body = json.dumps({"error": sentence, "code": code, "request_id": request_id}).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id.encode()),
                (b"connection", b"close"),
            ]
            lines = [f"HTTP/1.1 {status} {status.phrase}".encode(), *(b"%s: %s" % one for one in headers)]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._time_is_over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self) -> None:
        self._timer = None
        if not self._is_answering:
            self.transport.close()


def connection_of(scope: Scope) -> PatientProtocol:
    """The connection that a request came on."""
    connection: PatientProtocol = scope[_CONNECTION]
    return connection


def patient_protocol(header_timeout_s: float, max_header_bytes: int) -> type[PatientProtocol]:
    """The class of connections, for uvicorn's option `http`."""
    limits = {"header_timeout_s": header_timeout_s, "max_header_bytes": max_header_bytes}
    return type("ConfiguredProtocol", (PatientProtocol,), limits)
