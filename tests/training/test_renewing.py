"""`gantrain card`: a card written anew, and not one byte of what makes the pixels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_training import toy_config, toy_dataset

from models.manifest import MANIFEST_FILE
from models.store import SHIPPED_STORE, Artifact, Store
from training.__main__ import main
from training.card import CARD_FILE, card_text
from training.loop import train
from training.run_folder import RunFolder
from training.snapshot import load_newest


@pytest.fixture
def published(tmp_path: Path) -> Artifact:
    """The shipped fashion-mnist:2, in a store of its own."""
    shutil.copytree(SHIPPED_STORE / "fashion-mnist" / "2", tmp_path / "store" / "fashion-mnist" / "2")
    return Store(tmp_path / "store").resolve("fashion-mnist:2")


def test_other_runs_stand_beside_it_and_all_else_stays(published: Artifact, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    train(toy_config(total_kimg=0.016), toy_dataset(), other, tick_kimg=1)
    snapshot, own = load_newest(other), published.manifest.metrics[0]
    figure = {"name": own["name"], "value": 123.5, "protocol": own["protocol"]}
    other.append_figures(snapshot.cur_nimg, snapshot.weights, [figure])
    before = {path.name: path.read_bytes() for path in published.path.iterdir()}

    words = ["card", "fashion-mnist:2", f"--store={tmp_path / 'store'}"]
    codes = [main([*words, f"--beside={other.path}"]), main(words)]  # the second keeps the run that is there

    renewed = Store(tmp_path / "store").resolve("fashion-mnist:2")
    renewed.verify()
    after = {path.name: path.read_bytes() for path in published.path.iterdir()}
    assert codes == [0, 0]
    assert {name for name in after if after[name] != before[name]} == {CARD_FILE, MANIFEST_FILE}
    assert after.keys() == before.keys()
    assert renewed.digest == published.digest
    assert renewed.manifest.metrics == published.manifest.metrics
    assert after[CARD_FILE].decode() == card_text(renewed.manifest)
    assert b"0.016 thousand images shown, 0 minutes |" in after[CARD_FILE]
    assert b"| 123.5 |" in after[CARD_FILE]


def test_a_damaged_artifact_and_a_run_without_figures_change_nothing(
    published: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RunFolder(tmp_path / "other")
    train(toy_config(total_kimg=0.016), toy_dataset(), other, tick_kimg=1)
    before = published.file(MANIFEST_FILE).read_bytes()
    words = ["card", "fashion-mnist", f"--store={tmp_path / 'store'}", f"--beside={other.path}"]

    refused = main(words)
    published.file("golden.npz").write_bytes(b"other rows")
    damaged = main(words)

    errors = capsys.readouterr().err
    assert (refused, damaged) == (2, 1)
    assert "has no figures to compare with" in errors
    assert "golden.npz is not the file that was published" in errors
    assert published.file(MANIFEST_FILE).read_bytes() == before
