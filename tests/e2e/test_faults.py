"""What goes wrong in a worker costs no request its image, and no other model its peace. Real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import Server, wait_for
from toy import publish_toy

Serve = Callable[..., Server]


def test_a_worker_that_hangs_is_killed_and_its_rows_are_made_by_another(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--worker-timeout-s", "0.5")
    before = server.http.post("/v1/samples", json={"seed": 5}).content
    (hangs,) = server.workers()

    hangs.suspend()
    after = server.http.post("/v1/samples", json={"seed": 5})

    assert (after.status_code, after.content) == (200, before)
    wait_for(lambda: not hangs.is_running() or hangs.status() == psutil.STATUS_ZOMBIE)
    assert server.metric("ganserve_worker_timeouts_total", model="toy") == 1
    assert server.metric("ganserve_worker_restarts_total", model="toy") == 1
    assert server.metric("ganserve_replayed_batches_total", model="toy") == 1


def test_an_idle_worker_that_hangs_is_found_without_traffic_and_holds_up_no_reload(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANSERVE_ADMIN_KEYS", "an-admin-key-of-a-test")
    publish_toy(tmp_path / "store", "toy")
    server = serve(
        *("--model", "toy", "--workers", "2", "--worker-timeout-s", "0.5", "--load-timeout-s", "10"),
        store=tmp_path / "store",
    )
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    publish_toy(tmp_path / "store", "toy", weights_seed=1)
    hangs = server.workers()[0]

    hangs.suspend()
    reloaded = server.http.post(
        "/v1/models/toy/reload", headers={"authorization": "Bearer an-admin-key-of-a-test"}
    )

    assert (reloaded.status_code, reloaded.json()["version"]) == (200, 2)
    wait_for(lambda: not hangs.is_running() or hangs.status() == psutil.STATUS_ZOMBIE)
    assert server.metric("ganserve_worker_timeouts_total", model="toy") == 1
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)


def test_a_row_that_kills_every_worker_is_a_500_and_its_neighbours_are_made(
    serve: Serve, tmp_path: Path
) -> None:
    publish_toy(tmp_path / "store", "toy", last_class_kills=True)
    server = serve("--model", "toy", "--workers", "2", store=tmp_path / "store")
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    expected = [server.http.post("/v1/samples", json={"seed": seed, "class_idx": 1}) for seed in range(6)]

    with ThreadPoolExecutor(9) as clients:

        def ask(seeds: list[int], class_idx: list[int]) -> Future[httpx.Response]:
            return clients.submit(
                server.http.post, "/v1/samples", json={"seeds": seeds, "class_idx": class_idx}
            )

        for worker in server.workers():
            worker.suspend()
        blockers = [ask([seed], [1]) for seed in range(2)]  # one a worker: what comes now waits together
        wait_for(lambda: server.metric("ganserve_inflight_requests") == 3)  # they, and the scrape
        poisoned = ask([1, 2, 3], [1, 9, 2])
        neighbours = [ask([seed], [1]) for seed in range(6)]
        wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") == 9)
        for worker in server.workers():
            worker.resume()

    assert (poisoned.result().status_code, poisoned.result().json()["code"]) == (500, "worker_crashed")
    assert [one.result().content for one in neighbours] == [one.content for one in expected]
    assert {one.result().status_code for one in blockers} == {200}
    assert server.metric("ganserve_worker_restarts_total", model="toy") == 4  # once, twice again, once alone


def test_a_server_whose_workers_only_die_is_not_ready_until_one_makes_an_image(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "5")
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 5)

    for worker in server.workers():
        worker.kill()
    wait_for(lambda: server.metric("ganserve_worker_restarts_total", model="toy") == 5)
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") > 0)
    looping = server.http.get("/readyz")
    made = server.http.post("/v1/samples", json={"seed": 1})

    assert (looping.status_code, made.status_code) == (503, 200)
    assert "workers of toy died 5 times and finished nothing between" in looping.json()["error"]
    assert server.http.get("/readyz").status_code == 200


def test_a_model_whose_workers_die_leaves_the_other_its_workers_and_its_speed(
    serve: Serve, tmp_path: Path
) -> None:
    publish_toy(tmp_path / "store", "deadly", last_class_kills=True)
    publish_toy(tmp_path / "store", "sound")
    server = serve("--model", "sound,deadly", "--workers", "1", store=tmp_path / "store")
    sound = {worker.pid for worker in server.workers()}
    statuses, slowest_s = [], 0.0

    with ThreadPoolExecutor(1) as client:
        crash = client.submit(
            server.http.post, "/v1/samples", json={"model": "deadly", "seed": 1, "class_idx": 9}
        )
        while not crash.done():
            started = time.monotonic()
            statuses.append(server.http.post("/v1/samples", json={"model": "sound", "seed": 1}).status_code)
            slowest_s = max(slowest_s, time.monotonic() - started)

    assert crash.result().json()["code"] == "worker_crashed"
    assert set(statuses) == {200}
    assert slowest_s < 1.0  # a worker's start takes as long and longer
    assert len(sound & {worker.pid for worker in server.workers()}) == 1
    assert server.metric("ganserve_worker_restarts_total", model="sound") == 0


def test_a_model_whose_queue_is_full_leaves_the_other_its_room(serve: Serve) -> None:
    server = serve(
        *("--model", "toy,plain", "--workers", "1", "--max-microbatch", "1"),
        *("--max-queued-rows", "2000", "--max-rows", "2000", "--worker-timeout-s", "60"),
    )
    toy = min(server.workers(), key=lambda worker: worker.create_time())
    server.http.post("/v1/samples", json={"model": "toy", "seed": 1})
    toy.suspend()
    try:
        with ThreadPoolExecutor(1) as client:
            fills = client.submit(
                server.http.post, "/v1/samples", json={"model": "toy", "n": 2000, "seed": 0, "format": "npy"}
            )
            wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") > 1000)
            full = server.http.post("/v1/samples", json={"model": "toy", "seed": 0, "n": 900})
            free = server.http.post("/v1/samples", json={"model": "plain", "seed": 0, "n": 900})
            toy.resume()
            filled = fills.result()
    finally:
        toy.resume()

    assert (full.status_code, free.status_code, filled.status_code) == (429, 200, 200)
    assert int(full.headers["retry-after"]) >= 1


def test_an_interactive_request_is_answered_before_batch_requests_that_came_earlier(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-microbatch", "1", "--max-microbatch-ms", "1")
    (worker,) = server.workers()
    worker.suspend()
    finished: list[str] = []

    def ask(priority: str) -> int:
        answer = server.http.post(
            "/v1/samples", json={"seed": 1, "n": 300, "priority": priority, "format": "npy"}
        )
        finished.append(priority)
        return answer.status_code

    with ThreadPoolExecutor(4) as clients:
        batch = [clients.submit(ask, "batch") for _ in range(3)]
        wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") > 800)
        interactive = clients.submit(ask, "interactive")
        wait_for(lambda: server.metric("ganserve_queued_rows", model="toy") > 1100)
        worker.resume()

    assert finished == ["interactive", "batch", "batch", "batch"]
    assert {one.result() for one in (*batch, interactive)} == {200}
    refused = server.http.post("/v1/samples", json={"seed": 1, "priority": "urgent"})
    assert (refused.status_code, "priority must be 'interactive' or 'batch'" in refused.json()["error"]) == (
        422,
        True,
    )
