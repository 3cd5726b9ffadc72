"""`"sign": true` against a real server with a certificate chain."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import c2pa
import pytest
from certificates import write_chain
from server_process import Server

Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def signing(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `toy` that may sign."""
    folder = tmp_path_factory.mktemp("signing")
    chain, key = write_chain(folder)
    flags = ["--workers", "1", "--sign-cert-file", str(chain), "--sign-key-file", str(key)]
    server = Server(toy_store, "--model", "toy", *flags, log=folder / "server.log").wait_until_ready()
    yield server
    server.stop()


def state(data: bytes, media_type: str) -> str:
    with c2pa.Reader(media_type, io.BytesIO(data)) as reader:
        return str(reader.get_validation_state())


@pytest.mark.parametrize(
    ("fmt", "media_type"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")]
)
def test_an_image_is_signed_on_request_and_never_stored(signing: Server, fmt: str, media_type: str) -> None:
    plain = signing.http.post("/v1/samples", json={"seed": 7, "format": fmt})
    first, second = (
        signing.http.post("/v1/samples", json={"seed": 7, "format": fmt, "sign": True}) for _ in range(2)
    )

    assert (first.status_code, first.headers["content-type"]) == (200, media_type)
    assert first.headers["cache-control"] == "no-store"
    assert "etag" not in first.headers
    assert state(first.content, media_type) == "Valid"
    assert first.content != second.content
    assert b"jumb" not in plain.content


def test_every_image_of_a_zip_is_signed(signing: Server) -> None:
    answer = signing.http.post("/v1/samples", json={"seed": 0, "n": 20, "sign": True})

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        images = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    assert answer.headers["cache-control"] == "no-store"
    assert [state(image, "image/png") for image in images] == ["Valid"] * 20


def test_what_cannot_be_signed_is_refused_before_any_work(signing: Server, shared_server: Server) -> None:
    array = signing.http.post("/v1/samples", json={"seed": 7, "format": "npy", "sign": True})
    without = shared_server.http.post("/v1/samples", json={"seed": 7, "sign": True})

    assert array.status_code == without.status_code == 422
    assert "sign must be left out where format is npy, got true" in array.json()["error"]
    assert "sign must be left out: this server has no sign_cert_file, got true" in without.json()["error"]


def test_a_certificate_that_cannot_sign_ends_the_start_with_a_sentence(serve: Serve, tmp_path: Path) -> None:
    chain, _ = write_chain(tmp_path / "one")
    _, key = write_chain(tmp_path / "two")

    for flags, sentence in (
        (["--sign-key-file", str(tmp_path / "nowhere.pem")], "sign_key_file must be a readable file"),
        (["--sign-key-file", str(key)], "must be the private key of the first certificate"),
        ([], "sign_key_file must be given with sign_cert_file"),
    ):
        server = serve("--model", "toy", "--sign-cert-file", str(chain), *flags, ready=False)
        assert server.process.wait(timeout=20) == 2
        assert sentence in server.log
