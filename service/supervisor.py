"""Watches a server's processes from the parent: what died is started again, or ends the server.

Wakes when a process ends; polls nothing.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from service.errors import EXIT_REFUSED
from service.worker import GeneratorAPI

if TYPE_CHECKING:
    from service.server import GanServer

_RESTART_DELAY_S: Final = (0.1, 10.0)  # first and longest wait before a dead worker is started again
_CALM_S: Final = 60.0  # without a death for this long, the wait starts over

logger = logging.getLogger(__name__)


class Supervisor(threading.Thread):
    """Watches a server's processes: starts dead workers again, ends the server if its API process died."""

    def __init__(self, server: GanServer, api_processes: list[Any]) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._server = server
        self._api_processes = api_processes
        self._delay_s = _RESTART_DELAY_S[0]
        self._last_death = -_CALM_S

    def run(self) -> None:
        server = self._server
        while not server.draining and server.failure is None:
            sentinels = {
                process.sentinel: process for process in (*self._api_processes, *server.inference_workers)
            }
            ended = [
                sentinels[one] for one in multiprocessing.connection.wait(list(sentinels)) if one in sentinels
            ]
            if server.draining:
                return
            for process in ended:
                process.join()
                if process.exitcode == EXIT_REFUSED:
                    server.fail("the server cannot start; the reason is above")
                elif process in self._api_processes:
                    server.fail(f"the API process ended with status {process.exitcode}")
                else:
                    self._restart(process)

    def _restart(self, process: Any) -> None:
        server = self._server
        logger.warning("worker %d ended with status %s; it is started again", process.pid, process.exitcode)
        now = time.monotonic()
        calm = now - self._last_death >= _CALM_S
        self._delay_s = _RESTART_DELAY_S[0] if calm else min(2 * self._delay_s, _RESTART_DELAY_S[1])
        self._last_death = now
        time.sleep(self._delay_s)
        if server.draining:
            return
        index = server.inference_workers.index(process)
        api, worker_id = self._place(index)
        server.inference_workers[index] = server.launch_single_inference_worker(api, worker_id)

    def _place(self, index: int) -> tuple[GeneratorAPI, int]:
        """Which model and which of its workers stands at `index` of LitServe's one list."""
        apis = list(self._server.litapi_connector)
        a_model = len(self._server.inference_workers) // len(apis)
        return apis[index // a_model], index % a_model
