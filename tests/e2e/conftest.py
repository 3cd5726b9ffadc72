"""Fixtures that start real servers on the toy store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from server_process import Server

Serve = Callable[..., Server]


@pytest.fixture
def serve(toy_store: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start servers: `serve("--model", "toy")`. Ready when returned; stopped at the end of the test."""
    servers: list[Server] = []

    def start(
        *flags: str,
        store: Path | None = toy_store,
        ready: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Server:
        server = Server(store, *flags, cwd=cwd, env=env, log=tmp_path / f"server{len(servers)}.log")
        servers.append(server)
        return server.wait_until_ready() if ready else server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of `toy` and `plain` for the tests that leave it as it was."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    server = Server(toy_store, "--model", "toy,plain", log=log).wait_until_ready()
    yield server
    server.stop()
