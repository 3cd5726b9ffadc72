"""The generator in the repository is what its card says: made by the preset as it is, and whole."""

from __future__ import annotations

import pytest

from models.store import SHIPPED_STORE, Store
from training.__main__ import main
from training.card import CARD_FILE, card_text
from training.config import TrainConfig
from training.presets import preset

MAX_BYTES = 25_000_000
ADDRESSES = ("emoji:1", "fashion-mnist:1", "fashion-mnist:2")
NEWEST = {"emoji": "emoji:1", "fashion-mnist": "fashion-mnist:2"}
"""The version of each generator that its preset makes as it is; older ones are never written again."""


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_shipped_generator_verifies(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", address, "--store", str(SHIPPED_STORE)])

    assert code == 0
    assert "golden: 32 rows" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "address"), NEWEST.items())
def test_it_was_made_by_the_preset_as_it_is_to_the_end(name: str, address: str) -> None:
    facts = Store(SHIPPED_STORE).resolve(address).manifest.training

    assert TrainConfig.from_dict(facts["config"]) == preset(name)
    assert facts["kimg"] >= facts["config"]["total_kimg"]
    assert facts["departures"] == []


@pytest.mark.parametrize(("name", "address"), NEWEST.items())
def test_its_card_is_what_an_export_writes_from_its_manifest(name: str, address: str) -> None:
    artifact = Store(SHIPPED_STORE).resolve(address)

    text = artifact.file(CARD_FILE).read_text(encoding="utf-8")

    assert text == card_text(artifact.manifest)
    assert f"gantrain train --preset {name} --run-dir RUN_DIR" in text


def test_fashion_mnist_is_as_near_to_the_data_as_was_asked_of_it() -> None:
    metrics = Store(SHIPPED_STORE).resolve("fashion-mnist:2").manifest.metrics
    figures = {one["name"]: one for one in metrics}
    distance, accuracy = figures["frechet_distance"], figures["class_accuracy"]

    assert distance["protocol"]["n_fake"] == distance["protocol"]["n_real"] == 10_000
    assert distance["value"] <= 13 * distance["of_reals"]
    assert accuracy["protocol"]["extractor"] == "fashion-mnist-judge"
    assert accuracy["value"] >= accuracy["of_reals"] - 0.02
    assert figures["class_min_share"]["value"] >= 0.05
    assert figures["class_max_share"]["value"] <= 0.15


def test_what_is_shipped_is_small_enough_for_a_repository() -> None:
    files = [path for path in SHIPPED_STORE.rglob("*") if path.is_file()]

    assert {path.parent.relative_to(SHIPPED_STORE).as_posix() for path in files} == {
        address.replace(":", "/") for address in ADDRESSES
    }
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
