"""A connection's patience: uvicorn's HTTP protocol with limits on how long and how large a head may be.

uvicorn closes a connection that stays idle after an answer, but waits without end for the rest of a
request's head, and neither it nor its parser bounds a head's size. Both are attacks with a name
(Slowloris). The time and the size of a body are the routes' matter. An offer to upgrade the connection
is ignored, where uvicorn would lose the body and read it as the next request.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import struct
import termios
import uuid
from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, Protocol

import httptools
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from models.errors import show
from service.errors import CallerLeft
from service.http_exchange import Exchange, Fields, RawHeaders, send_answer
from service.settings import Settings

_CONNECTION: Final = "ganserve.connection"
_BODY_FAULT: Final = "ganserve.body_fault"
_DIRECT_DIGITS: Final = 4  # of a little body's Content-Length
_MAX_PIPELINED: Final = 64  # a small head sent again and again is ten kilobytes here each time
_LINGER_S: Final = 2.0  # who is refused has so long to hear it before what it still sends is cut off
_GATHER_S: Final = 0.1  # the rest of a little body comes at once, or ASGI waits for it
_LIMITS: Final = ("header_timeout_s", "max_header_bytes", "max_body_bytes", "send_timeout_s")

logger = logging.getLogger(__name__)


class _Refusal(NamedTuple):
    status: HTTPStatus
    code: str
    sentence: str


class DirectExchange:
    """A request that is answered past ASGI; to uvicorn it looks like one that waits for its answer."""

    message_event: Final = SimpleNamespace(set=lambda: None)  # nobody waits for its body

    def __init__(self, connection: PatientProtocol, fields: Fields) -> None:
        self.connection = connection
        self.fields = fields
        self.body = bytearray()
        self.more_body = self.keep_alive = True
        self.response_complete = self.disconnected = False

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the whole answer, or nothing where the caller left."""
        self.response_complete = True
        connection, transport = self.connection, self.connection.transport
        if not transport.is_closing():
            told = [*connection.server_state.default_headers, *headers]
            stays = False
            try:
                stays = send_answer(transport, status, told, body, self.keep_alive)
            finally:
                if not stays:
                    transport.close()
            connection.on_response_complete()


class Direct(Protocol):
    """Takes requests past ASGI."""

    target: tuple[bytes, bytes]
    """The method and the target of requests that it may take."""

    def take(self, exchange: DirectExchange, body: bytes) -> bool:
        """Take a request and answer it later; or return False, and nothing was done."""


