"""A wheel is enough: installed anywhere, from any working folder, never written to."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from server_process import free_port

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (built,) = folder.glob("ganserve-*.whl")
    return built


def test_the_wheel_holds_the_shipped_artifact_and_the_page_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    for wanted in (
        "models/store/fashion-mnist/1/model.onnx",
        "training/metrics/extractors/fashion-mnist.onnx",
        "models/store/fashion-mnist/1/manifest.json",
        "service/playground/index.html",
        "training/loop.py",
    ):
        assert wanted in names
    assert {name.split("/")[0] for name in names} == {
        "models",
        "training",
        "service",
        "ganserve-0.1.0.dist-info",
    }


def test_a_server_from_the_wheel_serves_from_any_folder_and_writes_nothing(
    wheel: Path, tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for path in [*site.rglob("*"), site, elsewhere]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = {str(path): path.stat().st_mtime_ns for path in [*site.rglob("*"), elsewhere]}
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    server = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)],
        cwd=elsewhere,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        image = httpx.post(f"http://127.0.0.1:{port}/v1/samples", json={"seed": 1})
    finally:
        server.terminate()
        server.communicate(timeout=30)

    assert "ganserve serves fashion-mnist:" in said
    assert image.status_code == 200
    assert server.returncode == 0
    assert {str(path): path.stat().st_mtime_ns for path in [*site.rglob("*"), elsewhere]} == before
