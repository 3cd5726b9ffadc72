"""Rows on their way over real workers' ends: replay, isolation, giving up.

The worker is played from the other end of a real socket, so that it can die or fail on cue.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from toy import publish_toy

from models.store import Artifact
from service.channel import Channel
from service.dispatch import Dispatcher
from service.errors import CallerLeft, Overloaded, ServiceError, Unavailable, WorkerCrashed
from service.metrics import Metrics
from service.rows import Rows
from service.settings import Settings
from service.slots import SlotLayout, map_slots
from service.ticket import Portion, Ticket


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_toy(tmp_path)


class PlayedWorker:
    """A worker's end of the channel: answers microbatches with each row's seed as its pixels, on demand."""

    def __init__(self, dispatcher: Dispatcher, artifact: Artifact, max_rows: int) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.setblocking(False)
        there.settimeout(2)
        hello = {"pid": 1, "provider": "CPUExecutionProvider", "runtime": "1", "golden_difference": 0}
        self.channel = Channel(there)
        dispatcher.attach(Channel(here), hello)
        answer = self.channel.receive_with_fd()
        assert answer is not None
        sizes, fd = answer
        self.slots = map_slots(fd, SlotLayout.of(artifact.manifest, max_rows), sizes["slots"])
        os.close(fd)

    def take(self) -> dict[str, int]:
        message = self.channel.receive()
        assert message is not None
        return message

    def seeds(self, message: dict[str, int]) -> list[int]:
        seeds: list[int] = self.slots[message["slot"]].seeds[: message["rows"]].tolist()
        return seeds

    def finish(self, message: dict[str, int]) -> list[int]:
        """Make the rows of one microbatch; return their seeds."""
        slot, rows = self.slots[message["slot"]], message["rows"]
        slot.images[:rows] = (slot.seeds[:rows] % 256)[:, None, None, None]
        self.channel.send({"done": message["run"], "started": 0.0, "device_s": 0.001})
        return self.seeds(message)

    def fail(self, message: dict[str, int]) -> None:
        self.channel.send({"failed": message["run"], "error": "Boom: no"})

    def die(self) -> None:
        self.channel.close()


def place(portions: list[Portion]) -> None:
    for portion in portions:
        portion.ticket.place(portion.start, portion.images)


class Stage:
    """A dispatcher and the workers played for it; `run` a scenario on it."""

    def __init__(self, artifact: Artifact, max_rows: int = 4, **settings: int) -> None:
        self.artifact = artifact
        self.max_rows = max_rows
        limits = Settings(max_microbatch=max_rows, **settings)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(artifact, limits, Metrics(), place)
        self.workers: list[PlayedWorker] = []

    def worker(self) -> PlayedWorker:
        """A worker appears."""
        self.workers.append(PlayedWorker(self.dispatcher, self.artifact, self.max_rows))
        return self.workers[-1]

    def ask(self, *seeds: int) -> Ticket:
        ticket = Ticket(Rows.of_seeds(self.artifact.manifest, seeds), None, self.artifact.manifest.img_shape)
        self.dispatcher.submit(ticket)
        return ticket

    async def settle(self) -> None:
        """Let the dispatcher read what its workers said."""
        await asyncio.sleep(0.01)

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(10):
                    await scenario()
            finally:
                self.dispatcher.close()
                for worker in self.workers:
                    worker.die()

        asyncio.run(bounded())


async def seeds_made(ticket: Ticket) -> list[int]:
    """What a ticket's pixels say their seeds were, in row order."""
    await ticket.made
    seeds: list[int] = ticket.images[:, 0, 0, 0].tolist()
    return seeds


