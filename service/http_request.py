"""What one HTTP request says: body, `Accept`, what it has already, and whether its caller is still there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from models.errors import show
from service.errors import NotAcceptable, TooLarge, UnknownMediaType


class CallerLeft(Exception):
    """The client closed its connection before the answer."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, if it is JSON by its content type and no longer than `max_bytes`."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnknownMediaType(f"content-type must be application/json, got {show(content_type)}")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"max_body_bytes is {max_bytes} bytes a body, got more")
        chunks.append(chunk)
    return b"".join(chunks)


def accepted(request: Request, media_type: str) -> str:
    """`media_type`, if the caller's `Accept` allows it. Raises NotAcceptable."""
    accept = request.headers.get("accept", "*/*")
    kind = media_type.partition("/")[0]
    for entry in accept.split(","):
        pattern, *parameters = (part.strip().lower() for part in entry.split(";"))
        refused = any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
        if pattern in ("*/*", f"{kind}/*", media_type, "") and not refused:
            return media_type
    raise NotAcceptable(f"accept must allow {media_type}, which this request asks for, got {show(accept)}")


def matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with each listed tag, or "*"."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


@asynccontextmanager
async def unless_caller_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client closes its connection; what it raises then is CallerLeft."""
    handler = asyncio.current_task()
    assert handler is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        handler.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        handler.uncancel()
        raise CallerLeft from None
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
