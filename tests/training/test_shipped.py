"""The generator in the repository is what its card says: made by the preset as it is, and whole."""

from __future__ import annotations

import pytest

from models.store import SHIPPED_STORE, Store
from training.__main__ import main
from training.card import CARD_FILE
from training.config import TrainConfig
from training.presets import preset

MAX_BYTES = 8_000_000


def test_the_shipped_generator_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", "fashion-mnist:1", "--store", str(SHIPPED_STORE)])

    assert code == 0
    assert "golden: 32 rows" in capsys.readouterr().out


def test_it_was_made_by_the_preset_as_it_is_to_the_end() -> None:
    facts = Store(SHIPPED_STORE).resolve("fashion-mnist:1").manifest.training

    assert TrainConfig.from_dict(facts["config"]) == preset("fashion-mnist")
    assert facts["kimg"] >= facts["config"]["total_kimg"]


def test_its_card_names_the_command_that_makes_it_again() -> None:
    artifact = Store(SHIPPED_STORE).resolve("fashion-mnist:1")

    text = artifact.file(CARD_FILE).read_text(encoding="utf-8")

    assert "gantrain train --preset fashion-mnist --run-dir RUN_DIR" in text


def test_it_is_small_enough_for_a_repository() -> None:
    artifact = Store(SHIPPED_STORE).resolve("fashion-mnist:1")

    size_bytes = sum(path.stat().st_size for path in artifact.path.iterdir())

    assert size_bytes < MAX_BYTES
