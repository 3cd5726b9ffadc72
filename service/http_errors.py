"""Which error becomes which status, in one table; every error's body has one form.

Nothing deeper knows a status code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from models.errors import ContractError, InvalidValue, show
from service.errors import (
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
    WorkerCrashed,
)
from service.http_log import facts_of
from service.http_request import CallerLeft

STATUS: Final[dict[type[Exception], tuple[int, str]]] = {
    MalformedBody: (400, "bad_request"),
    Unauthorized: (401, "unauthorized"),
    Forbidden: (403, "forbidden"),
    NotServed: (404, "not_found"),
    NotAcceptable: (406, "not_acceptable"),
    StaleDigest: (409, "digest_not_served"),
    TooLarge: (413, "too_large"),
    UnknownMediaType: (415, "unsupported_media_type"),
    InvalidField: (422, "invalid"),
    InvalidValue: (422, "invalid"),
    Overloaded: (429, "overloaded"),
    WorkerCrashed: (500, "worker_crashed"),
    Unavailable: (503, "unavailable"),
    DeadlineExceeded: (504, "deadline"),
}
"""Which error becomes which status; the nearest class counts, and what is not here is 500 internal."""

_ROUTER_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_CALLER_LEFT: Final = 499  # never seen by anyone; it marks the request in log and metrics


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app`, the router's own too, with the one form of body."""

    async def domain_error(request: Request, error: Exception) -> Response:
        return error_response(request, error)

    async def router_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _ROUTER_CODES.get(error.status_code, "bad_request")
        message = str(error.detail)
        if error.status_code == 404:
            message = f"no route {show(request.url.path)}; /docs lists them"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"method must be {allowed} for {show(request.url.path)}, got {request.method}"
        return _error_body(request, error.status_code, code, message, error.headers)

    async def caller_left(request: Request, error: Exception) -> Response:
        return Response(status_code=_CALLER_LEFT)

    async def unexpected(request: Request, error: Exception) -> Response:
        return _error_body(request, 500, "internal", "internal error; the log has this request_id")

    handlers: dict[Any, Callable[[Request, Exception], Any]] = {
        Exception: unexpected,
        ServiceError: domain_error,
        ContractError: domain_error,
        HTTPException: router_error,
        CallerLeft: caller_left,
        ClientDisconnect: caller_left,
    }
    app.exception_handlers.update(handlers)


def error_response(request: Request, error: Exception) -> Response:
    """One domain error as the answer that STATUS gives it."""
    status, code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), (500, "internal"))
    headers = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    facts_of(request)["code"] = code
    return _error_body(request, status, code, str(error), headers)


def _error_body(request: Request, status: int, code: str, message: str, headers: Any = None) -> Response:
    facts = facts_of(request)
    facts["error"] = message
    body = {"error": message, "code": code, "request_id": facts["request_id"]}
    return JSONResponse(body, status, headers=dict(headers or {}))
