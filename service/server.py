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
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
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
    # LitServe drains on KeyboardInterrupt; on SIGTERM it would end alone and leave its children.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
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
    except KeyboardInterrupt:  # before LitServe waits for it, or a second one during the drain
        server.kill_children()
        return 1 if server.draining else 0
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
        self._shutdown_event = threading.Event()
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
        with _ctrl_c_ignored():
            process.start()
        return process

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[int, Any]) -> None:
        self._api_processes = list(uvicorn_workers.values())
        Supervisor(
            self._api_processes,
            self.inference_workers,
            start_worker=self._start_worker,
            was_ready=self.was_ready.is_set,
            is_over=lambda: self.draining or self.failure is not None,
            fail=self.fail,
        ).start()

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
        for process in uvicorn_workers.values():
            process.terminate()
            process.join(longest_s)
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
        collect_garbage_seldom()
        try:
            yield
        finally:
            self.serving.close()

    # -- ends --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the listener for workers: one that still waits there ends."""
        self._listener.close()

    def fail(self, message: str) -> None:
        """End the server with exit status 1 and one sentence."""
        if self.failure is None and not self.draining:
            self.failure = message
            self._shutdown_event.set()

    def kill_children(self) -> None:
        """SIGKILL to every process of ours that is left."""
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
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started in this block ignore SIGINT from their first instruction on.

    Ctrl-C goes to the whole process group; workers end when the API process has drained.
    """
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
