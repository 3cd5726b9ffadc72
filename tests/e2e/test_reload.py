"""Another version takes a served one's place while requests come: none fails, none gets another's pixels."""

from __future__ import annotations

import io
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from server_process import Server, wait_for
from toy import publish_toy

from models.sampling import latents_from_seeds
from models.store import Artifact, Store
from service.session import Session

Serve = Callable[..., Server]
ADMIN = {"authorization": "Bearer an-admin-key-of-a-test"}


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANSERVE_ADMIN_KEYS", "an-admin-key-of-a-test")


@pytest.fixture
def store(tmp_path: Path, admin: None) -> Path:
    """A store with one version of `toy`; tests publish more."""
    publish_toy(tmp_path / "store", "toy")
    return tmp_path / "store"


def reload(server: Server, version: int | None = None, name: str = "toy") -> httpx.Response:
    body = {} if version is None else {"version": version}
    return server.http.post(f"/v1/models/{name}/reload", json=body, headers=ADMIN)


def pixels_of(artifact: Artifact, seed: int) -> npt.NDArray[np.uint8]:
    """What two rows from `seed` on must be, by a session of our own."""
    manifest = artifact.manifest
    seeds = np.array([seed, seed + 1])
    return Session(artifact).run(
        latents_from_seeds(seeds, manifest.z_dim, manifest.prior),
        seeds % max(1, manifest.num_classes),
        np.ones(2, dtype=np.float32),
    )


class Load:
    """Clients that ask without end; each answer with the digest that it names."""

    def __init__(self, server: Server, clients: int) -> None:
        self.answers: list[tuple[int, int, str, bytes]] = []  # seed, status, digest, body
        self.errors: list[Exception] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(1000 * k,)) for k in range(clients)]

    def _ask(self, seed: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=30) as client:
            while not self._stop.is_set():
                seed = seed // 1000 * 1000 + (seed + 1) % 5  # few seeds: each is checked
                try:
                    answer = client.post("/v1/samples", json={"seed": seed, "n": 2, "format": "npy"})
                except httpx.HTTPError as error:
                    self.errors.append(error)
                    return
                digest = answer.headers.get("x-model-digest", "")
                self.answers.append((seed, answer.status_code, digest, answer.content))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def check(load: Load, *artifacts: Artifact) -> set[str]:
    """Every answer is 200 and holds what its digest makes of its seed; return the digests seen."""
    assert load.errors == []
    assert {status for _, status, _, _ in load.answers} == {200}
    by_digest = {artifact.digest: artifact for artifact in artifacts}
    seen = {(seed, digest, body) for seed, _, digest, body in load.answers}
    assert len(seen) == len({(seed, digest) for seed, digest, _ in seen})  # one body for each
    for seed, digest, body in seen:
        np.testing.assert_array_equal(np.load(io.BytesIO(body)), pixels_of(by_digest[digest], seed))
    return {digest for _, digest, _ in seen}


def test_reloads_back_and_forth_under_load_fail_no_request_and_mix_no_versions(
    serve: Serve, store: Path
) -> None:
    old = Store(store).resolve("toy:1")
    server = serve("--model", "toy", "--workers", "2", store=store)
    new = publish_toy(store, "toy", channels=1, truncation=False, weights_seed=1)  # another size, too

    with Load(server, clients=6) as load:
        wait_for(lambda: len(load.answers) > 20)
        for version in (2, 1, 2, 1, 2):
            assert reload(server, version).json()["version"] == version
            before = len(load.answers)
            wait_for(lambda before=before: len(load.answers) > before + 20)  # type: ignore[misc]

    assert check(load, old, new) == {old.digest, new.digest}
    (described,) = server.http.get("/v1/models").json()["models"]
    assert (described["version"], described["digest"], described["img_channels"]) == (2, new.digest, 1)
    assert server.metric("ganserve_model_info", model="toy", version="2", digest=new.digest) == 1
    assert server.metric("ganserve_model_info", model="toy") == 1  # and no other
    assert server.metric("ganserve_reloads_total", model="toy", outcome="done") == 5


