"""A real server's life: start, idle, faults, drain, end. Nothing accepted is lost, nothing is left behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import GANSERVE, Server, free_port, read_to_end, wait_for
from toy import publish_toy

from models.golden import Golden
from models.manifest import GOLDEN_FILE, GRAPH_FILE
from models.store import Store

Serve = Callable[..., Server]


def load(
    server: Server, stop: threading.Event, clients: int = 8
) -> tuple[list[threading.Thread], list[tuple[int, object]]]:
    """Ask for images until told to stop; collect (seed, status and bytes, or the error)."""
    answers: list[tuple[int, object]] = []

    def ask(number: int) -> None:
        seed = number
        fresh = httpx.Limits(max_keepalive_connections=0)  # a new connection a request, as many callers do
        with httpx.Client(base_url=server.url, limits=fresh) as client:
            while not stop.is_set():
                seed += clients
                try:
                    answer = client.post("/v1/samples", json={"seed": seed, "n": 2, "format": "npy"})
                    answers.append((seed, (answer.status_code, answer.content, dict(answer.headers))))
                except httpx.ConnectError:
                    return  # the server no longer listens: this request was never sent
                except httpx.TransportError as error:
                    answers.append((seed, error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    return threads, answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_request_and_leaves_nothing(serve: Serve, number: int) -> None:
    server = serve("--model", "toy")
    family = server.family()
    stop = threading.Event()
    threads, answers = load(server, stop)
    wait_for(lambda: len(answers) > 50)

    status = server.terminate(number)
    stop.set()
    for thread in threads:
        thread.join()

    assert status == 0
    gone, alive = psutil.wait_procs(family, timeout=3)
    assert not alive
    assert len(gone) >= 3  # parent, API process, at least one worker
    lost = [answer for _, answer in answers if isinstance(answer, Exception) or answer[0] not in (200, 503)]  # type: ignore[index]
    assert lost == []
    refused = [answer[2] for _, answer in answers if answer[0] == 503]  # type: ignore[index]
    assert all("retry-after" in headers for headers in refused)


@pytest.mark.parametrize("body", [b'{"seed": 1}', b'{"seed": 1, "n": 2}'], ids=["direct", "asgi"])
def test_a_request_that_was_on_its_way_when_the_drain_was_over_is_refused_not_lost(
    serve: Serve, body: bytes
) -> None:
    server = serve("--model", "toy")
    request = b"POST /v1/samples HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    address = ("127.0.0.1", server.port)
    with ExitStack() as stack:
        fresh, begun, used = (stack.enter_context(socket.create_connection(address, 5)) for _ in range(3))
        used.sendall(request + body)
        assert used.recv(65536).startswith(b"HTTP/1.1 200 ")
        begun.sendall(request[:20])

        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.http.get("/readyz").status_code == 503)
        time.sleep(0.4)  # nothing is in flight, and no connection is taken
        fresh.sendall(request + body)
        begun.sendall(request[20:] + body)
        used.sendall(request + body)
        answers = [read_to_end(one) for one in (fresh, begun, used)]

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert b"\r\nconnection: close\r\n" in answer
    assert server.process.wait(timeout=10) == 0


def test_a_draining_server_is_not_ready_at_once_but_still_accepts_for_the_drain_delay(serve: Serve) -> None:
    server = serve("--model", "toy", "--drain-delay-s", "2")

    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.http.get("/readyz").status_code == 503)
    during = server.http.post("/v1/samples", json={"seed": 1})

    assert during.status_code == 200
    assert server.process.wait(timeout=15) == 0


def test_a_request_that_outlasts_the_drain_is_told_so(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--drain-s", "1")
    (worker,) = server.workers()
    worker.suspend()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(server.http.post("/v1/samples", json={"seed": 1}))
    )
    asking.start()
    wait_for(lambda: server.metric("ganserve_inflight_requests") == 2)  # it, and the scrape

    started = time.monotonic()
    status = server.terminate()
    asking.join()

    assert (status, answers[0].status_code, answers[0].json()["code"]) == (0, 503, "unavailable")
    assert "retry-after" in answers[0].headers
    assert time.monotonic() - started < 1 + 4  # drain_s, and what ending takes
    assert not worker.is_running()


def test_a_worker_killed_during_the_drain_costs_no_accepted_request_its_image(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1")
    before = server.http.post("/v1/samples", json={"seed": 1}).content
    (worker,) = server.workers()
    worker.suspend()
    with ThreadPoolExecutor() as callers:
        asking = callers.submit(lambda: server.http.post("/v1/samples", json={"seed": 1}))
        wait_for(lambda: server.metric("ganserve_inflight_requests") == 2)  # it, and the scrape
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.http.get("/readyz").status_code == 503)

        worker.kill()
        answer = asking.result()

    assert (answer.status_code, answer.content) == (200, before)
    assert server.process.wait(timeout=10) == 0
    assert server.log.count("another starts in") == 1  # but none for those that end with the server


def test_an_api_process_that_dies_in_the_drain_is_told_and_no_clean_end(serve: Serve) -> None:
    server = serve("--model", "toy", "--drain-delay-s", "30")
    family = server.family()
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.http.get("/readyz").status_code == 503)

    server.api().kill()

    assert server.process.wait(timeout=5) == 1
    assert "the API process ended with status -9 when it was to drain" in server.log
    assert "another starts" not in server.log
    assert psutil.wait_procs(family, timeout=3)[1] == []


@pytest.mark.parametrize("wait_s", [0, 0.0003, 0.001])
def test_a_signal_while_the_api_process_is_forked_ends_the_server(
    toy_store: Path, tmp_path: Path, wait_s: float
) -> None:
    server = Server(toy_store, "--model", "toy", "--workers", "1", log=tmp_path / "log")
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    try:
        deadline = time.monotonic() + 20
        while len(children.read_text().split()) < 3:  # a tracker of resources, a worker, the API process
            assert time.monotonic() < deadline
        time.sleep(wait_s)
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(timeout=10) == 0
        assert "Traceback" not in server.log
    finally:
        server.process.kill()  # does nothing to one that ended
        server.stop()


def test_a_second_signal_ends_a_drain_at_once(serve: Serve) -> None:
    server = serve("--model", "toy", "--drain-delay-s", "60")
    family = server.family()
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.http.get("/readyz").status_code == 503)

    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(timeout=5) != 0
    assert psutil.wait_procs(family, timeout=3)[1] == []


def test_two_signals_in_a_row_end_the_server_at_once(serve: Serve) -> None:
    server = serve("--model", "toy", "--drain-delay-s", "60")
    family = server.family()

    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(timeout=5) == 1
    assert "Traceback" not in server.log
    assert psutil.wait_procs(family, timeout=3)[1] == []


def test_a_killed_worker_costs_no_request_its_image(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "2")
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    expected = {
        seed: server.http.post("/v1/samples", json={"seed": seed, "n": 2, "format": "npy"}).content
        for seed in range(8, 40)
    }
    stop = threading.Event()
    threads, answers = load(server, stop)
    wait_for(lambda: len(answers) > 20)

    for worker in server.workers():
        worker.kill()
        time.sleep(0.3)
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    stop.set()
    for thread in threads:
        thread.join()

    assert all(not isinstance(answer, Exception) and answer[0] == 200 for _, answer in answers)  # type: ignore[index]
    assert all(answer[1] == expected[seed] for seed, answer in answers if seed in expected)  # type: ignore[index]
    assert server.metric("ganserve_worker_restarts_total", model="toy") == 2


def test_workers_that_die_together_come_back_together(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "4")
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 4)

    for worker in server.workers():
        worker.kill()

    wait_for(lambda: server.metric("ganserve_worker_restarts_total", model="toy") == 4)
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 4, seconds=10)


def test_an_artifact_damaged_while_it_is_served_ends_neither_the_server_nor_its_neighbours(
    serve: Serve, tmp_path: Path
) -> None:
    artifact = publish_toy(tmp_path / "store", "toy")
    publish_toy(tmp_path / "store", "other")
    server = serve("--model", "toy,other", "--workers", "1", store=tmp_path / "store")
    graph = artifact.file("model.onnx")
    graph.write_bytes(graph.read_bytes() + b"x")

    for worker in server.workers():
        worker.kill()
    wait_for(lambda: "model.onnx is not the file that was published" in server.log)
    wait_for(lambda: server.metric("ganserve_worker_up", model="other") == 1)

    assert server.http.post("/v1/samples", json={"model": "other", "seed": 1}).status_code == 200
    assert server.http.get("/v2/models/toy/ready").status_code == 503  # it has no worker
    assert server.http.get("/readyz").status_code == 200  # the other has


def test_rows_asked_for_while_every_worker_is_dead_are_made_when_one_is_back(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1")
    before = server.http.post("/v1/samples", json={"seed": 5}).content
    (worker,) = server.workers()

    worker.kill()
    after = server.http.post("/v1/samples", json={"seed": 5})

    assert (after.status_code, after.content) == (200, before)


@pytest.mark.parametrize("victim", ["api", "parent"])
def test_a_server_without_its_api_process_or_parent_ends_and_leaves_nothing(
    serve: Serve, victim: str
) -> None:
    server = serve("--model", "toy")
    family = server.family()

    (server.api() if victim == "api" else family[0]).kill()

    assert server.process.wait(timeout=10) != 0
    assert psutil.wait_procs(family, timeout=8)[1] == []


def test_an_idle_server_uses_under_two_percent_of_a_core(serve: Serve) -> None:
    server = serve("--model", "toy,plain", "--workers", "1")
    family = server.family()
    time.sleep(1.0)  # what start-up left to do

    def cpu_s() -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in family)

    before, started = cpu_s(), time.monotonic()
    time.sleep(4.0)
    used, seconds = cpu_s() - before, time.monotonic() - started

    assert used / seconds < 0.02


# One row a run, on one worker: a request of 100,000 rows takes long enough to be left.
SLOW = [
    "--model",
    "toy",
    "--workers",
    "1",
    "--max-microbatch",
    "1",
    "--max-queued-rows",
    "200000",
    "--max-rows",
    "100000",
]


def test_a_caller_that_leaves_frees_its_rows(serve: Serve) -> None:
    server = serve(*SLOW)

    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/samples", json={"seed": 0, "n": 100_000, "format": "npy"}, timeout=0.3)

    wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") == 0, seconds=5)
    assert server.metric("ganserve_batches_total", model="toy") < 100_000


def test_a_deadline_that_passes_is_a_504(serve: Serve) -> None:
    server = serve(*SLOW)

    answer = server.http.post("/v1/samples", json={"seed": 0, "n": 100_000, "timeout_ms": 50})

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline")
    assert "50 ms" in answer.json()["error"]


def test_a_request_larger_than_the_queue_is_too_large_not_overloaded(serve: Serve) -> None:
    server = serve("--model", "toy", "--max-queued-rows", "10")

    answer = server.http.post("/v1/samples", json={"seed": 1, "n": 11})

    assert (answer.status_code, answer.json()["error"]) == (413, "max_rows is 10 rows a request, got 11")


def test_a_full_queue_refuses_with_retry_after_and_serves_on(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-queued-rows", "64", "--max-microbatch", "1")

    with ThreadPoolExecutor(24) as clients:
        answers = list(
            clients.map(
                lambda seed: server.http.post("/v1/samples", json={"seed": seed, "n": 40}),
                range(24),
            )
        )

    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    assert server.http.post("/v1/samples", json={"seed": 1}).status_code == 200


def test_readiness_waits_for_a_worker_while_the_process_already_lives(serve: Serve) -> None:
    server = serve("--model", "toy", ready=False)
    seen = set()
    while "ready 200" not in seen:
        assert time.monotonic() - server.started < 30
        try:
            seen.add(f"live {server.http.get('/livez').status_code}")
            ready = server.http.get("/readyz")
        except httpx.TransportError:
            continue
        seen.add(f"ready {ready.status_code}")
        if ready.status_code == 503:
            assert "retry-after" in ready.headers

    assert seen == {"live 200", "ready 503", "ready 200"}


def refused_start(*flags: str) -> str:
    """What `ganserve serve` says when it will not start; it must end by itself, with a status but 0."""
    done = subprocess.run([str(GANSERVE), "serve", *flags], capture_output=True, text=True, timeout=40)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_served_is_one_sentence(toy_store: Path, tmp_path: Path) -> None:
    store = ["--store", str(toy_store)]

    assert "; it has: plain, toy" in refused_start(*store, "--model", "nobody")
    assert "no version 7 of 'toy'" in refused_start(*store, "--model", "toy:7")
    assert "port must be greater than or equal to 1024" in refused_start("--port", "80")
    assert "model must name each model once, got toy twice" in refused_start(*store, "--model", "toy,toy:1")
    assert "accelerator cuda was asked for" in refused_start(
        *store, "--model", "toy", "--accelerator", "cuda"
    )


def test_a_damaged_artifact_is_never_served(tmp_path: Path) -> None:
    artifact = publish_toy(tmp_path)
    graph = artifact.file("model.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")

    said = refused_start("--store", str(tmp_path), "--model", "toy")

    assert "toy:1: model.onnx is not the file that was published" in said


def test_a_worker_that_cannot_start_says_why_and_five_deaths_end_the_server(tmp_path: Path) -> None:
    sound = publish_toy(tmp_path / "sound")
    golden = Golden.load(sound.file(GOLDEN_FILE), sound.manifest)
    with Store(tmp_path / "broken").draft("toy") as draft:  # it says 11 classes, its graph has 10
        shutil.copy(sound.file(GRAPH_FILE), draft.path)
        replace(golden, class_idx=golden.class_idx * 0 + 10).save(draft.path / GOLDEN_FILE)
        draft.publish(replace(sound.manifest, num_classes=11, class_names=()))
    flags = ["--store", str(tmp_path / "broken"), "--model", "toy", "--port", str(free_port())]

    done = subprocess.run([str(GANSERVE), "serve", *flags], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "worker of toy:1 failed to start" in done.stderr
    assert "workers died 5 times before any was ready" in done.stderr


def test_golden_rows_that_differ_are_published_and_refused_when_strict(serve: Serve, tmp_path: Path) -> None:
    publish_toy(tmp_path / "spoiled", golden_off_by=3)

    server = serve("--model", "toy", store=tmp_path / "spoiled")
    said = refused_start(
        "--store", str(tmp_path / "spoiled"), "--model", "toy", "--strict", "--port", str(free_port())
    )

    assert server.http.get("/v1/models/toy").json()["determinism"] == "differs by 3"
    assert "golden rows differ by up to 3 grey levels" in said


def test_memory_that_cannot_be_reserved_is_a_sentence_before_any_traffic(toy_store: Path) -> None:
    flags = [
        "--store",
        str(toy_store),
        "--model",
        "toy",
        "--port",
        str(free_port()),
        "--max-microbatch",
        "1024",
    ]
    limited = ["bash", "-c", 'ulimit -f 256; exec "$@"', "-", str(GANSERVE), "serve", *flags]

    done = subprocess.run(limited, capture_output=True, text=True, timeout=40)

    assert done.returncode != 0
    assert "MiB of shared memory could not be reserved" in done.stderr
    assert "--max-microbatch (now 1024)" in done.stderr


def test_a_dev_shm_that_takes_nothing_is_a_sentence(toy_store: Path) -> None:
    flags = ["--store", str(toy_store), "--model", "toy", "--port", str(free_port())]
    no_files = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", str(GANSERVE), "serve", *flags]

    done = subprocess.run(no_files, capture_output=True, text=True, timeout=40)

    assert done.returncode == 2
    assert "/dev/shm must be writable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_a_sentence(toy_store: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused_start(
            "--store", str(toy_store), "--model", "toy", "--port", str(taken.getsockname()[1])
        )

    assert "port" in said
    assert "in use" in said


def test_of_two_servers_started_at_once_on_one_port_one_serves_and_one_says_why_not(serve: Serve) -> None:
    port = str(free_port())
    servers = [serve("--model", "toy", "--port", port, ready=False) for _ in range(2)]

    wait_for(lambda: any(server.process.poll() is not None for server in servers))
    (loser,) = [server for server in servers if server.process.poll() is not None]
    (winner,) = [server for server in servers if server is not loser]
    wait_for(lambda: "ganserve serves" in winner.log)

    assert loser.process.returncode != 0
    assert f"port {port}" in loser.log
    assert "ganserve serves" not in loser.log


def test_settings_come_from_flag_then_environment_then_yaml(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ganserve.yaml"
    config.write_text(json.dumps({"model": "plain", "max_rows": 5, "max_queued_rows": 50, "workers": 1}))
    monkeypatch.setenv("GANSERVE_MAX_ROWS", "6")
    monkeypatch.setenv("GANSERVE_MODEL", "plain")

    server = serve("--config", str(config), "--model", "toy")

    (model,) = server.http.get("/v1/models").json()["models"]
    assert (model["name"], model["limits"]["max_rows"], model["limits"]["max_queued_rows"]) == ("toy", 6, 50)


def test_an_unknown_setting_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ganserve.yaml"
    config.write_text("modle: toy\n")

    assert "unknown setting modle" in refused_start("--config", str(config))
    monkeypatch.setenv("GANSERVE_MODLE", "toy")
    assert "GANSERVE_MODLE" in refused_start()
