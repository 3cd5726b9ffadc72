"""A snapshot is whole at any moment, complete, and nothing in it can run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from toy_training import toy_config, toy_dataset

from training.errors import RunError
from training.loop import Trainer
from training.reals import DatasetReals
from training.snapshot import TrainState, load_snapshot, save_snapshot


def _trained_state() -> TrainState:
    config, dataset = toy_config(), toy_dataset()
    state = TrainState.fresh(config, dataset.shape)
    Trainer(config, DatasetReals(dataset, config.seed), state).run_iteration()
    return state


def test_a_snapshot_gives_back_every_part_of_the_state(tmp_path: Path) -> None:
    state = _trained_state()
    restored = TrainState.fresh(toy_config(seed=9), toy_dataset().shape)

    save_snapshot(tmp_path / "snapshot.pt", toy_config(), toy_dataset().facts(), state)
    snapshot = load_snapshot(tmp_path / "snapshot.pt")
    restored.load_dict(snapshot.state)

    assert snapshot.config == toy_config()
    assert snapshot.data == toy_dataset().facts()
    assert restored.cur_nimg == 16
    for name in ("G", "D", "G_ema"):
        for key, value in getattr(state, name).state_dict().items():
            assert torch.equal(value, getattr(restored, name).state_dict()[key]), (name, key)
    for name in ("G_optimizer", "D_optimizer"):
        moments, found = (getattr(one, name).state_dict()["state"] for one in (state, restored))
        assert all(torch.equal(moments[i]["exp_avg_sq"], found[i]["exp_avg_sq"]) for i in moments)


def test_the_generator_of_a_snapshot_is_the_average_in_eval_mode(tmp_path: Path) -> None:
    state = _trained_state()
    save_snapshot(tmp_path / "snapshot.pt", toy_config(), toy_dataset().facts(), state)

    G = load_snapshot(tmp_path / "snapshot.pt").generator()

    assert not any(module.training for module in G.modules())
    assert torch.equal(G.to_image.weight, state.G_ema.to_image.weight)
    assert not torch.equal(G.to_image.weight, state.G.to_image.weight)


def test_a_write_that_fails_leaves_the_old_snapshot_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot.pt"
    save_snapshot(path, toy_config(), toy_dataset().facts(), _trained_state())
    before = path.read_bytes()

    def half_a_write(content: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_a_write)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(path, toy_config(), toy_dataset().facts(), _trained_state())

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["snapshot.pt"]


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap-was-sprung"),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_snapshot_that_wants_to_run_something_is_refused(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "snapshot.pt"
    if legacy:
        path.write_bytes(pickle.dumps(_Trap(), protocol=2))
    else:
        torch.save({"format": 1, "config": _Trap()}, path)

    with pytest.raises(RunError, match="cannot be read as a snapshot"):
        load_snapshot(path)

    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "nothing was trained there yet"),
        (b"", "cannot be read as a snapshot"),
        (b"PK\x03\x04 cut off", "cannot be read as a snapshot"),
    ],
)
def test_a_missing_or_damaged_snapshot_is_a_sentence(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.pt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(RunError, match=sentence):
        load_snapshot(path)


def test_a_snapshot_of_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 0}, tmp_path / "snapshot.pt")

    with pytest.raises(RunError, match="must be a snapshot of format 1"):
        load_snapshot(tmp_path / "snapshot.pt")
