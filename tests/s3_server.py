"""A real S3 server for tests: moto's, as a process, and a way to it that fails when it is told to."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from server_process import free_port

START_S = 60.0


class S3Server:
    """moto's server with one bucket, `sets`."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        moto = Path(sys.executable).parent / "moto_server"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [moto, "-H", "127.0.0.1", "-p", str(self.port)], stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.make_bucket()
                return
            except OSError:
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.05)

    def make_bucket(self) -> None:
        self._ask("PUT", "/sets")

    def vanish(self) -> None:
        """Drop every bucket with all that is in it."""
        self._ask("POST", "/moto-api/reset")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, method: str, path: str) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=10).close()


Fails = Callable[[str, str, int], str | None]
"""(method, path, how many requests came before) -> None, or what goes wrong: "500", "cut"."""


class FlakyWay:
    """A proxy to an S3 server; `fails` says which requests never arrive."""

    def __init__(self, port: int) -> None:
        self.fails: Fails = lambda method, path, number: None
        self.failed = self.asked = 0
        way = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                number, way.asked = way.asked, way.asked + 1
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    raise AssertionError("no client of ours sends chunks")
                wrong = way.fails(self.command, self.path, number)
                if wrong:
                    way.failed += 1
                if wrong == "cut":  # in the middle of the body
                    self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if wrong:
                    self._answer(int(wrong), [], b"<Error><Code>InternalError</Code></Error>")
                    return
                link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    link.request(self.command, self.path, body, dict(self.headers))
                    answer = link.getresponse()
                    data = answer.read()
                finally:
                    link.close()
                self._answer(answer.status, answer.getheaders(), data)

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response_only(status)
                length = str(len(data))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value  # that of the object, where a HEAD is answered
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815  http.server's names

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a connection that was cut

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
