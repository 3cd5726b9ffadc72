"""Which rows run next: packing rows of many requests into microbatches.

Arithmetic on row counts: no clock, no thread, no I/O. Rows are taken round-robin over the
requests that wait, so that a request for 1,000 rows cannot starve a request for one; a request
larger than a microbatch is split over several. Interactive requests come before batch requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

T = TypeVar("T", bound=Hashable)
Priority = Literal["interactive", "batch"]
BATCH_TURN: Final = 8
"""While both kinds of request wait, batch requests come first in one microbatch of so many."""


@dataclass(slots=True)  # frozen would take three times as long to make
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
        self._weights: dict[T, int] = {}  # of the requests whose rows weigh more than 1
        self.rows = 0
        """Rows that wait, over all requests; one of weight K counts as K."""

    def add(self, request: T, rows: int, weight: int = 1) -> None:
        """Let `rows` rows of `request` wait, each counting as `weight`. A request waits once at a time."""
        assert rows > 0
        assert request not in self._total_rows
        self._ring.append(request)
        self._next_row[request] = 0
        self._total_rows[request] = rows
        self.rows += rows * weight
        if weight > 1:
            self._weights[request] = weight

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        if request not in self._total_rows:
            return 0
        rows = self._total_rows[request] - self._next_row[request]
        self.rows -= rows * self._weights.get(request, 1)
        self._forget(request)
        self._ring.remove(request)
        return rows

    def take(self, max_rows: int) -> list[Segment[T]]:
        """Take up to `max_rows` rows: equal shares over the requests that wait, one segment a request."""
        if self._weights:
            return self._take_weighed(max_rows)
        room = min(max_rows, self.rows)
        self.rows -= room
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

    def _take_weighed(self, max_rows: int) -> list[Segment[T]]:
        """The same by weight. A row that is heavier than `max_rows` is taken, alone, when its turn comes."""
        room, taken = max_rows, dict[T, tuple[int, int]]()
        passed_over: list[T] = []  # too heavy for what room is left: they are first in the next microbatch
        while room > 0 and self._ring:
            share = max(1, room // len(self._ring))
            for _ in range(len(self._ring)):
                request = self._ring.popleft()
                weight = self._weights.get(request, 1)
                if weight > room and (taken or room < max_rows):
                    passed_over.append(request)
                    continue
                start, total = self._next_row[request], self._total_rows[request]
                stop = min(start + max(1, min(share, room) // weight), total)
                taken[request] = taken.get(request, (start, start))[0], stop
                room -= (stop - start) * weight
                self.rows -= (stop - start) * weight
                if stop == total:
                    self._forget(request)
                else:
                    self._next_row[request] = stop
                    self._ring.append(request)
                if room <= 0:
                    break
        self._ring.extendleft(reversed(passed_over))
        return [Segment(request, start, stop) for request, (start, stop) in taken.items()]

    def _forget(self, request: T) -> None:
        del self._next_row[request], self._total_rows[request]
        if self._weights:
            self._weights.pop(request, None)


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
        """Rows that wait, over all requests; one of weight K counts as K."""
        return self._interactive.rows + self._batch.rows

    def add(self, request: T, rows: int, priority: Priority = "interactive", weight: int = 1) -> None:
        """Let `rows` rows of `request` wait, each counting as `weight`. A request waits once at a time."""
        (self._batch if priority == "batch" else self._interactive).add(request, rows, weight)

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        return self._interactive.discard(request) + self._batch.discard(request)

    def take(self, max_rows: int) -> list[Segment[T]]:
        """Take up to `max_rows` rows, one segment a request."""
        if not self._batch.rows:
            return self._interactive.take(max_rows)
        waiting = self.rows
        if self._passed_over + 1 >= BATCH_TURN:
            batch = self._batch.take(max_rows)
            interactive = self._interactive.take(max(0, max_rows - (waiting - self.rows)))
        else:
            interactive = self._interactive.take(max_rows)
            batch = self._batch.take(max(0, max_rows - (waiting - self.rows)))
        self._passed_over = 0 if batch else self._passed_over + 1
        return interactive + batch


def bucket_of(rows: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds `rows`; `rows` itself where there are none."""
    return next((bucket for bucket in buckets if bucket >= rows), buckets[-1]) if buckets else rows


class MicrobatchSize:
    """How many rows one microbatch may hold: at most `max_rows`, at most `max_s` of device time.

    Costs are exponentially weighted means of what was measured; until something was, `max_rows` holds.
    Without buckets a row has a cost. With them a bucket has, however many of its rows are padding: no more
    than a larger one, and no more than its share of a smaller one's, so that one slow run is soon forgotten.
    """

    _WEIGHT: Final = 0.2

    def __init__(self, max_rows: int, max_s: float, buckets: Sequence[int] = ()) -> None:
        self._max_rows = max_rows
        self._max_s = max_s
        self._buckets = buckets
        self._costs_s: dict[int, float] = {}  # by bucket; without buckets that of one row
        self.rows = max_rows
        """How many rows a microbatch may hold now."""

    @property
    def row_s(self) -> float | None:
        """Measured device seconds a row (with buckets: in a full microbatch), or None before the first."""
        return self.seconds(self.rows) / self.rows if self._costs_s else None

    def _rows_in_time(self) -> int:
        if not self._buckets:
            row_s = self._costs_s[1]
            return max(1, min(self._max_rows, int(self._max_s / row_s))) if row_s else self._max_rows
        quick = [bucket for bucket in self._buckets if self.seconds(bucket) <= self._max_s]
        return min(self._max_rows, quick[-1] if quick else self._buckets[0])

    def fit(self, waiting: int) -> int:
        """How many of `waiting` rows to take: with no more padding than rows, where a bucket allows."""
        rows = min(waiting, self.rows)
        if bucket_of(rows, self._buckets) <= 2 * rows:
            return rows
        return max((bucket for bucket in self._buckets if bucket < rows), default=rows)

    def seconds(self, rows: int) -> float:
        """What a microbatch of `rows` rows should take; 0 before the first measurement."""
        bucket = bucket_of(rows, self._buckets)
        costs = (cost_s * max(1.0, bucket / size) for size, cost_s in self._costs_s.items())
        return min(costs, default=0.0)

    def measured(self, rows: int, device_s: float) -> None:
        """Take in that `rows` rows, padding among them, took `device_s` seconds."""
        size, cost_s = (rows, device_s) if self._buckets else (1, device_s / rows)
        before_s = self._costs_s.get(size, cost_s)
        self._costs_s[size] = before_s + self._WEIGHT * (cost_s - before_s)
        self.rows = self._rows_in_time()
