"""The socket between the API process and its workers.

One SOCK_SEQPACKET Unix socket a worker: a packet is one JSON message, order is kept, and the
death of either side is an end-of-file at the other, at once. The address is abstract (no file
is left behind) and guarded twice: the peer must run as our user and show the server's token.

    worker -> API   hello    {"token", "model"}
    API -> worker   load     {"load": line, "address", "digest", "rows", "slots"} + the memory's descriptor
    worker -> API   loaded   {"loaded": line, "provider", "runtime", "golden_difference",
                              "realness_difference", "arithmetic"}
                             or {"refused": line, "error"}
    API -> worker   run      {"run": id, "line", "slot", "rows"}, and {"judged": images to make} for D
    worker -> API   done     {"done": id, "device_s", "started": monotonic}   or {"failed": id, "error"}
    API -> worker   drop     {"drop": line}
    API -> worker   ping     {"ping": 0}: is it alive?
    worker -> API   pong     {"pong": 0}, between microbatches

What a worker serves it is told here, at its start as at a reload: the API process alone knows.
A `line` is one version being served; its number names it on one connection.

Nothing is pickled. LitServe would send these through its manager queues, where a worker killed
while it waits makes the manager swallow the next message, and each microbatch costs four calls to
a further process.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_MAX_PACKET_BYTES = 16_384
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class Address:
    """Where workers of one server connect, and what they show there."""

    name: str = field(default_factory=lambda: f"\0ganserve-{os.getpid()}-{secrets.token_hex(8)}")
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)


def listen(address: Address) -> socket.socket:
    """Open the listening socket, non-blocking."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address.name)
    listener.listen(256)
    listener.setblocking(False)
    return listener


def connect(address: Address) -> Channel:
    """Connect to a server's listener, blocking."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address.name)
    return Channel(connection)


def accept(listener: socket.socket) -> tuple[Channel, Process] | None:
    """Take one waiting connection, non-blocking; None if there is none, or it is another user's."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    connection.setblocking(False)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    if uid == os.getuid():
        with suppress(OSError):  # it is gone already
            return Channel(connection), Process(pid)
    connection.close()
    return None


class Process:
    """The process at the other end, held by a descriptor: its pid may come to name another, this cannot."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no such process."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL; does nothing if it ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptor; the process is left as it is."""
        os.close(self._fd)


class Channel:
    """One end of a connection: JSON messages, each a packet."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send one message, with a descriptor if given. Raises OSError if the peer is gone."""
        packet = json.dumps(message).encode()
        assert len(packet) <= _MAX_PACKET_BYTES
        if fd is None:
            self._socket.send(packet)
        else:
            socket.send_fds(self._socket, [packet], [fd])

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None at end-of-file. Non-blocking ends raise BlockingIOError."""
        packet = self._socket.recv(_MAX_PACKET_BYTES)
        return json.loads(packet) if packet else None

    def receive_with_fd(self) -> tuple[dict[str, Any], int | None] | None:
        """Return the next message and the descriptor that came with it, if any, or None at end-of-file."""
        packet, fds, _, _ = socket.recv_fds(self._socket, _MAX_PACKET_BYTES, 1)
        return (json.loads(packet), fds[0] if fds else None) if packet else None

    def close(self) -> None:
        self._socket.close()
