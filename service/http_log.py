"""Around every request: its id and its place in the caller's trace, its metrics, its one log line.

Outermost, so that it also sees what the router refuses.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CallerLeft
from service.http_exchange import Fields, RawHeaders
from service.http_protocol import connection_of
from service.serving import Serving
from service.trace import Span

_FACTS = "ganserve.facts"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REFUSALS = frozenset({"unauthorized", "forbidden", "too_large", "overloaded", "unavailable"})
_LEFT = {"status": 499, "code": "caller_left"}
_PROCESS_ID = secrets.token_hex(10)  # with a number, an id that no other replica gives; a uuid costs more
_request_number = itertools.count()
_QUIET_PATHS = frozenset(
    {"/livez", "/readyz", "/startupz", "/metrics", "/v2/health/live", "/v2/health/ready"}
)

logger = logging.getLogger("ganserve.request")


def facts_of(request: Request) -> dict[str, Any]:
    """What will be logged of this request; handlers add to it, `timing` (a Timing) too.

    Always holds `request_id`.
    """
    return facts_in(request.scope)


def facts_in(scope: Scope) -> dict[str, Any]:
    """The same, by the request's ASGI scope."""
    facts: dict[str, Any] = scope[_FACTS]
    return facts


@dataclass(eq=False, slots=True)
class Entry:
    """One request, from its head to its line in the log."""

    facts: dict[str, Any]
    """As `facts_of`."""
    span: Span | None
    """What it is in its caller's trace."""
    started: float
    """In seconds of `time.perf_counter`."""


class RequestLog:
    """Gives each request an id (the caller's, if it sent a plain one), counts it, logs it."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._metrics = serving.metrics

    def begin(self, fields: Fields) -> Entry:
        """A request came; it must be ended."""
        self._metrics.answering += 1
        request_id, traceparent = fields.get(b"x-request-id"), fields.get(b"traceparent")
        span = None if traceparent is None else Span.under(traceparent)
        facts: dict[str, Any] = {
            "request_id": f"{_PROCESS_ID}{next(_request_number):012x}"
            if request_id is None or not _REQUEST_ID.fullmatch(request_id)
            else str(request_id, "ascii"),
            "model": "",
            "status": 500,
            "answered": False,
        }
        if span is not None:
            facts.update(trace_id=span.trace_id, span_id=span.span_id, parent_id=span.parent_id)
        return Entry(facts, span, time.perf_counter())

    def answer(self, entry: Entry, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Its answer begins: add to `headers` what every answer has."""
        facts = entry.facts
        facts["status"], facts["answered"] = status, True
        headers.append((b"x-request-id", facts["request_id"].encode()))
        if entry.span is not None:
            headers.append((b"traceparent", entry.span.traceparent))
        if self._serving.draining:  # the next request of this caller belongs elsewhere
            headers.append((b"connection", b"close"))

    def end(self, entry: Entry, method: str, path: str, endpoint: str) -> None:
        """The caller has its answer, or left; `endpoint` is the route's path, with its parameters' names."""
        seconds, facts = time.perf_counter() - entry.started, entry.facts
        self._metrics.answering -= 1
        self._metrics.requests.labels(endpoint, facts["model"], facts["status"]).inc()
        self._metrics.request_seconds.labels(endpoint).observe(seconds)
        if facts.get("code") in _REFUSALS:
            self._metrics.rejected.labels(facts["code"]).inc()
        if path not in _QUIET_PATHS and logger.isEnabledFor(logging.INFO):
            del facts["answered"]
            timing = facts.pop("timing", None)
            line = {
                "method": method,
                "path": path,
                **facts,
                **(timing.facts() if timing is not None else {}),
                "total_ms": round(seconds * 1000, 2),
            }
            logger.info("request", extra={"facts": line})


class LogRequests:
    """ASGI layer, outermost: every request is in the log."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = self._log.begin(_fields(scope["headers"]))
        facts = scope[_FACTS] = entry.facts

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._log.answer(entry, message["status"], message["headers"])
            await send(message)

        connection = connection_of(scope)
        try:
            await self._app(scope, receive, send_with_id)
            if connection.is_waiting:
                await connection.taken()
        except CallerLeft as error:
            tell_that_caller_left(facts, error)
        except asyncio.CancelledError:  # by uvicorn, when the time to drain is over
            connection.cut_off()
            facts.update(_LEFT, error="the time to drain was over before the caller had taken its answer")
        finally:
            endpoint = getattr(scope.get("route"), "path", None) or "other"
            self._log.end(entry, scope["method"], scope["path"], endpoint)


def tell_that_caller_left(facts: dict[str, Any], error: CallerLeft) -> None:
    """The caller did not take its answer."""
    facts.update(_LEFT, error=str(error))


def _fields(headers: RawHeaders) -> Fields:
    """The fields of these headers; of several ids the last that is plain, of several traceparents none."""
    fields = dict(headers)
    if len(fields) < len(headers):
        fields.update(one for one in headers if one[0] == b"x-request-id" and _REQUEST_ID.fullmatch(one[1]))
        if sum(name == b"traceparent" for name, _ in headers) > 1:
            del fields[b"traceparent"]
    return fields
