"""The server: LitServe's process tree around our own parts.

LitServe gives the shape: a parent that binds the socket, spawned workers a model and device, one
forked API process with uvicorn. What it would put on the path of a request, or into memory, is
replaced here, each by an override whose fact a test pins (tests/service/test_litserve_facts.py):

    its routes and GZip        ours (`api`): /, /health and /info are behind its key, GZip costs 90 ms an npy
    what its workers import    only what a worker needs (`worker`): LitServe itself takes 25 MiB in each
    its manager process        none: rows and pixels go over `channel` and `slots`
    waiting for a worker       the port opens at once and says 503 until a worker is ready
    its monitor (every 2 s)    `supervisor`: wakes when a process ends
    its listening              before the API process is forked, so that a port that is taken is a sentence
    its shutdown               the API process drains first, then workers end with their connection
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any, Final

from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.transport.base import MessageTransport

from models.store import Artifact, Store
from service import channel, log
from service.api import add_routes
from service.drain import drain_on_sigterm, end_with_parent
from service.errors import StartError
from service.http_direct import DirectSamples
from service.http_protocol import patient_protocol
from service.http_routes import surround
from service.memory import collect_garbage_seldom, give_freed_memory_back
from service.serving import Serving
from service.session import check_runtime
from service.settings import Settings, check_devices
from service.supervisor import Supervisor
from service.worker import WorkerSettings, work

_BACKLOG: Final = 2048  # uvicorn's own
_DRAIN_MARGIN_S: Final = 3.0  # beyond drain_delay_s + drain_s: the API process ends itself before this
_SIGNAL_HEARD_S: Final = 0.1  # a second signal ends a drain within this
_WORKERS_END_S: Final = 1.0  # after the API process: an end-of-file ends a worker that is not stuck

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. Raises StartError, ContractError."""
    log.configure(settings.log_level)
    give_freed_memory_back()
    check_runtime(settings.accelerator)
    check_devices(settings)
    artifacts = _resolve(settings)
    _check_port(settings)
    server = GanServer(settings, artifacts)
    if server.serving.signer is not None:
        server.serving.signer.check()
    server.take_signals()
    try:
        server.run(
            host=settings.host,
            port=settings.port,
            num_api_servers=1,
            log_level="warning",
            generate_client_file=False,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody here asks for a caller's address
            headers=[("X-Content-Type-Options", "nosniff")],
            http=patient_protocol(settings, DirectSamples(server.serving)),
            ws="none",
        )
    except SystemExit:  # uvicorn's way to say that it cannot bind: another server was faster than we
        raise StartError(f"port {settings.port} of {settings.host} cannot be had: another took it") from None
    if server.failure is not None:
        print(f"ganserve: {server.failure}", file=sys.stderr, flush=True)
        return 1
    return 0


