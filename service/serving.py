"""What one API process serves: its models, who may still come in, and how it ends.

Owns admission and the drain. SIGTERM: not ready at once; new requests for `drain_delay_s` more,
since load balancers learn late; then refused with 503; accepted ones finish within `drain_s`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from models.store import Artifact
from service import channel
from service.batching import Priority
from service.encoding import Format, encoder_id
from service.errors import (
    EXIT_REFUSED,
    CallerLeft,
    DeadlineExceeded,
    InvalidField,
    StartError,
    TooLarge,
    Unavailable,
)
from service.keys import Keys
from service.metrics import Metrics
from service.rows import Rows
from service.sampler import ModelSampler
from service.served import ServedModels
from service.settings import Settings
from service.signing import ImageSigner
from service.ticket import Ticket

T = TypeVar("T")
_POLL_S = 0.02
_PAUSE_S = 1.0  # before the next attempt to take in a worker, where no descriptor was free
_ALARM_S = 0.005  # at least, between two looks at every deadline

logger = logging.getLogger(__name__)


class Connection(Protocol):
    """The caller's end of a request."""

    def when_lost(self, call: Callable[[], object] | None, /) -> None:
        """Call `call` if the caller leaves; None: no longer."""


class Serving:
    """The state of one API process. Used in its event loop's thread only."""

    def __init__(
        self, settings: Settings, artifacts: list[Artifact], on_ready: Callable[[], object] = lambda: None
    ) -> None:
        self._on_ready = on_ready
        self.settings = settings
        self.keys = Keys(settings)
        self.signer = ImageSigner(settings.sign_files) if settings.sign_files is not None else None
        self.metrics = Metrics()
        self._encoders = ThreadPoolExecutor(settings.encode_pool_threads, thread_name_prefix="encode")
        self.models = ServedModels(artifacts, settings, self._encoders, self.metrics, self._worker_ready)
        self.draining = False
        self._accepting = True
        self._in_flight: set[Ticket] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf  # when it rings (monotonic)
        self._rang = -math.inf  # when it last did
        self._was_ready = False
        self._address: channel.Address | None = None
        self._watch: asyncio.Task[None] | None = None

    # -- models -----------------------------------------------------------------------------------

    @property
    def samplers(self) -> list[ModelSampler]:
        """One a served model, the default model first."""
        return self.models.all()

    def sampler(self, address: str | None) -> ModelSampler:
        """The sampler of `name[:version]`, or of the default model. Raises NotServed, InvalidValue."""
        return self.models.sampler(address)

    async def reload(self, name: str, version: int | None) -> bool:
        """As `ServedModels.reload`. Raises Unavailable while the model loads or the server drains."""
        if self.draining or not self.sampler(name).dispatcher.was_ready:
            raise Unavailable("the server is draining" if self.draining else f"model {name} is loading")
        return await self.models.reload(name, version)

    @property
    def largest_z_dim(self) -> int:
        """The longest row of latents that a model served here takes."""
        return max(one.artifact.manifest.z_dim for one in self.samplers)

    # -- workers ----------------------------------------------------------------------------------

    def listen_for_workers(self, listener: socket.socket, address: channel.Address) -> None:
        """Take in workers as they connect."""
        self._address = address
        self._encoders.submit(encoder_id)  # before the first request needs it
        loop = asyncio.get_running_loop()
        loop.add_reader(listener.fileno(), self._accept, listener)
        if self.settings.watch_store_s:
            self._watch = loop.create_task(self.models.watch())

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted = channel.accept(listener)
        except OSError as error:  # no descriptor is free, and it would be told again at once
            logger.error("no worker can be taken in for %g s: %s", _PAUSE_S, error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(_PAUSE_S, loop.add_reader, listener.fileno(), self._accept, listener)
            return
        if accepted is not None:
            link, process = accepted
            asyncio.get_running_loop().add_reader(link.fileno(), self._greet, link, process)

    def _greet(self, link: channel.Channel, process: channel.Process) -> None:
        """Read a new connection's first message: a worker's hello with our token, or goodbye."""
        asyncio.get_running_loop().remove_reader(link.fileno())
        try:
            hello = link.receive()
        except (OSError, ValueError, RecursionError, struct.error):
            hello = None
        assert self._address is not None
        token = str(hello.get("token")).encode(errors="replace") if isinstance(hello, dict) else b""
        if not isinstance(hello, dict) or not hmac.compare_digest(token, self._address.token.encode()):
            link.close()
            process.close()
            return
        sampler = self.sampler(hello["model"])
        try:
            sampler.dispatcher.attach(link, process)
            return
        except StartError as error:
            if not self._was_ready:
                print(f"ganserve: {error}", file=sys.stderr, flush=True)
                os._exit(EXIT_REFUSED)
            logger.error("a worker of %s could not be taken in: %s", hello["model"], error)
        except OSError as error:  # it died meanwhile; the supervisor starts another
            logger.warning("a worker of %s left before it was taken in: %s", hello["model"], error)
        link.close()
        process.close()

    def _worker_ready(self) -> None:
        """A worker can run rows; with the last model's first one the server is ready."""
        if self.ready and not self._was_ready:
            self._was_ready = True
            self._on_ready()
            self._announce()

    def _announce(self) -> None:
        settings = self.settings
        host = (
            "127.0.0.1" if settings.host == "0.0.0.0" else "[::1]" if settings.host == "::" else settings.host
        )
        models = ", ".join(f"{one.artifact.address} ({one.artifact.digest[:12]})" for one in self.samplers)
        print(f"ganserve serves {models} at http://{host}:{settings.port}", flush=True)

    # -- probes -----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """A model can serve, each could once, and the server is not draining."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why no traffic should come now, in a sentence, or None.

        A server begins when each of its models can serve. From then on one model's trouble is not the
        others': it is told of that model alone, and of the server when no model is without.
        """
        if self.draining:
            return "the server is draining"
        all_troubles = [sampler.dispatcher.trouble for sampler in self.samplers]
        troubles = [trouble for trouble in all_troubles if trouble is not None]
        if not troubles or (self._was_ready and len(troubles) < len(all_troubles)):
            return None
        return "; ".join(troubles)

    @property
    def was_ready(self) -> bool:
        return self._was_ready

    # -- admission and drain ----------------------------------------------------------------------

    async def make(
        self,
        sampler: ModelSampler,
        rows: Rows,
        fmt: Format | None,
        source: str,
        connection: Connection,
        timeout_ms: int | None = None,
        priority: Priority = "interactive",
    ) -> Ticket:
        """Accept one request; return its ticket when every image is made.

        As `accept`; raises, beside its errors, DeadlineExceeded, CallerLeft and WorkerCrashed.
        """
        ticket = self.accept(sampler, rows, fmt, connection, timeout_ms, priority)
        try:
            await ticket.made()
        except BaseException:
            self.settle(sampler, ticket, source, connection)
            del ticket  # which the error's traceback would keep, until the garbage collector comes
            raise
        self.settle(sampler, ticket, source, connection)
        return ticket

    def accept(
        self,
        sampler: ModelSampler,
        rows: Rows,
        fmt: Format | None,
        connection: Connection,
        timeout_ms: int | None = None,
        priority: Priority = "interactive",
    ) -> Ticket:
        """Accept one request, its images to be files of `fmt` or (None) pixels; `settle` it when it ended.

        `connection` is the caller's; `timeout_ms` None is the setting. Raises InvalidField for a deadline too
        far, Unavailable, Overloaded, TooLarge.
        """
        if timeout_ms is None:
            timeout_ms = self.settings.timeout_ms
        if timeout_ms > self.settings.max_timeout_ms:
            raise InvalidField(f"timeout_ms must be at most {self.settings.max_timeout_ms}, got {timeout_ms}")
        if not self._accepting:
            raise Unavailable("the server is draining", retry_after_s=1)
        ticket = sampler.submit(rows, fmt, priority)
        ticket.timeout_s = timeout_ms / 1000
        connection.when_lost(ticket.caller_left)
        self._in_flight.add(ticket)
        if ticket.deadline < self._alarm_at:
            self._set_alarm(ticket.deadline)
        return ticket

    def _set_alarm(self, at: float) -> None:
        """Have `_ring` called at the monotonic time `at`, and not so soon after its last call that looking at
        all that is in flight would be all that is done.

        One alarm for all requests, set for the earliest deadline: nearly all end long before theirs, and a
        timer each would be made and cancelled for nothing, with a system call.
        """
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = max(at, self._rang + _ALARM_S)
        self._alarm = asyncio.get_running_loop().call_later(self._alarm_at - time.monotonic(), self._ring)

    def _ring(self) -> None:
        """End the requests whose time is up, and set the alarm for the next of those in flight."""
        self._alarm, self._alarm_at = None, math.inf
        self._rang = now = time.monotonic()
        waiting = [ticket for ticket in self._in_flight if not ticket.ended]
        for ticket in waiting:
            if ticket.deadline <= now:
                ticket.late()
        next_at = min((ticket.deadline for ticket in waiting if not ticket.ended), default=math.inf)
        if next_at < math.inf:
            self._set_alarm(next_at)

    def settle(self, sampler: ModelSampler, ticket: Ticket, source: str, connection: Connection) -> None:
        """Let go of a ticket that ended, well or not, and count it as one of `source`."""
        connection.when_lost(None)
        self._in_flight.discard(ticket)
        sampler.forget(ticket)
        if ticket.succeeded:
            sampler.dispatcher.series.made(source, ticket)
        elif isinstance(ticket.error, DeadlineExceeded | CallerLeft):
            stage = "caller_left" if isinstance(ticket.error, CallerLeft) else "deadline"
            self.metrics.cancelled.labels(stage).inc()

    async def finish(self, ticket: Ticket, work: Callable[[], T]) -> T:
        """What `work` makes of `ticket`'s images, in a thread. Raises DeadlineExceeded when time is up."""
        try:
            async with asyncio.timeout(ticket.timeout_s - ticket.seconds):
                return await asyncio.to_thread(work)
        except TimeoutError:
            self.metrics.cancelled.labels("deadline").inc()
            timeout_ms = round(1000 * ticket.timeout_s)
            raise DeadlineExceeded(
                f"timeout_ms passed: the images were made, but not packed within {timeout_ms} ms"
            ) from None

    def check_rows(self, rows: int, proposals: int = 1) -> None:
        """Raise TooLarge for more rows than one request may ask for; each of a row's `proposals` is one."""
        max_rows = self.settings.max_request_rows
        if rows * proposals > max_rows:
            of = f" × {proposals} proposals" if proposals > 1 else ""
            raise TooLarge(f"max_rows is {max_rows} rows a request, got {rows}{of}")

    async def drain(self) -> float:
        """Return when nothing accepted is left: the seconds left of `drain_s`, 0 if it had to be cut off."""
        self.draining = True
        await asyncio.sleep(self.settings.drain_delay_s)
        self._accepting = False
        deadline = time.monotonic() + self.settings.drain_s
        while self._in_flight and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._in_flight:
            logger.warning("drain_s passed with %d requests unfinished", len(self._in_flight))
            for ticket in list(self._in_flight):
                ticket.fail(Unavailable("the server ended before the images were made", retry_after_s=1))
        return max(0.0, deadline - time.monotonic())

    def close(self) -> None:
        """Let workers and encoder threads go."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for sampler in self.samplers:
            sampler.dispatcher.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)
