"""What one HTTP request says: body, `Accept`, what it has already, and whether its caller is still there."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request
from starlette.types import Message

from models.errors import show
from service.errors import (
    CallerLeft,
    DeadlineExceeded,
    MalformedBody,
    NotAcceptable,
    TooLarge,
    UnknownMediaType,
)
from service.http_exchange import header
from service.http_protocol import body_at_hand, body_fault

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}  # as zlib counts them: with gzip's header, with its own


async def read_body(
    request: Request, max_bytes: int, timeout_ms: int, content_types: Sequence[str] = ("application/json",)
) -> bytes:
    """The body, if of one of `content_types` or of none. Raises UnknownMediaType, and as `read_bytes`."""
    content_type = header(request.scope["headers"], b"content-type") or content_types[0]
    if content_type not in content_types:
        content_type = content_type.partition(";")[0].strip().lower()
    if content_type not in content_types:
        raise UnknownMediaType(f"content-type must be {' or '.join(content_types)}, got {show(content_type)}")
    return await read_bytes(request, max_bytes, timeout_ms)


async def read_bytes(request: Request, max_bytes: int, timeout_ms: int) -> bytes:
    """The body, whatever it is.

    Raises TooLarge, MalformedBody if its framing breaks, CallerLeft, DeadlineExceeded if it takes too long.
    """
    declared = header(request.scope["headers"], b"content-length") or ""
    if declared.isdecimal() and int(declared) > max_bytes:
        raise TooLarge(f"max_body_bytes is {max_bytes} bytes a body, got {declared}")
    whole = body_at_hand(request.scope)
    if whole is not None:  # nearly every body: no waiting, no timeout
        return _within(whole, 0, max_bytes)
    body = bytearray()
    more = True
    async with _deadline(timeout_ms, "the body was not sent"):
        while more:
            if (fault := body_fault(request.scope)) is not None:
                raise MalformedBody(fault)
            message = await request.receive()
            body += _chunk(message, len(body), max_bytes)
            more = message.get("more_body", False)
    return bytes(body)


def _chunk(message: Message, size: int, max_bytes: int) -> bytes:
    """What `message` adds to a body of which `size` bytes came."""
    if message["type"] == "http.disconnect":
        raise CallerLeft("the caller closed the connection")
    return _within(message.get("body", b""), size, max_bytes)


def _within(chunk: bytes, size: int, max_bytes: int) -> bytes:
    """`chunk`, which follows `size` bytes of a body. Raises TooLarge."""
    if size + len(chunk) > max_bytes:
        raise TooLarge(f"max_body_bytes is {max_bytes} bytes a body, got more")
    return chunk


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """`body` as it was before `encoding` (the text of `Content-Encoding`), never more than `max_bytes`.

    Raises UnknownMediaType for an encoding we do not read, MalformedBody where the body is not in it,
    TooLarge where it unpacks to more.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnknownMediaType(
            f"content-encoding must be {', '.join(_WINDOW_BITS)} or left out, got {show(encoding)}"
        )
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"the body must be {encoding} by its content-encoding: {error}") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"max_body_bytes is {max_bytes} bytes a body, got more once unpacked")
    if not inflate.eof or inflate.unused_data:
        raise MalformedBody(f"the body must be one {encoding} stream, whole and with nothing after it")
    return plain


def accepted(request: Request, media_type: str) -> str:
    """`media_type`, if `Accept` allows it; its most specific entry decides. Raises NotAcceptable."""
    accepts = [value for name, value in request.scope["headers"] if name == b"accept"]
    if accepts in ([], [b"*/*"], [media_type.encode()]):  # nearly always
        return media_type
    accept = ", ".join(request.headers.getlist("accept"))
    ranges = {}
    for entry in accept.split(","):
        pattern, *parameters = (part.strip().lower() for part in entry.split(";"))
        if not pattern:  # a comma too many (RFC 9110, 5.6.1)
            continue
        ranges[pattern] = not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    if not ranges:
        return media_type
    for pattern in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if pattern in ranges:
            if ranges[pattern]:
                return media_type
            break
    raise NotAcceptable(f"accept must allow {media_type}, which this request asks for, got {show(accept)}")


def matches(request: Request, etag: str) -> bool:
    """True if `If-None-Match` names `etag`, or "*". RFC 9110, 13.1.2: a weak comparison."""
    listed = ",".join(request.headers.getlist("if-none-match")).split(",")
    tags = [tag.strip().removeprefix("W/") for tag in listed]
    return "*" in tags or etag in tags


@asynccontextmanager
async def _deadline(timeout_ms: int, what: str) -> AsyncIterator[None]:
    """Give the block `timeout_ms` milliseconds. Raises DeadlineExceeded saying `what` did not happen."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"timeout_ms passed: {what} within {timeout_ms} ms") from None
