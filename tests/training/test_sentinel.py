"""Runs that are won, that collapse or that leave the finite numbers: told, and stopped where asked.

That a healthy run is told nothing is held where one is trained: `test_loop`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from gantrain_process import save_toy_zip, train_arguments
from toy_training import COLLAPSING, EXPLODING, toy_config, toy_dataset

from training.__main__ import main
from training.config import TrainConfig
from training.errors import Collapsed, RunError
from training.loop import train
from training.run_folder import RunFolder
from training.snapshot import load_newest

WON = {"objective": "minimax", "G_lr": 1e-5, "D_lr": 1e-2, "adam_beta1": 0.0, "r1_gamma": 0.0}


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def _collapsing(total_kimg: float = 3.0) -> TrainConfig:
    return toy_config(total_kimg=total_kimg, **COLLAPSING)


def test_a_won_game_is_told_once_with_the_tick_at_which_it_began(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)

    train(toy_config(total_kimg=1.25, **WON), toy_dataset(), run, tick_kimg=0.25)

    rows = _rows(run)
    won = [row for row in rows if "won_since" in row]
    (since,) = {row["won_since"] for row in won}
    first = next(row for row in rows if row["cur_nimg"] == since)
    assert first["D_real_probability"] > 0.99
    assert rows.index(won[0]) == rows.index(first) + 2  # the third such tick
    told = [sentence for sentence in _warnings(caplog) if "D has won" in sentence]
    assert len(told) == 1
    assert f"D has won since {since / 1000:g} kimg" in told[0]
    assert "Try r1_gamma above 0 or D_lr below 0.01 or objective=nonsaturating" in told[0]
    assert f"warning: {told[0]}" in run.log_file.read_text()


def test_a_collapse_stops_the_run_where_asked_and_leaves_what_a_tick_leaves(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    with pytest.raises(Collapsed, match=r"stopped at .* kimg, since G has collapsed .*relativistic with r1"):
        train(_collapsing(), toy_dataset(labelled=False), run, tick_kimg=0.25, stop_on_collapse=True)

    rows = _rows(run)
    assert [("collapsed_since" in row) for row in rows] == [False] * (len(rows) - 1) + [True]
    since = rows[-1]["collapsed_since"]
    assert since in [row["cur_nimg"] for row in rows]
    assert load_newest(run).cur_nimg == rows[-1]["cur_nimg"] < 3_000
    with pytest.raises(Collapsed):  # again at once, and nothing is trained
        train(_collapsing(), toy_dataset(labelled=False), run, tick_kimg=0.25, stop_on_collapse=True)
    assert _rows(run) == rows


def test_the_sentinel_remembers_over_a_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, dataset = _collapsing(2.5), toy_dataset(labelled=False)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    train(config, dataset, whole, tick_kimg=0.25)
    told = _warnings(caplog)
    caplog.clear()

    for stop_after in (125, 25, 99):  # within the streak of bad ticks, and after the warning
        answers = iter([False] * stop_after + [True] * 99)
        train(config, dataset, parts, tick_kimg=0.25, should_stop=lambda: next(answers))  # noqa: B023

    alarms = [
        [{name: row.get(name) for name in ("cur_nimg", "collapsed_since", "won_since")} for row in _rows(run)]
        for run in (whole, parts)
    ]
    assert alarms[0] == alarms[1]
    assert any(row["collapsed_since"] for row in alarms[0])
    assert _warnings(caplog) == told


def test_a_collapse_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_toy_zip(tmp_path / "halves.zip", labelled=False)
    settings = [f"--set={name}={value}" for name, value in COLLAPSING.items()]
    arguments = train_arguments(tmp_path / "run", data, total_kimg=3, tick_kimg=0.25)

    code = main([*arguments, *settings, "--stop-on-collapse"])

    printed = capsys.readouterr()
    assert code == 3
    assert "gantrain: caution: G has collapsed since" in printed.err
    assert printed.err.splitlines()[-1].startswith("gantrain: stopped at ")


def test_a_gradient_that_is_not_finite_ends_the_run_and_keeps_the_snapshot_before(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    with pytest.raises(RunError, match="is not finite") as ended:
        train(toy_config(total_kimg=3, **EXPLODING), toy_dataset(), run, tick_kimg=0.016)

    kept, rows = load_newest(run), _rows(run)
    assert f"{run.snapshot_file(kept.cur_nimg).name} is kept. Try G_lr and D_lr below 1 and 1" in str(
        ended.value
    )
    assert f"at {kept.cur_nimg / 1000:g} kimg" in str(ended.value)
    assert rows[-1]["cur_nimg"] == kept.cur_nimg > 0
    tensors = [one for name in ("G", "D", "G_ema") for one in kept.state[name].values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_a_first_gradient_that_is_not_finite_leaves_no_snapshot(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    with pytest.raises(RunError, match=r"is not finite.*there is no snapshot yet"):
        train(toy_config(total_kimg=3, **EXPLODING), toy_dataset(), run, tick_kimg=1)

    assert run.snapshot_files() == []
    assert not run.metrics_file.exists()


def test_a_weight_that_is_not_finite_never_becomes_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = RunFolder(tmp_path), toy_config(total_kimg=0.064)
    answers = iter([False] * 2 + [True] * 9)
    train(config, toy_dataset(), run, tick_kimg=1, should_stop=lambda: next(answers))
    before = run.snapshot_files()

    def poison(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float) -> None:
        next(G_ema.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr("training.loop.update_ema", poison)
    with pytest.raises(RunError, match=r"of G_ema is not finite at 0\.064 kimg; .* is kept"):
        train(config, toy_dataset(), run, tick_kimg=1)

    assert run.snapshot_files() == before
