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
        self._left: dict[T, tuple[int, int]] = {}  # of each: its next row, and where its rows end
        self._weights: dict[T, int] = {}  # of the requests whose rows weigh more than 1
        self.rows = 0
        """Rows that wait, over all requests; one of weight K counts as K."""

    def add(self, request: T, rows: int, weight: int = 1) -> None:
        """Let `rows` rows of `request` wait, each counting as `weight`. A request waits once at a time."""
        assert rows > 0
        assert request not in self._left
        self._ring.append(request)
        self._left[request] = 0, rows
        self.rows += rows * weight
        if weight > 1:
            self._weights[request] = weight

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        if request not in self._left:
            return 0
        start, end = self._left[request]
        rows = end - start
        self.rows -= rows * self._weights.get(request, 1)
        self._forget(request)
        self._ring.remove(request)
        return rows

    def take(self, max_rows: int, alone: bool = True) -> list[Segment[T]]:
        """Take up to `max_rows` rows: equal shares over the requests that wait, one segment a request.

        Not `alone`: they come behind rows of another queue.
        """
        if self._weights:
            return self._take_weighed(max_rows, alone)
        room = max_rows if max_rows < self.rows else self.rows
        self.rows -= room
        taken: dict[T, Segment[T]] = {}
        while room > 0:
            share = room // len(self._ring) or 1
            for _ in range(min(len(self._ring), room)):
                request = self._ring.popleft()
                start, end = self._left.pop(request)
                stop = start + share
                if stop < end:
                    self._left[request] = stop, end
                    self._ring.append(request)
                else:
                    stop = end
                if request in taken:
                    taken[request].stop = stop
                else:
                    taken[request] = Segment(request, start, stop)
                room -= stop - start
        return list(taken.values())

    def _take_weighed(self, max_rows: int, alone: bool) -> list[Segment[T]]:
        """The same by weight. A row heavier than a whole microbatch is taken alone, when its turn comes."""
        room, taken = max_rows, dict[T, tuple[int, int]]()
        passed_over: list[T] = []  # too heavy for what room is left: they are first in the next microbatch
        while room > 0 and self._ring:
            share = max(1, room // len(self._ring))
            for _ in range(len(self._ring)):
                request = self._ring.popleft()
                weight = self._weights.get(request, 1)
                if weight > room and (taken or not alone):
                    passed_over.append(request)
                    continue
                start, end = self._left[request]
                stop = min(start + max(1, min(share, room) // weight), end)
                taken[request] = taken.get(request, (start, start))[0], stop
                room -= (stop - start) * weight
                self.rows -= (stop - start) * weight
                if stop == end:
                    self._forget(request)
                else:
                    self._left[request] = stop, end
                    self._ring.append(request)
                if room <= 0:
                    break
        self._ring.extendleft(reversed(passed_over))
        return [Segment(request, start, stop) for request, (start, stop) in taken.items()]

    def _forget(self, request: T) -> None:
        del self._left[request]
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
        self.rows = 0
        """Rows that wait, over all requests; one of weight K counts as K."""

    def add(self, request: T, rows: int, priority: Priority = "interactive", weight: int = 1) -> None:
        """Let `rows` rows of `request` wait, each counting as `weight`. A request waits once at a time."""
        (self._batch if priority == "batch" else self._interactive).add(request, rows, weight)
        self.rows += rows * weight

    def discard(self, request: T) -> int:
        """Forget the rows of `request` that were not taken yet; return how many."""
        rows = self._interactive.discard(request) + self._batch.discard(request)
        self.rows = self._interactive.rows + self._batch.rows
        return rows

    def take(self, max_rows: int) -> list[Segment[T]]:
        """Take up to `max_rows` rows, one segment a request."""
        if not self._batch.rows:
            taken = self._interactive.take(max_rows)
            self.rows = self._interactive.rows
            return taken
        is_turn = self._passed_over + 1 >= BATCH_TURN
        first, second = (self._batch, self._interactive) if is_turn else (self._interactive, self._batch)
        waiting = first.rows
        taken = first.take(max_rows)
        more = second.take(max(0, max_rows - (waiting - first.rows)), alone=not taken)
        interactive, batch = (more, taken) if is_turn else (taken, more)
        self._passed_over = 0 if batch else self._passed_over + 1
        self.rows = self._interactive.rows + self._batch.rows
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
        rows = waiting if waiting < self.rows else self.rows
        if not self._buckets or bucket_of(rows, self._buckets) <= 2 * rows:
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
