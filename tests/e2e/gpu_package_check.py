"""The service on bare `onnxruntime-gpu`, without a GPU: a script for .ci/run.

It needs an environment of its own, without onnxruntime.

Run as: PYTHONPATH=tests python tests/e2e/gpu_package_check.py
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import tempfile
from pathlib import Path

import httpx
from server_process import GANSERVE, Server


def check_that_the_cpu_provider_serves(log: Path) -> None:
    server = Server(None, log=log).wait_until_ready()
    try:
        image = httpx.post(f"{server.url}/v1/samples", json={"seed": 42})
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
    finally:
        server.stop()
    assert (image.status_code, image.content[:4]) == (200, b"\x89PNG")
    assert (model["provider"], model["determinism"]) == ("CPUExecutionProvider", "bit_exact")


def check_that_cuda_is_refused_with_a_sentence() -> None:
    done = subprocess.run(
        [str(GANSERVE), "serve", "--accelerator", "cuda"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "accelerator cuda was asked for" in done.stderr
    assert "Traceback" not in done.stderr
    print(done.stderr.strip())


if __name__ == "__main__":
    print("onnxruntime-gpu", importlib.metadata.version("onnxruntime-gpu"))
    with tempfile.TemporaryDirectory() as folder:
        check_that_the_cpu_provider_serves(Path(folder) / "server.log")
    check_that_cuda_is_refused_with_a_sentence()
    print("2 passed, 0 failed")
