"""mosec, a server in Rust with workers in Python. It reads its options from the command line itself."""

from __future__ import annotations

import sys
from typing import Any

from mosec import Runtime, Server, Worker
from work import PATH, ROWS, WORKERS, generator


class Sample(Worker):
    def __init__(self) -> None:
        self.make = generator()

    def forward(self, data: list[dict[str, Any]]) -> list[bytes]:
        return self.make([one["seed"] for one in data])

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", sys.argv[1], "--log-level", "warning"]
    server = Server()
    server.register_runtime({PATH: [Runtime(Sample, num=WORKERS, max_batch_size=ROWS)]})
    server.run()
