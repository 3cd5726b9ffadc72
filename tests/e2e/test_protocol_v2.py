"""The Open Inference Protocol against a real server process, asked by Triton's own client."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from server_process import Server
from toy import CLASSES, SIZE, Z_DIM, publish_toy
from tritonclient.utils import InferenceServerException

from models.sampling import latents_from_seeds
from service.api_v2 import _here_or_in_thread

Serve = Callable[..., Server]
ADMIN = "admin-key-0123456789"


@pytest.fixture
def client(shared_server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{shared_server.port}")
    yield client
    client.close()


def tensor(name: str, values: np.ndarray, binary: bool = True) -> triton.InferInput:
    datatype = "FP32" if values.dtype == np.float32 else "INT64"
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def seeds(*values: int, binary: bool = True) -> triton.InferInput:
    return tensor("seed", np.array(values, dtype=np.int64)[:, None], binary)


def images(binary: bool) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("images", binary_data=binary)]


def named(server: Server, **fields: Any) -> np.ndarray:
    """The pixels that /v1 makes."""
    answer = server.http.post("/v1/samples", json={"format": "npy", **fields})
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_seed_names_the_same_pixels_as_over_v1(
    shared_server: Server, client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    result = client.infer(
        "toy_seed", [seeds(42, 7, binary=binary_in)], outputs=images(binary_out), request_id="r-1"
    )

    assert np.array_equal(result.as_numpy("images"), named(shared_server, seeds=[42, 7]))
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r-1", "toy_seed", "1")
    assert ("data" in answer["outputs"][0]) != binary_out


@pytest.mark.parametrize("binary", [True, False])
def test_latents_make_the_pixels_that_they_make_over_v1(
    shared_server: Server, client: triton.InferenceServerClient, binary: bool
) -> None:
    latents = latents_from_seeds(list(range(40)), Z_DIM)

    result = client.infer("toy", [tensor("latents", latents, binary)], outputs=images(binary))

    assert np.array_equal(result.as_numpy("images"), named(shared_server, latents=latents.tolist()))


def test_each_row_has_its_class_and_psi(shared_server: Server, client: triton.InferenceServerClient) -> None:
    classes, psi = np.array([[3], [4]]), np.array([[0.5], [0.7]], dtype=np.float32)

    result = client.infer(
        "toy_seed",
        [seeds(1, 1), tensor("class_idx", classes), tensor("truncation_psi", psi)],
        model_version="1",
    )

    for row, (class_idx, one_psi) in enumerate([(3, 0.5), (4, 0.7)]):
        alone = named(shared_server, seed=1, class_idx=class_idx, truncation_psi=one_psi)
        assert np.array_equal(result.as_numpy("images")[row], alone[0])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(
    shared_server: Server, client: triton.InferenceServerClient, algorithm: str
) -> None:
    result = client.infer(
        "toy_seed",
        [seeds(5)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    assert np.array_equal(result.as_numpy("images"), named(shared_server, seed=5))


def test_the_clients_async_call_and_its_asyncio_twin_do_the_same(
    shared_server: Server, client: triton.InferenceServerClient
) -> None:
    async def ask() -> list[np.ndarray]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{shared_server.port}") as twin:
            assert await twin.is_server_ready()
            results = await asyncio.gather(
                *(twin.infer("toy_seed", [seeds(k)], outputs=images(k % 2 == 0)) for k in range(8))
            )
        return [result.as_numpy("images") for result in results]

    later = client.async_infer("toy_seed", [seeds(0, 1)]).get_result().as_numpy("images")
    twins = np.concatenate(asyncio.run(ask()))

    assert np.array_equal(later, twins[:2])
    assert np.array_equal(twins, named(shared_server, seed=0, n=8))


def test_what_perf_analyzer_asks_before_it_starts_is_answered(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy_seed", "1")
    assert not client.is_model_ready("toy", "2")
    assert {"binary_tensor_data", "schedule_policy", "statistics"} <= set(
        client.get_server_metadata()["extensions"]
    )
    assert client.get_model_metadata("toy", "1") == {
        "name": "toy",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "latents", "datatype": "FP32", "shape": [-1, Z_DIM]},
            {"name": "class_idx", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "truncation_psi", "datatype": "FP32", "shape": [-1, 1]},
        ],
        "outputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}],
    }
    config = client.get_model_config("plain_seed")
    assert (config["max_batch_size"], [one["dims"] for one in config["input"]]) == (1024, [[1]])
    index = {one["name"]: one["state"] for one in client.get_model_repository_index()}
    assert index == dict.fromkeys(("toy", "toy_seed", "plain", "plain_seed"), "READY")
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} == {"toy", "plain"}


def test_statistics_tell_what_was_run(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-microbatch", "4")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.infer("toy_seed", [seeds(*range(10))])
        client.infer("toy", [tensor("latents", np.zeros((1, Z_DIM), np.float32))])
        named(server, seed=1)
        with pytest.raises(InferenceServerException):
            client.infer("toy_seed", [seeds(-1)])
        (told,) = client.get_inference_statistics("toy_seed", "1")["model_stats"]
        made = int(server.metric("ganserve_batches_total", model="toy"))
        device_s = server.metric("ganserve_device_seconds_sum", model="toy")

    assert (told["name"], told["version"]) == ("toy_seed", "1")
    assert (told["inference_count"], told["execution_count"]) == (12, made)
    sizes = {one["batch_size"]: one["compute_infer"] for one in told["batch_stats"]}
    assert max(sizes) <= 4
    assert sum(size * one["count"] for size, one in sizes.items()) == 12
    assert sum(one["count"] for one in sizes.values()) == made
    assert sum(one["ns"] for one in sizes.values()) == pytest.approx(device_s * 1e9, rel=1e-3)
    requests = told["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert {part: requests[part]["count"] for part in ("success", "fail", *parts)} == {
        "success": 3,
        "fail": 0,  # what breaks a rule never asked for rows
        **dict.fromkeys(parts, 3),
    }
    assert all(requests[part]["ns"] > 0 for part in ("success", *parts))


def test_the_largest_batch_is_what_all_limits_allow(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-pixel-bytes", str(20 * SIZE * SIZE * 3))
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        largest = client.get_model_config("toy_seed")["max_batch_size"]
        client.infer("toy_seed", [seeds(*range(largest))])
        with pytest.raises(InferenceServerException, match="max_pixel_bytes"):
            client.infer("toy_seed", [seeds(*range(largest + 1))])

    assert largest == 20


def test_a_timeout_is_a_deadline_and_a_failure_in_the_statistics(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1", "--max-microbatch", "1")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(InferenceServerException, match="within 1 ms") as late:
            client.infer("toy_seed", [seeds(*range(1000))], timeout=1)
        (told,) = client.get_inference_statistics("toy")["model_stats"]

    assert late.value.status() == "504"
    assert told["inference_stats"]["fail"]["count"] == 1
    assert told["inference_stats"]["success"]["count"] == 0
    assert server.metric("ganserve_cancelled_total", stage="deadline") == 1


ONE_SEED = {"inputs": [{"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]}]}
MANY_SEEDS = {"inputs": [{"name": "seed", "shape": [1025], "datatype": "INT64", "data": [1] * 1025}]}
INFER = "/v2/models/toy_seed/infer"
BASES = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "sentence"),
    [
        (INFER, b"{", {}, 400, "the body must be JSON"),
        (INFER, b"", {}, 400, "the body must be JSON"),
        (INFER, ONE_SEED, {"Inference-Header-Content-Length": "-4"}, 400, "got '-4'"),
        (INFER, ONE_SEED, {"Inference-Header-Content-Length": "4000"}, 400, "got '4000'"),
        (INFER, ONE_SEED, {"Content-Encoding": "gzip"}, 400, "must be gzip"),
        (
            INFER,
            ONE_SEED,
            {"Content-Encoding": "br"},
            415,
            "content-encoding must be gzip, deflate or left out",
        ),
        (INFER, ONE_SEED, {"Content-Type": "text/csv"}, 415, "content-type must be application/json or"),
        (INFER, gzip.compress(bytes(17 * 2**20)), {"Content-Encoding": "gzip"}, 413, "max_body_bytes"),
        (INFER, bytes(17 * 2**20), {}, 413, "max_body_bytes"),
        (INFER, MANY_SEEDS, {}, 413, "max_rows is 1024 rows a request, got 1025 in seed"),
        (
            INFER,
            {"inputs": [{**ONE_SEED["inputs"][0], "data": [2**32]}]},
            {},
            422,
            "between 0 and 4294967295",
        ),
        (
            INFER,
            {**ONE_SEED, "parameters": {"timeout": 10**12}},
            {},
            422,
            "timeout_ms must be at most 120000",
        ),
        ("/v2/models/nobody/infer", ONE_SEED, {}, 404, "model nobody is not served here"),
        ("/v2/models/toy_seed_seed/infer", ONE_SEED, {}, 404, "model toy_seed_seed is not served here"),
        ("/v2/models/toy_seed/versions/2/infer", ONE_SEED, {}, 404, "model toy:2 is not served here"),
        ("/v2/models/toy_seed/versions/x/infer", ONE_SEED, {}, 422, "version must be an integer"),
        ("/v2/repository/index", {"ready": 1}, {}, 422, "ready must be true or false, got 1"),
        ("/v2/repository/index", b"[]", {}, 422, "the body must be a JSON object"),
        ("/v2/repository/index", {"name": 1}, {}, 422, "'name' is not a field of this request"),
        ("/v2/repository/models/toy/load", b"", {}, 403, "admin"),
        ("/v2/repository/models/toy/unload", b"", {}, 403, "admin"),
        ("/v2/models/toy/trace/setting", b"", {}, 404, "no route"),
        ("/v2/health/live", b"", {}, 405, "method must be GET"),
    ],
)
def test_mistakes_get_the_status_of_the_table_in_the_form_that_clients_read(
    shared_server: Server, path: str, body: Any, headers: dict[str, str], status: int, sentence: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    answer = shared_server.http.post(path, content=content, headers=headers)

    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code", "request_id"}
    assert sentence in answer.json()["error"]


def test_the_clients_exception_carries_our_sentence(client: triton.InferenceServerClient) -> None:
    with pytest.raises(
        InferenceServerException, match=f"class_idx must be an integer between 0 and {CLASSES - 1}"
    ):
        client.infer("toy_seed", [seeds(1), tensor("class_idx", np.array([CLASSES]))])


def test_requests_are_counted_and_logged_under_their_routes_name(
    shared_server: Server, client: triton.InferenceServerClient
) -> None:
    endpoint = "/v2/models/{model}/infer"
    before = shared_server.metric("ganserve_images_total", model="toy", source="v2")
    client.infer("toy_seed", [seeds(1, 2, 3)], headers={"X-Request-Id": "v2-log"})
    for name in ("nobody1", "nobody2"):
        shared_server.http.post(f"/v2/models/{name}/infer", json=ONE_SEED)

    assert shared_server.metric("ganserve_images_total", model="toy", source="v2") == before + 3
    assert shared_server.metric("ganserve_requests_total", endpoint=endpoint, model="toy", code="200") >= 1
    assert shared_server.metric("ganserve_requests_total", endpoint=endpoint, model="", code="404") >= 2
    assert "nobody1" not in shared_server.http.get("/metrics").text
    (line,) = [json.loads(line) for line in shared_server.log.splitlines() if "v2-log" in line]
    assert (line["model"], line["rows"], line["status"]) == ("toy", 3, 200)
    assert client.is_server_ready()
    assert "/v2/health/ready" not in shared_server.log  # a probe every few seconds is no news
    assert line["device_ms"] > 0


def test_load_is_for_admins_and_tells_the_truth(serve: Serve, tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish_toy(store, "toy")
    server = serve("--model", "toy", "--workers", "1", store=store, env={"GANSERVE_ADMIN_KEYS": ADMIN})
    admin = {"Authorization": f"Bearer {ADMIN}"}
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(InferenceServerException, match="key must be given") as keyless:
            client.load_model("toy")
        client.load_model("toy", headers=admin)
        client.load_model("toy_seed", headers=admin)
        for refused, sentence in (
            (lambda: client.load_model("nobody", headers=admin), "nobody is not served here"),
            (lambda: client.load_model("toy", headers=admin, config="{}"), "parameters must be left out"),
            (lambda: client.unload_model("toy", headers=admin), "served until the server ends"),
        ):
            with pytest.raises(InferenceServerException, match=sentence):
                refused()
        client.infer("toy_seed", [seeds(1, 2)])
        (before,) = client.get_inference_statistics("toy")["model_stats"]
        publish_toy(store, "toy", weights_seed=1)
        client.load_model("toy", headers=admin)
        (after,) = client.get_inference_statistics("toy")["model_stats"]
        index = {(one["name"], one["version"]): one["state"] for one in client.get_model_repository_index()}

    assert (before["version"], before["inference_count"]) == ("1", 2)
    assert (after["version"], after["inference_count"]) == ("2", 0)  # each version has its own
    assert keyless.value.status() == "401"
    assert index == {("toy", "2"): "READY", ("toy_seed", "2"): "READY", ("toy", "1"): "UNAVAILABLE"}


def test_a_model_whose_own_name_ends_in_seed_keeps_it(serve: Serve, tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish_toy(store, "a", channels=1, conditional=False, truncation=False)
    publish_toy(store, "a_seed", conditional=False, truncation=False)
    server = serve("--model", "a,a_seed", "--workers", "1", store=store)

    def first_input(name: str) -> str:
        return str(server.http.get(f"/v2/models/{name}").json()["inputs"][0]["name"])

    names = [one["name"] for one in server.http.post("/v2/repository/index").json()]
    assert names == ["a", "a_seed", "a_seed_seed"]
    assert [first_input(name) for name in names] == ["latents", "latents", "seed"]


def test_only_large_bodies_are_worked_on_in_another_thread() -> None:
    async def threads() -> list[bool]:
        here = threading.get_ident()
        return [await _here_or_in_thread(threading.get_ident, size) == here for size in (0, 65_536, 65_537)]

    assert asyncio.run(threads()) == [True, True, False]


def test_the_documents_name_the_protocols_routes(shared_server: Server) -> None:
    paths = httpx.get(f"{shared_server.url}/openapi.json").json()["paths"]

    of_a_model = {f"{base}{end}" for base in BASES for end in ("", "/ready", "/config", "/stats", "/infer")}
    assert {path for path in paths if path.startswith("/v2")} == of_a_model | {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/unload",
    }
    infer = paths["/v2/models/{model}/versions/{version}/infer"]["post"]
    assert [one["name"] for one in infer["parameters"]][:2] == ["model", "version"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert "$ref" not in json.dumps(infer["requestBody"])
    assert {"200", "400", "404", "413", "415", "422", "429", "503", "504"} <= set(infer["responses"])
