"""What is published is served as it was published, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import publish_toy

from models.errors import DamagedArtifact, InvalidValue, UnknownModel, VersionExists
from models.golden import Golden
from models.manifest import Manifest
from models.store import SHIPPED_STORE, Store, parse_address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    publish_toy(tmp_path)
    return Store(tmp_path)


def test_versions_count_up_and_a_bare_name_is_the_highest(store: Store) -> None:
    publish_toy(store.root, weights_seed=1)

    assert store.versions("toy") == [1, 2]
    assert store.resolve("toy").manifest.version == 2
    assert store.resolve("toy:1").digest != store.resolve("toy:2").digest


def test_a_manifest_reads_back_as_it_was_written(store: Store) -> None:
    manifest = store.resolve("toy").manifest

    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_digest_is_that_of_what_makes_the_pixels(store: Store) -> None:
    manifest = store.resolve("toy").manifest

    assert replace(manifest, licence="other", training={"kimg": 3}).digest == manifest.digest
    assert replace(manifest, prior="uniform").digest != manifest.digest
    assert replace(manifest, truncation="w").digest != manifest.digest
    assert replace(manifest, files={**manifest.files, "model.onnx": "0" * 64}).digest != manifest.digest


def test_a_version_is_never_overwritten(store: Store) -> None:
    with pytest.raises(VersionExists, match="toy:1 is published already"), store.draft("toy", 1):
        pass


def test_a_version_that_appeared_meanwhile_is_not_overwritten(store: Store) -> None:
    manifest = store.resolve("toy").manifest
    with store.draft("toy", 2) as draft:
        publish_toy(store.root)
        for name in manifest.files:
            (draft.path / name).write_bytes(store.resolve("toy:1").file(name).read_bytes())
        with pytest.raises(VersionExists):
            draft.publish(replace(manifest, version=2))


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    with suppress(KeyboardInterrupt), store.draft("half") as draft:
        (draft.path / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []
    assert store.names() == []


def test_a_draft_is_invisible_until_it_is_published(store: Store) -> None:
    with store.draft("new") as draft:
        (draft.path / "model.onnx").write_bytes(b"")

        assert store.names() == ["toy"]


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz"])
def test_a_changed_or_missing_file_is_found(store: Store, file: str) -> None:
    artifact = store.resolve("toy")
    path = artifact.file(file)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DamagedArtifact, match=f"toy:1: {file} is not the file that was published"):
        artifact.verify()
    path.unlink()
    with pytest.raises(DamagedArtifact, match=f"{file} cannot be read"):
        artifact.verify()


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts.pop(key)


def _with(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts.update(values)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_without("z_dim"), "lacks the fields: z_dim"),
        (_with(z_dim=0), "z_dim must be an integer between 1 and 65536, got 0"),
        (_with(z_dim=True), "z_dim must be an integer"),
        (_with(img_channels=2), r"img_channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        (_with(prior="cauchy"), "prior must be one of normal, uniform, got 'cauchy'"),
        (_with(truncation="y"), "truncation must be one of none, z, w"),
        (_with(class_names=["one"]), "class_names must be one name for each of the 10 classes"),
        (_with(schema_version=2), "schema_version must be 1, got 2"),
        (_with(schema_version=True), "schema_version must be 1, got true"),
        (_with(img_channels=True), r"img_channels must be 1 \(grey\) or 3"),
        (_with(licence=5), "licence must be text, got 5"),
        (_with(metrics=[1]), "metrics must be a list of objects"),
        (_with(sampler=float("nan")), "the manifest must be JSON: NaN is not JSON"),
        (_with(sampler=[]), "sampler must be an object or null"),
        (_with(colour="red"), "unknown fields: colour"),
        (_with(files={"../model.onnx": "0" * 64}), "files must be plain names"),
        (_with(files={"model.onnx": "abc"}), "64 hexadecimal digits"),
        (_with(files={}), "lists no model.onnx"),
        (_with(files=[]), "files must be an object"),
        (_with(name="other"), "its manifest is that of other:1"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_by_name(
    store: Store, spoil: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    path = store.root / "toy/1/manifest.json"
    facts = json.loads(path.read_text())
    spoil(facts)
    path.write_text(json.dumps(facts))

    with pytest.raises(DamagedArtifact, match=sentence):
        store.resolve("toy")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", pytest.param("[" * 100_000, id="deep")])
def test_a_manifest_that_is_no_json_object_is_refused(store: Store, text: str) -> None:
    (store.root / "toy/1/manifest.json").write_text(text)

    with pytest.raises(DamagedArtifact, match="toy:1: the manifest"):
        store.resolve("toy")


def test_a_version_folder_without_a_manifest_is_damaged(store: Store) -> None:
    (store.root / "toy/2").mkdir()

    with pytest.raises(DamagedArtifact, match=r"toy:2: manifest\.json cannot be read"):
        store.resolve("toy")


@pytest.mark.parametrize(
    "address",
    [
        "../toy",
        "/etc",
        "toy/1",
        "",
        ".hidden",
        "Toy",
        "a" * 65,
        "toy\0",
        "to..y",
        "toy:0",
        "toy:-1",
        "toy:1/..",
        "toy:٣",
    ],
)
def test_path_tricks_in_an_address_are_refused(store: Store, address: str) -> None:
    with pytest.raises(InvalidValue, match=r"(name|version) must be"):
        store.resolve(address)


def test_what_is_not_there_is_named_with_what_is(store: Store) -> None:
    with pytest.raises(UnknownModel, match=r"no model named 'nobody' in the store .*; it has: toy"):
        store.resolve("nobody")
    with pytest.raises(UnknownModel, match="no version 2 of 'toy' in the store; it has: 1"):
        store.resolve("toy:2")
    with pytest.raises(UnknownModel, match=r"no model named 'toy': the store .*nowhere is not a folder"):
        Store(store.root / "nowhere").resolve("toy")
    (store.root / "empty").mkdir()
    with pytest.raises(UnknownModel, match="it has: none"):
        Store(store.root / "empty").resolve("toy")


def test_an_address_is_a_name_and_perhaps_a_version() -> None:
    assert parse_address("toy") == ("toy", None)
    assert parse_address("toy:12") == ("toy", 12)


def test_golden_rows_that_do_not_fit_the_manifest_are_damaged(store: Store) -> None:
    artifact = store.resolve("toy")
    golden = Golden.load(artifact.file("golden.npz"), artifact.manifest)
    replace(golden, images=golden.images[:, :-1]).save(artifact.file("golden.npz"))

    with pytest.raises(DamagedArtifact, match="must hold images uint8"):
        Golden.load(artifact.file("golden.npz"), artifact.manifest)
    replace(golden, class_idx=golden.class_idx + 50).save(artifact.file("golden.npz"))
    with pytest.raises(DamagedArtifact, match="class_idx and truncation_psi in their ranges"):
        Golden.load(artifact.file("golden.npz"), artifact.manifest)
    artifact.file("golden.npz").write_bytes(b"not a zip")
    with pytest.raises(DamagedArtifact, match="cannot be read"):
        Golden.load(artifact.file("golden.npz"), artifact.manifest)


def test_every_shipped_artifact_is_whole() -> None:
    store = Store(SHIPPED_STORE)

    assert "fashion-mnist" in store.names()
    for name in store.names():
        for version in store.versions(name):
            store.resolve(f"{name}:{version}").verify()
