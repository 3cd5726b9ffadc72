"""Packing rows: every row once, in order, in fair shares."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import BATCH_TURN, MicrobatchSize, Priority, PriorityRowQueue, RowQueue, bucket_of


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


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 24)), min_size=1, max_size=10),
    st.integers(1, 16),
)
def test_rows_that_weigh_more_are_taken_once_in_order_and_fill_no_microbatch_beyond_its_room(
    requests: list[tuple[int, int]], max_rows: int
) -> None:
    queue: RowQueue[int] = RowQueue()
    for request, (rows, weight) in enumerate(requests):
        queue.add(request, rows, weight)
    taken: dict[int, list[int]] = defaultdict(list)
    assert queue.rows == sum(rows * weight for rows, weight in requests)

    for _ in range(queue.rows + 1):
        before, segments = queue.rows, queue.take(max_rows)
        weight = sum(len(one) * requests[one.request][1] for one in segments)
        assert before - queue.rows == weight
        assert weight <= max_rows or [len(one) for one in segments] == [1]  # too heavy: alone
        for one in segments:
            taken[one.request] += range(one.start, one.stop)

    assert queue.rows == 0
    assert taken == {request: list(range(rows)) for request, (rows, _) in enumerate(requests)}


def test_heavy_rows_and_light_ones_take_turns() -> None:
    queue: RowQueue[str] = RowQueue()
    queue.add("heavy", 3, weight=64)
    queue.add("light", 40)

    microbatches = [{one.request: len(one) for one in queue.take(16)} for _ in range(6)]

    assert microbatches == [
        {"heavy": 1},
        {"light": 16},
        {"heavy": 1},
        {"light": 16},
        {"heavy": 1},
        {"light": 8},
    ]


def test_what_is_discarded_gives_its_whole_weight_back() -> None:
    queue: RowQueue[str] = RowQueue()
    queue.add("leaves", 5, weight=12)
    queue.add("stays", 2)
    queue.take(16)

    queue.discard("leaves")

    assert queue.rows <= 2
    assert sum(len(one) for one in queue.take(16)) == queue.rows == 0 or not queue.rows


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


def test_a_microbatchs_size_recovers_from_a_machine_that_was_slow_once() -> None:
    size = MicrobatchSize(max_rows=16, max_s=0.02)

    def run(slower: float) -> None:  # 1 ms a microbatch and 1 ms a row
        size.measured(size.rows, slower * (0.001 + 0.001 * size.rows))

    run(slower=1000)
    assert size.rows == 1
    for _ in range(60):
        run(slower=1)

    assert size.rows == 16


BUCKETS = (1, 4, 16, 64)


@given(st.integers(1, 64))
def test_rows_run_in_the_smallest_bucket_that_holds_them(rows: int) -> None:
    bucket = bucket_of(rows, BUCKETS)

    assert bucket in BUCKETS
    assert rows <= bucket
    assert not any(rows <= smaller < bucket for smaller in BUCKETS)
    assert bucket_of(rows, ()) == rows


@given(st.integers(1, 500), st.integers(1, 64))
def test_a_microbatch_has_no_more_padding_than_rows(waiting: int, max_rows: int) -> None:
    size = MicrobatchSize(max_rows, max_s=0.02, buckets=BUCKETS)

    rows = size.fit(waiting)

    assert 1 <= rows <= min(waiting, max_rows)
    assert bucket_of(rows, BUCKETS) <= 2 * rows
    assert size.fit(rows) == rows
    if waiting >= 64 == max_rows:
        assert rows == 64


def test_without_buckets_a_microbatch_takes_what_waits() -> None:
    size = MicrobatchSize(max_rows=16, max_s=0.02)

    assert [size.fit(waiting) for waiting in (1, 5, 16, 17)] == [1, 5, 16, 16]


def test_a_microbatch_is_at_most_the_largest_bucket_that_fits_into_its_time() -> None:
    size = MicrobatchSize(max_rows=64, max_s=0.02, buckets=BUCKETS)
    assert (size.rows, size.row_s, size.seconds(64)) == (64, None, 0.0)

    for _ in range(50):
        for bucket, device_s in zip(BUCKETS, (0.002, 0.003, 0.01, 0.03), strict=True):
            size.measured(bucket, device_s)

    assert size.rows == 16
    assert size.row_s == pytest.approx(0.01 / 16)
    assert size.seconds(3) == pytest.approx(0.003)
    assert size.seconds(64) == pytest.approx(0.03)


def test_a_bucket_that_was_slow_once_is_used_again_by_what_smaller_ones_cost() -> None:
    size = MicrobatchSize(max_rows=64, max_s=0.02, buckets=BUCKETS)
    size.measured(64, 5.0)
    assert size.rows == 1

    size.measured(1, 0.0003)

    assert size.rows == 64


kinds = st.sampled_from(["interactive", "batch"])


@given(st.lists(st.tuples(st.integers(1, 50), kinds), min_size=1, max_size=12), st.integers(1, 16))
def test_every_row_is_taken_once_whatever_the_priorities(
    requests: list[tuple[int, Priority]], max_rows: int
) -> None:
    queue: PriorityRowQueue[int] = PriorityRowQueue()
    for request, (rows, priority) in enumerate(requests):
        queue.add(request, rows, priority)
    taken: dict[int, list[int]] = defaultdict(list)

    while waiting := queue.rows:
        segments = queue.take(max_rows)
        assert sum(map(len, segments)) == min(max_rows, waiting)
        for segment in segments:
            taken[segment.request] += range(segment.start, segment.stop)

    assert taken == {request: list(range(rows)) for request, (rows, _) in enumerate(requests)}


@given(st.integers(1, 16), st.integers(1, 60), st.integers(1, 60))
def test_batch_rows_wait_for_interactive_ones_but_get_one_turn_in_eight(
    max_rows: int, interactive_rows: int, batch_rows: int
) -> None:
    queue: PriorityRowQueue[str] = PriorityRowQueue()
    queue.add("batch", batch_rows, "batch")
    queue.add("interactive", interactive_rows)
    first_turn = None

    for turn in range(1, BATCH_TURN + 1):
        interactive_before = interactive_rows
        segments = {segment.request: len(segment) for segment in queue.take(max_rows)}
        interactive_rows -= segments.get("interactive", 0)
        if "batch" in segments:
            first_turn = turn
            break
        assert segments == {"interactive": max_rows}

    assert first_turn is not None
    # Before its turn, batch rows only get what interactive rows leave.
    assert first_turn == BATCH_TURN or segments.get("interactive", 0) == interactive_before


def test_batch_rows_get_a_turn_in_eight_again_and_again() -> None:
    queue: PriorityRowQueue[str] = PriorityRowQueue()
    queue.add("batch", 100, "batch")
    queue.add("interactive", 1000)

    turns = [turn for turn in range(1, 25) if "batch" in {one.request for one in queue.take(16)}]

    assert turns == [BATCH_TURN, 2 * BATCH_TURN, 3 * BATCH_TURN]


def test_a_row_too_heavy_for_what_interactive_ones_leave_waits_for_a_microbatch_of_its_own() -> None:
    queue: PriorityRowQueue[str] = PriorityRowQueue()
    queue.add("interactive", 13)
    queue.add("heavy", 2, "batch", 64)

    taken = [[(one.request, len(one)) for one in queue.take(16)] for _ in range(3)]

    assert taken == [[("interactive", 13)], [("heavy", 1)], [("heavy", 1)]]


def test_a_discarded_batch_request_leaves_no_rows() -> None:
    queue: PriorityRowQueue[str] = PriorityRowQueue()
    queue.add("batch", 5, "batch")

    assert queue.discard("batch") == 5
    assert queue.discard("batch") == 0
    assert queue.rows == 0
    assert queue.take(4) == []
