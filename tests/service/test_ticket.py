"""A request's end is told to whoever waits for it: once, at once, and whatever becomes of that."""

from __future__ import annotations

import asyncio
import gc
import weakref
from functools import partial
from pathlib import Path

import pytest
from toy import publish_toy

from models.manifest import Manifest
from models.store import Store
from service.errors import CallerLeft, DeadlineExceeded
from service.rows import Rows
from service.ticket import Ticket


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    publish_toy(tmp_path)
    return Store(tmp_path).resolve("toy").manifest


@pytest.fixture
def ticket(manifest: Manifest) -> Ticket:
    ticket = Ticket(Rows.of_seeds(manifest, [1, 2]), "png", manifest.img_shape)
    ticket.timeout_s = 1.0
    return ticket


def test_a_request_ends_once_when_its_last_row_is_there(ticket: Ticket) -> None:
    told: list[list[bytes]] = []
    ticket.when_ended(lambda: told.append(ticket.images))

    ticket.place(1, [b"second"])
    assert not ticket.ended
    ticket.place(0, [b"first"])
    ticket.late()

    assert told == [[b"first", b"second"]]
    assert ticket.succeeded


def test_what_fails_a_request_first_is_its_error(ticket: Ticket) -> None:
    told: list[Exception | None] = []
    ticket.when_ended(lambda: told.append(ticket.error))

    ticket.late()
    ticket.caller_left()

    assert len(told) == 1
    assert isinstance(ticket.error, DeadlineExceeded)
    assert not ticket.succeeded


def test_an_answer_that_fails_takes_no_other_request_with_it(
    ticket: Ticket, caplog: pytest.LogCaptureFixture
) -> None:
    def answer() -> None:
        raise ValueError("a header of this answer holds a line break")

    ticket.when_ended(answer)
    ticket.place(0, [b"first", b"second"])

    assert ticket.succeeded
    assert "holds a line break" in caplog.text


def test_who_comes_after_the_end_is_told_in_the_next_turn(ticket: Ticket) -> None:
    told: list[bool] = []

    async def scene() -> None:
        ticket.caller_left()
        ticket.when_ended(lambda: told.append(True))
        assert not told  # a request that is still being read cannot be answered
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert told == [True]


def test_a_coroutine_that_waits_is_told_the_error(ticket: Ticket) -> None:
    async def scene() -> None:
        asyncio.get_running_loop().call_soon(ticket.caller_left)
        with pytest.raises(CallerLeft):
            await ticket.made()
        with pytest.raises(CallerLeft):
            await ticket.made()

    asyncio.run(scene())


def test_a_request_that_nobody_waits_for_any_longer_has_ended(ticket: Ticket) -> None:
    async def scene() -> None:
        waits = asyncio.create_task(ticket.made())
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

    asyncio.run(scene())
    assert ticket.ended
    assert not ticket.succeeded


def test_an_answered_request_is_freed_at_once(manifest: Manifest) -> None:
    """Not when the garbage collector looks: until then its images would take memory, and the cache."""
    gc.disable()
    try:
        ticket = Ticket(Rows.of_seeds(manifest, [1]), "png", manifest.img_shape)
        ticket.when_ended(partial(id, ticket))  # as an answer does, it holds the ticket
        freed = weakref.ref(ticket)
        ticket.place(0, [b"file"])
        del ticket
        assert freed() is None
    finally:
        gc.enable()
