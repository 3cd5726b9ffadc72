"""One system call and one packet for an answer: its head waits for its body.

uvicorn writes an answer's head and its body apart, and each write goes to the kernel at once: two
system calls, and two times that the caller wakes to read.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_MUCH_BYTES: Final = 2**16


class GatheringTransport:
    """A transport that sends together what is written before the event loop goes on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` soon, after what waits already; at once if it is much: the caller may not take it."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        if len(data) >= _MUCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._transport.writelines(waiting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
