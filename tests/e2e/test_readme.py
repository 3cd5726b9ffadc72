"""README's commands work as printed.

The blocks of commands are taken from README.md and run; .ci/run runs the second set-up command, and
the benchmark is run by hand. What is changed is only what a test must
change: the port, the length of a training run, and which environment's programs `.venv/bin/` names.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from server_process import Server, free_port

from models.store import SHIPPED_STORE, Store
from training.data.fashion_mnist import DEBIAN_FOLDER, DEBIAN_PACKAGE, holds_idx

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python|yaml)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    """The one block of README in `language` that contains a text."""
    (found,) = [text for kind, text in BLOCKS if kind == language and containing in text]
    return found


def here(commands: str) -> str:
    """The commands with this environment's programs in place of `.venv/bin/`."""
    return commands.replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/")


def run(commands: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=cwd, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server of the shipped generator, as README starts it."""
    server = Server(None, log=tmp_path_factory.mktemp("readme") / "server.log").wait_until_ready()
    yield server  # type: ignore[misc]
    server.stop()


def at(server: Server, text: str) -> str:
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")


def test_the_first_command_serves_from_a_fresh_clone_without_torch(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", "--no-local", ROOT, tmp_path / "clone"], check=True)
    *setup, serve = block("bash", "'.[cpu]'").split(" && ")
    environment = {**os.environ, "GANSERVE_PORT": str(free_port()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(["bash", "-euc", " && ".join(setup)], cwd=tmp_path / "clone", check=True, env=environment)
    assert subprocess.run(
        [tmp_path / "clone/.venv/bin/python", "-c", "import torch"], capture_output=True
    ).returncode

    started = time.monotonic()
    server = subprocess.Popen(
        shlex.split(serve), cwd=tmp_path / "clone", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        url = re.search(r"http://\S+", said)
        assert url is not None, said
        image = httpx.post(f"{url[0]}/v1/samples", json={"seed": 42})
        seconds = time.monotonic() - started
        page = httpx.get(url[0])
    finally:
        server.terminate()
        server.communicate(timeout=30)

    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert seconds < 5, f"the first image took {seconds:.1f} s"
    assert "<title>" in page.text


def test_the_curl_commands_save_images(shipped: Server, tmp_path: Path) -> None:
    for saved in ("sneaker.png", "images.zip", "seed42.png"):
        run(at(shipped, block("bash", saved)), tmp_path)

    for saved in ("sneaker.png", "seed42.png"):
        with Image.open(tmp_path / saved) as image:
            assert image.size == (32, 32)
    assert (tmp_path / "images.zip").read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("containing", ["np.load", "tritonclient", "training.export"])
def test_a_python_example_prints_what_its_comment_says(
    shipped: Server, tmp_path: Path, containing: str
) -> None:
    example = block("python", containing)
    said = run(f"{shlex.quote(sys.executable)} - <<'EOF'\n{at(shipped, example)}\nEOF", tmp_path)

    assert said.strip() == example.rpartition("# ")[2].strip()


def test_kserves_container_starts_with_its_arguments_and_answers_its_probe(tmp_path: Path) -> None:
    runtime, service = yaml.safe_load_all(block("yaml", "InferenceService"))
    (container,) = runtime["spec"]["containers"]
    model, name = service["spec"]["predictor"]["model"], service["metadata"]["name"]
    verb, *flags = container["args"]
    here = {"--store=/mnt/models": f"--store={SHIPPED_STORE}", "--model={{.Name}}": f"--model={name}"}

    flags = [here.get(flag, flag) for flag in flags if not flag.startswith("--port=")]
    server = Server(None, *flags, log=tmp_path / "server.log").wait_until_ready()
    try:
        probes = [
            server.http.get(container[f"{when}Probe"]["httpGet"]["path"]).status_code
            for when in ("startup", "readiness", "liveness")
        ]
        metadata = server.http.get(f"/v2/models/{name}")
    finally:
        os.kill(server.process.pid, signal.SIGTERM)  # its drain delay is not for us: the second one ends it
        server.stop()

    assert (container["command"], verb) == (["ganserve"], "serve")
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert (probes, metadata.json()["name"]) == ([200, 200, 200], name)


def test_bad_input_gets_the_sentence_that_readme_shows(shipped: Server, tmp_path: Path) -> None:
    said = run(at(shipped, block("bash", "4294967296")), tmp_path)

    assert '"error":"seed must be less than or equal to 4294967295, got 4294967296"' in said
    assert "seed must be less than or equal to 4294967295, got 4294967296" in README.split("```json")[1]


def test_a_key_is_set_and_presented_as_printed(tmp_path: Path) -> None:
    *keys, program, verb = shlex.split(block("bash", "GANSERVE_ADMIN_KEYS").removesuffix(" --port 8003\n"))
    server = Server(None, log=tmp_path / "server.log", env=dict(key.split("=") for key in keys))
    try:
        server.wait_until_ready()
        curls = [block("bash", f"8003/v1/models{rest}") for rest in ("'", "/fashion-mnist/reload")]
        listed, reloaded = (
            json.loads(run(curl.replace("127.0.0.1:8003", f"127.0.0.1:{server.port}"), tmp_path))
            for curl in curls
        )
        without = server.http.get("/v1/models")
    finally:
        server.stop()

    assert (program, verb, without.status_code) == (".venv/bin/ganserve", "serve", 401)
    assert [model["name"] for model in listed["models"]] == ["fashion-mnist"]
    assert not reloaded["changed"]
    assert reloaded["version"] == Store(SHIPPED_STORE).resolve("fashion-mnist").manifest.version


def test_the_offline_command_writes_the_endpoints_bytes(shipped: Server, tmp_path: Path) -> None:
    run(here(block("bash", "ganserve sample")), tmp_path)

    assert len(list((tmp_path / "samples").glob("*.png"))) == 100
    for seed in (0, 42, 99):
        online = httpx.post(f"{shipped.url}/v1/samples", json={"seed": seed}).content
        assert (tmp_path / f"samples/seed{seed:010d}.png").read_bytes() == online
    said = run(here(block("bash", "ganserve verify")), tmp_path)
    assert said.splitlines()[-1] == "100 images: 100 identical"


def test_train_export_verify_and_serve_work_as_printed(tmp_path: Path, free_log: Callable[[], Path]) -> None:
    if not holds_idx(DEBIAN_FOLDER):
        pytest.skip(f"needs the Debian package {DEBIAN_PACKAGE}")
    *commands, serve = block("bash", "gantrain train --preset fashion-mnist").strip().splitlines()
    shortened = re.sub(r"--total-kimg \d+", "--total-kimg 2 --tick-kimg 1", "\n".join(commands))
    assert shortened != "\n".join(commands)

    run(here(shortened), tmp_path)
    flags = shlex.split(serve.removesuffix(" --port 8001"))[2:]
    server = Server(None, *flags, cwd=tmp_path, log=free_log()).wait_until_ready()
    try:
        answer = httpx.post(f"{server.url}/v1/samples", json={"seed": 0, "n": 20, "format": "npy"})
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
    finally:
        server.stop()

    assert (model["name"], model["determinism"], model["num_classes"]) == ("first", "bit_exact", 10)
    assert answer.content[:6] == b"\x93NUMPY"
    assert len(answer.content) > 20 * 32 * 32


def test_evaluate_prints_the_figures_that_readme_names() -> None:
    if not holds_idx(DEBIAN_FOLDER, "test"):
        pytest.skip(f"needs the Debian package {DEBIAN_PACKAGE}")
    command = block("bash", "gantrain evaluate").replace("--n 2000", "--n 100").strip()

    said = run(here(f"{command} --figures frechet_distance,coverage,class_accuracy"), ROOT)

    assert "Fréchet distance | " in said
    assert "times that of real images" in said


def test_a_generator_of_ones_own_is_imported_and_served_as_printed(
    tmp_path: Path, free_log: Callable[[], Path]
) -> None:
    commands, serve = block("bash", "gantrain import mine.onnx").strip().rsplit("\n", 1)

    run(here(commands), tmp_path)
    flags = shlex.split(serve.removesuffix(" --port 8002"))[2:]
    server = Server(None, *flags, cwd=tmp_path, log=free_log()).wait_until_ready()
    try:
        answer = httpx.post(f"{server.url}/v1/samples", json={"seed": 0, "format": "npy"})
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
    finally:
        server.stop()

    assert (model["name"], model["determinism"]) == ("mine", "bit_exact")
    assert np.load(io.BytesIO(answer.content)).shape == (1, 32, 32, 3)


def test_the_table_of_import_names_the_flags_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    from training.__main__ import main

    with pytest.raises(SystemExit):
        main(["import", "--help"])

    table = README.split("| flag of `gantrain import` |")[1].split("\n\n")[0]
    there_are = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"`(--[a-z-]+)`", table))
    assert there_are - named == {"--help", "--name"}
    assert named <= there_are


@pytest.fixture
def free_log(tmp_path: Path) -> Callable[[], Path]:
    return lambda: tmp_path / "server.log"


def test_every_setting_in_the_table_exists_with_its_default() -> None:
    from service.settings import SECRET_FIELDS, Settings

    table = README.split("## Settings")[1].split("## ")[0]
    first_column = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([a-z0-9_]+)`", first_column))
    numbers = {
        name: Settings.model_fields[name].default
        for name in ("max_rows", "max_queued_rows", "max_microbatch", "timeout_ms", "drain_s", "port")
    }

    assert named == set(Settings.model_fields) - SECRET_FIELDS
    for name, default in numbers.items():
        assert f"{default:,.0f}" in table or str(default) in table, name


def test_the_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        with Image.open(ROOT / picture) as image:
            assert np.asarray(image).size > 10_000
