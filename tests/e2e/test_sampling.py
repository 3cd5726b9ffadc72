"""The endpoint against a real server process, asked by a real HTTP client."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from server_process import GANSERVE, Server, wait_for
from toy import CLASSES, SIZE, Z_DIM

from models.sampling import latents_from_seeds
from service.__main__ import main


def post(server: Server, **fields: object) -> httpx.Response:
    return server.http.post("/v1/samples", json=fields)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_one_seed_gives_one_png_with_its_facts_in_the_headers(shared_server: Server) -> None:
    answer = post(shared_server, seed=42)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seeds"] == "42"
    assert len(answer.headers["x-model-digest"]) == 64
    assert {part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")} == {
        "queue",
        "device",
        "encode",
    }
    assert pixels_of(answer.content).shape == (SIZE, SIZE, 3)


def test_96_concurrent_requests_each_get_their_own_image_to_the_last_bit(
    shared_server: Server, toy_store: Path, tmp_path: Path
) -> None:
    seeds = [17 * k for k in range(96)]
    alone = {seed: post(shared_server, seed=seed).content for seed in seeds}
    batches_before = shared_server.metric("ganserve_batches_total", model="toy")

    with ThreadPoolExecutor(96) as clients, httpx.Client(limits=httpx.Limits(max_connections=96)) as client:
        answers = list(
            clients.map(
                lambda seed: client.post(f"{shared_server.url}/v1/samples", json={"seed": seed}, timeout=60),
                seeds,
            )
        )

    assert [answer.status_code for answer in answers] == [200] * 96
    assert {seed: answer.content for seed, answer in zip(seeds, answers, strict=True)} == alone
    assert len(set(alone.values())) == 96
    assert (
        shared_server.metric("ganserve_batches_total", model="toy") - batches_before < 96
    )  # rows did share runs
    text = ",".join(map(str, seeds))
    assert (
        main(["sample", "--store", str(toy_store), "--model", "toy", "--seeds", text, "--out", str(tmp_path)])
        == 0
    )
    for seed in seeds:
        assert (tmp_path / f"seed{seed:010d}.png").read_bytes() == alone[seed]


@pytest.mark.parametrize("fmt", ["png", "jpg", "webp", "npy"])
def test_every_format_is_the_same_offline(
    shared_server: Server, toy_store: Path, tmp_path: Path, fmt: str
) -> None:
    answer = post(shared_server, seed=5, format=fmt, class_idx=3, truncation_psi=0.5)

    flags = [
        "--seeds",
        "5",
        "--class-idx",
        "3",
        "--truncation-psi",
        "0.5",
        "--format",
        fmt,
        "--out",
        str(tmp_path),
    ]
    assert main(["sample", "--store", str(toy_store), "--model", "toy", *flags]) == 0
    name = "shard-00000.npy" if fmt == "npy" else f"seed0000000005.{fmt}"
    assert (tmp_path / name).read_bytes() == answer.content


def test_lossless_formats_agree_on_the_pixels(shared_server: Server) -> None:
    png, webp, npy = (post(shared_server, seed=9, format=fmt).content for fmt in ("png", "webp", "npy"))

    images = np.load(io.BytesIO(npy))
    assert images.shape == (1, SIZE, SIZE, 3)
    assert np.array_equal(pixels_of(png), images[0])
    assert np.array_equal(pixels_of(webp), images[0])


def test_seed_and_n_are_the_seeds_that_follow(shared_server: Server) -> None:
    many = post(shared_server, seed=100, n=40, format="npy")
    alone = post(shared_server, seed=139, format="npy")

    assert many.headers["x-seeds"] == "100-139"
    images = np.load(io.BytesIO(many.content))
    assert images.shape == (40, SIZE, SIZE, 3)
    assert np.array_equal(images[39:], np.load(io.BytesIO(alone.content)))


def test_a_zip_names_each_image_by_its_seed_and_never_changes(shared_server: Server) -> None:
    first, second = (post(shared_server, seeds=[7, 4_294_967_295]) for _ in range(2))

    assert first.headers["content-type"] == "application/zip"
    assert first.content == second.content
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.namelist() == ["seed0000000007.png", "seed4294967295.png", "manifest.json"]
        assert archive.read("seed0000000007.png") == post(shared_server, seed=7).content


def test_a_tar_holds_the_zips_files_and_its_manifest_names_what_made_them(shared_server: Server) -> None:
    model = shared_server.http.get("/v1/models/toy").json()
    answer = post(shared_server, seed=7, n=3, container="tar", truncation_psi=0.7)
    zipped = post(shared_server, seed=7, n=3, container="zip", truncation_psi=0.7)

    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
    manifest = json.loads(files["manifest.json"])
    assert (manifest["digest"], manifest["render_id"]) == (model["digest"], model["render_id"])
    assert [(one["seed"], one["truncation_psi"]) for one in manifest["images"]] == [
        (7, 0.7),
        (8, 0.7),
        (9, 0.7),
    ]


def test_json_holds_each_image_with_its_seed_and_class(shared_server: Server) -> None:
    answer = post(shared_server, seeds=[3, 12], container="json", format="webp")

    images = answer.json()["images"]
    assert [(one["seed"], one["class_idx"], one["media_type"]) for one in images] == [
        (3, 3, "image/webp"),
        (12, 2, "image/webp"),
    ]
    assert base64.b64decode(images[1]["data"]) == post(shared_server, seed=12, format="webp").content


def test_a_seeds_latents_give_the_seeds_image(shared_server: Server) -> None:
    latents = latents_from_seeds([42, 43], Z_DIM).tolist()

    given = post(shared_server, latents=latents, class_idx=[42 % CLASSES, 43 % CLASSES], format="npy")

    named = post(shared_server, seed=42, n=2, format="npy")
    assert given.content == named.content
    assert "x-seeds" not in given.headers


def test_each_row_may_have_a_psi_of_its_own(shared_server: Server) -> None:
    answer = post(shared_server, seeds=[7, 8], truncation_psi=[0.5, 1], container="json")

    images = [base64.b64decode(one["data"]) for one in answer.json()["images"]]
    assert images == [
        post(shared_server, seed=7, truncation_psi=0.5).content,
        post(shared_server, seed=8).content,
    ]


def test_each_class_and_psi_gives_another_image(shared_server: Server) -> None:
    images = {
        post(shared_server, seed=1, class_idx=class_idx, truncation_psi=psi).content
        for class_idx in range(CLASSES)
        for psi in (0.5, 1.0)
    }

    assert len(images) == 2 * CLASSES


def test_an_images_address_redirects_to_the_one_that_never_changes(shared_server: Server) -> None:
    moving = shared_server.http.get("/v1/models/toy/42.png?truncation_psi=0.7")
    fixed = httpx.get(f"{shared_server.url}{moving.headers['location']}")

    assert (moving.status_code, moving.headers["cache-control"]) == (307, "no-cache")
    assert "toy@" in moving.headers["location"]
    assert fixed.status_code == 200
    assert "immutable" in fixed.headers["cache-control"]
    assert fixed.content == post(shared_server, seed=42, truncation_psi=0.7).content


def test_a_known_etag_costs_no_device_work(shared_server: Server) -> None:
    model = shared_server.http.get("/v1/models").json()["models"][0]
    url = shared_server.url + model["image_url"].format(seed=77)
    etag = httpx.get(url).headers["etag"]
    made_before = shared_server.metric("ganserve_images_total", model="toy")

    known = httpx.get(url, headers={"If-None-Match": etag})
    head = httpx.head(url)

    assert (known.status_code, known.content) == (304, b"")
    assert (head.status_code, head.headers["etag"]) == (200, etag)
    assert "content-length" not in head.headers  # 0 would tell caches that the image is empty
    assert shared_server.metric("ganserve_images_total", model="toy") == made_before


def test_a_packed_body_is_read_as_one_that_is_not(shared_server: Server) -> None:
    plain = shared_server.http.post("/v1/samples", json={"seed": 5})
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    packed = shared_server.http.post("/v1/samples", content=gzip.compress(b'{"seed": 5}'), headers=headers)
    spoiled = shared_server.http.post("/v1/samples", content=b'{"seed": 5}', headers=headers)
    headers["content-encoding"] = "br"
    unknown = shared_server.http.post("/v1/samples", content=b'{"seed": 5}', headers=headers)

    assert (packed.status_code, packed.content) == (200, plain.content)
    assert (spoiled.status_code, unknown.status_code) == (400, 415)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_a_probe_may_be_a_head(shared_server: Server, path: str) -> None:
    answer = shared_server.http.head(path)

    assert (answer.status_code, answer.content) == (200, b"")


def test_a_comma_too_many_in_accept_is_none(shared_server: Server) -> None:
    def status(accept: str) -> int:
        answer = shared_server.http.post("/v1/samples", json={"seed": 5}, headers={"accept": accept})
        return answer.status_code

    assert [status(accept) for accept in ("", ",", "image/png,", "text/html,")] == [200, 200, 200, 406]


def test_a_digest_that_is_not_served_is_a_conflict(shared_server: Server) -> None:
    answer = shared_server.http.get("/v1/models/toy@0123456789ab/1.png")

    assert (answer.status_code, answer.json()["code"]) == (409, "digest_not_served")


def test_a_walk_begins_and_ends_at_the_images_of_its_seeds(shared_server: Server) -> None:
    answer = shared_server.http.get("/v1/models/toy/walk?from=3&to=8&frames=12")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    frames = Image.open(io.BytesIO(answer.content))
    assert frames.n_frames == 12
    for frame, seed in ((0, 3), (11, 8)):
        frames.seek(frame)
        assert np.array_equal(
            np.asarray(frames.convert("RGB")), pixels_of(post(shared_server, seed=seed).content)
        )


def test_a_walk_and_given_latents_are_marked_as_generated(shared_server: Server) -> None:
    walk = shared_server.http.get("/v1/models/toy/walk?from=3&to=8&frames=2").content
    given = post(shared_server, latents=latents_from_seeds([42], Z_DIM).tolist()).content

    for image in (walk, given):
        assert b"digitalsourcetype/trainedAlgorithmicMedia" in Image.open(io.BytesIO(image)).info["xmp"]
    assert b'ganserve:from="3" ganserve:to="8"' in walk
    assert b"ganserve:seed=" not in given


def test_verify_proves_what_was_served_and_tells_what_was_changed(
    shared_server: Server, toy_store: Path, tmp_path: Path
) -> None:
    """One image of every kind that is served, one with a changed pixel, one that lost its mark."""
    served = {
        "image.png": post(shared_server, seed=42, class_idx=3, truncation_psi=0.7).content,
        "image.jpg": post(shared_server, seed=42, format="jpg").content,
        "image.webp": shared_server.http.get("/v1/models/plain/42.webp", follow_redirects=True).content,
        "images.zip": post(shared_server, seed=0, n=20).content,
        "images.tar": post(shared_server, seed=0, n=20, container="tar", format="webp").content,
        "walk.webp": shared_server.http.get("/v1/models/toy/walk?from=3&to=8&frames=5").content,
    }
    for name, data in served.items():
        (tmp_path / name).write_bytes(data)
    command = [str(GANSERVE), "verify", "--store", str(toy_store), str(tmp_path)]
    proved = subprocess.run(command, capture_output=True, text=True)
    image = Image.open(tmp_path / "image.png")
    image.save(tmp_path / "resaved.jpg")
    image.putpixel((5, 5), (0, 0, 0))
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", image.info["xmp"].decode())
    image.save(tmp_path / "changed.png", pnginfo=text)

    told = subprocess.run(command, capture_output=True, text=True)

    assert (proved.returncode, proved.stdout.splitlines()[-1]) == (0, "44 images: 44 identical")
    assert told.returncode == 1
    assert f"{tmp_path}/resaved.jpg: not ours (it has no mark)\n" in told.stdout
    assert re.search(r"changed.png: differs \(by up to \d+ of 255 levels in 1 of 144 pixels\)", told.stdout)
    assert told.stdout.splitlines()[-1] == "46 images: 1 differs, 44 identical, 1 not ours"


def test_marks_are_part_of_the_render_id_and_can_be_left_out(
    serve: Callable[..., Server], shared_server: Server, toy_store: Path, tmp_path: Path
) -> None:
    silent = serve("--model", "toy", "--no-marks", "--workers", "1")
    flags = ["--seeds", "7", "--no-marks", "--out", str(tmp_path)]
    assert main(["sample", "--store", str(toy_store), "--model", "toy", *flags]) == 0

    image = post(silent, seed=7).content

    assert b"xpacket" not in image
    assert image == (tmp_path / "seed0000000007.png").read_bytes()
    assert np.array_equal(pixels_of(image), pixels_of(post(shared_server, seed=7).content))
    ids = {server.http.get("/v1/models/toy").json()["render_id"] for server in (silent, shared_server)}
    assert len(ids) == 2


def test_a_plain_model_needs_neither_class_nor_psi(shared_server: Server) -> None:
    answer = post(shared_server, model="plain", seed=1)

    assert answer.status_code == 200
    assert pixels_of(answer.content).shape == (SIZE, SIZE)


REFUSED: list[tuple[dict[str, object], int, str]] = [
    ({}, 422, "exactly one of seed, seeds and latents must be given"),
    ({"seed": 1, "seeds": [2]}, 422, "seed and seeds"),
    ({"seed": 4_294_967_296}, 422, "seed must be less than or equal to 4294967295, got 4294967296"),
    ({"seed": -1}, 422, "seed must be greater than or equal to 0, got -1"),
    ({"seed": "7"}, 422, "seed must be a valid integer, got '7'"),
    ({"seed": True}, 422, "seed must be a valid integer, got true"),
    ({"seed": 1, "n": 0}, 422, "n must be greater than or equal to 1, got 0"),
    ({"seed": 4_294_967_295, "n": 2}, 422, "seed + n - 1 must be at most 4294967295"),
    ({"seeds": [1, 2], "n": 2}, 422, "n must be left out where seeds is given"),
    ({"seeds": [1, -2]}, 422, "seeds[1] must be greater than or equal to 0, got -2"),
    ({"seeds": []}, 422, "seeds must have at least 1 item, got []"),
    ({"seed": 1, "class_idx": 1.5}, 422, "class_idx must be a valid integer, got 1.5"),
    ({"seeds": [1], "class_idx": [1.5]}, 422, "class_idx[0] must be a valid integer, got 1.5"),
    ({"seed": 1, "n": 1025}, 413, "max_rows is 1024 rows a request, got 1025"),
    ({"seed": 1, "class_idx": 10}, 422, "class_idx must be an integer between 0 and 9, got 10"),
    ({"seeds": [1, 2], "class_idx": [1, 2, 3]}, 422, "as long as the rows (2), got 3 values"),
    ({"seed": 1, "truncation_psi": 3.5}, 422, "truncation_psi must be less than or equal to 2, got 3.5"),
    (
        {"model": "plain", "seed": 1, "class_idx": 1},
        422,
        "class_idx must be left out: the model has no classes",
    ),
    ({"seeds": [1, 2], "truncation_psi": [0.5]}, 422, "as many as the rows (2), got 1 values"),
    ({"model": "plain", "seed": 1, "truncation_psi": 0.5}, 422, "the model has no truncation, got 0.5"),
    (
        {"latents": [[0.0] * (Z_DIM + 1)]},
        422,
        f"latents must have the shape [n, {Z_DIM}], got [1, {Z_DIM + 1}]",
    ),
    ({"latents": [[0.0] * Z_DIM, [0.0]]}, 422, f"latents must be rows of {Z_DIM} numbers, got 1 at [1]"),
    ({"latents": [[1e39] + [0.0] * (Z_DIM - 1)]}, 422, "latents must be finite in float32"),
    ({"seeds": [1] * 1025}, 413, "max_rows is 1024 rows a request, got 1025 in seeds"),
    ({"seeds": [-1] * 400_000}, 413, "got 400000 in seeds"),
    ({"seeds": [-1] * 1000}, 422, "seeds[0] must be greater than or equal to 0, got -1"),
    ({f"field{k}": [1] * 50 for k in range(5000)}, 422, "field0 is not a field of this request"),
    ({"seed": 1, "sead": 2}, 422, "sead is not a field of this request, got 2"),
    ({"seed": 1, "x" * 100_000: 2}, 422, f"...{'x' * 38} is not a field of this request, got 2"),
    ({"seed": 1, "format": "gif"}, 422, "format must be 'png', 'jpg', 'webp' or 'npy', got 'gif'"),
    ({"seed": 1, "timeout_ms": 10**9}, 422, "timeout_ms must be at most 120000"),
    ({"model": "nobody", "seed": 1}, 404, "model nobody is not served here; served: toy:1, plain:1"),
    ({"model": "toy:2", "seed": 1}, 404, "model toy:2 is not served here"),
    ({"model": "../toy", "seed": 1}, 422, "name must be"),
]


@pytest.mark.parametrize(("fields", "status", "sentence"), REFUSED, ids=[one[2] for one in REFUSED])
def test_bad_input_gets_the_status_of_the_table_and_a_sentence(
    shared_server: Server, fields: dict[str, object], status: int, sentence: str
) -> None:
    answer = post(shared_server, **fields)

    assert answer.status_code == status
    body = answer.json()
    assert set(body) == {"error", "code", "request_id"}
    assert sentence in body["error"]
    assert len(body["error"]) < 500
    assert body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"seed": ' + b"9" * 4000 + b"}", "application/json", 422),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"latents": [[NaN' + b",0" * (Z_DIM - 1) + b"]]}", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"seed=1", "application/x-www-form-urlencoded", 415),
        (b" " * (17 * 2**20), "application/json", 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    shared_server: Server, content: bytes, content_type: str, status: int
) -> None:
    answer = shared_server.http.post(
        "/v1/samples", content=content, headers={"content-type": content_type}, timeout=30
    )

    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/samples", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/toy/x.png", 422),
        ("GET", "/v1/models/toy/4294967296.png", 422),
        ("GET", "/v1/models/toy/007.png", 422),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/toy/1.png?psi=1", 422),
        ("GET", "/v1/models/toy/walk?from=1", 422),
        ("GET", "/v1/models/toy/walk?from=1&to=2&frames=1", 422),
    ],
)
def test_other_routes_refuse_in_the_same_form(
    shared_server: Server, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, shared_server.url + path)

    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code", "request_id"}


def test_an_accept_that_cannot_be_met_is_refused_before_any_work(shared_server: Server) -> None:
    answer = shared_server.http.post("/v1/samples", json={"seed": 1}, headers={"accept": "text/html"})

    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("image/png", 200),
        ("image/*", 200),
        ("*/*", 200),
        ("text/html, */*;q=0.1", 200),
        ("*/*, image/png;q=0", 406),
    ],
)
def test_the_most_specific_entry_of_accept_decides(shared_server: Server, accept: str, status: int) -> None:
    answer = shared_server.http.post("/v1/samples", json={"seed": 1}, headers={"accept": accept})

    assert answer.status_code == status


def test_an_accept_in_two_headers_is_read_as_one(shared_server: Server) -> None:
    accept = [("accept", "*/*"), ("accept", "image/png;q=0")]
    client = httpx.Client(base_url=f"http://127.0.0.1:{shared_server.port}")
    client.headers.clear()
    with client:
        answer = client.post("/v1/samples", json={"seed": 1}, headers=accept)

    assert answer.status_code == 406


def test_one_bad_request_among_good_ones_fails_alone(shared_server: Server) -> None:
    bad = {"latents": [[0.0] * (Z_DIM - 1)]}
    requests = [bad if k == 20 else {"seed": k, "n": 3, "format": "npy"} for k in range(40)]

    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda fields: post(shared_server, **fields), requests))

    assert [answer.status_code for answer in answers] == [422 if k == 20 else 200 for k in range(40)]


def test_the_callers_request_id_comes_back_and_is_in_the_log(shared_server: Server) -> None:
    answer = shared_server.http.post("/v1/samples", json={"seed": 1}, headers={"x-request-id": "abc-123"})

    assert answer.headers["x-request-id"] == "abc-123"
    wait_for(lambda: "abc-123" in shared_server.log)
    lines = [json.loads(line) for line in shared_server.log.splitlines() if "abc-123" in line]
    assert [(line["status"], line["model"], line["rows"]) for line in lines] == [(200, "toy", 1)]


def test_the_documents_describe_every_route_and_load_from_here(shared_server: Server) -> None:
    document = shared_server.http.get("/openapi.json").json()
    docs = shared_server.http.get("/docs").text

    assert {path for path in document["paths"] if not path.startswith("/v2")} == {
        "/v1/samples",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/reload",
        "/v1/models/{model}/walk",
        "/v1/models/{model}/{file}",
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
    }
    assert "http://" not in docs
    assert "https://" not in docs
    assert shared_server.http.get("/docs/assets/swagger-ui-bundle.js").status_code == 200


def test_servers_of_other_sizes_and_a_restart_give_the_same_bytes(serve: Callable[..., Server]) -> None:
    def answers(server: Server) -> list[bytes]:
        wanted = {"seeds": [3, 2**32 - 1, 7, 42], "truncation_psi": 0.7}
        zipped = server.http.post("/v1/samples", json=wanted).content
        moving = server.http.get("/v1/models/fashion-mnist/42.png?class_idx=8", follow_redirects=True)
        return [zipped, moving.headers["etag"].encode(), moving.content]

    small = serve("--workers", "1", "--threads", "2", "--max-microbatch", "3", store=None)
    first = answers(small)
    assert small.terminate() == 0
    again = answers(serve("--workers", "1", "--threads", "2", "--max-microbatch", "3", store=None))
    large = answers(serve("--workers", "2", "--max-microbatch", "16", store=None))

    assert first == again == large
