"""A run that was killed, stopped or hindered goes on, and ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gantrain_process import gantrain, save_toy_zip, train_arguments
from toy_training import toy_config, toy_dataset

from training.__main__ import main
from training.config import TrainConfig
from training.data import Dataset
from training.errors import RunError
from training.loop import train
from training.resume import changes, inexactness
from training.run_folder import RunFolder
from training.snapshot import load_newest, load_snapshot

CONSTANT_LR = {"lr_decay_start": 1.0}


@pytest.fixture(scope="module")
def data_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_zip(tmp_path_factory.mktemp("data") / "halves.zip")


def _left_by(run: RunFolder) -> dict[str, Any]:
    """All that a run leaves, with tensors as bytes and without timings."""
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return {
        "metrics": [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows],
        "grids": {path.name: path.read_bytes() for path in (run.path / "grids").iterdir()},
        "snapshots": [path.name for path in run.snapshot_files()],
        "state": _bits(load_newest(run).state),
        "files": {path.name for path in run.path.iterdir()} - {"log.txt"},
    }


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    if not isinstance(value, dict):
        return value
    return {key: _bits(one) for key, one in value.items() if key not in ("train_s", "seconds")}


class _Killed(BaseException):
    """A kill between two operations on files: no handler of the run may answer it."""


class _Killer:
    """Ends the process that a test plays, at one of its operations on files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in ("replace", "unlink"):
            monkeypatch.setattr(Path, name, self._deadly(getattr(Path, name)))
        monkeypatch.setattr(os, "fsync", self._deadly(lambda handle: None))  # slow, and a kill needs no disk

    def _deadly(self, operation: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise _Killed
            return operation(*arguments, **options)

        return call


def test_a_run_killed_at_any_operation_on_its_files_ends_as_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset = toy_config(total_kimg=0.048), toy_dataset(num_images=16)
    whole = RunFolder(tmp_path / "whole")
    train(config, dataset, whole, tick_kimg=0.016)
    expected = _left_by(whole)
    killer = _Killer(monkeypatch)

    kills = 0
    while True:
        run = RunFolder(tmp_path / f"killed{kills + 1}")
        killer.left = kills + 1
        try:
            train(config, dataset, run, tick_kimg=0.016)
        except _Killed:
            kills += 1
        else:
            break
        killer.left = -1
        train(config, dataset, run, tick_kimg=0.016)
        assert _left_by(run) == expected, f"killed at operation {kills}"

    assert kills > 20


def test_a_process_killed_at_random_moments_ends_as_one_left_alone(data_zip: Path, tmp_path: Path) -> None:
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    total_kimg, tick_kimg = 0.64, 0.048
    assert main(train_arguments(whole.path, data_zip, total_kimg, tick_kimg)) == 0
    arguments = train_arguments(run.path, data_zip, total_kimg, tick_kimg)
    # After so many images and so many seconds more: one in each half, and time enough to the end.
    moments = [(first_nimg + random.randrange(240), random.random() * 0.05) for first_nimg in (0, 240)]

    for nimg, delay_s in moments:
        process = gantrain(*arguments)
        while process.poll() is None and _nimg_of(run) < nimg:
            time.sleep(0.001)
        time.sleep(delay_s)
        process.kill()
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (-9, ""), moments
    assert main(arguments) == 0

    assert _left_by(run) == _left_by(whole), f"killed after (images, and seconds more) {moments}"


def _nimg_of(run: RunFolder) -> int:
    """Images shown at the last tick that left something."""
    names = [path.stem for path in (run.path / "grids").glob("nimg*.png")]
    return max((int(name.removeprefix("nimg")) for name in names), default=-1)


@pytest.mark.parametrize(
    ("recipe", "labelled"),
    [
        ({}, True),
        ({}, False),
        ({"objective": "hinge", "r1_gamma": 0.0, "D_spectral_norm": True, "augment": "color,cutout"}, True),
        (
            {"network": "residual", "objective": "relativistic", "r2_gamma": 0.1, "r1_interval": 1}
            | {"penalty_form": "finite_difference", "gamma_floor": 0.1, "microbatches": 2},
            True,
        ),
        ({"objective": "wasserstein", "r1_gamma": 0.0, "gp_weight": 10.0, "d_steps": 2}, True),
        ({"network": "style", "objective": "relativistic"}, True),
        ({"network": "mlp", "objective": "elbo", "r1_gamma": 0.0, "precision": "bf16"}, True),
    ],
)
def test_a_run_stopped_within_a_tick_ends_as_one_left_alone(
    recipe: dict[str, Any], labelled: bool, tmp_path: Path
) -> None:
    config, dataset = toy_config(total_kimg=0.16, **recipe), toy_dataset(labelled=labelled)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    train(config, dataset, whole, tick_kimg=0.096)

    nimgs = []
    for stop_after in (2, 2, 99):
        answers = iter([False] * stop_after + [True] * 99)
        state = train(config, dataset, parts, tick_kimg=0.096, should_stop=lambda: next(answers))  # noqa: B023
        nimgs.append(state.cur_nimg)

    assert 0 < nimgs[0] < nimgs[1] < nimgs[2] == 160
    expected, found = _left_by(whole), _left_by(parts)
    assert found.pop("snapshots")[0] == expected.pop("snapshots")[0]  # the ones before differ
    expected["files"], found["files"] = set(), set()
    assert found == expected
    assert [row["cur_nimg"] for row in found["metrics"]] == [96, 160]


def test_another_tick_length_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    config, dataset = toy_config(total_kimg=0.096), toy_dataset()

    states = [
        train(config, dataset, RunFolder(tmp_path / f"{tick_kimg}"), tick_kimg=tick_kimg)
        for tick_kimg in (0.016, 1)
    ]

    one, other = (_bits({**state.to_dict(), "averages": None}) for state in states)
    assert one == other


@pytest.mark.parametrize(("share", "times_told"), [(0.0, 1), (1e9, 0)])
def test_ticks_that_cost_more_than_their_share_are_told_once(
    share: float,
    times_told: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunFolder(tmp_path)
    monkeypatch.setattr("training.ticks.MAINTENANCE_SHARE", share)

    with caplog.at_level("INFO"):
        train(toy_config(total_kimg=0.064), toy_dataset(), run, tick_kimg=0.016)

    assert caplog.text.count("a longer --tick-kimg costs less") == times_told
    assert [row["maintenance_s"] > 0 for row in run.metrics()] == [False, True, True, True]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config, run = toy_config(total_kimg=0.032), RunFolder(tmp_path)
    train(config, toy_dataset(), run, tick_kimg=1)
    before = run.snapshot_files()[0].read_bytes(), _left_by(run)

    state = train(config, toy_dataset(), run, tick_kimg=1)

    assert state.cur_nimg == 32
    assert (run.snapshot_files()[0].read_bytes(), _left_by(run)) == before


def test_a_damaged_newest_snapshot_costs_a_tick_and_not_a_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, dataset = toy_config(total_kimg=0.128), toy_dataset()
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    train(config, dataset, whole, tick_kimg=0.032)
    answers = iter([False] * 7 + [True] * 9)
    train(config, dataset, run, tick_kimg=0.032, should_stop=lambda: next(answers))
    newest, before = run.snapshot_files()
    newest.write_bytes(newest.read_bytes()[:-100])

    train(config, dataset, run, tick_kimg=0.032)

    assert "is damaged" in caplog.text
    assert f"of {int(before.stem[-10:]) / 1000:g} kimg" in caplog.text
    assert _left_by(run) == _left_by(whole)


def test_a_full_disk_ends_the_run_with_a_sentence_and_costs_no_bit(data_zip: Path, tmp_path: Path) -> None:
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    assert main(train_arguments(whole.path, data_zip, total_kimg=0.64)) == 0
    arguments = train_arguments(run.path, data_zip, total_kimg=0.64)
    process = gantrain(*arguments)
    while process.poll() is None and not run.snapshot_files():
        time.sleep(0.002)

    # Lines and grids still fit below the limit, a snapshot does not: the disk is full in the middle of one.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
    _, errors = process.communicate(timeout=60)

    kept = run.snapshot_files()[0]
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert ".pt cannot be written: File too large" in errors
    assert f"{kept.name} is kept. Make room, and the same command goes on from there" in errors
    assert not list(run.path.glob(".*"))  # what was half-written gave its room back
    assert load_snapshot(kept).cur_nimg > 0
    assert main(arguments) == 0
    assert _left_by(run) == _left_by(whole)


def test_a_folder_in_use_is_refused_to_a_second_process(
    data_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)

    with run.held():
        code = main(train_arguments(run.path, data_zip, total_kimg=1))

    assert code == 2
    assert f"{tmp_path} is in use: process {os.getpid()} trains in it" in capsys.readouterr().err
    assert not run.config_file.exists()


@pytest.mark.parametrize(
    ("changed", "dataset", "sentence"),
    [
        ({"z_dim": 4, "seed": 2}, toy_dataset(), "seed was 0 and is now 2; z_dim was 8 and is now 4"),
        ({"objective": "hinge"}, toy_dataset(), "objective was 'nonsaturating' and is now 'hinge'"),
        ({}, toy_dataset(num_images=64), "the data set was"),
        (
            {"total_kimg": 1},
            toy_dataset(),
            r"total_kimg was 0.032 and is now 1 \(the learning rates' cosine of lr_decay_start 0.3 ends",
        ),
        ({"total_kimg": 0.016}, toy_dataset(), r"total_kimg was 0.032 and is now 0.016 \(it may only grow\)"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_naming_what_changed(
    changed: dict[str, Any], dataset: Dataset, sentence: str, tmp_path: Path
) -> None:
    run, base = RunFolder(tmp_path), {"total_kimg": 0.032}
    train(toy_config(**base), toy_dataset(), run, tick_kimg=1)
    before = _left_by(run), run.config_file.read_bytes()

    with pytest.raises(RunError, match=f"holds another run: .*{sentence}.*--override"):
        train(toy_config(**base | changed), dataset, run, tick_kimg=1)

    assert (_left_by(run), run.config_file.read_bytes()) == before


def test_a_run_grows_where_no_schedule_depends_on_its_length(tmp_path: Path) -> None:
    short, long = (toy_config(total_kimg=kimg, **CONSTANT_LR) for kimg in (0.064, 0.16))
    whole, grown = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "grown")
    train(long, toy_dataset(), whole, tick_kimg=0.032)
    train(short, toy_dataset(), grown, tick_kimg=0.032)

    train(long, toy_dataset(), grown, tick_kimg=0.032)

    assert _left_by(grown) == _left_by(whole)
    assert json.loads(grown.config_file.read_text())["config"]["total_kimg"] == 0.16


def test_an_override_goes_on_with_the_new_value_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    old, new = toy_config(total_kimg=0.032), toy_config(total_kimg=0.064, adam_beta1=0.25, G_lr=1e-3)
    train(old, toy_dataset(), run, tick_kimg=1)

    state = train(new, toy_dataset(), run, tick_kimg=1, override=True)

    sentence = "overridden at 0.032 kimg: adam_beta1 was 0.5 and is now 0.25"
    assert sentence in caplog.text
    assert f"warning: {sentence}" in run.log_file.read_text()
    assert "overridden at 0.032 kimg: total_kimg was 0.032 and is now 0.064" in run.log_file.read_text()
    assert state.cur_nimg == 64
    assert state.G_optimizer.param_groups[0]["betas"][0] == 0.25
    assert load_newest(run).config == new
    assert sentence in state.departures
    assert load_newest(run).state["departures"] == state.departures
    train(new, toy_dataset(), run, tick_kimg=1)  # the same settings again need no override


def test_no_override_goes_on_with_other_networks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    train(toy_config(total_kimg=0.032), toy_dataset(), run, tick_kimg=1)
    before = _left_by(run), run.config_file.read_bytes()

    with pytest.raises(RunError, match=r"holds other networks .*--override cannot change them"):
        train(toy_config(total_kimg=0.032, G_channels=16), toy_dataset(), run, tick_kimg=1, override=True)

    assert (_left_by(run), run.config_file.read_bytes()) == before


def test_settings_of_a_run_that_left_no_snapshot_may_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    train(toy_config(), toy_dataset(), run, tick_kimg=1, should_stop=lambda: True)

    state = train(toy_config(total_kimg=0.016, z_dim=4), toy_dataset(), run, tick_kimg=1)

    assert state.cur_nimg == 16
    assert json.loads(run.config_file.read_text())["config"]["z_dim"] == 4


def test_other_threads_go_on_with_a_warning_that_says_not_bit_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, run = toy_config(total_kimg=0.064), RunFolder(tmp_path)
    answers = iter([False] * 2 + [True] * 9)
    train(config, toy_dataset(), run, tick_kimg=1, should_stop=lambda: next(answers))
    torch.set_num_threads(2)

    state = train(config, toy_dataset(), run, tick_kimg=1)

    assert state.cur_nimg == 64
    sentence = "going on from 0.032 kimg, not bit-exact: threads was 1 and is now 2"
    assert sentence in caplog.text
    assert state.departures == [sentence]


def test_the_facts_that_the_last_bit_depends_on_are_compared_and_no_others() -> None:
    compared = {"device": "CPU, a", "processes": 1, "threads": 1, "torch": "2.13.0", "numpy": "2.0"}
    was = compared | {"python": "3.11.0"}

    assert inexactness(was, was | {"python": "3.12.1"}) == []
    for name in compared:
        assert inexactness(was, was | {name: "another"}) == [f"{name} was {was[name]!r} and is now 'another'"]


def test_every_field_but_a_growing_length_makes_another_run() -> None:
    was = toy_config(**CONSTANT_LR)
    data = {"digest": "0" * 64}

    assert changes(was, data, toy_config(total_kimg=1_000, **CONSTANT_LR), data) == []
    assert changes(was, data, was, data) == []
    names = set(was.to_dict())
    assert names == {name for name in names if _is_identity(was, name)} | {"total_kimg"}


def _is_identity(was: TrainConfig, name: str) -> bool:
    now = toy_config(**CONSTANT_LR)
    object.__setattr__(now, name, "another")  # no valid value is needed to be compared
    return name != "total_kimg" and any(
        change.startswith(f"{name} was ") for change in changes(was, {"digest": ""}, now, {"digest": ""})
    )
