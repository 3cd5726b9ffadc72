"""Many images in one file: named by their seeds, with a manifest, the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from models.store import Store
from service.containers import pack
from service.encoding import EncodedImage
from service.provenance import Rendering

IMAGES = [
    EncodedImage("seed0000000007", 7, 0, 1.0, b"seven"),
    EncodedImage("seed0000000007", 7, 3, 0.699999988079071, b"seven again"),
    EncodedImage("row00002", None, 3, 1.0, b"given latents"),
]
NAMES = ["seed0000000007.png", "seed0000000007-2.png", "row00002.png"]


@pytest.fixture
def rendering(toy_store: Path) -> Rendering:
    return Rendering(Store(toy_store).resolve("toy").manifest, "CPU", "1", True)


def manifest_of(rendering: Rendering) -> dict[str, Any]:
    """What the manifest of IMAGES must be."""
    return {
        "model": "toy",
        "version": 1,
        "digest": rendering.digest,
        "render_id": rendering.render_id,
        "format": "png",
        "images": [
            {
                "name": name,
                "seed": image.seed,
                "class_idx": image.class_idx,
                "truncation_psi": psi,
                "sha256": hashlib.sha256(image.data).hexdigest(),
            }
            for name, image, psi in zip(NAMES, IMAGES, [1.0, 0.7, 1.0], strict=True)
        ],
    }


def test_a_zip_names_each_image_and_ends_with_the_manifest(rendering: Rendering) -> None:
    with zipfile.ZipFile(io.BytesIO(pack("zip", IMAGES, "png", rendering))) as archive:
        assert archive.namelist() == [*NAMES, "manifest.json"]
        assert [archive.read(name) for name in NAMES] == [image.data for image in IMAGES]
        assert json.loads(archive.read("manifest.json")) == manifest_of(rendering)
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_tar_names_each_image_and_ends_with_the_manifest(rendering: Rendering) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack("tar", IMAGES, "png", rendering))) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
        entries = archive.getmembers()

    assert list(files) == [*NAMES, "manifest.json"]
    assert [files[name] for name in NAMES] == [image.data for image in IMAGES]
    assert json.loads(files["manifest.json"]) == manifest_of(rendering)
    assert {(one.mtime, one.uid, one.gid, one.uname, one.mode) for one in entries} == {(0, 0, 0, "", 0o644)}


def test_json_holds_each_image_and_the_manifest(rendering: Rendering) -> None:
    answer = json.loads(pack("json", IMAGES, "png", rendering))

    assert answer["manifest"] == manifest_of(rendering)
    assert [base64.b64decode(one["data"]) for one in answer["images"]] == [image.data for image in IMAGES]
    assert [(one["seed"], one["class_idx"], one["media_type"]) for one in answer["images"]] == [
        (7, 0, "image/png"),
        (7, 3, "image/png"),
        (None, 3, "image/png"),
    ]


@pytest.mark.parametrize("container", ["zip", "tar", "json"])
def test_the_same_images_give_the_same_bytes(rendering: Rendering, container: Any) -> None:
    assert pack(container, IMAGES, "png", rendering) == pack(container, IMAGES, "png", rendering)
