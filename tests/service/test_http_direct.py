"""Which requests are taken directly, past ASGI, and what becomes of their connection."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import publish_toy
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.http_protocol import DirectExchange, patient_protocol
from service.settings import Settings

BODY = b'{"seed": 1}'
OK = b"HTTP/1.1 200 OK\r\nx-of: %b\r\n\r\n"


def request(body: bytes = BODY, line: bytes = b"POST /v1/samples HTTP/1.1", fields: bytes = b"") -> bytes:
    return line + b"\r\nhost: x\r\ncontent-length: %d\r\n" % len(body) + fields + b"\r\n" + body


class NoSocket:
    """Stands where a transport keeps its socket."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    getpeername = getsockname

    def fileno(self) -> int:
        return -1


class Wire(asyncio.Transport):
    """A transport that records what is written."""

    def __init__(self) -> None:
        super().__init__({"socket": NoSocket()})
        self.written = b""
        self.closed, self.reads = False, True

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        assert not self.closed  # as uvloop's, where asyncio's takes it silently
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Taker:
    """Takes what it is offered, and answers when it is told to."""

    target = (b"POST", b"/v1/samples")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.exchanges: list[DirectExchange] = []
        self.willing = True

    def take(self, exchange: DirectExchange, body: bytes) -> bool:
        if self.willing:
            self.exchanges.append(exchange)
            self.bodies.append(body)
        return self.willing