class PatientProtocol(HttpToolsProtocol):
    """One connection; `patient_protocol` makes the class with its limits.

    While no request is being answered, a whole head must come within `header_timeout_s`, and so must
    the rest of a body that was answered before it was read (one too large, say), or the connection is
    closed. A request line and headers of more than `max_header_bytes` get 431; so much of a body that is no
    body (trailers, what a chunk says beside its size), and what is no HTTP, 400.
    A caller that takes nothing of its answer for `send_timeout_s` is cut off.
    """

    header_timeout_s: float
    max_header_bytes: int
    max_body_bytes: int
    send_timeout_s: float
    direct: Direct | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._when_lost: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False  # of the request that the parser reads
        self._head_bytes = 0  # received of a head that is not whole yet, or in a body without being of it
        self._has_body = False  # some of a body, in what is being taken
        self._is_at_start = False  # of what was received; a head that begins later has no known length
        self._is_measured = False  # the head began with what was received
        self._broken: _Refusal | None = None  # what is wrong with the request; nothing after it is read
        self._is_deaf = False
        self._send_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0  # when its last answer was given
        self._is_lost = self._is_stuck = False
        self._running: Exchange | None = None  # ASGI's last; those behind it in the pipeline wait
        self._begun = False  # a head, in what is being taken
        self._gathering: DirectExchange | None = None  # what may be direct, while its body comes
        self._gather_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_through_asgi()  # which tells of a caller that left
        self._is_lost = True
        self._stop_timer()
        self._stop_send_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._running is not None:  # uvicorn tells the newest in the pipeline alone
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        if self._when_lost is not None:
            self._when_lost()

    def when_lost(self, call: Callable[[], object] | None) -> None:
        """Call `call` if the caller leaves while its request is answered; None: no longer.

        A task on ASGI's `receive` would tell the same, at ten times the cost.
        """
        self._when_lost = call
        if call is not None and self.transport.is_closing():
            call()

    def body_at_hand(self) -> bytes | None:
        """As `body_at_hand` of the request that ASGI answers now."""
        assert self._running is not None
        return self._running.body_at_hand()

    # -- answers that wait to be taken --------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """The caller has not taken what was answered, and it is much (64 KiB), or was cut off for that."""
        return self.flow.write_paused or self._is_stuck

    async def taken(self) -> None:
        """Return once the caller took nearly all of what was answered. Raises CallerLeft."""
        await self.flow.drain()
        if self._is_lost:
            raise CallerLeft(
                f"the caller took nothing of the answer for send_timeout_s ({self.send_timeout_s:g} s)"
                if self._is_stuck
                else "the caller closed the connection"
            )

    def cut_off(self) -> None:
        """Close the connection and drop what was not sent."""
        self.cycle.disconnected = True
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_send_timer()

    def _close(self) -> None:
        """Close once the caller has what was answered, or takes nothing more of it."""
        self.transport.close()
        self._watch_sending()

    def _watch_sending(self) -> None:
        if self._send_timer is None and not self._is_lost:
            self._look_at_sending(self._unsent_bytes(), self.loop.time())

    def _look_at_sending(self, size: int, since: float) -> None:
        """Look again and again at what waits: it was `size` bytes, and fewer never since `since`."""
        now = self.loop.time()
        left = self._unsent_bytes()
        if left < size:
            size, since = left, now
        if now - since >= self.send_timeout_s:
            self._is_stuck = True
            self.transport.abort()
            return
        self._send_timer = self.loop.call_later(self.send_timeout_s / 4, self._look_at_sending, size, since)

    def _unsent_bytes(self) -> int:
        """What waits here and, in megabytes on Linux, in the kernel, which takes more in large steps only."""
        fd = self.transport.get_extra_info("socket").fileno()
        queued = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))[0] if fd >= 0 else 0
        return int(queued) + self.transport.get_write_buffer_size()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    # -- bytes ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Give the parser no more of a head than a head may be."""
        while data and not self._is_deaf and not self.transport.is_closing():
            room = self.max_header_bytes - self._head_bytes
            if room <= 0:
                self._refuse(self._head_too_large())
                return
            piece = data if self._in_body else data[:room]
            self._take(piece)
            data = data[len(piece) :]

    def _take(self, piece: bytes) -> None:
        self._is_at_start = not self._in_head and not self._in_body
        was_in_head, was_in_body = self._in_head, self._in_body
        self._begun = self._has_body = False
        self._parse(piece)
        if self._gathering is not None and self._gather_timer is None:
            self._gather_timer = self.loop.call_later(_GATHER_S, self._go_through_asgi)
        if self._is_answering:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()
        goes_on_in_head = self._in_head and (self._is_measured or (was_in_head and not self._begun))
        is_no_body = was_in_body and self._in_body and not self._has_body and not self._begun
        self._head_bytes = self._head_bytes + len(piece) if goes_on_in_head or is_no_body else 0

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                # The parser takes what follows for another protocol; we speak none, and the field may be
                # ignored (RFC 9110, 7.8): the same request without it, to a parser that has not seen it.
                data = self._head_without_upgrade() + data[stop.args[0] :]
                self.parser = _parser(self)
            except httptools.HttpParserError as error:
                self._refuse(self._broken or self._fault(error))
                return

    def _head_without_upgrade(self) -> bytes:
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*line, b"".join(fields))

    # -- what the parser tells --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._in_head = self._begun = True
        self._is_measured, self._is_at_start = self._is_at_start, False
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer says nothing of the request (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            return  # `_parse` begins again
        fields = dict(self.headers)
        self._broken = self._refusal_of_head(method, fields)
        if self._broken is not None:
            raise ValueError(self._broken.sentence)  # stops the parser
        if self._may_be_direct(method, fields):
            self._gathering = DirectExchange(self, fields)
            self.cycle = self._gathering  # type: ignore[assignment]
        else:
            self._begin_asgi()
        self._in_head, self._in_body = False, True

    def _begin_asgi(self) -> None:
        """Give the request whose head is whole to ASGI."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, of a request that has nothing yet
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        self.scope[_CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = Exchange.of(cycle)
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._has_body = True
        if self._gathering is not None:
            self._gathering.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_body:
            self._in_body = False
            if self._gathering is not None:
                self._gathering.more_body = False
                self._give_directly(self._gathering)
            else:
                super().on_message_complete()

    # -- requests that need no ASGI -----------------------------------------------------------------

    def _may_be_direct(self, method: bytes, fields: dict[bytes, bytes]) -> bool:
        """True for a request with a little body that `direct` may take, where no answer is owed before."""
        if self.direct is None or (method, self.url) != self.direct.target:
            return False
        if len(fields) < len(self.headers):  # several of one name are one list, or a mistake
            return False
        if self._is_answering or self.flow.write_paused or self.expect_100_continue:
            return False
        if not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1":
            return False
        length = fields.get(b"content-length")
        return length is not None and len(length) <= _DIRECT_DIGITS

    def _give_directly(self, exchange: DirectExchange) -> None:
        """Give a whole request to `direct`, or else to ASGI."""
        if self.direct is not None and self.direct.take(exchange, bytes(exchange.body)):
            self._stop_gathering()
        else:
            self._go_through_asgi()

    def _go_through_asgi(self) -> None:
        """Give a request to ASGI after all, with what came of its body."""
        gathered = self._stop_gathering()
        if gathered is not None:
            self.cycle = None  # type: ignore[assignment]  # the exchange is the first that waits for an answer
            self._begin_asgi()
            self.cycle.body, self.cycle.more_body = gathered.body, gathered.more_body
            self.cycle.message_event.set()

    def _stop_gathering(self) -> DirectExchange | None:
        gathered, self._gathering = self._gathering, None
        if self._gather_timer is not None:
            self._gather_timer.cancel()
            self._gather_timer = None
        return gathered

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the timer of an idle connection: one that looks again, not one an answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._watch_sending()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._broken is not None and not self._is_answering:
            self._answer(self._broken)
        elif self._in_head:  # it came while the answer was awaited
            if self._timer is None:
                self._start_timer()
        else:
            self._idle_since = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_at_idle)

    def _look_at_idle(self) -> None:
        """Close the connection if nothing came since its last answer for as long as may be."""
        self._idle_timer = None
        if not self._is_answering and self._timer is None:  # else it is not idle, and other limits hold
            left = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._idle_timer = self.loop.call_later(left, self._look_at_idle)
            else:
                self._close()

    # -- refusals ---------------------------------------------------------------------------------

    def _refusal_of_head(self, method: bytes, fields: dict[bytes, bytes]) -> _Refusal | None:
        """What is wrong with a whole head that the parser has no objection to."""
        hosts = int(b"host" in fields)
        if len(fields) < len(self.headers):
            hosts = sum(name == b"host" for name, _ in self.headers)
        if len(self.pipeline) >= _MAX_PIPELINED:
            return _bad_request(f"at most {_MAX_PIPELINED} requests may wait for one before them, got more")
        if method == b"CONNECT":
            return _bad_request("the method CONNECT is for proxies, and this is none")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            return _bad_request(f"a request must have one Host header, got {hosts}")
        if not self._is_measured:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.max_header_bytes:
                return self._head_too_large()
        return None

    def _head_too_large(self) -> _Refusal:
        limit = self.max_header_bytes
        what = "trailers and chunks' extensions" if self._in_body else "request line and headers"
        sentence = f"max_header_bytes is {limit} bytes of {what}, got more"
        return _Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", sentence)

    def _fault(self, error: httptools.HttpParserError) -> _Refusal:
        """What the parser stumbled over, in its words where they are for callers."""
        reason = str(error)
        if reason == "Content-Length overflow":
            sentence = f"max_body_bytes is {self.max_body_bytes} bytes a body, got more"
            return _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", sentence)
        if isinstance(error, httptools.HttpParserCallbackError):  # of uvicorn's, which reads the target
            return _bad_request(
                f"the request's target must be a path, got {show(self.url.decode('latin-1'))}"
            )
        if reason == "Pause on PRI/Upgrade":
            reason = "this is HTTP/2"
        return _bad_request(f"the request must be HTTP/1.1: {reason}")

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer what came before, then this, and close. A broken body is told where it is read."""
        self._is_deaf = True
        self._go_through_asgi()
        if not self._is_answering:
            self._answer(refusal)
        elif self._in_body:
            self.scope[_BODY_FAULT] = refusal.sentence  # type: ignore[typeddict-unknown-key]
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
        else:
            self._broken = refusal

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _answer(self, refusal: _Refusal) -> None:
        """Answer in the form of every error, without a route, and close."""
        if not self._in_body:  # or the request has its answer already
            request_id = uuid.uuid4().hex
            logger.info("%s: no request: %s", request_id, refusal.sentence)
            told = {"error": refusal.sentence, "code": refusal.code, "request_id": request_id}
            body = json.dumps(told).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id.encode()),
                (b"connection", b"close"),
            ]
            line = f"HTTP/1.1 {refusal.status} {refusal.status.phrase}".encode()
            lines = [line, *(b"%s: %s" % one for one in headers)]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
        self._linger()

    def _linger(self) -> None:
        """Close when the caller has, or soon. Nothing more of what it sends is looked at; but to close with
        bytes unread would be a reset, which takes the answer from a caller that has not read it yet.
        """
        self._is_deaf = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self._stop_timer()
        self._timer = self.loop.call_later(_LINGER_S, self._close)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._time_is_over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self) -> None:
        self._timer = None
        if not self._is_answering:
            self._close()


def connection_of(scope: Scope) -> PatientProtocol:
    """The connection that a request came on."""
    connection: PatientProtocol = scope[_CONNECTION]
    return connection


def body_at_hand(scope: Scope) -> bytes | None:
    """The body of a request, if all of it has come and nobody took of it; else None."""
    return connection_of(scope).body_at_hand()


def body_fault(scope: Scope) -> str | None:
    """What is wrong with how the body of a request was sent, in a sentence; nothing more of it comes."""
    fault: str | None = scope.get(_BODY_FAULT)
    return fault


def patient_protocol(settings: Settings, direct: Direct | None = None) -> type[PatientProtocol]:
    """The class of connections, for uvicorn's option `http`; `direct` is offered what it may take."""
    limits = {name: getattr(settings, name) for name in _LIMITS}
    return type("ConfiguredProtocol", (PatientProtocol,), {**limits, "direct": direct})


def _bad_request(sentence: str) -> _Refusal:
    return _Refusal(HTTPStatus.BAD_REQUEST, "bad_request", sentence)


def _parser(protocol: PatientProtocol) -> Any:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
