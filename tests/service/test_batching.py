"""Packing rows: every row once, in order, in fair shares."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from service.batching import MicrobatchSize, RowQueue


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 16))
def test_every_row_is_taken_once_and_in_order(sizes: list[int], max_rows: int) -> None:
    queue: RowQueue[int] = RowQueue()
    for request, rows in enumerate(sizes):
        queue.add(request, rows)
    taken: dict[int, list[int]] = defaultdict(list)

    while queue.rows:
        segments = queue.take(max_rows)
        assert 0 < sum(map(len, segments)) <= max_rows
        assert len({segment.request for segment in segments}) == len(segments)
        for segment in segments:
            taken[segment.request] += range(segment.start, segment.stop)

    assert taken == {request: list(range(rows)) for request, rows in enumerate(sizes)}
    assert queue.take(max_rows) == []


def test_a_small_request_is_in_the_next_microbatch_however_large_the_others_are() -> None:
    queue: RowQueue[str] = RowQueue()
    queue.add("large", 1000)
    queue.take(16)
    queue.add("small", 1)

    segments = queue.take(16)

    assert {segment.request: len(segment) for segment in segments} == {"large": 15, "small": 1}


def test_large_requests_share_a_microbatch_evenly() -> None:
    queue: RowQueue[str] = RowQueue()
    for name in "abcd":
        queue.add(name, 500)

    assert [len(segment) for segment in queue.take(16)] == [4, 4, 4, 4]


def test_with_more_requests_than_rows_each_gets_its_turn() -> None:
    queue: RowQueue[int] = RowQueue()
    for request in range(10):
        queue.add(request, 5)

    first = {segment.request for segment in queue.take(4)}
    second = {segment.request for segment in queue.take(4)}

    assert first == {0, 1, 2, 3}
    assert second == {4, 5, 6, 7}


def test_a_discarded_request_leaves_no_rows() -> None:
    queue: RowQueue[str] = RowQueue()
    queue.add("leaves", 10)
    queue.add("stays", 3)
    queue.take(4)

    freed = queue.discard("leaves")

    assert freed == 8
    assert queue.discard("leaves") == 0
    assert queue.rows == 1
    assert [segment.request for segment in queue.take(16)] == ["stays"]


def test_a_microbatch_holds_what_fits_into_its_time_by_what_rows_cost() -> None:
    size = MicrobatchSize(max_rows=16, max_s=0.02)
    assert size.rows == 16

    for _ in range(50):
        size.measured(rows=4, device_s=0.02)

    assert size.rows == 4
    for _ in range(50):
        size.measured(rows=1, device_s=0.5)
    assert size.rows == 1
    for _ in range(50):
        size.measured(rows=16, device_s=0.001)
    assert size.rows == 16
