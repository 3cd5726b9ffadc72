"""Asking a service for images: when it is busy, when it changes, and when it is none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from models.errors import InvalidValue
from training.errors import ServiceError
from training.metrics.fakes import Wanted, evaluation_seeds
from training.metrics.service import ask_service

FACTS = {
    "name": "toy",
    "version": 3,
    "digest": "ab" * 32,
    "num_classes": 2,
    "img_height": 1,
    "img_width": 1,
    "img_channels": 1,
    "limits": {"max_rows": 8, "max_pixel_bytes": 5},
}


class Service:
    """Answers with images whose pixel is their seed modulo 256; `busy` requests are refused first."""

    def __init__(self, models: Any, *, busy: int = 0, changes: bool = False) -> None:
        self.models = models
        self.busy = busy
        self.changes = changes
        self.asked: list[dict[str, Any]] = []

    def answer(self, body: dict[str, Any] | None) -> tuple[int, dict[str, str], bytes]:
        if body is None:
            return 200, {}, json.dumps(self.models).encode()
        if self.busy:
            self.busy -= 1
            return 429, {"Retry-After": "0"}, b'{"error": "the queue is full"}'
        self.asked.append(body)
        seeds = np.arange(body["seed"], body["seed"] + body["n"])
        file = io.BytesIO()
        np.save(file, (seeds % 256).astype(np.uint8).reshape(-1, 1, 1, 1))
        digest = "cd" * 32 if self.changes and len(self.asked) > 1 else FACTS["digest"]
        return 200, {"X-Model-Digest": digest}, file.getvalue()


@contextmanager
def running(service: Service) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(service.answer(None))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(service.answer(json.loads(content)))

        def _send(self, answer: tuple[int, dict[str, str], bytes]) -> None:
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_as_many_rows_are_asked_for_as_its_limits_allow_and_again_when_it_is_busy() -> None:
    service = Service({"models": [FACTS]}, busy=2)

    with running(service) as url:
        fakes = ask_service(url, Wanted(n=12, truncation_psi=0.5), None)

    assert [body["n"] for body in service.asked] == [5, 5, 2]
    assert all(body["truncation_psi"] == 0.5 and body["priority"] == "batch" for body in service.asked)
    assert fakes.images.ravel().tolist() == [seed % 256 for seed in evaluation_seeds(0, 12)]
    assert fakes.class_idx.tolist() == [0, 1] * 6
    assert fakes.label == f"toy:3 at {url}"


@pytest.mark.parametrize(
    ("service", "path", "error", "sentence"),
    [
        (
            Service({"models": [FACTS]}, changes=True),
            "",
            ServiceError,
            "began to serve another toy meanwhile",
        ),
        (
            Service({"models": []}),
            "",
            ServiceError,
            "does not answer as ganserve does$",
        ),
        (Service([1]), "", ServiceError, "does not answer as ganserve does$"),
        (Service({"models": [FACTS]}), "/v1/models/toys", InvalidValue, "serves toy, not toys"),
    ],
)
def test_what_is_no_service_or_changes_meanwhile_is_a_sentence(
    service: Service, path: str, error: type[Exception], sentence: str
) -> None:
    with running(service) as url, pytest.raises(error, match=sentence):
        ask_service(url + path, Wanted(n=12), None)
