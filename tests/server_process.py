"""A real server process for tests: started by the command, asked over HTTP, stopped by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

START_S = 30.0
GANSERVE = Path(sys.executable).parent / "ganserve"


class Server:
    """One `ganserve serve` process and what it printed."""

    def __init__(
        self,
        store: Path | None,
        *flags: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self._log_path = log
        where = ["--store", str(store)] if store is not None else []
        command = [str(GANSERVE), "serve", *where, "--port", str(self.port), *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, **(env or {})}
            )
        self.started = time.monotonic()

    def wait_until_ready(self) -> Server:
        """Return once /readyz says 200; fail with the log if the process ends or takes too long."""
        while time.monotonic() - self.started < START_S:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with status {self.process.returncode}:\n{self.log}")
            try:
                if self.http.get("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready after {START_S:.0f} s:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The worker processes, which are spawned."""
        return [one for one in self.family() if "spawn_main" in " ".join(one.cmdline())]

    def api(self) -> psutil.Process:
        """The API process, which is forked."""
        (_, *children), workers = self.family(), self.workers()
        (api,) = [
            one
            for one in children
            if one not in workers and "resource_tracker" not in " ".join(one.cmdline())
        ]
        return api

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(timeout=40)

    def stop(self) -> None:
        """Terminate, and kill what is left after five seconds."""
        self.http.close()
        family = self.family() if self.process.poll() is None else []
        self.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series of /metrics, 0 if it is not there."""
        text = self.http.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def read_to_end(connection: socket.socket) -> bytes:
    """What the server sends until it closes, or resets, the connection."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Return once `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
