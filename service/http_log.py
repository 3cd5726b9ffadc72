"""Around every request: its id and its place in the caller's trace, its metrics, its one log line.

A plain ASGI layer, outermost, so that it also sees what the router refuses.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CallerLeft
from service.http_protocol import connection_of
from service.serving import Serving
from service.trace import Span

_FACTS = "ganserve.facts"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REFUSALS = frozenset({"unauthorized", "forbidden", "too_large", "overloaded", "unavailable"})
_LEFT = {"status": 499, "code": "caller_left"}
_ENDED = {"status": 503, "code": "unavailable"}
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


class RequestLog:
    """Gives each request an id (the caller's, if it sent a plain one), counts it, logs it."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving
        self._metrics = serving.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id, span = _ids(scope)
        facts: dict[str, Any] = {"request_id": request_id, "model": "", "status": 500, "answered": False}
        scope[_FACTS] = facts
        if span is not None:
            facts.update(trace_id=span.trace_id, span_id=span.span_id, parent_id=span.parent_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"], facts["answered"] = message["status"], True
                message["headers"].append((b"x-request-id", request_id.encode()))
                if span is not None:
                    message["headers"].append((b"traceparent", span.traceparent))
                if self._serving.draining:  # the next request of this caller belongs elsewhere
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._metrics.answering += 1
        try:
            await self._app(scope, receive, send_with_id)
            connection = connection_of(scope)
            if connection.is_waiting:
                await connection.taken()
        except CallerLeft as error:
            facts.update(_LEFT, error=str(error))
        except asyncio.CancelledError:  # by uvicorn, when the time to drain is over
            connection_of(scope).cut_off()
            facts["error"] = "the time to drain was over before the caller had taken its answer"
            facts.update(_LEFT if facts["answered"] else _ENDED)
        finally:
            self._metrics.answering -= 1
            self._finish(scope, facts, time.perf_counter() - started)

    def _finish(self, scope: Scope, facts: dict[str, Any], seconds: float) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", None) or "other"
        self._metrics.requests.labels(endpoint, facts["model"], facts["status"]).inc()
        self._metrics.request_seconds.labels(endpoint).observe(seconds)
        if facts.get("code") in _REFUSALS:
            self._metrics.rejected.labels(facts["code"]).inc()
        if scope["path"] not in _QUIET_PATHS and logger.isEnabledFor(logging.INFO):
            del facts["answered"]
            timing = facts.pop("timing", None)
            line = {
                "method": scope["method"],
                "path": scope["path"],
                **facts,
                **(timing.facts() if timing is not None else {}),
                "total_ms": round(seconds * 1000, 2),
            }
            logger.info("request", extra={"facts": line})


def _ids(scope: Scope) -> tuple[str, Span | None]:
    """The request's id, ours where the caller sent no plain one, and its span if it is part of a trace."""
    request_id, traceparents = None, []
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = str(value, "ascii")
        elif name == b"traceparent":
            traceparents.append(value)
    span = Span.under(traceparents[0]) if len(traceparents) == 1 else None
    return request_id or f"{_PROCESS_ID}{next(_request_number):012x}", span
