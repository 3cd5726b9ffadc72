"""How the API process ends: drained on SIGTERM, at once when its parent is gone."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from typing import Any, Final

from service.serving import Serving

_LAST_CONNECTIONS_S: Final = 0.1  # for those that wait in the listener's backlog
_LAST_REQUESTS_S: Final = 1.0  # for what is on its way on a connection that is open: it gets its 503
_POLL_S: Final = 0.02
_IP_MINTTL: Final = 21  # Linux; the socket module names neither
_IPV6_MINHOPCOUNT: Final = 73
_LARGEST_TTL: Final = 255


def end_with_parent(loop: asyncio.AbstractEventLoop) -> None:
    """End this process when its parent does, however that ends."""
    parent = os.pidfd_open(os.getppid())
    loop.add_reader(parent, os._exit, 1)


def drain_on_sigterm(loop: asyncio.AbstractEventLoop, serving: Serving) -> None:
    """Drain on SIGTERM, which the parent sends, then let uvicorn end.

    SIGINT is the parent's alone (Ctrl-C reaches both), and so is what a second signal means.
    """
    uvicorn_exit: Any = signal.getsignal(signal.SIGTERM)  # set by uvicorn before the lifespan begins
    uvicorn = uvicorn_exit.__self__
    tasks: list[asyncio.Task[None]] = []

    async def drain() -> None:
        while not uvicorn.started:  # SIGTERM came first
            await asyncio.sleep(_POLL_S)
        until = await serving.drain() + loop.time()
        for listener in uvicorn.servers:
            for one in listener.sockets:
                _take_no_connections(one.fileno())
        await asyncio.sleep(_LAST_CONNECTIONS_S)
        await callers_have_closed()
        # For answers on their way to slow readers; not less, or uvicorn would cut those it just began.
        uvicorn.config.timeout_graceful_shutdown = max(1, math.ceil(until - loop.time()))
        uvicorn_exit(signal.SIGTERM, None)

    async def callers_have_closed() -> None:
        """Return when no connection is open, or those that are have been silent for long enough.

        uvicorn closes a silent one at once, and a caller that was just sending its next request would see
        it lost. Each answer now says that the connection ends, so those in use end by themselves.
        """
        deadline = loop.time() + _LAST_REQUESTS_S
        while uvicorn.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)

    def on_sigterm() -> None:
        if not tasks:
            tasks.append(loop.create_task(drain()))

    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take_no_connections(listener_fd: int) -> None:
    """Let the kernel drop new connection attempts on a listening socket, and keep those it holds.

    Closing a listener resets connections that wait in its backlog, with requests that were sent. With the
    largest TTL as the least that is taken (IP_MINTTL; routers and hosts send 64 or 128) nothing is added to
    the backlog while we answer what is in it; a dropped attempt is repeated by the caller's kernel and then
    refused, so no request of its was ever sent. A socket filter would do the same, but not every kernel lets
    a user who is not root attach one.
    """
    with socket.socket(fileno=os.dup(listener_fd)) as listener:
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, _LARGEST_TTL)
        listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _LARGEST_TTL)  # a dual-stack one's IPv4, too