def _resolve(settings: Settings) -> list[Artifact]:
    """The artifacts to serve, hashed. Raises ContractError, or StartError for one name twice."""
    store = Store(settings.store)
    artifacts = [store.resolve(address) for address in settings.model_addresses]
    names = [artifact.manifest.name for artifact in artifacts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StartError(f"model must name each model once, got {', '.join(sorted(twice))} twice")
    for artifact in artifacts:
        artifact.verify()
    return artifacts


def _check_port(settings: Settings) -> None:
    """Raise StartError if the port cannot be had: LitServe finds out later and says less."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartError(
                f"port {settings.port} of {settings.host} cannot be had: {error.strerror}; "
                "give another with --port"
            ) from None


class GanServer(LitServer):
    """LitServe's process tree, serving `artifacts`."""

    app: Any
    """LitServe's FastAPI; from `_start_server` on, that in our layers."""

    def __init__(self, settings: Settings, artifacts: list[Artifact]) -> None:
        self.settings = settings
        self.failure: str | None = None
        self.draining = False
        self._over = False  # nothing is started again
        self._signals = 0
        self._pid = os.getpid()
        self._end = _End()
        self._supervisor: Supervisor | None = None
        self._address = channel.Address()
        self._listener = channel.listen(self._address)
        try:
            self.was_ready = multiprocessing.get_context("fork").Event()  # set by the API process
        except OSError as error:
            raise StartError(
                f"/dev/shm must be writable, semaphores are kept there: {error.strerror}"
            ) from None
        self.serving = Serving(settings, artifacts, on_ready=self.was_ready.set)
        self.inference_workers: list[Any] = []
        self._api_processes: list[Any] = []
        self._worker_settings = WorkerSettings(
            store=str(settings.store),
            accelerator=settings.accelerator,
            threads=settings.threads,
            options=settings.device_options,
            strict=settings.strict,
            marks=settings.marks,
            channel=self._address,
        )
        super().__init__(
            [_Model(artifact.manifest.name) for artifact in artifacts],
            accelerator=settings.accelerator,
            devices=settings.devices if settings.accelerator == "cuda" else "auto",
            workers_per_device=settings.workers_per_model,
            timeout=False,
            restart_workers=True,
        )

    # -- LitServe's parts that are replaced --------------------------------------------------------

    def register_endpoints(self) -> None:
        add_routes(self.app, self.serving)

    def _register_middleware(self) -> None:
        """No GZip; what surrounds the routes is `http_routes`' business."""

    def _init_manager(self, num_api_servers: int) -> _NoManager:
        """No manager process: the queues and the state it would hold have no users."""
        self.workers_setup_status: dict[str, str] = {}
        self._shutdown_event = self._end
        self.litapi_request_queues = {api.api_path: None for api in self.litapi_connector}
        self._transport = _NoTransport()
        return _NoManager()

    def verify_worker_status(self) -> None:
        """Wait for nothing: /readyz and 503 tell until a worker is ready."""

    def launch_inference_worker(self, lit_api: _Model) -> list[Any]:
        n = len(self._inference_workers_config_for_api(lit_api.api_path))
        return [self.launch_single_inference_worker(lit_api, worker_id) for worker_id in range(n)]

    def launch_single_inference_worker(self, lit_api: _Model, worker_id: int) -> Any:
        """Start a process that imports no LitServe: that would be 25 MiB more a worker."""
        device = self._inference_workers_config_for_api(lit_api.api_path)[worker_id]
        if not isinstance(device, str):  # a list of one
            (device,) = device
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(self._worker_settings, lit_api.model_name, device), name="inference-worker"
        )
        with _signals_blocked():
            process.start()
        return process

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[int, Any]) -> None:
        self._api_processes = list(uvicorn_workers.values())
        self._supervisor = Supervisor(
            self._api_processes,
            self.inference_workers,
            start_worker=self._start_worker,
            was_ready=self.was_ready.is_set,
            is_over=lambda: self._over,
            fail=self.fail,
        )
        self._supervisor.start()

    def _start_worker(self, index: int) -> Any:
        """A new process for place `index` of LitServe's one list of all models' workers."""
        apis: list[_Model] = list(self.litapi_connector)
        workers_a_model = len(self.inference_workers) // len(apis)
        return self.launch_single_inference_worker(apis[index // workers_a_model], index % workers_a_model)

    def _start_server(
        self,
        port: int,
        num_uvicorn_servers: int,
        log_level: str,
        sockets: list[socket.socket],
        uvicorn_worker_type: str,
        **kwargs: Any,
    ) -> dict[int, Any]:
        """Listen before the fork: of two servers that bind one port at once, the second learns it here."""
        self.app = surround(self.app, self.serving)
        for one in sockets:
            try:
                one.listen(_BACKLOG)
            except OSError as error:
                raise StartError(f"port {port} cannot be had: {error.strerror}") from None
        started: dict[int, Any] = super()._start_server(
            port, num_uvicorn_servers, log_level, sockets, uvicorn_worker_type, **kwargs
        )
        return started

    def _perform_graceful_shutdown(
        self, manager: Any, uvicorn_workers: dict[int, Any], shutdown_reason: str = "normal"
    ) -> None:
        """End the API process, which drains; then the workers, whose connection ends with it."""
        self.draining = True
        self.close()
        longest_s = self.settings.drain_delay_s + self.settings.drain_s + _DRAIN_MARGIN_S
        deadline = time.monotonic() + longest_s
        for process in uvicorn_workers.values():
            process.terminate()
            # The supervisor ends with it; of two that wait for one process, one misses how that ended. In
            # steps, for a second signal that comes to another thread.
            while (
                self._supervisor is not None and self._supervisor.is_alive() and time.monotonic() < deadline
            ):
                self._supervisor.join(_SIGNAL_HEARD_S)
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode != 0 and self.failure is None:
                how = "did not end" if process.exitcode is None else f"ended with status {process.exitcode}"
                self.failure = f"the API process {how} when it was to drain; requests may be lost"
        deadline = time.monotonic() + _WORKERS_END_S
        for worker in self.inference_workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self.kill_children()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The API process from its first to its last moment."""
        log.configure(self.settings.log_level)
        loop = asyncio.get_running_loop()
        self.serving.listen_for_workers(self._listener, self._address)
        end_with_parent(loop)
        drain_on_sigterm(loop, self.serving)
        if self._signals:  # it came before this process could drain
            os.kill(os.getpid(), signal.SIGTERM)
        collect_garbage_seldom()
        try:
            yield
        finally:
            self.serving.close()

    # -- ends --------------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Have SIGTERM and SIGINT end this server from now on. In the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._end.hear_signals()

    def _on_signal(self, number: int, frame: object) -> None:
        """Drain on the first SIGTERM or SIGINT, end at once on the second.

        Raises nothing, wherever in the program it comes: what is raised in a hook of a fork, or while a lock
        is taken, is lost or breaks more. In an API process that cannot drain yet it is remembered.
        """
        self._signals += 1
        if os.getpid() == self._pid:
            self._end.set()
            if self._signals > 1:
                self.kill_children()
                os._exit(1)

    def close(self) -> None:
        """Let go of the listener for workers: one that still waits there ends."""
        self._listener.close()

    def fail(self, message: str) -> None:
        """End the server with exit status 1 and one sentence."""
        if self.failure is None and not self.draining:
            self.failure, self._over = message, True
            self._shutdown_event.set()

    def kill_children(self) -> None:
        """SIGKILL to every process of ours that is left."""
        self._over = True
        for process in (*self._api_processes, *self.inference_workers, *multiprocessing.active_children()):
            with suppress(Exception):
                process.kill()


class _Model(LitAPI):
    """One served model, as LitServe counts them; its workers are `service.worker`'s."""

    def __init__(self, name: str) -> None:
        super().__init__(api_path=f"/{name}")
        self.model_name = name

    def setup(self, device: str) -> None:
        raise AssertionError("LitServe starts no worker here")


class _End:
    """Stands where LitServe keeps an Event, whose lock a signal's handler could wait for without end.

    The kernel gives a signal to any thread. So the interpreter writes to a pipe for each, which wakes the
    main thread, where handlers run; one that waited for a lock would sleep on.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def hear_signals(self) -> None:
        """Have `wait` run the handlers of signals, whichever thread they came to. In the main thread only."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def set(self) -> None:
        self._is_set = True
        with suppress(BlockingIOError):  # full: it wakes all the same
            os.write(self._writer, b"\0")

    def wait(self) -> None:
        while not self._is_set:
            select.select([self._reader], [], [])
            os.read(self._reader, 4096)


class _NoManager:
    """Stands where LitServe keeps its manager process."""

    def shutdown(self) -> None:
        """Nothing to end."""


class _NoTransport(MessageTransport):
    """Stands where LitServe keeps its response queues; our rows travel over `channel`."""

    def send(self, item: Any, consumer_id: int) -> None:
        raise AssertionError("no response goes through LitServe's queues")

    async def areceive(self, consumer_id: int, timeout: float | None = None, block: bool = True) -> Any:
        raise AssertionError("no response comes through LitServe's queues")

    def close(self, send_sentinel: bool = True) -> None:
        """Nothing to close."""


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in this block hear no SIGINT and no SIGTERM before they say what these mean to them.

    Both may go to the whole process group; workers end when the API process has drained.
    """
    resource_tracker.ensure_running()  # or the first process starts it, and that unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
