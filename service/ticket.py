"""A request on its way from accepted to made: rows, images so far, times, and how it ends.

Whatever ends a request early (deadline, caller gone, crashed workers, drain) fails its ticket; who
waits for it is told the reason, and the dispatcher drops rows of ended tickets.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.batching import Priority
from service.encoding import Format, new_npy
from service.errors import CallerLeft, DeadlineExceeded
from service.rows import Rows

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Timing:
    """Where one request's time went, in seconds."""

    queue_s: float = 0.0
    """From accepted to the first device start."""
    device_s: float = 0.0
    """Device time of the microbatches that held its rows."""
    encode_s: float = 0.0
    """Encoding its images, summed over the processes and threads that did it."""
    input_s: float = 0.0
    """Writing those microbatches for their workers."""
    output_s: float = 0.0
    """Taking their pixels from their workers."""

    def facts(self) -> dict[str, float]:
        """What the request's log line says of it, in milliseconds."""
        return {
            "queue_ms": round(self.queue_s * 1000, 2),
            "device_ms": round(self.device_s * 1000, 2),
            "encode_ms": round(self.encode_s * 1000, 2),
        }

    def header(self) -> bytes:
        """The value of `Server-Timing`, in milliseconds."""
        return b"queue;dur=%.2f, device;dur=%.2f, encode;dur=%.2f" % (
            self.queue_s * 1000,
            self.device_s * 1000,
            self.encode_s * 1000,
        )


class Ticket:
    """One accepted request: its rows, the images made so far, and how it ends.

    It ends when every row has its image, or when something fails it. One waits for that end: a call
    (`when_ended`) or a coroutine (`made`).
    """

    npy = memoryview(b"")
    """Pixels as a .npy file, in which `images` lie."""
    realness: npt.NDArray[np.float64] | None = None
    """[N]; how real each image is, where D has something to do with these rows."""
    timeout_s = math.inf
    """From accepted until it must be answered."""
    ended = False
    """Nothing more is needed: made, failed, or nobody waits."""
    error: Exception | None = None
    """What it failed with, once it has ended."""
    _when_ended: Callable[[], object] | None = None

    def __init__(
        self,
        rows: Rows,
        fmt: Format | None,
        img_shape: tuple[int, int, int],
        priority: Priority = "interactive",
    ) -> None:
        self.rows = rows
        self.priority: Priority = priority
        self.fmt = fmt
        """What the images become: files of this format; None for pixels."""
        n = len(rows)
        self.images: Any
        """[N, H, W, C] uint8, or a list of N files."""
        if fmt is None:
            self.npy, self.images = new_npy((n, *img_shape))
        else:
            self.images = [None] * n
        self.accepted = time.monotonic()
        self.timing = Timing()
        self._missing = n
        if rows.judging is not None:
            self.realness = np.zeros(n)

    @property
    def succeeded(self) -> bool:
        """Every image is there."""
        return not self._missing and self.error is None

    @property
    def deadline(self) -> float:
        """When it must be answered (monotonic)."""
        return self.accepted + self.timeout_s

    @property
    def seconds(self) -> float:
        """Since it was accepted."""
        return time.monotonic() - self.accepted

    def when_ended(self, call: Callable[[], object]) -> None:
        """Have `call` called once, when the request ends. (A future would cost one more turn of the event
        loop, and a system call with it.)
        """
        assert self._when_ended is None  # one waits
        self._when_ended = call
        if self.ended:
            asyncio.get_running_loop().call_soon(self._end)

    async def made(self) -> None:
        """Return when every row has its image. Raises what failed the request."""
        if not self.ended:
            ended = asyncio.Event()
            self.when_ended(ended.set)
            try:
                await ended.wait()
            finally:
                self.ended = True  # also where nobody waits any longer
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # or the error's traceback would hold the ticket that holds the error

    def place(self, start: int, images: Sequence[Any] | npt.NDArray[np.uint8]) -> None:
        """Take in the images of the rows from `start` on: files, or pixels that lie in `images` already."""
        if self.fmt is not None:
            self.images[start : start + len(images)] = images
        self._missing -= len(images)
        if not self._missing and not self.ended:
            self._end()

    def late(self) -> None:
        """End the request: its time is up."""
        timeout_ms = round(1000 * self.timeout_s)
        self.fail(DeadlineExceeded(f"timeout_ms passed: the images were not made within {timeout_ms} ms"))

    def caller_left(self) -> None:
        """End the request: nobody waits for it."""
        self.fail(CallerLeft("the caller closed the connection"))

    def fail(self, error: Exception) -> None:
        """End the request with `error`, unless it has ended."""
        if not self.ended:
            self.error = error
            self._end()

    def _end(self) -> None:
        self.ended = True
        call, self._when_ended = self._when_ended, None  # it may hold this ticket, and so its images
        if call is not None:
            try:
                call()
            except Exception:  # other requests' images came with these
                logger.exception("a request of %d rows could not be answered", len(self.rows))


@dataclass(slots=True)  # frozen would take three times as long to make
class Portion:
    """Some rows of one request, made."""

    ticket: Ticket
    start: int
    """The first one's row in the request."""
    images: npt.NDArray[np.uint8] | list[bytes]
    """[n, H, W, C], or n files"""
    encode_s: float = 0.0
    """What making the files took."""
