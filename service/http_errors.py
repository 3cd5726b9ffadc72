"""Which error becomes which status, in one table; every error's body has one form.

Nothing deeper knows a status code.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import ContractError, InvalidValue, UnknownModel, show
from service.errors import (
    CallerLeft,
    DeadlineExceeded,
    Forbidden,
    InvalidField,
    MalformedBody,
    NotAcceptable,
    NotServed,
    Overloaded,
    RetryableError,
    ServiceError,
    StaleDigest,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownMediaType,
    VersionRefused,
    WorkerCrashed,
)
from service.http_log import facts_in, facts_of

STATUS: Final[dict[type[Exception], tuple[int, str]]] = {
    MalformedBody: (400, "bad_request"),
    Unauthorized: (401, "unauthorized"),
    Forbidden: (403, "forbidden"),
    NotServed: (404, "not_found"),
    UnknownModel: (404, "not_found"),
    NotAcceptable: (406, "not_acceptable"),
    StaleDigest: (409, "digest_not_served"),
    VersionRefused: (409, "version_refused"),
    TooLarge: (413, "too_large"),
    UnknownMediaType: (415, "unsupported_media_type"),
    InvalidField: (422, "invalid"),
    InvalidValue: (422, "invalid"),
    Overloaded: (429, "overloaded"),
    CallerLeft: (499, "caller_left"),  # never seen by anyone; it marks the request in log and metrics
    WorkerCrashed: (500, "worker_crashed"),
    Unavailable: (503, "unavailable"),
    DeadlineExceeded: (504, "deadline"),
}
"""Which error becomes which status; the nearest class counts, and what is not here is 500 internal."""

_ROUTER_CODES: Final = {404: "not_found", 405: "method_not_allowed"}

logger = logging.getLogger(__name__)


class AnswerErrors:
    """ASGI layer: an error becomes the answer that STATUS gives it, the router's own too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:  # by uvicorn: the time to drain is over
            facts = facts_in(scope)
            if facts["answered"]:
                raise
            ended = Unavailable("the server ended before the answer was made", retry_after_s=1)
            await error_response(facts, ended)(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http" or facts_in(scope)["answered"]:
                raise  # too late to say it to the caller
            response = (
                _router_error(Request(scope), error)
                if isinstance(error, HTTPException)
                else error_response(facts_in(scope), error)
            )
            await response(scope, receive, send)


def error_response(facts: dict[str, Any], error: BaseException) -> Response:
    """The answer that says `error`; `facts` are the request's, which it is added to."""
    status, code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), (500, "internal"))
    message, headers = str(error), {}
    if not isinstance(error, ServiceError | ContractError):
        logger.error("%s: unexpected error", facts["request_id"], exc_info=error)
        message = "internal error; the log has this request_id"
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    facts["code"] = code
    return _error_body(facts, status, code, message, headers)


def _router_error(request: Request, error: HTTPException) -> Response:
    code = _ROUTER_CODES.get(error.status_code, "bad_request")
    message = str(error.detail)
    if error.status_code == 404:
        message = f"no route {show(request.url.path)}; /docs lists them"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"method must be {allowed} for {show(request.url.path)}, got {request.method}"
    return _error_body(facts_of(request), error.status_code, code, message, error.headers)


def _error_body(facts: dict[str, Any], status: int, code: str, message: str, headers: Any) -> Response:
    facts["error"] = message
    body = {"error": message, "code": code, "request_id": facts["request_id"]}
    return JSONResponse(body, status, headers=dict(headers or {}))