def test_a_worker_killed_during_and_after_a_reload_costs_nothing_and_comes_back_with_the_new_version(
    serve: Serve, store: Path
) -> None:
    old = Store(store).resolve("toy:1")
    server = serve("--model", "toy", "--workers", "2", store=store)
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    new = publish_toy(store, "toy", weights_seed=1)

    with Load(server, clients=4) as load:
        wait_for(lambda: len(load.answers) > 20)
        victim = server.workers()[0]
        reloading = threading.Thread(target=reload, args=(server,))
        reloading.start()
        victim.kill()
        reloading.join()
        wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
        for worker in server.workers():
            worker.kill()
        wait_for(lambda: server.metric("ganserve_worker_restarts_total", model="toy") == 3)
        wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)

    assert check(load, old, new) == {old.digest, new.digest}
    assert load.answers[-1][2] == new.digest


def test_a_version_that_is_not_sound_is_refused_with_a_sentence_and_the_old_one_serves_on(
    serve: Serve, store: Path
) -> None:
    sound = Store(store).resolve("toy:1")
    server = serve("--model", "toy", "--workers", "2", store=store)
    before = server.http.post("/v1/samples", json={"seed": 5})
    publish_toy(store, "toy", weights_seed=1, golden_off_by=3)
    publish_toy(store, "toy", weights_seed=1).file("model.onnx").write_bytes(b"no graph")
    publish_toy(store, "toy", weights_seed=1).file("manifest.json").write_text("{")
    with Store(store).draft("toy") as draft:
        (draft.path / "model.onnx").write_bytes(b"no graph")
        shutil.copy(sound.file("golden.npz"), draft.path)
        draft.publish(replace(sound.manifest, version=5))

    answers = [reload(server, version) for version in (2, 3, 4, 5)]
    missing = reload(server, 6)

    reasons = [answer.json()["error"] for answer in answers]
    assert [answer.status_code for answer in answers] == [409] * 4
    assert {answer.json()["code"] for answer in answers} == {"version_refused"}
    assert "golden rows must come out as they were published" in reasons[0]
    assert "differ by up to 3 grey levels" in reasons[0]
    assert "toy:3: model.onnx is not the file that was published" in reasons[1]
    assert "toy:4: the manifest must be JSON" in reasons[2]
    assert "toy:5: model.onnx cannot be loaded" in reasons[3]
    assert (missing.status_code, "no version 6 of 'toy'" in missing.json()["error"]) == (404, True)
    assert server.http.post("/v1/samples", json={"seed": 5}).content == before.content
    assert server.http.get("/v1/models/toy").json()["version"] == 1
    assert server.metric("ganserve_reloads_total", model="toy", outcome="refused") == 4
    assert server.metric("ganserve_worker_restarts_total", model="toy") == 0


def test_a_reload_needs_an_admin_key_and_a_body_that_it_knows(serve: Serve, store: Path) -> None:
    server = serve("--model", "toy", store=store)
    url = "/v1/models/toy/reload"

    assert server.http.post(url).status_code == 401
    assert server.http.post(url, headers={"x-api-key": "some-other-key-of-sixteen"}).status_code == 401
    assert server.http.post("/v1/models/nobody/reload", headers=ADMIN).status_code == 404
    unknown = server.http.post(url, json={"digest": "x"}, headers=ADMIN)
    assert (unknown.status_code, "digest is not a field" in unknown.json()["error"]) == (422, True)
    assert server.http.post(url, content=b"{", headers=ADMIN).status_code == 400
    assert server.http.post(url, headers=ADMIN).json()["changed"] is False


def test_reload_follows_the_highest_version_and_a_version_named_in_a_setting_or_reload_stays(
    serve: Serve, store: Path
) -> None:
    publish_toy(store, "held")
    server = serve("--model", "toy,held:1", "--watch-store-s", "0.1", store=store)

    def version(name: str) -> int:
        return int(server.http.get(f"/v1/models/{name}").json()["version"])

    publish_toy(store, "held", weights_seed=1)
    publish_toy(store, "toy", weights_seed=1)
    wait_for(lambda: version("toy") == 2)
    assert reload(server, name="held").json()["changed"] is False
    assert reload(server, 1).json()["version"] == 1
    time.sleep(0.5)
    assert (version("toy"), version("held")) == (1, 1)
    assert reload(server).json()["version"] == 2


