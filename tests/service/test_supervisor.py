"""Who is started again, when, and what ends the server. Processes are played, so that they end on cue."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from service.errors import EXIT_REFUSED
from service.supervisor import Supervisor


class PlayedProcess:
    """What the supervisor sees of a process: its sentinel is a real pipe that its end makes readable."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self.sentinel, self._alive = os.pipe()

    def end(self, exitcode: int) -> None:
        self.exitcode = exitcode
        os.close(self._alive)
        self._alive = -1

    def join(self) -> None:
        assert self.exitcode is not None

    def close(self) -> None:
        for fd in (self.sentinel, self._alive):
            if fd >= 0:
                os.close(fd)


class Stage:
    """A supervisor of one API process and two workers."""

    def __init__(self) -> None:
        self.api = PlayedProcess()
        self.workers = [PlayedProcess(2), PlayedProcess(3)]
        self.ready = True
        self.over = False
        self.failures: list[str] = []
        self.starts: list[tuple[int, float]] = []
        self._all = [self.api, *self.workers]
        self.supervisor = Supervisor(
            [self.api],
            self.workers,
            start_worker=self._start,
            was_ready=lambda: self.ready,
            is_over=lambda: self.over or bool(self.failures),
            fail=self.failures.append,
        )

    def _start(self, index: int) -> PlayedProcess:
        self.starts.append((index, time.monotonic()))
        self._all.append(PlayedProcess(10 + len(self.starts)))
        return self._all[-1]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_for_starts(self, count: int) -> None:
        """Until the workers' places were filled again `count` times."""
        self.wait_for(lambda: len(self.starts) == count)
        self.wait_for(lambda: all(worker.exitcode is None for worker in self.workers))

    def close(self) -> None:
        self.over = True
        if self.api.exitcode is None:
            self.api.end(0)  # wakes the thread, which sees that the server is over
        self.supervisor.join(5)
        for process in self._all:
            process.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.supervisor.start()
    yield stage
    stage.close()


def test_a_dead_worker_is_started_again_in_its_place(stage: Stage) -> None:
    stage.workers[1].end(-9)

    stage.wait_for(lambda: bool(stage.starts))
    assert [index for index, _ in stage.starts] == [1]
    assert stage.workers[1].pid == 11
    assert stage.failures == []


def test_a_worker_that_keeps_dying_waits_longer_each_time_and_delays_no_other(stage: Stage) -> None:
    waits_s = []
    for count in range(1, 4):
        died = time.monotonic()
        stage.workers[0].end(1)
        stage.wait_for_starts(count)
        waits_s.append(stage.starts[-1][1] - died)
    stage.workers[0].end(1)
    stage.workers[1].end(1)
    stage.wait_for(lambda: len(stage.starts) == 4)

    assert waits_s[0] < waits_s[1] < waits_s[2]
    assert stage.starts[-1][0] == 1  # the other one, although it died later


def test_a_refusal_ends_a_server_that_was_never_ready_and_only_such_a_one(stage: Stage) -> None:
    stage.workers[0].end(EXIT_REFUSED)
    stage.wait_for(lambda: len(stage.starts) == 1)
    assert stage.failures == []

    stage.ready = False
    stage.workers[1].end(EXIT_REFUSED)
    stage.wait_for(lambda: bool(stage.failures))
    assert stage.failures == ["the server cannot start; the reason is above"]


def test_five_deaths_before_any_worker_was_ready_end_the_server(stage: Stage) -> None:
    stage.ready = False

    for count in range(5):
        stage.wait_for_starts(count)
        stage.workers[0].end(1)

    stage.wait_for(lambda: bool(stage.failures))
    assert stage.failures == ["workers died 5 times before any was ready; see above"]


def test_the_end_of_the_api_process_ends_the_server_also_while_a_restart_is_due(stage: Stage) -> None:
    stage.workers[0].end(1)
    stage.api.end(-9)

    stage.wait_for(lambda: bool(stage.failures))
    assert stage.failures == ["the API process ended with status -9"]


def test_a_worker_that_was_let_go_has_a_successor_unless_the_api_process_ends_next(stage: Stage) -> None:
    let_go = time.monotonic()
    stage.workers[0].end(0)
    stage.wait_for_starts(1)
    assert time.monotonic() - let_go >= 0.9

    stage.workers[1].end(0)  # an API process that has drained lets its workers go before it ends
    time.sleep(0.3)
    stage.api.end(0)
    stage.supervisor.join(5)

    assert not stage.supervisor.is_alive()
    assert [index for index, _ in stage.starts] == [0]


def test_a_supervisor_that_fails_ends_the_server(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(index: int) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(stage.supervisor, "_start_worker", no_process)
    stage.workers[0].end(-9)

    stage.wait_for(lambda: bool(stage.failures))
    assert stage.failures == ["the supervisor failed: no more processes"]
