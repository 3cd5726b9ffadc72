"""Which rows run next: packing rows of many requests into microbatches.

Arithmetic on row counts: no clock, no thread, no I/O. Rows are taken round-robin over the
requests that wait, so that a request for 1,000 rows cannot starve a request for one; a request
larger than a microbatch is split over several. Interactive requests come before batch requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

T = TypeVar("T", bound=Hashable)
Priority = Literal["interactive", "batch"]
BATCH_TURN: Final = 8
"""While both kinds of request wait, batch requests come first in one microbatch of so many."""


@dataclass(frozen=True)
class Segment(Generic[T]):
    """Rows `start` to `stop` (exclusive) of one request."""

    request: T
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class RowQueue(Generic[T]):
    """Requests that wait for rows to be run, in the order in which they get their next rows."""

    def __init__(self) -> None:
        self._ring: deque[T] = deque()
        self._next_row: dict[T, int] = {}
        self._total_rows: dict[T, int] = {}
        self._waiting_rows = 0

    @property
    def rows(self) -> int:
        """Rows that wait, over all requests."""
        return self._waiting_rows

    def add(self, request: T, rows: int) -> None:
        """Let `rows` rows of `request` wait. A request waits once at a time."""
        assert rows > 0
        assert request not in self._total_rows
        self._ring.append(request)
        self._next_row[request] = 0
        self._total_rows[request] = rows
        self._waiting_rows += rows

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        if request not in self._total_rows:
            return 0
        rows = self._total_rows[request] - self._next_row[request]
        self._forget(request)
        self._ring.remove(request)
        self._waiting_rows -= rows
        return rows

    def take(self, max_rows: int) -> list[Segment[T]]:
        """Take up to `max_rows` rows: equal shares over the requests that wait, one segment a request."""
        room = min(max_rows, self._waiting_rows)
        self._waiting_rows -= room
        first_row: dict[T, int] = {}
        next_row: dict[T, int] = {}
        while room > 0:
            share = max(1, room // len(self._ring))
            for _ in range(min(len(self._ring), room)):
                request = self._ring.popleft()
                start, total = self._next_row[request], self._total_rows[request]
                stop = min(start + share, total)
                first_row.setdefault(request, start)
                next_row[request] = stop
                room -= stop - start
                if stop == total:
                    self._forget(request)
                else:
                    self._next_row[request] = stop
                    self._ring.append(request)
        return [Segment(request, first_row[request], stop) for request, stop in next_row.items()]

    def _forget(self, request: T) -> None:
        del self._next_row[request], self._total_rows[request]


class PriorityRowQueue(Generic[T]):
    """Interactive requests before batch requests, which get the room that is left, and a turn of their own.

    Orders, never preempts: rows once taken are run. Without the turn, one microbatch in BATCH_TURN,
    interactive callers who fill every microbatch would hold batch requests off until their deadline.
    """

    def __init__(self) -> None:
        self._interactive: RowQueue[T] = RowQueue()
        self._batch: RowQueue[T] = RowQueue()
        self._passed_over = 0  # microbatches since batch rows, though they waited, were in one

    @property
    def rows(self) -> int:
        """Rows that wait, over all requests."""
        return self._interactive.rows + self._batch.rows

    def add(self, request: T, rows: int, priority: Priority = "interactive") -> None:
        """Let `rows` rows of `request` wait. A request waits once at a time."""
        (self._batch if priority == "batch" else self._interactive).add(request, rows)

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        return self._interactive.discard(request) + self._batch.discard(request)

    def take(self, max_rows: int) -> list[Segment[T]]:
        """Take up to `max_rows` rows, one segment a request."""
        if not self._batch.rows:
            return self._interactive.take(max_rows)
        if self._passed_over + 1 >= BATCH_TURN:
            batch = self._batch.take(max_rows)
            interactive = self._interactive.take(max_rows - sum(map(len, batch)))
        else:
            interactive = self._interactive.take(max_rows)
            batch = self._batch.take(max_rows - sum(map(len, interactive)))
        self._passed_over = 0 if batch else self._passed_over + 1
        return interactive + batch


class MicrobatchSize:
    """How many rows one microbatch may hold: at most `max_rows`, at most `max_s` of device time.

    The cost of a row is an exponentially weighted mean of what was measured; until something was,
    `max_rows` holds.
    """

    _WEIGHT = 0.2

    def __init__(self, max_rows: int, max_s: float) -> None:
        self._max_rows = max_rows
        self._max_s = max_s
        self._row_s: float | None = None

    @property
    def row_s(self) -> float | None:
        """Measured device seconds a row, or None before the first measurement."""
        return self._row_s

    @property
    def rows(self) -> int:
        if not self._row_s:
            return self._max_rows
        return max(1, min(self._max_rows, int(self._max_s / self._row_s)))

    def measured(self, rows: int, device_s: float) -> None:
        """Take in that `rows` rows took `device_s` seconds."""
        row_s = device_s / rows
        self._row_s = row_s if self._row_s is None else self._row_s + self._WEIGHT * (row_s - self._row_s)
