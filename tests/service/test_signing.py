"""C2PA: what is signed reads back valid, with its source type; what cannot sign is a sentence at start."""

from __future__ import annotations

import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from certificates import write_chain
from PIL import Image

from service.__main__ import main
from service.encoding import IMAGE_FORMATS, MEDIA_TYPES, Format, encode_image
from service.errors import StartError
from service.provenance import SOURCE_TYPE
from service.settings import SignFiles
from service.signing import ImageSigner

PIXELS = np.random.RandomState(0).randint(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture
def signer(tmp_path: Path) -> ImageSigner:
    return ImageSigner(SignFiles(*write_chain(tmp_path), "es256"))


def read(data: bytes, fmt: str) -> tuple[str, dict[str, Any]]:
    """The validation state and the active manifest of a signed file, by C2PA's own reader."""
    with c2pa.Reader(MEDIA_TYPES[fmt], io.BytesIO(data)) as reader:
        return reader.get_validation_state(), reader.get_active_manifest()


@pytest.mark.parametrize("fmt", IMAGE_FORMATS)
def test_a_signed_image_reads_back_valid_and_says_what_made_it(signer: ImageSigner, fmt: Format) -> None:
    plain = encode_image(PIXELS, fmt, b"<x:xmpmeta>the mark</x:xmpmeta>")

    signed = signer.sign(plain, fmt)

    state, manifest = read(signed, fmt)
    assert state == "Valid"
    (actions,) = [one["data"] for one in manifest["assertions"] if "c2pa.actions" in one["label"]]
    assert actions["actions"] == [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]
    assert manifest["claim_generator_info"][0]["name"] == "ganserve"
    assert manifest["signature_info"]["common_name"] == "test signer"
    assert b"the mark" in signed
    with Image.open(io.BytesIO(signed)) as one, Image.open(io.BytesIO(plain)) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert len(signed) - len(plain) < 5_000


def test_a_pixel_changed_after_signing_is_found(signer: ImageSigner) -> None:
    signed = bytearray(signer.sign(encode_image(PIXELS, "png"), "png"))
    signed[signed.index(b"IDAT") + 60] ^= 1

    assert read(bytes(signed), "png")[0] == "Invalid"


def test_threads_may_share_a_signer(signer: ImageSigner) -> None:
    plain = encode_image(PIXELS, "png")

    with ThreadPoolExecutor(4) as threads:
        signed = list(threads.map(lambda _: signer.sign(plain, "png"), range(16)))

    assert {read(one, "png")[0] for one in signed} == {"Valid"}
    assert len(set(signed)) == 16  # no two are alike: nothing may cache them


def test_a_certificate_that_fits_its_key_passes_the_check(signer: ImageSigner) -> None:
    signer.check()


@pytest.mark.parametrize(
    ("certificate", "key", "algorithm", "sentence"),
    [
        ("a/chain.pem", "nowhere.pem", "es256", "sign_key_file must be a readable file: No such file"),
        ("nowhere.pem", "a/key.pem", "es256", "sign_cert_file must be a readable file: No such file"),
        ("a/chain.pem", "b/key.pem", "es256", "must be the private key of the first certificate"),
        ("expired/chain.pem", "expired/key.pem", "es256", "sign_cert_file"),
        ("a/key.pem", "a/key.pem", "es256", "must fit each other, got es256: "),
        ("a/chain.pem", "a/key.pem", "ed25519", "must fit each other, got ed25519: "),
    ],
)
def test_what_cannot_sign_is_a_sentence(
    tmp_path: Path, certificate: str, key: str, algorithm: Any, sentence: str
) -> None:
    write_chain(tmp_path / "a")
    write_chain(tmp_path / "b")
    write_chain(tmp_path / "expired", days=-3)

    with pytest.raises(StartError, match=sentence):
        ImageSigner(SignFiles(tmp_path / certificate, tmp_path / key, algorithm)).check()


def test_without_the_extra_the_sentence_names_it(
    signer: ImageSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(StartError, match="install the extra 'c2pa'"):
        signer.check()


def test_offline_images_can_be_signed_and_are_still_proved(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, key = write_chain(tmp_path / "chain")
    flags = ["--sign", "--sign-cert-file", str(chain), "--sign-key-file", str(key)]
    store = ["--store", str(toy_store)]

    made = main(["sample", *store, "--model", "toy", "--seeds", "7", "--out", str(tmp_path / "out"), *flags])
    proved = main(["verify", *store, str(tmp_path / "out")])

    assert (made, proved) == (0, 0)
    assert read((tmp_path / "out/seed0000000007.png").read_bytes(), "png")[0] == "Valid"
    assert "seed0000000007.png: same pixels (the file's other bytes differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sign"], "--sign needs --sign-cert-file and --sign-key-file"),
        (["--sign-cert-file", "chain.pem"], "--sign must be given with chain.pem"),
        (
            ["--sign", "--sign-cert-file", "a", "--sign-key-file", "b", "--format", "npy"],
            "--sign must be left out where format is npy",
        ),
        (
            ["--sign", "--sign-cert-file", "/nowhere/a", "--sign-key-file", "b"],
            "sign_cert_file must be a readable file: No such file or directory, got /nowhere/a",
        ),
    ],
)
def test_flags_that_do_not_fit_are_a_sentence(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    out = ["--out", str(tmp_path)]

    status = main(["sample", "--store", str(toy_store), "--model", "toy", "--seeds", "7", *out, *flags])

    assert status == 2
    assert sentence in capsys.readouterr().err
