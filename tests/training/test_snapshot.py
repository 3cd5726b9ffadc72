"""A snapshot is whole at any moment, complete, and nothing in it can run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import toy_config, toy_dataset

from training.errors import DamagedSnapshot, RunError
from training.loop import Trainer
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.snapshot import TrainState, load_newest, load_snapshot, save_snapshot


def _trained_state() -> TrainState:
    config, dataset = toy_config(), toy_dataset()
    state = TrainState.fresh(config, dataset.shape)
    Trainer(config, DatasetReals(dataset, config.seed), state).run_iteration()
    return state


def test_a_snapshot_gives_back_every_part_of_the_state(tmp_path: Path) -> None:
    state = _trained_state()
    restored = TrainState.fresh(toy_config(seed=9), toy_dataset().shape)

    save_snapshot(RunFolder(tmp_path), toy_config(), toy_dataset().facts(), state)
    snapshot = load_newest(RunFolder(tmp_path))
    snapshot.restore(restored)

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
    save_snapshot(RunFolder(tmp_path), toy_config(), toy_dataset().facts(), state)

    G = load_newest(RunFolder(tmp_path)).generator()

    assert not any(module.training for module in G.modules())
    assert torch.equal(G.to_image.weight, state.G_ema.to_image.weight)
    assert not torch.equal(G.to_image.weight, state.G.to_image.weight)


def _saved(run: RunFolder, *nimgs: int) -> None:
    """Leave a snapshot at each of `nimgs`."""
    state = _trained_state()
    for cur_nimg in nimgs:
        state.cur_nimg = cur_nimg
        save_snapshot(run, toy_config(), toy_dataset().facts(), state)


def test_a_run_folder_keeps_the_newest_snapshot_and_the_one_before_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    _saved(run, 16, 32, 1_000_000, 999_999_999)

    assert run.snapshot_files() == [run.snapshot_file(999_999_999), run.snapshot_file(1_000_000)]
    assert load_newest(run).cur_nimg == 999_999_999


def test_a_write_that_fails_leaves_the_snapshots_before_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    _saved(run, 16, 32)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def no_room(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        _saved(run, 48)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _one_bit_of_the_weights(content: bytes) -> bytes:
    weights = _read_by_torch(content)["state"]["G_ema"]["to_image.weight"].numpy().tobytes()
    at = content.rindex(weights) + 7
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _read_by_torch(content: bytes) -> dict[str, Any]:
    """What torch alone reads: the digest behind does not disturb it."""
    read: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return read


@pytest.mark.parametrize("damage", [_cut_in_half, _one_bit_of_the_weights, lambda content: b""])
def test_a_damaged_newest_snapshot_is_told_and_the_one_before_it_used(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    _saved(run, 16, 32)
    run.snapshot_file(32).write_bytes(damage(run.snapshot_file(32).read_bytes()))

    snapshot = load_newest(run)

    assert snapshot.cur_nimg == 16
    assert str(run.snapshot_file(32)) in caplog.text
    assert "the one before it is used, of 0.016 kimg" in caplog.text


def test_torch_alone_would_have_taken_a_flipped_bit_for_a_weight(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _saved(run, 16)
    content = run.snapshot_file(16).read_bytes()

    whole, flipped = (_read_by_torch(one) for one in (content, _one_bit_of_the_weights(content)))

    of_whole, of_flipped = (one["state"]["G_ema"]["to_image.weight"] for one in (whole, flipped))
    assert not torch.equal(of_whole, of_flipped)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _saved(run, 16)
    path = run.snapshot_file(16)
    content = path.read_bytes()
    stream = np.random.RandomState(0)

    for place in [0, len(content) - 1, *stream.randint(len(content), size=20)]:
        bit = 1 << int(stream.randint(8))
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(DamagedSnapshot, match="its digest is not that of its content"):
            load_snapshot(path)


def test_a_run_whose_snapshots_are_all_damaged_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _saved(run, 16, 32)
    for path in run.snapshot_files():
        path.write_bytes(b"PK")

    with pytest.raises(RunError, match=r"nimg0000000032.*nimg0000000016.*give another --run-dir"):
        load_newest(run)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap-was-sprung"),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_snapshot_that_wants_to_run_something_is_refused(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, file = tmp_path / "snapshot.pt", io.BytesIO()
    if legacy:
        file.write(pickle.dumps(_Trap(), protocol=2))
    else:
        torch.save({"format": 2, "config": _Trap()}, file)
    path.write_bytes(_sealed(file.getvalue()))

    with pytest.raises(RunError, match="must be a snapshot: tensors and plain values"):
        load_snapshot(path)

    assert not (tmp_path / "trap-was-sprung").exists()


def _sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_a_folder_without_a_snapshot_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no snapshot: nothing was trained there yet"):
        load_newest(RunFolder(tmp_path))


def test_a_snapshot_of_another_format_is_refused(tmp_path: Path) -> None:
    run, file = RunFolder(tmp_path), io.BytesIO()
    _saved(run, 16)
    torch.save({"format": 3}, file)
    run.snapshot_file(32).write_bytes(_sealed(file.getvalue()))

    with pytest.raises(RunError, match=r"nimg0000000032\.pt must be a snapshot of format 2"):
        load_newest(run)


def test_a_folder_of_the_format_before_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1}, tmp_path / "snapshot.pt")

    with pytest.raises(RunError, match=r"snapshot\.pt, which is of format 1 and is not read any more"):
        load_newest(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("changes", "compiled"),
    [
        ({"compile": False}, {"G": False, "D": False}),
        ({"compile": True, "r1_gamma": 0}, {"G": True, "D": True}),
        ({"compile": True, "r1_gamma": 1.0}, {"G": True, "D": False}),
        ({"compile": True, "r1_gamma": 1.0, "penalty_form": "finite_difference"}, {"G": True, "D": True}),
        ({"compile": True, "r1_gamma": 0, "gp_weight": 10.0}, {"G": True, "D": False}),
    ],
)
def test_what_a_penalty_differentiates_twice_is_not_compiled(
    changes: dict[str, object], compiled: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(module))

    state = TrainState.fresh(toy_config(**changes), toy_dataset().shape)

    assert {name: getattr(state, name) in asked for name in ("G", "D")} == compiled
    assert state.G_ema not in asked