class Connection:
    """One connection, with a taker; what goes through ASGI is answered at once by `asked`."""

    def __init__(self, settings: Settings) -> None:
        self.taker, self.wire = Taker(), Wire()
        self.asked: list[bytes] = []
        self.left = 0
        self.held: asyncio.Event | None = None
        """What goes through ASGI waits for it before its answer."""
        self.exchanges: list[weakref.ref[Any]] = []
        config = Config(self.usual, log_config=None, lifespan="off", ws="none", interface="asgi3")
        config.load()
        kind = patient_protocol(settings, self.taker)
        self.protocol = kind(config, ServerState(), {}, asyncio.get_running_loop())
        self.protocol.connection_made(self.wire)

    async def usual(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append(body)
        self.exchanges.append(weakref.ref(receive.__self__))
        if self.held is not None:
            await self.held.wait()
        headers = [(b"content-length", b"0"), (b"x-of", b"usual")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def receives(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.protocol.data_received(piece)
        for _ in range(5):
            await asyncio.sleep(0)

    def answers(self) -> None:
        self.taker.exchanges.pop(0).answer(200, [(b"x-of", b"direct")], b"")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    publish_toy(tmp_path)
    return Settings(store=tmp_path, model="toy")


def play(settings: Settings, scene: Callable[[Connection], Any]) -> Connection:
    """Play `scene` with a connection, in an event loop; return it."""

    async def whole() -> Connection:
        connection = Connection(settings)
        await scene(connection)
        return connection

    return asyncio.run(whole())


def test_a_little_request_is_taken_directly_in_however_many_pieces_it_comes(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        await one.receives(request())
        assert one.wire.written == b""
        one.answers()
        await one.receives(*(bytes([byte]) for byte in request(b'{"seed": 2}')))
        one.answers()

    one = play(settings, scene)
    assert one.taker.bodies == [BODY, b'{"seed": 2}']
    assert one.wire.written.count(OK % b"direct") == 2
    assert not one.asked
    assert not one.wire.closed


WHOLE = request()
LONG = WHOLE.replace(b"content-length: 11", b"content-length: 00011")


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([LONG], id="of a long body"),
        pytest.param([request(fields=b"connection: close\r\n")], id="the last of its connection"),
        pytest.param([request(fields=b"expect: 100-continue\r\n")], id="with a wait for its body"),
        pytest.param([request(line=b"POST /v1/samples?x=1 HTTP/1.1")], id="another target"),
        pytest.param([request(line=b"PUT /v1/samples HTTP/1.1")], id="another method"),
        pytest.param([request(line=b"POST /v1/samples HTTP/1.0")], id="HTTP/1.0"),
        pytest.param([request(fields=b"accept: image/png\r\naccept: */*\r\n")], id="with a header in two"),
    ],
)
def test_other_requests_go_through_asgi(settings: Settings, pieces: list[bytes]) -> None:
    one = play(settings, lambda one: one.receives(*pieces))

    assert one.asked == [BODY]
    assert not one.taker.bodies
    assert b"x-of: usual" in one.wire.written


def test_what_the_taker_leaves_goes_through_asgi(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        one.taker.willing = False
        await one.receives(request())

    one = play(settings, scene)
    assert one.asked == [BODY]
    assert not one.wire.closed


def test_what_comes_before_the_answer_waits_for_it(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        await one.receives(request(), request(b"{}", line=b"POST /other HTTP/1.1"), request(b"[1]"))
        assert one.wire.written == b""
        assert not one.wire.reads
        one.answers()
        await one.receives()

    one = play(settings, scene)
    assert one.wire.reads
    assert one.taker.bodies == [BODY]
    assert one.asked == [b"{}", b"[1]"]  # in their order, which is uvicorn's matter
    assert one.wire.written.index(b"direct") < one.wire.written.index(b"usual")


def test_a_connection_that_is_to_end_ends_with_the_answer(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        await one.receives(request())
        one.protocol.shutdown()
        assert not one.wire.closed
        one.answers()

    one = play(settings, scene)
    assert one.wire.closed
    assert b"connection: close\r\n" in one.wire.written


def test_a_connection_ends_when_nothing_came_for_long_enough_since_its_last_answer(
    settings: Settings,
) -> None:
    async def scene(one: Connection) -> None:
        one.protocol.timeout_keep_alive = 1  # s
        for wait_s in (0.5, 0):
            await one.receives(request())
            one.answers()
            await asyncio.sleep(wait_s)
        await asyncio.sleep(0.7)  # 1.2 s after its first answer
        assert not one.wire.closed
        await asyncio.sleep(0.5)
        assert one.wire.closed

    play(settings, scene)


def test_a_connection_that_waits_for_its_answer_is_not_idle(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        one.protocol.timeout_keep_alive = 1  # s
        await one.receives(request())
        one.answers()
        await one.receives(request())
        await asyncio.sleep(1.2)
        assert not one.wire.closed
        one.answers()
        await asyncio.sleep(1.2)
        assert one.wire.closed

    play(settings, scene)


def test_a_connection_with_half_a_head_before_its_answer_is_not_idle_either(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        one.protocol.timeout_keep_alive, one.protocol.header_timeout_s = 0.3, 1.0  # type: ignore[assignment]
        await one.receives(WHOLE + WHOLE[:30])
        one.answers()
        await asyncio.sleep(0.6)
        await one.receives(WHOLE[30:] + WHOLE[:30])
        one.answers()
        assert one.wire.written.count(OK % b"direct") == 2
        await asyncio.sleep(0.6)
        assert not one.wire.closed
        await asyncio.sleep(0.7)
        assert one.wire.closed

    play(settings, scene)


def test_who_left_gets_no_answer(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        left: list[bool] = []
        await one.receives(request())
        one.protocol.when_lost(lambda: left.append(True))
        one.wire.closed = True
        one.protocol.connection_lost(None)
        assert left
        one.answers()

    assert play(settings, scene).wire.written == b""


def test_a_body_that_is_late_is_awaited_by_asgi(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        await one.receives(WHOLE[:-4])
        assert not one.asked
        await asyncio.sleep(0.2)
        await one.receives(WHOLE[-4:])

    one = play(settings, scene)
    assert one.asked == [BODY]
    assert not one.taker.bodies


def test_a_caller_that_leaves_before_its_body_is_whole_is_asgis_to_tell(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        await one.receives(WHOLE[:-4])
        one.wire.closed = True
        one.protocol.connection_lost(None)
        await one.receives()

    one = play(settings, scene)
    assert one.left == 1


def test_who_left_with_more_requests_in_the_pipeline_gets_no_answer(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(one: Connection) -> None:
        one.held = asyncio.Event()
        put = request(line=b"PUT /v1/samples HTTP/1.1")
        await one.receives(put, put)
        one.wire.closed = True
        one.protocol.connection_lost(None)
        one.held.set()
        await one.receives()

    one = play(settings, scene)
    assert one.asked == [BODY]
    assert one.wire.written == b""
    assert not caplog.records


def test_a_request_leaves_no_garbage_in_cycles(settings: Settings) -> None:
    async def scene(one: Connection) -> None:
        for _ in range(3):
            await one.receives(request(line=b"PUT /v1/samples HTTP/1.1"))
            await one.receives(request())
            one.answers()
        assert [reference() is None for reference in one.exchanges] == [True, True, False]

    gc.disable()
    try:
        play(settings, scene)
    finally:
        gc.enable()
