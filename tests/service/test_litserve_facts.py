"""Facts about LitServe 0.2.19 that service/server.py builds on. A new version must pass these first."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from litserve import LitAPI, LitServer
from starlette.middleware.gzip import GZipMiddleware

from models.store import Store
from service.server import GanServer
from service.settings import Settings


def test_the_version_is_the_one_that_was_read() -> None:
    assert importlib.metadata.version("litserve") == "0.2.19"


@pytest.mark.parametrize(
    "name",
    [
        "register_endpoints",
        "_register_middleware",
        "_init_manager",
        "verify_worker_status",
        "launch_inference_worker",
        "launch_single_inference_worker",
        "_start_server",
        "_start_worker_monitoring",
        "_perform_graceful_shutdown",
        "lifespan",
    ],
)
def test_each_part_that_is_replaced_is_there_with_the_same_parameters(name: str) -> None:
    theirs, ours = getattr(LitServer, name), getattr(GanServer, name)

    assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)


def test_run_calls_the_parts_that_are_replaced_in_this_order() -> None:
    source = inspect.getsource(LitServer.run)
    order = [
        "bind_socket()",
        "self._init_manager(",
        "self.launch_inference_worker(",
        "self.verify_worker_status()",
        "self._start_server(",
        "self._start_worker_monitoring(",
        "self._shutdown_event.wait()",
        "except KeyboardInterrupt",
        "self._perform_graceful_shutdown(",
    ]

    positions = [source.index(part) for part in order]

    assert positions == sorted(positions)


@pytest.fixture
def server(toy_store: Path) -> Iterator[GanServer]:
    """A server that is built and never run."""
    built = GanServer(Settings(store=toy_store, model="toy", workers=3), [Store(toy_store).resolve("toy")])
    yield built
    built.close()


def test_a_stock_server_has_the_routes_and_the_gzip_that_ours_leaves_out(server: GanServer) -> None:
    class Stock(LitAPI):
        def predict(self, x: object) -> object:
            return x

    stock = LitServer(Stock(), accelerator="cpu")

    def paths(one: LitServer) -> set[str]:
        return {getattr(route, "path", "") for route in one.app.routes}

    assert {"/health", "/info", "/predict"} <= paths(stock)
    assert not {"/health", "/info", "/predict", "/redoc"} & paths(server)
    assert GZipMiddleware in [one.cls for one in stock.app.user_middleware]
    assert GZipMiddleware not in [one.cls for one in server.app.user_middleware]


def test_workers_import_no_litserve_and_no_web_framework() -> None:
    heavy = "{'litserve', 'fastapi', 'starlette', 'uvicorn', 'pydantic', 'torch'}"
    program = f"import sys, service.worker; print({heavy} & set(sys.modules) or 'none')"

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout == "none\n"


def test_with_several_gpus_each_model_has_its_workers_on_every_one() -> None:
    class Stock(LitAPI):
        def predict(self, x: object) -> object:
            return x

    stock = LitServer(Stock(), accelerator="cuda", devices=2, workers_per_device=2)

    assert stock._inference_workers_config_for_api("/predict") == [["cuda:0"], ["cuda:1"]] * 2
    assert LitServer(Stock(), accelerator="cuda", devices=0).devices == []


def test_the_number_of_workers_is_a_device_times_the_setting(server: GanServer) -> None:
    assert server._inference_workers_config_for_api("/toy") == ["cpu"] * 3
