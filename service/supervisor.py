"""Watches a server's processes from the parent: what died is started again, or ends the server.

Wakes when a process ends or a restart is due; polls nothing. Each worker has its own wait, so
that one that keeps dying delays no other.
"""

from __future__ import annotations

import logging
import math
import multiprocessing.connection
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from service.errors import EXIT_REFUSED

_RESTART_DELAY_S: Final = (0.1, 10.0)  # first and longest wait before a dead worker is started again
_CALM_S: Final = 60.0  # a worker that lived this long has its wait start over
_LET_GO_S: Final = 1.0  # before a successor of a worker that was let go: mostly the server ends
_MAX_DEATHS_BEFORE_READY: Final = 5

logger = logging.getLogger(__name__)


@dataclass
class _Place:
    """What is known of the deaths at one worker's place."""

    delay_s: float = 0.0
    died: float = -math.inf
    due: float | None = None
    """When the next worker is started here (monotonic); None while one runs."""


class Supervisor(threading.Thread):
    """Starts dead workers again, in a drain, too: what was accepted needs them until the API process ends.

    Ends the server without its API process, or if it can never be ready.
    """

    def __init__(
        self,
        api_processes: list[Any],
        workers: list[Any],
        *,
        start_worker: Callable[[int], Any],
        was_ready: Callable[[], bool],
        is_over: Callable[[], bool],
        fail: Callable[[str], None],
    ) -> None:
        """Watch `api_processes` and `workers`; `start_worker(index)` gives the process for a worker's place.

        `is_over` says that nothing is to be started any more; `fail` ends the server with a sentence, unless
        it drains already.
        """
        super().__init__(name="supervisor", daemon=True)
        self._api_processes = api_processes
        self._workers = workers
        self._start_worker = start_worker
        self._was_ready = was_ready
        self._is_over = is_over
        self._fail = fail
        self._places = [_Place() for _ in workers]
        self._deaths = 0

    def run(self) -> None:
        try:
            while not self._is_over() and self._wait_and_act():
                pass
        except Exception as error:  # no process could be started, say: a server without a supervisor must end
            logger.exception("the supervisor failed")
            self._fail(f"the supervisor failed: {error}")

    def _wait_and_act(self) -> bool:
        """See to what ended or is due next; return whether there is more to watch."""
        running = {one.sentinel: one for one in self._api_processes}
        running |= {
            one.sentinel: one
            for one, place in zip(self._workers, self._places, strict=True)
            if place.due is None
        }
        due = [place.due for place in self._places if place.due is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        ended = [running[one] for one in multiprocessing.connection.wait(list(running), timeout_s)]
        if self._is_over():
            return False
        for process in ended:
            process.join()
        for process in self._api_processes:
            if process in ended:
                self._fail(_end_of_api(process.exitcode))
                return False
        for process in ended:
            self._died(self._workers.index(process), process)
        for index, place in enumerate(self._places):
            if place.due is not None and time.monotonic() >= place.due:
                self._workers[index] = self._start_worker(index)
                place.due = None
        return True

    def _died(self, index: int, process: Any) -> None:
        """Plan a restart; a server that was never ready gives up after a refusal, or five deaths."""
        place, now = self._places[index], time.monotonic()
        if process.exitcode == 0:  # its connection was closed, by an API process that ends or died
            place.due = now + _LET_GO_S
            return
        first_s, longest_s = _RESTART_DELAY_S
        place.delay_s = first_s if now - place.died > _CALM_S else min(2 * place.delay_s, longest_s)
        place.died, place.due = now, now + place.delay_s
        self._deaths += 1
        if not self._was_ready():
            if process.exitcode == EXIT_REFUSED:
                self._fail("the server cannot start; the reason is above")
                return
            if self._deaths >= _MAX_DEATHS_BEFORE_READY:
                self._fail(f"workers died {self._deaths} times before any was ready; see above")
                return
        logger.warning(
            "worker %d ended with status %s; another starts in %.1f s",
            process.pid,
            process.exitcode,
            place.delay_s,
        )


def _end_of_api(exitcode: int) -> str:
    if exitcode == EXIT_REFUSED:
        return "the server cannot start; the reason is above"
    return f"the API process ended with status {exitcode}"
