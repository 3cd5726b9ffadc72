"""D at work in a real server: images chosen by MH, realness told, and nothing of it for plain rows."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from server_process import Server
from toy import Z_DIM, republish

from models.choosing import choose_images
from models.manifest import DISCRIMINATOR_FILE, GRAPH_FILE
from models.sampling import LatentSampler
from models.store import Store
from service.__main__ import main


@pytest.fixture(scope="module")
def server(judged_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    server = Server(judged_store, "--model", "judged,told", "--workers", "2", log=log).wait_until_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def choose(judged_store: Path) -> Callable[[int, int], tuple[np.ndarray, float]]:
    """`choose(seed, proposals)`: the image [H, W, C] that MH ends at, and its realness, by the contract."""
    artifact = Store(judged_store).resolve("judged")
    G, D = (
        onnxruntime.InferenceSession(artifact.file(file), providers=["CPUExecutionProvider"])
        for file in (GRAPH_FILE, DISCRIMINATOR_FILE)
    )

    def made(seed: int, proposals: int) -> tuple[np.ndarray, float]:
        latents, uniforms = LatentSampler(Z_DIM).draw_proposals([seed], proposals)
        images, logits = choose_images(
            lambda z, c, psi: G.run(None, {"latents": z, "class_idx": c, "truncation_psi": psi})[0],
            lambda x, c: D.run(None, {"images": x, "class_idx": c})[0],
            0.8,
            latents,
            uniforms,
            np.array([seed % 10]),
            np.ones(1, np.float32),
        )
        calibration = artifact.manifest.calibration
        assert calibration is not None
        return images[0], float(calibration.realness(logits)[0])

    return made


def post(server: Server, **fields: object) -> httpx.Response:
    return server.http.post("/v1/samples", json={"model": "judged", **fields})


def array(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def test_mh_gives_the_image_that_the_seeds_chain_ends_at(
    server: Server, choose: Callable[[int, int], tuple[np.ndarray, float]]
) -> None:
    seeds = list(range(24))

    plain = array(post(server, seeds=seeds, format="npy"))
    chosen = array(post(server, seeds=seeds, format="npy", sampler="mh", proposals=6))

    assert np.array_equal(chosen, np.stack([choose(seed, 6)[0] for seed in seeds]))
    same = (plain == chosen).all(axis=(1, 2, 3)).mean()
    assert 0 < same < 0.9  # some chains stay at the plain image, most do not
    assert post(server, seed=3, sampler="mh", proposals=1).content == post(server, seed=3).content
    default = array(post(server, seed=5, format="npy", sampler="mh"))
    assert np.array_equal(default[0], choose(5, 4)[0])  # the calibration's own number


def test_realness_is_told_where_it_is_asked_for(
    server: Server, choose: Callable[[int, int], tuple[np.ndarray, float]]
) -> None:
    counted = server.metric("ganserve_realness_count", model="judged")

    one = post(server, seed=7, realness=True)
    many = post(server, seeds=[7, 8], realness=True, container="json", sampler="mh").json()
    packed = zipfile.ZipFile(io.BytesIO(post(server, seeds=[7, 8], realness=True).content))

    assert one.headers["x-realness"] == f"{choose(7, 1)[1]:.4f}"
    assert one.content == post(server, seed=7).content  # it changes no byte of the image
    assert [image["realness"] for image in many["images"]] == [choose(7, 4)[1], choose(8, 4)[1]]
    told = many["manifest"]["images"][0]
    assert (told["sampler"], told["proposals"], told["realness"]) == ("mh", 4, choose(7, 4)[1])
    listed = json.loads(packed.read("manifest.json"))["images"]
    assert [image["realness"] for image in listed] == [choose(7, 1)[1], choose(8, 1)[1]]
    assert "x-realness" not in post(server, seed=7).headers
    assert server.metric("ganserve_realness_count", model="judged") == counted + 5


def test_an_address_names_sampler_and_proposals_and_so_does_its_etag(
    server: Server, judged_store: Path
) -> None:
    digest = Store(judged_store).resolve("judged").digest[:12]
    address = f"/v1/models/judged@{digest}/42.png"

    plain = server.http.get(address)
    chosen = server.http.get(f"{address}?sampler=mh&proposals=9&realness=true")
    again = server.http.get(
        f"{address}?proposals=9&sampler=mh", headers={"If-None-Match": chosen.headers["etag"]}
    )

    assert chosen.content == post(server, seed=42, sampler="mh", proposals=9).content
    assert (
        len(
            {
                plain.headers["etag"],
                chosen.headers["etag"],
                server.http.head(f"{address}?sampler=mh").headers["etag"],
            }
        )
        == 3
    )
    assert 0 <= float(chosen.headers["x-realness"]) <= 1
    for spelling in ("09", "%2B9", "9.0"):  # one image, one address
        refused = server.http.get(f"{address}?sampler=mh&proposals={spelling}")
        assert refused.status_code == 422
        assert "proposals must be plain digits" in refused.json()["error"]
    assert again.status_code == 304


def test_a_chosen_image_says_how_and_verify_proves_it(
    server: Server, judged_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        (tmp_path / f"{seed}.png").write_bytes(post(server, seed=seed, sampler="mh", proposals=8).content)
        (tmp_path / f"plain{seed}.png").write_bytes(post(server, seed=seed).content)

    status = main(["verify", "--store", str(judged_store), str(tmp_path)])

    assert b'ganserve:sampler="mh" ganserve:proposals="8"' in (tmp_path / "1.png").read_bytes()
    assert status == 0
    assert "6 images: 6 identical" in capsys.readouterr().out


def test_a_worker_that_is_killed_among_chosen_images_is_not_noticed(server: Server) -> None:
    asked = {"seed": 700, "n": 60, "sampler": "mh", "proposals": 16, "realness": True, "container": "json"}
    wanted = post(server, **asked).json()

    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(post, server, **asked) for _ in range(4)]
        server.workers()[0].kill()
        made = [answer.result() for answer in answers]

    assert [answer.json() for answer in made] == [wanted] * 4
    assert (
        server.metric("ganserve_worker_restarts_total", model="judged")
        + server.metric("ganserve_worker_restarts_total", model="told")
        == 1
    )


def test_deep_verification_replays_the_discriminator(
    judged_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--store", str(judged_store), "--deep", "judged"]) == 0
    assert "golden rows bit_exact, their realness the same on CPUExecutionProvider" in capsys.readouterr().out


def test_an_offline_set_of_chosen_images_is_what_the_endpoint_gives(
    server: Server, judged_store: Path, tmp_path: Path
) -> None:
    flags = ["--model", "judged", "--seeds", "0-19", "--sampler", "mh", "--proposals", "7", "--realness"]

    assert main(["sample", "--store", str(judged_store), *flags, "--out", str(tmp_path / "set")]) == 0

    online = post(server, seed=0, n=20, sampler="mh", proposals=7, realness=True, container="json").json()
    told = [json.loads(line) for line in (tmp_path / "set/metadata.jsonl").read_text().splitlines()]
    for image, row in zip(online["images"], told, strict=True):
        assert (tmp_path / "set" / row["file_name"]).read_bytes() == base64.b64decode(image["data"])
        assert (row["seed"], row["realness"]) == (image["seed"], image["realness"])


def test_rows_of_every_kind_share_microbatches_and_each_gets_its_own(server: Server) -> None:
    latents = np.random.RandomState(0).randn(3, Z_DIM).round(3).tolist()
    kinds: list[dict[str, object]] = [
        {"seed": 100, "n": 5},
        {"seed": 200, "n": 9, "sampler": "mh", "proposals": 7, "realness": True},
        {"seed": 300, "n": 3, "sampler": "mh", "proposals": 40},
        {"latents": latents, "realness": True},
        {"seed": 400, "n": 30, "realness": True, "priority": "batch"},
        {"seed": 500, "n": 2, "sampler": "mh", "proposals": 64, "format": "webp", "priority": "batch"},
    ]
    asked = [{"container": "json", **kind} for kind in kinds]
    alone = [post(server, **one).json() for one in asked]

    with ThreadPoolExecutor(36) as clients:
        together = list(clients.map(lambda one: post(server, **one).json(), asked * 6))

    assert together == alone * 6


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        (
            {"model": "told", "sampler": "mh"},
            422,
            "sampler must be plain: the distance rises from 2 to 7, got 'mh'",
        ),
        ({"sampler": "mh", "proposals": 65}, 422, "proposals must be an integer between 1 and 64, got 65"),
        ({"proposals": 3}, 422, "proposals must be left out where sampler is plain, got 3"),
        ({"sampler": "greedy"}, 422, "sampler must be 'plain' or 'mh', got 'greedy'"),
        ({"sampler": "mh", "truncation_psi": 0.7}, 422, "truncation_psi must be 1 where sampler is mh"),
        ({"n": 2, "format": "npy", "realness": True}, 422, "realness must be left out where format is npy"),
        (
            {"n": 100, "sampler": "mh", "proposals": 12},
            413,
            "max_rows is 1024 rows a request, got 100 × 12 proposals",
        ),
    ],
)
def test_what_is_not_offered_is_refused_with_a_sentence(
    server: Server, fields: dict[str, object], status: int, sentence: str
) -> None:
    answer = post(server, **{"seed": 0, **fields})

    assert (answer.status_code, answer.json()["error"][: len(sentence)]) == (status, sentence)


def test_further_proposals_are_a_seeds_and_no_latents(server: Server) -> None:
    answer = post(server, latents=[[0.0] * Z_DIM], sampler="mh")

    assert answer.status_code == 422
    assert answer.json()["error"].startswith("sampler must be plain where latents are given")


def test_a_model_without_a_discriminator_says_so(shared_server: Server) -> None:
    answer = shared_server.http.post("/v1/samples", json={"seed": 0, "realness": True})
    facts = shared_server.http.get("/v1/models/toy").json()

    assert answer.json()["error"] == "realness must be left out: the model has no discriminator, got true"
    assert (facts["samplers"], facts["discriminator"]) == (["plain"], None)


def test_logits_of_golden_rows_that_differ_are_published(
    serve: Callable[..., Server], judged_store: Path, tmp_path: Path
) -> None:
    republish(Store(judged_store).resolve("judged"), tmp_path, logits_off_by=0.5)

    facts = serve("--model", "judged", store=tmp_path).http.get("/v1/models/judged").json()

    assert facts["determinism"] == "differs by 0, realness by 0.5 of a logit"


def test_a_models_facts_show_its_calibration(server: Server) -> None:
    judged, told = (server.http.get(f"/v1/models/{name}").json() for name in ("judged", "told"))

    assert judged["samplers"] == ["plain", "mh"]
    assert (judged["discriminator"]["scale"], judged["discriminator"]["proposals"]) == (0.8, 4)
    assert told["samplers"] == ["plain"]
    assert told["discriminator"]["why_not"] == "the distance rises from 2 to 7"
    assert base64.b64decode(
        post(server, model="told", seed=0, realness=True, container="json").json()["images"][0]["data"]
    )