def test_pixels_come_back_to_the_request_that_asked_for_them(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        worker = stage.worker()
        tickets = [stage.ask(*range(10 * k, 10 * k + 5)) for k in range(3)]
        made = 0
        while made < 15:
            made += len(worker.finish(worker.take()))
            await stage.settle()

        assert [await seeds_made(ticket) for ticket in tickets] == [
            list(range(10 * k, 10 * k + 5)) for k in range(3)
        ]

    stage.run(scenario)


def test_what_a_dead_worker_held_is_sent_to_another(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        first = stage.worker()
        ticket = stage.ask(1, 2, 3)
        first.take()
        first.die()
        await stage.settle()
        second = stage.worker()

        assert second.finish(second.take()) == [1, 2, 3]
        assert await seeds_made(ticket) == [1, 2, 3]

    stage.run(scenario)


def test_a_row_that_keeps_killing_workers_is_given_up_and_its_neighbour_is_made(artifact: Artifact) -> None:
    stage = Stage(artifact)
    poison = 13

    async def scenario() -> None:
        blocked = stage.worker()
        stage.ask(1)
        blocker = blocked.take()
        neighbour, poisoned = stage.ask(7), stage.ask(poison)
        blocked.finish(blocker)  # now both wait together, and go out as one microbatch
        await stage.settle()
        worker, deaths = blocked, 0
        while stage.dispatcher.queued_rows or any(one.running for one in stage.dispatcher.workers):
            message = worker.take()
            if poison in worker.seeds(message):
                worker.die()
                deaths += 1
                await stage.settle()
                worker = stage.worker()
            else:
                worker.finish(message)
                await stage.settle()

        assert await seeds_made(neighbour) == [7]
        with pytest.raises(WorkerCrashed):
            await seeds_made(poisoned)
        assert deaths == 4  # once, replayed twice, once alone

    stage.run(scenario)


def test_a_microbatch_that_fails_is_run_again_request_by_request(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        worker = stage.worker()
        stage.ask(1)
        blocker = worker.take()
        good, bad = stage.ask(2), stage.ask(3)
        worker.finish(blocker)
        await stage.settle()
        worker.fail(worker.take())
        await stage.settle()
        for _ in range(2):
            message = worker.take()
            (worker.fail if 3 in worker.seeds(message) else worker.finish)(message)
            await stage.settle()

        assert await seeds_made(good) == [2]
        with pytest.raises(ServiceError, match="failed on these rows"):
            await seeds_made(bad)

    stage.run(scenario)


def test_idle_workers_share_what_waits_and_a_busy_one_waits_for_a_full_microbatch(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=8)

    async def scenario() -> None:
        workers = [stage.worker(), stage.worker()]
        stage.ask(*range(6))
        assert [worker.take()["rows"] for worker in workers] == [3, 3]

        stage.ask(*range(7))
        assert stage.dispatcher.queued_rows == 7
        stage.ask(1)
        assert stage.dispatcher.queued_rows == 0

    stage.run(scenario)


def test_a_cancelled_requests_rows_are_not_run(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=2)

    async def scenario() -> None:
        worker = stage.worker()
        leaves = stage.ask(*range(20))
        message = worker.take()
        leaves.fail(CallerLeft("gone"))
        stage.dispatcher.forget(leaves)
        stays = stage.ask(99)
        made = worker.finish(message)
        while 99 not in made:
            await stage.settle()
            made += worker.finish(worker.take())

        assert await seeds_made(stays) == [99]
        assert len(made) <= 5  # the two microbatches that were out when the caller left, and 99
        assert stage.dispatcher.queued_rows == 0

    stage.run(scenario)


def test_a_model_without_a_worker_yet_is_unavailable_and_a_full_queue_is_overloaded(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact, max_queued_rows=10)

    async def scenario() -> None:
        with pytest.raises(Unavailable, match="toy is loading"):
            stage.ask(1)
        stage.worker()
        stage.ask(*range(10))

        with pytest.raises(Overloaded, match="room for 10 rows and holds 2; 9 more do not fit") as refusal:
            stage.ask(*range(9))
        assert refusal.value.retry_after_s >= 1

    stage.run(scenario)


def test_statistics_count_microbatches_by_their_rows_and_none_that_failed(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        worker = stage.worker()
        stage.ask(*range(4))
        worker.fail(worker.take())
        for seeds in ((1, 2, 3), (4,), (5,)):
            await stage.settle()
            last = stage.ask(*seeds)
            worker.finish(worker.take())
        await stage.settle()
        await last.made

        statistics = stage.dispatcher.statistics
        assert (statistics.rows, statistics.executions) == (5, 3)
        by_rows = statistics.microbatches
        assert {rows: compute.infer.count for rows, compute in by_rows.items()} == {3: 1, 1: 2}
        assert (by_rows[3].infer.seconds, by_rows[1].infer.seconds) == (0.001, 0.002)
        assert by_rows[3].input.seconds > 0
        assert by_rows[3].output.seconds > 0
        assert last.timing.input_s > 0
        assert last.timing.output_s > 0

    stage.run(scenario)
