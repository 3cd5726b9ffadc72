"""Who may ask what over HTTP: the key of a request, and the layer that wants one of every request.

A key is presented as `Authorization: Bearer KEY` or as `X-API-Key: KEY`. The page and its files, the
documents, the probes and /metrics need none. Without keys in the settings the layer is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import show
from service.errors import Forbidden
from service.http_exchange import RawHeaders, header
from service.keys import Keys
from service.pages import DOCUMENT_PATHS, PAGE_PATHS

OPEN_PATHS: Final = frozenset(
    {
        *PAGE_PATHS,
        *DOCUMENT_PATHS,
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""Paths that need no key."""
_ASKED_HEADERS: Final = (
    *("Authorization", "X-API-Key", "Content-Type", "If-None-Match", "X-Request-Id", "traceparent"),
    "Inference-Header-Content-Length",
)
_TOLD_HEADERS: Final = (
    *("X-Model-Digest", "X-Seeds", "X-Request-Id", "Server-Timing", "ETag", "Retry-After", "traceparent"),
    *("Inference-Header-Content-Length", "WWW-Authenticate"),
)
_PREFLIGHT: Final = {
    "origin": "origin",
    "method": "access-control-request-method",
    "headers": "access-control-request-headers",
}
_OPEN_FOLDERS: Final = ("/docs/assets/",)


class _AllowOrigins(CORSMiddleware):
    """Starlette's, but a preflight that is refused becomes an error like any other."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        asked = ", ".join(
            f"{name} {show(request_headers[field])}"
            for name, field in _PREFLIGHT.items()
            if field in request_headers
        )
        raise Forbidden(f"a page's request must be one that cors_origins and the routes allow, got {asked}")


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` with CORS: pages of `origins` may ask it, with a key, and read our headers.

    Raises Forbidden for a preflight of another page, or for what no page may send.
    """
    return _AllowOrigins(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_ASKED_HEADERS,
        expose_headers=_TOLD_HEADERS,
    )


class RequireKey:
    """Around every route: without a known key Unauthorized, unless the path is open to all."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            self._keys.require_known(key_of(scope["headers"]))
        await self._app(scope, receive, send)


def require_admin(request: HTTPConnection, keys: Keys) -> None:
    """Return if `request` presents an admin key. Raises Unauthorized (no known key) or Forbidden."""
    keys.require_admin(key_of(request.scope["headers"]))


def is_open(path: str) -> bool:
    """A request of `path` needs no key."""
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def key_of(headers: RawHeaders) -> str | None:
    """The key that a request presents; `Authorization` goes before `X-API-Key`."""
    scheme, _, credentials = (header(headers, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip() or None
    return header(headers, b"x-api-key") or None
