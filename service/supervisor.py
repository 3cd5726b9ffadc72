"""Watches a server's processes from the parent: what died is started again, or ends the server.

Wakes when a process ends or a restart is due; polls nothing. Each worker has its own wait, so
that one that keeps dying delays no other.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.errors import EXIT_REFUSED
from service.worker import GeneratorAPI

if TYPE_CHECKING:
    from service.server import GanServer

_RESTART_DELAY_S: Final = (0.1, 10.0)  # first and longest wait before a dead worker is started again
_CALM_S: Final = 60.0  # a worker that lived this long has its wait start over
_MAX_DEATHS_BEFORE_READY: Final = 5

logger = logging.getLogger(__name__)


@dataclass
class _Restart:
    """What is known of the deaths at one worker's place."""

    delay_s: float = 0.0
    died: float = 0.0
    due: float | None = None
    """When the next worker is started here (monotonic); None while one runs."""


class Supervisor(threading.Thread):
    """Starts dead workers again; ends the server without its API process, or if it can never be ready."""

    def __init__(self, server: GanServer, api_processes: list[Any]) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._server = server
        self._api_processes = api_processes
        self._places = [_Restart() for _ in server.inference_workers]
        self._deaths = 0

    def run(self) -> None:
        try:
            while not self._server.draining and self._server.failure is None:
                self._wait_and_act()
        except Exception as error:  # no process could be started, say: a server without a supervisor must end
            logger.exception("the supervisor failed")
            self._server.fail(f"the supervisor failed: {error}")

    def _wait_and_act(self) -> None:
        workers = self._server.inference_workers
        running = {one.sentinel: one for one in self._api_processes}
        running |= {
            one.sentinel: one for one, place in zip(workers, self._places, strict=True) if place.due is None
        }
        due = [place.due for place in self._places if place.due is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        ended = [running[one] for one in multiprocessing.connection.wait(list(running), timeout_s)]
        if self._server.draining:
            return
        for process in ended:
            process.join()
            if process in self._api_processes:
                self._server.fail(_end_of_api(process.exitcode))
            else:
                self._died(workers.index(process), process)
        for index, place in enumerate(self._places):
            if place.due is not None and time.monotonic() >= place.due:
                self._start(index)

    def _died(self, index: int, process: Any) -> None:
        """Plan a restart; a server that was never ready gives up after a refusal, or five deaths."""
        self._deaths += 1
        if not self._server.was_ready.is_set():
            if process.exitcode == EXIT_REFUSED:
                self._server.fail("the server cannot start; the reason is above")
                return
            if self._deaths >= _MAX_DEATHS_BEFORE_READY:
                self._server.fail(f"workers died {self._deaths} times before any was ready; see above")
                return
        place, now = self._places[index], time.monotonic()
        first_s, longest_s = _RESTART_DELAY_S
        place.delay_s = first_s if now - place.died > _CALM_S else min(2 * place.delay_s, longest_s)
        place.died, place.due = now, now + place.delay_s
        logger.warning(
            "worker %d ended with status %s; another starts in %.1f s",
            process.pid,
            process.exitcode,
            place.delay_s,
        )

    def _start(self, index: int) -> None:
        server = self._server
        apis: list[GeneratorAPI] = list(server.litapi_connector)
        workers_a_model = len(server.inference_workers) // len(apis)
        api, worker_id = apis[index // workers_a_model], index % workers_a_model
        server.inference_workers[index] = server.launch_single_inference_worker(api, worker_id)
        self._places[index].due = None


def _end_of_api(exitcode: int) -> str:
    if exitcode == EXIT_REFUSED:
        return "the server cannot start; the reason is above"
    return f"the API process ended with status {exitcode}"
