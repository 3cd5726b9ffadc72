"""Rows on their way over real workers' ends: replay, isolation, giving up.

The worker is played from the other end of a real socket, so that it can die or fail on cue.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from toy import publish_toy

from models.store import Artifact, Store
from service.batching import Priority
from service.channel import Channel, Done, Message, Process, Run
from service.dispatch import Dispatcher
from service.errors import (
    CallerLeft,
    DeadlineExceeded,
    Overloaded,
    ServiceError,
    TooLarge,
    Unavailable,
    VersionRefused,
    WorkerCrashed,
)
from service.line import Line
from service.metrics import Metrics
from service.rows import Rows
from service.sampler import ModelSampler
from service.serving import Serving
from service.settings import Settings
from service.slots import Slot, SlotLayout, map_slots
from service.ticket import Portion, Ticket


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_toy(tmp_path)


class PlayedProcess(Process):
    """A process whose end is only written down."""

    def __init__(self) -> None:
        self.pid = 1
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        """Nothing to let go of."""


class PlayedWorker:
    """A worker's end of the channel: answers microbatches with each row's seed as its pixels, on demand."""

    def __init__(self, dispatcher: Dispatcher, store: Path) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.setblocking(False)
        there.settimeout(2)
        self.channel = Channel(there)
        self.process = PlayedProcess()
        self.slots: dict[int, list[Slot]] = {}
        self._store = Store(store)
        dispatcher.attach(Channel(here), self.process)

    def take(self) -> Run:
        """The next microbatch to run."""
        message = self._receive()
        assert isinstance(message, Run)
        return message

    def take_order(self) -> dict[str, Any]:
        """The next message that is no microbatch: memory that came with it is mapped."""
        message = self._receive()
        assert isinstance(message, dict)
        return message

    def _receive(self) -> Message:
        """The next message; a sign of life that is asked for is given."""
        received = self.channel.receive_with_fd()
        assert received is not None
        message, fd = received
        if isinstance(message, dict) and "ping" in message:
            self.channel.send({"pong": message["ping"]})
            return self._receive()
        if fd is not None:
            assert isinstance(message, dict)
            artifact = self._store.resolve(message["address"])
            layout = SlotLayout.of(artifact.manifest, message["rows"])
            self.slots[message["load"]] = map_slots(fd, layout, message["slots"])
            os.close(fd)
        return message

    def answer_ping(self) -> bool:
        """Give the sign of life that is asked for, if one is."""
        asked, _, _ = select.select([self.channel.fileno()], [], [], 0)
        if asked:
            assert self.channel.receive() == {"ping": 0}
            self.channel.send({"pong": 0})
        return bool(asked)

    def load(self, golden_difference: int = 0) -> str:
        """Load what is asked for; return its address."""
        message = self.take_order()
        self.channel.send(
            {
                "loaded": message["load"],
                "provider": "CPUExecutionProvider",
                "runtime": "1",
                "golden_difference": golden_difference,
                "realness_difference": 0.0,
                "arithmetic": "",
            }
        )
        return str(message["address"])

    def refuse(self) -> None:
        """Say of the version that is to be loaded that it cannot be."""
        self.channel.send({"refused": self.take_order()["load"], "error": "toy:2: it is damaged"})

    def _slot(self, order: Run) -> Slot:
        return self.slots[order.line][order.slot]

    def seeds(self, order: Run) -> list[int]:
        seeds: list[int] = self._slot(order).seeds[: order.rows].tolist()
        return seeds

    def finish(self, order: Run, device_s: float = 0.001, bucket: int | None = None) -> list[int]:
        """Make the rows of one microbatch, as if in `device_s`; return their seeds."""
        slot, rows = self._slot(order), order.rows
        slot.images[:rows] = (slot.seeds[:rows] % 256)[:, None, None, None]
        self.channel.send(Done(order.run, bucket or rows, device_s, 0.0))
        return self.seeds(order)

    def fail(self, order: Run) -> None:
        self.channel.send({"failed": order.run, "error": "Boom: no"})

    def die(self) -> None:
        self.channel.close()


def place(portions: list[Portion]) -> None:
    for portion in portions:
        portion.ticket.place(portion.start, portion.images)


class Stage:
    """A dispatcher and the workers played for it; `run` a scenario on it."""

    def __init__(self, artifact: Artifact, max_rows: int = 4, **settings: Any) -> None:
        self.artifact = artifact
        self.store = artifact.path.parent.parent
        self.metrics = Metrics()
        self.settings = Settings(max_microbatch=max_rows, **settings)
        self.dispatcher = Dispatcher(Line(artifact, self.settings, place), self.settings, self.metrics)
        self.workers: list[PlayedWorker] = []

    def newcomer(self) -> PlayedWorker:
        """A worker appears; it has loaded nothing."""
        self.workers.append(PlayedWorker(self.dispatcher, self.store))
        return self.workers[-1]

    async def worker(self) -> PlayedWorker:
        """A worker appears and loads what it is told to."""
        worker = self.newcomer()
        worker.load()
        await self.settle()
        return worker

    def ask(self, *seeds: int, priority: Priority = "interactive") -> Ticket:
        manifest = self.artifact.manifest
        rows, line = Rows.of_seeds(manifest, seeds), self.dispatcher.line
        self.dispatcher.check_room(rows, line)
        ticket = Ticket(rows, None, manifest.img_shape, priority)
        self.dispatcher.submit(ticket, line)
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
    await ticket.made()
    seeds: list[int] = ticket.images[:, 0, 0, 0].tolist()
    return seeds


def test_pixels_come_back_to_the_request_that_asked_for_them(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        worker = await stage.worker()
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
        first = await stage.worker()
        ticket = stage.ask(1, 2, 3)
        first.take()
        first.die()
        await stage.settle()
        second = await stage.worker()

        assert second.finish(second.take()) == [1, 2, 3]
        assert await seeds_made(ticket) == [1, 2, 3]

    stage.run(scenario)


def test_a_row_that_keeps_killing_workers_is_given_up_and_its_neighbour_is_made(artifact: Artifact) -> None:
    stage = Stage(artifact)
    poison = 13

    async def scenario() -> None:
        blocked = await stage.worker()
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
                worker = await stage.worker()
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
        worker = await stage.worker()
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
        workers = [await stage.worker(), await stage.worker()]
        stage.ask(*range(6))
        assert [worker.take().rows for worker in workers] == [3, 3]

        stage.ask(*range(7))
        assert stage.dispatcher.queued_rows == 7
        stage.ask(1)
        assert stage.dispatcher.queued_rows == 0

    stage.run(scenario)


def test_a_busy_workers_next_microbatch_stays_open_until_shortly_before_it_is_needed(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact, max_rows=4, max_microbatch_ms=1000)

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(1)
        worker.finish(worker.take(), device_s=0.05)
        await stage.settle()
        stage.ask(*range(10, 30))  # four rows take 0.2 s
        worker.take()
        await asyncio.sleep(0.1)
        stage.ask(99)
        assert stage.dispatcher.queued_rows == 17
        await asyncio.sleep(0.2)

        assert 99 in worker.seeds(worker.take())
        assert stage.dispatcher.queued_rows == 13

    stage.run(scenario)


def test_a_microbatch_that_is_needed_in_less_than_the_clocks_step_is_formed_at_once(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact, max_rows=4)

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(1)
        worker.finish(worker.take(), device_s=0.0058 / 4)  # the next is formed 5 ms before four rows end
        await stage.settle()
        stage.ask(*range(10, 18))

        assert stage.dispatcher.queued_rows == 0

    stage.run(scenario)


def test_a_cancelled_requests_rows_are_not_run(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=2)

    async def scenario() -> None:
        worker = await stage.worker()
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
        await stage.worker()
        stage.ask(*range(10))

        with pytest.raises(Overloaded, match="room for 10 rows and holds 2; 9 more do not fit") as refusal:
            stage.ask(*range(9))
        assert refusal.value.retry_after_s >= 1

    stage.run(scenario)


def test_statistics_count_microbatches_by_their_rows_and_none_that_failed(artifact: Artifact) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(*range(4))
        worker.fail(worker.take())
        for seeds in ((1, 2, 3), (4,), (5,)):
            await stage.settle()
            last = stage.ask(*seeds)
            worker.finish(worker.take())
        await stage.settle()
        await last.made()

        statistics = stage.dispatcher.line.statistics
        assert (statistics.rows, statistics.executions) == (5, 3)
        by_rows = statistics.microbatches
        assert {rows: compute.count for rows, compute in by_rows.items()} == {3: 1, 1: 2}
        assert (by_rows[3].infer_s, by_rows[1].infer_s) == (0.001, 0.002)
        assert by_rows[3].input_s > 0
        assert by_rows[3].output_s > 0
        assert last.timing.input_s > 0
        assert last.timing.output_s > 0

    stage.run(scenario)


def test_a_worker_that_hangs_is_killed_and_its_rows_go_to_another(artifact: Artifact) -> None:
    stage = Stage(artifact, worker_timeout_s=0.2)

    async def scenario() -> None:
        hangs = await stage.worker()
        stage.ask(1)
        hangs.finish(hangs.take())  # so that it is known what a row costs
        await stage.settle()
        ticket = stage.ask(2, 3)
        hangs.take()
        await asyncio.sleep(0.1)
        assert not hangs.process.killed
        await asyncio.sleep(0.3)
        assert hangs.process.killed
        other = await stage.worker()

        assert other.finish(other.take()) == [2, 3]
        assert await seeds_made(ticket) == [2, 3]
        assert b'worker_timeouts_total{model="toy"} 1.0' in stage.metrics.text()

    stage.run(scenario)


def test_an_idle_worker_that_gives_no_sign_of_life_is_killed_and_one_that_does_is_not(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact, worker_timeout_s=0.4)

    async def scenario() -> None:
        hangs, lives, answers = await stage.worker(), await stage.worker(), 0
        for _ in range(20):
            await asyncio.sleep(0.05)
            answers += lives.answer_ping()

        assert answers > 2
        assert (hangs.process.killed, lives.process.killed) == (True, False)
        assert stage.dispatcher.workers_up == 1
        assert b'worker_timeouts_total{model="toy"} 1.0' in stage.metrics.text()

    stage.run(scenario)


def test_a_worker_that_never_finishes_loading_is_killed(artifact: Artifact) -> None:
    stage = Stage(artifact, worker_timeout_s=0.2, load_timeout_s=1)

    async def scenario() -> None:
        worker = stage.newcomer()
        await asyncio.sleep(0.8)
        assert not worker.process.killed
        await asyncio.sleep(0.4)

        assert worker.process.killed

    stage.run(scenario)


def test_a_slow_row_is_given_twenty_times_its_measured_cost(artifact: Artifact) -> None:
    stage = Stage(artifact, worker_timeout_s=0.1)

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(1)
        message = worker.take()
        stage.ask(
            2
        )  # at once: an idle worker would be asked for a sign of life, which this one does not give
        worker.channel.send(Done(message.run, 1, 0.1, 0.0))
        await asyncio.sleep(0.5)

        assert not worker.process.killed

    stage.run(scenario)


def test_only_the_microbatch_on_the_device_is_blamed_for_a_death(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=1)

    async def scenario() -> None:
        worker = await stage.worker()
        poisoned, behind_it = stage.ask(13), stage.ask(7)
        for _ in range(3):
            assert worker.seeds(worker.take()) == [13]
            worker.die()  # the row behind was there each time
            await stage.settle()
            worker = await stage.worker()
        worker.finish(worker.take())

        assert await seeds_made(behind_it) == [7]
        with pytest.raises(WorkerCrashed):
            await seeds_made(poisoned)

    stage.run(scenario)


def test_five_deaths_without_a_finished_microbatch_make_a_model_not_ready_until_one_is(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact)

    async def scenario() -> None:
        for _ in range(5):
            worker = await stage.worker()
            assert stage.dispatcher.ready
            worker.die()
            await stage.settle()
        worker = await stage.worker()
        assert stage.dispatcher.trouble == "workers of toy died 5 times and finished nothing between"
        stage.ask(1)
        worker.finish(worker.take())
        await stage.settle()

        assert stage.dispatcher.ready

    stage.run(scenario)


def test_a_crash_loop_has_ended_when_a_worker_stays(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dispatch._CALM_S", 0.1)
    stage = Stage(artifact)

    async def scenario() -> None:
        for _ in range(5):
            (await stage.worker()).die()
            await stage.settle()
        await stage.worker()
        assert not stage.dispatcher.ready
        await asyncio.sleep(0.15)

        assert stage.dispatcher.ready

    stage.run(scenario)


def test_interactive_rows_come_before_batch_rows_that_waited_longer(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=2)

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(0, 0, 0, 0)
        out = [worker.take(), worker.take()]
        stage.ask(11, 12, 13, priority="batch")
        stage.ask(1, 2, 3)
        made: list[int] = []
        while out:
            made += worker.finish(out.pop(0))
            await stage.settle()
            if any(one.running for one in stage.dispatcher.workers) and not out:
                out.append(worker.take())

        assert made == [0, 0, 0, 0, 1, 2, 3, 11, 12, 13]

    stage.run(scenario)


def test_a_request_for_more_pixels_than_may_be_is_refused_before_memory_is_taken_for_them(
    artifact: Artifact,
) -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as encoders:
            sampler = ModelSampler(artifact, Settings(max_pixel_bytes=1024), encoders, Metrics())
            rows = Rows.of_seeds(artifact.manifest, range(1000))
            tracemalloc.start()
            try:
                with pytest.raises(TooLarge, match="max_pixel_bytes is 1024 bytes of pixels a request"):
                    sampler.submit(rows, None)
                assert tracemalloc.get_traced_memory()[1] < 1000 * sampler.line.layout.pixel_bytes
            finally:
                tracemalloc.stop()

    asyncio.run(scenario())


def test_rows_wait_in_the_queue_while_the_encoders_have_enough(artifact: Artifact) -> None:
    async def scenario() -> None:
        settings = Settings(max_microbatch=4, encode_threads=1)
        free = threading.Event()
        with ThreadPoolExecutor(1) as encoders:
            encoders.submit(free.wait)
            sampler = ModelSampler(artifact, settings, encoders, Metrics())
            dispatcher = sampler.dispatcher
            worker = PlayedWorker(dispatcher, artifact.path.parent.parent)
            worker.load()
            await asyncio.sleep(0.01)
            leaves = sampler.submit(Rows.of_seeds(artifact.manifest, range(8)), "png")
            stays = sampler.submit(Rows.of_seeds(artifact.manifest, range(40)), "png")

            async def work() -> int:
                """Run what is handed out; return how many rows that were."""
                rows = 0
                while any(one.running for one in dispatcher.workers):
                    rows += len(worker.finish(worker.take()))
                    await asyncio.sleep(0.01)
                return rows

            assert 8 <= await work() <= 16  # 2 microbatches to encode, and the 2 that were out
            assert 32 <= dispatcher.queued_rows <= 40
            leaves.fail(CallerLeft("gone"))
            sampler.forget(leaves)
            free.set()
            while not stays.ended:
                await work()
                await asyncio.sleep(0.01)
            assert stays.images[39].startswith(b"\x89PNG")
            assert None in leaves.images  # what nobody waits for is not encoded
            dispatcher.close()
            worker.die()

    asyncio.run(scenario())


def test_a_model_in_trouble_makes_its_server_not_ready_only_where_no_other_serves(
    artifact: Artifact,
) -> None:
    store = artifact.path.parent.parent
    other = publish_toy(store, "other")

    async def scenario() -> None:
        serving = Serving(Settings(store=store, model="toy,other"), [artifact, other])
        toys, others = [PlayedWorker(one.dispatcher, store) for one in serving.samplers]
        toys.load()
        await asyncio.sleep(0.01)
        assert serving.trouble == "model other is loading"
        others.load()
        await asyncio.sleep(0.01)
        assert serving.ready
        toys.die()
        await asyncio.sleep(0.01)
        assert [one.dispatcher.ready for one in serving.samplers] == [False, True]
        assert serving.ready
        others.die()
        await asyncio.sleep(0.01)

        assert serving.trouble == "model toy has no worker now; model other has no worker now"
        serving.close()

    asyncio.run(scenario())


def test_packing_that_outlasts_the_deadline_is_a_deadline_that_passed(artifact: Artifact) -> None:
    async def scenario() -> None:
        serving = Serving(Settings(store=artifact.path.parent.parent, model="toy"), [artifact])
        ticket = Ticket(Rows.of_seeds(artifact.manifest, [1]), None, artifact.manifest.img_shape)
        assert await serving.finish(ticket, lambda: 7) == 7

        ticket.timeout_s = 0.05
        with pytest.raises(DeadlineExceeded, match="not packed within 50 ms"):
            await serving.finish(ticket, lambda: time.sleep(0.2))
        serving.close()

    asyncio.run(scenario())


def switching(stage: Stage, artifact: Artifact) -> asyncio.Task[None]:
    """Begin to switch to `artifact`."""
    return asyncio.create_task(stage.dispatcher.switch_to(Line(artifact, stage.settings, place)))


def test_a_new_version_is_served_when_every_worker_has_loaded_it_and_the_old_one_finishes_its_rows(
    artifact: Artifact,
) -> None:
    stage = Stage(artifact, max_rows=2)
    new = publish_toy(stage.store, channels=1, weights_seed=1)

    async def scenario() -> None:
        workers = [await stage.worker(), await stage.worker()]
        old_line = stage.dispatcher.line
        early = stage.ask(*range(12))  # two microbatches a worker, two that wait
        out = [(worker, worker.take()) for _ in range(2) for worker in workers]
        switch = switching(stage, new)
        await stage.settle()
        assert workers[0].load() == "toy:2"
        await stage.settle()
        assert not switch.done()
        assert workers[1].load() == "toy:2"
        await switch
        assert stage.dispatcher.line.artifact == new
        stage.artifact = new
        late = stage.ask(7, 8)

        for worker, message in out:
            worker.finish(message)
        await stage.settle()
        lines = set()
        while any(one.running for one in stage.dispatcher.workers):
            for worker, state in zip(workers, stage.dispatcher.workers, strict=True):
                if state.running:
                    message = worker.take()
                    lines.add(message.line)
                    worker.finish(message)
            await stage.settle()

        assert await seeds_made(early) == list(range(12))
        assert await seeds_made(late) == [7, 8]
        assert late.images.shape == (2, 12, 12, 1)  # the new version's size
        assert lines == {old_line.number, stage.dispatcher.line.number}

    stage.run(scenario)


def test_the_old_version_goes_when_its_rows_are_done(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dispatch._LINGER_S", 0.1)
    stage = Stage(artifact, worker_timeout_s=0.2)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        worker = await stage.worker()
        number = stage.dispatcher.line.number
        ticket = stage.ask(1)
        held = worker.take()
        switch = switching(stage, new)
        await stage.settle()
        worker.load()
        await switch
        await asyncio.sleep(0.15)
        worker.finish(held)
        await seeds_made(ticket)
        await asyncio.sleep(0.2)

        assert worker.take_order() == {"drop": number}

    stage.run(scenario)


@pytest.mark.parametrize("fault", ["refuses", "differs"])
def test_a_version_that_a_worker_refuses_or_makes_otherwise_is_not_served(
    artifact: Artifact, fault: str
) -> None:
    stage = Stage(artifact)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        workers = [await stage.worker(), await stage.worker()]
        switch = switching(stage, new)
        await stage.settle()
        workers[0].load()
        if fault == "refuses":
            workers[1].refuse()
        else:
            workers[1].load(golden_difference=3)
        with pytest.raises(VersionRefused, match="damaged" if fault == "refuses" else "3 grey levels"):
            await switch

        assert stage.dispatcher.line.artifact == artifact
        for worker in workers if fault == "differs" else workers[:1]:  # who refused has nothing to drop
            assert "drop" in worker.take_order()
        stage.ask(1, 2, 3, 4)
        assert [worker.seeds(worker.take()) for worker in workers] == [[1, 2], [3, 4]]

    stage.run(scenario)


def test_a_worker_that_dies_during_a_reload_is_replaced_and_the_reload_goes_on(artifact: Artifact) -> None:
    stage = Stage(artifact)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        dies, stays = await stage.worker(), await stage.worker()
        switch = switching(stage, new)
        await stage.settle()
        dies.die()
        comes = stage.newcomer()
        assert stays.load() == "toy:2"
        assert [comes.load(), comes.load()] == ["toy:1", "toy:2"]
        await switch

        assert stage.dispatcher.workers_up == 2

    stage.run(scenario)


def test_a_worker_that_does_not_answer_refuses_no_version_and_is_killed(artifact: Artifact) -> None:
    stage = Stage(artifact, load_timeout_s=1)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        loads, hangs = await stage.worker(), await stage.worker()
        switch = switching(stage, new)
        await stage.settle()
        loads.load()
        await switch
        assert stage.dispatcher.line.artifact == new
        await asyncio.sleep(1.1)
        assert (loads.process.killed, hangs.process.killed) == (False, True)
        comes = stage.newcomer()

        assert comes.load() == "toy:2"

    stage.run(scenario)


def test_a_version_that_no_worker_has_loaded_in_time_is_refused(artifact: Artifact) -> None:
    stage = Stage(artifact, load_timeout_s=1)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        await stage.worker()
        with pytest.raises(VersionRefused, match="toy:2: no worker has loaded it after 1 s"):
            await switching(stage, new)

        assert stage.dispatcher.line.artifact == artifact

    stage.run(scenario)


def test_a_version_that_kills_three_workers_is_refused(artifact: Artifact) -> None:
    stage = Stage(artifact)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        worker = await stage.worker()
        switch = switching(stage, new)
        for _ in range(3):
            await stage.settle()
            worker.die()
            await stage.settle()
            worker = stage.newcomer()
            assert worker.load() == "toy:1"

        with pytest.raises(VersionRefused, match="died 3 times while loading it"):
            await switch
        assert stage.dispatcher.line.artifact == artifact

    stage.run(scenario)


def test_a_worker_that_starts_after_a_reload_is_told_the_new_version(artifact: Artifact) -> None:
    stage = Stage(artifact)
    new = publish_toy(stage.store, weights_seed=1)

    async def scenario() -> None:
        worker = await stage.worker()
        switch = switching(stage, new)
        await stage.settle()
        worker.load()
        await switch
        comes = stage.newcomer()

        assert comes.load() == "toy:2"

    stage.run(scenario)


def test_padding_is_counted_as_the_worker_tells_it(artifact: Artifact) -> None:
    stage = Stage(artifact, max_rows=8, buckets="2,8")

    async def scenario() -> None:
        worker = await stage.worker()
        stage.ask(1, 2, 3)
        assert worker.finish(worker.take(), bucket=2) == [1, 2]  # 8 would be more padding than rows
        await stage.settle()
        assert worker.finish(worker.take(), bucket=8) == [3]  # bucket 2 was left out on that device
        await stage.settle()

        text = stage.metrics.text().decode()
        assert 'ganserve_batches_total{bucket="2",model="toy"} 1.0' in text
        assert 'ganserve_batches_total{bucket="8",model="toy"} 1.0' in text
        assert 'ganserve_padding_rows_total{model="toy"} 7.0' in text

    stage.run(scenario)
