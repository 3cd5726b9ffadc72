"""The socket between the API process and its workers.

One SOCK_SEQPACKET Unix socket a worker: a packet is one message, order is kept, and the death of
either side is an end-of-file at the other, at once. The address is abstract (no file
is left behind) and guarded twice: the peer must run as our user and show the server's token.

    worker -> API   hello    {"token", "model"}
    API -> worker   load     {"load": line, "address", "digest", "rows", "slots"} + the memory's descriptor
    worker -> API   loaded   {"loaded": line, "provider", "runtime", "golden_difference",
                              "realness_difference", "arithmetic"}
                             or {"refused": line, "error"}
    API -> worker   run      `Run`
    worker -> API   done     `Done`, or {"failed": id, "error"}
    API -> worker   drop     {"drop": line}
    API -> worker   ping     {"ping": 0}: is it alive?
    worker -> API   pong     {"pong": 0}, between microbatches

What a worker serves it is told here, at its start as at a reload: the API process alone knows.
A `line` is one version being served; its number names it on one connection.

Messages are JSON, but for the two of each microbatch, which are fixed fields: their JSON was a seventh of
the instructions that serving adds to making one image.

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
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

_MAX_PACKET_BYTES: Final = 16_384
_FD_BYTES: Final = 4
_FD_SPACE: Final = socket.CMSG_LEN(_FD_BYTES)
_PEER_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_RUN_KIND, _RUN_FIELDS = b"r", struct.Struct("<c5q")  # JSON begins with {
_DONE_KIND, _DONE_FIELDS = b"d", struct.Struct("<c2q2d")


class Run(NamedTuple):
    """The order to run one microbatch."""

    run: int
    """Its id."""
    line: int
    slot: int
    rows: int
    judged: int
    """Images to make where D has something to do with these rows; else 0."""


class Done(NamedTuple):
    """One microbatch was run."""

    run: int
    bucket: int
    """Rows that the device ran, padding among them."""
    device_s: float
    started: float
    """When (monotonic)."""


Message = dict[str, Any] | Run | Done


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
    """One end of a connection: messages, each a packet."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, fd: int | None = None) -> None:
        """Send one message, with a descriptor if given. Raises OSError if the peer is gone."""
        packet = _packed(message)
        assert len(packet) <= _MAX_PACKET_BYTES
        if fd is None:
            self._socket.send(packet)
        else:
            socket.send_fds(self._socket, [packet], [fd])

    def receive(self) -> Message | None:
        """Return the next message, or None at end-of-file. Non-blocking ends raise BlockingIOError."""
        packet = self._socket.recv(_MAX_PACKET_BYTES)
        return _unpacked(packet) if packet else None

    def receive_with_fd(self) -> tuple[Message, int | None] | None:
        """Return the next message and the descriptor that came with it, if any, or None at end-of-file."""
        packet, ancillary, _, _ = self._socket.recvmsg(_MAX_PACKET_BYTES, _FD_SPACE)
        fd = None
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fd = int.from_bytes(data[:_FD_BYTES], sys.byteorder)
        return (_unpacked(packet), fd) if packet else None

    def close(self) -> None:
        self._socket.close()


def _packed(message: Message) -> bytes:
    if isinstance(message, Run):
        return _RUN_FIELDS.pack(_RUN_KIND, *message)
    if isinstance(message, Done):
        return _DONE_FIELDS.pack(_DONE_KIND, *message)
    return json.dumps(message).encode()


def _unpacked(packet: bytes) -> Message:
    kind = packet[:1]
    if kind == _RUN_KIND:
        return Run._make(_RUN_FIELDS.unpack(packet)[1:])
    if kind == _DONE_KIND:
        return Done._make(_DONE_FIELDS.unpack(packet)[1:])
    message: dict[str, Any] = json.loads(packet)
    return message
