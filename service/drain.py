"""How the API process ends: drained on SIGTERM, at once when its parent is gone."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import signal
import socket
import struct
from contextlib import suppress
from typing import Any, Final

from service.serving import Serving

_LAST_ANSWERS_S: Final = 0.1  # for what already waits in the listener's backlog: it gets its 503
_SO_ATTACH_FILTER: Final = 26  # Linux; the socket module does not name it
_BPF_RETURN: Final = 0x06


def end_with_parent(loop: asyncio.AbstractEventLoop) -> None:
    """End this process when its parent does, however that ends."""
    parent = os.pidfd_open(os.getppid())
    loop.add_reader(parent, os._exit, 1)


def drain_on_sigterm(loop: asyncio.AbstractEventLoop, serving: Serving) -> None:
    """Drain on SIGTERM, which the parent sends, then let uvicorn end.

    SIGINT is the parent's alone (Ctrl-C reaches both), and so is what a second signal means.
    """
    uvicorn_exit: Any = signal.getsignal(signal.SIGTERM)  # set by uvicorn before the lifespan begins
    tasks: list[asyncio.Task[None]] = []

    async def drain() -> None:
        left_s = await serving.drain()
        # For answers on their way to slow readers; not less, or uvicorn would cut those it just began.
        uvicorn_exit.__self__.config.timeout_graceful_shutdown = max(1, math.ceil(left_s))
        for listener in uvicorn_exit.__self__.servers:
            for one in listener.sockets:
                _take_no_connections(one.fileno())
        await asyncio.sleep(_LAST_ANSWERS_S)
        uvicorn_exit(signal.SIGTERM, None)

    def on_sigterm() -> None:
        if not tasks:
            tasks.append(loop.create_task(drain()))

    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take_no_connections(listener_fd: int) -> None:
    """Let the kernel drop new connection attempts on a listening socket, and keep those it holds.

    Closing a listener resets connections that wait in its backlog, with requests that were sent.
    With a filter that passes no packet (SO_ATTACH_FILTER, one instruction: return 0) nothing is
    added to the backlog while we answer what is in it; a dropped attempt is repeated by the
    caller's kernel and then refused, so no request of its was ever sent.
    """
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    with socket.socket(fileno=os.dup(listener_fd)) as listener, suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