def test_the_watch_tells_once_of_a_version_that_is_refused_and_takes_the_next_sound_one(
    serve: Serve, store: Path
) -> None:
    server = serve("--model", "toy", "--watch-store-s", "0.1", store=store)

    publish_toy(store, "toy", weights_seed=1, golden_off_by=3)
    wait_for(lambda: "reload refused, toy:1 serves on" in server.log)
    time.sleep(0.5)
    assert server.log.count("reload refused") == 1
    publish_toy(store, "toy", weights_seed=2)
    wait_for(lambda: server.http.get("/v1/models/toy").json()["version"] == 3)


def test_a_version_that_is_copied_into_the_store_file_by_file_is_taken_when_it_is_whole(
    serve: Serve, store: Path, tmp_path: Path
) -> None:
    publish_toy(tmp_path / "elsewhere", "toy")
    new = publish_toy(tmp_path / "elsewhere", "toy", weights_seed=1)
    server = serve("--model", "toy", "--watch-store-s", "0.1", store=store)

    target = store / "toy" / "2"
    target.mkdir()
    for name in ("manifest.json", "model.onnx", "golden.npz"):
        time.sleep(0.3)
        shutil.copy(new.file(name), target)

    wait_for(lambda: server.http.get("/v1/models/toy").json()["digest"] == new.digest)


def test_addresses_of_the_replaced_digest_are_a_409_after_a_moment_and_the_moving_address_moves(
    serve: Serve, store: Path
) -> None:
    server = serve("--model", "toy", store=store)
    old_url = server.http.get("/v1/models/toy/7.png").headers["location"]
    old_image = server.http.get(old_url)
    new = publish_toy(store, "toy", weights_seed=1)

    reload(server)
    late = server.http.get(old_url)  # of one who followed the moving address just before
    moved = server.http.get("/v1/models/toy/7.png")
    new_image = server.http.get(moved.headers["location"])

    assert (late.status_code, late.content) == (200, old_image.content)
    assert {late.headers[name] == old_image.headers[name] for name in ("etag", "x-model-digest")} == {True}
    stranger = server.http.get(old_url.replace(old_url.split("@")[1][:12], "0" * 12))
    assert (stranger.status_code, stranger.json()["code"]) == (409, "digest_not_served")
    assert f"@{new.digest[:12]}/" in moved.headers["location"]
    assert new_image.content != old_image.content
    assert new_image.headers["etag"] != old_image.headers["etag"]


def test_a_reload_mends_a_model_whose_served_version_was_damaged_in_the_store(
    serve: Serve, store: Path
) -> None:
    server = serve("--model", "toy", "--workers", "1", store=store)
    Store(store).resolve("toy:1").file("model.onnx").write_bytes(b"damaged")
    for worker in server.workers():
        worker.kill()
    wait_for(lambda: server.http.get("/readyz").status_code == 503)
    publish_toy(store, "toy", weights_seed=1)

    answer = reload(server)

    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert server.http.post("/v1/samples", json={"seed": 1}).status_code == 200


def test_the_address_of_a_graph_published_again_keeps_its_bytes(serve: Serve, store: Path) -> None:
    digest = Store(store).resolve("toy").digest[:12]
    address = f"/v1/models/toy@{digest}/7.png"
    server = serve("--model", "toy", "--workers", "1", store=store)
    before = server.http.get(address)
    publish_toy(store, "toy")

    assert reload(server).json()["version"] == 2

    after = server.http.get(address)
    assert (before.status_code, after.status_code) == (200, 200)
    assert (after.content, after.headers["etag"]) == (before.content, before.headers["etag"])


def test_a_reload_that_outlasts_the_drain_is_told_so(serve: Serve, store: Path) -> None:
    server = serve("--model", "toy", "--workers", "1", "--drain-s", "1", store=store)
    publish_toy(store, "toy")
    (worker,) = server.workers()
    worker.suspend()
    with ThreadPoolExecutor() as callers:
        asking = callers.submit(reload, server)
        wait_for(lambda: server.metric("ganserve_inflight_requests") == 2)  # it, and the scrape
        server.process.send_signal(signal.SIGTERM)
        answer = asking.result()

    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert server.process.wait(timeout=10) == 0
