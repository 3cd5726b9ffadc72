"""Several processes train as one: the same rows, the same losses, the same weights."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from gantrain_process import save_toy_zip, train_arguments
from toy_training import COLLAPSING, EXPLODING, toy_config, toy_dataset

from models.errors import InvalidValue
from training.__main__ import main
from training.config import TrainConfig
from training.errors import RunError
from training.loop import Trainer, own_microbatches, train
from training.phases import Batch
from training.processes import ALONE, Processes, joined
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.snapshot import TrainState, load_newest

ROOT = Path(__file__).parents[2]
RECIPES: dict[str, dict[str, Any]] = {
    "RpGAN with exact R1 and R2": {"objective": "relativistic", "r2_gamma": 0.1, "r1_interval": 1},
    "finite difference, augmented": {
        "r2_gamma": 0.1,
        "r1_interval": 2,
        "penalty_form": "finite_difference",
        "augment": "color,translation",
    },
    "WGAN-GP in microbatches": {
        "objective": "wasserstein",
        "r1_gamma": 0.0,
        "gp_weight": 10.0,
        "d_steps": 2,
        "microbatches": 2,
    },
    "VAE": {"network": "mlp", "objective": "elbo", "r1_gamma": 0.0},
    "residual": {"network": "residual", "objective": "relativistic", "r2_gamma": 0.1, "r1_interval": 1},
    "style": {"network": "style"},
}

ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "collapsing": ({"tick_kimg": 0.25, "stop_on_collapse": True}, COLLAPSING),
    "exploding": ({"tick_kimg": 0.016}, EXPLODING),
}
"""Runs that end before their time, by the name of their folder: options of `train`, fields of the config."""


def recipe_config(name: str) -> TrainConfig:
    return toy_config(**({"network": "mlp"} | RECIPES[name]))


def played(config: TrainConfig, processes: Processes = ALONE) -> dict[str, Any]:
    """Two iterations: each one's figures, and all weights and averages at the end."""
    dataset = toy_dataset()
    state = TrainState.fresh(config, dataset.shape)
    trainer = Trainer(config, DatasetReals(dataset, config.seed), state, processes)
    means = [{name: values.mean() for name, values in trainer.run_iteration().items()} for _ in range(2)]
    return {"means": means, **{name: getattr(state, name).state_dict() for name in ("G", "D", "G_ema")}}


def start(*arguments: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start `count` Pythons with `arguments`, which know of each other as torchrun tells them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ
            | {name: str(value) for name, value in told.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )
        for rank in range(count)
    ]


def ended(name: str, run: RunFolder, processes: Processes) -> tuple[str, str]:
    """What a run of `ENDS` ends with here: an error's name and its sentence, or where it stands."""
    options, changes = ENDS[name]
    config, data = toy_config(total_kimg=3.0, **changes), toy_dataset(labelled=False)
    try:
        with redirect_stdout(io.StringIO()):  # the line of each tick
            state = train(config, data, run, processes=processes, **options)
    except RunError as error:
        return type(error).__name__, str(error)
    return "", f"at {state.cur_nimg / 1000:g} kimg"


def play_every_recipe(folder: str) -> None:
    """What each of two processes does: `folder` gets what it played. Then one is gone without a word."""
    with joined("cpu") as (processes, _):
        results = {name: played(recipe_config(name), processes) for name in RECIPES}
        results["BatchNorm"] = played(toy_config(network="dcgan"), processes)
        results |= {name: ended(name, RunFolder(Path(folder, name)), processes) for name in ENDS}
        torch.save(results, Path(folder, f"{processes.rank}.pt"))
        assert processes.any(processes.leads)
        if not processes.leads:
            os._exit(9)
        try:
            processes.any(False)
        except RunError as error:
            print(error, flush=True)
            os._exit(2)


@pytest.fixture(scope="module")
def played_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes leave what they played."""
    return tmp_path_factory.mktemp("played")


@pytest.fixture(scope="module")
def two_processes(played_folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What each of two processes played, and what the first said when the second was gone."""
    folder = played_folder
    leader, other = start("-c", f"import test_processes as t; t.play_every_recipe({str(folder)!r})")
    said, errors = leader.communicate(timeout=120)
    other.communicate(timeout=60)
    assert (leader.returncode, other.returncode) == (2, 9), errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], said


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_have_the_losses_and_weights_of_one_with_the_same_batch(
    name: str, two_processes: tuple[list[dict[str, Any]], str]
) -> None:
    (leader, other), _ = two_processes

    torch.testing.assert_close(other[name], leader[name], rtol=0, atol=0)  # the same bits in both
    torch.testing.assert_close(leader[name], played(recipe_config(name)), rtol=1e-5, atol=1e-5)


def test_batchnorm_measures_each_part_and_all_keep_the_mean_of_what_was_measured(
    two_processes: tuple[list[dict[str, Any]], str],
) -> None:
    (leader, other), _ = two_processes
    alone = played(toy_config(network="dcgan"))["G"]

    G = leader["BatchNorm"]["G"]

    torch.testing.assert_close(other["BatchNorm"], leader["BatchNorm"], rtol=0, atol=0)
    means = [name for name in G if name.endswith("running_mean")]
    assert means
    for name in means:  # not the batch's to the last digit, but near it
        torch.testing.assert_close(G[name], alone[name], rtol=0.2, atol=0.02)


def test_a_process_that_ends_ends_the_other_with_a_sentence(
    two_processes: tuple[list[dict[str, Any]], str],
) -> None:
    _, said = two_processes

    assert said.startswith("another process of this run has ended or cannot be reached, so this one ends too")
    assert said.count("\n") == 1


def test_a_collapse_stops_all_of_them_at_the_same_tick(
    two_processes: tuple[list[dict[str, Any]], str], played_folder: Path
) -> None:
    (leader, other), _ = two_processes
    kept = load_newest(RunFolder(played_folder / "collapsing"))

    at = f"at {kept.cur_nimg / 1000:g} kimg"
    assert 0 < kept.cur_nimg < 3_000
    assert leader["collapsing"][0] == "Collapsed"
    assert leader["collapsing"][1].startswith(f"stopped {at}, since G has collapsed")
    assert other["collapsing"] == ("", at)


def test_a_gradient_that_is_not_finite_ends_all_of_them_and_the_snapshot_before_is_kept(
    two_processes: tuple[list[dict[str, Any]], str], played_folder: Path
) -> None:
    (leader, other), _ = two_processes
    kept = load_newest(RunFolder(played_folder / "exploding"))

    name, sentence = leader["exploding"]
    assert name == "RunError"
    assert f"at {kept.cur_nimg / 1000:g} kimg; snapshot-nimg{kept.cur_nimg:010d}.pt is kept. Try" in sentence
    assert other["exploding"][0] == "NotFinite"  # of itself, not since the first was gone
    assert sentence.startswith(other["exploding"][1])


class _Follower(Processes):
    """A process that does not lead, with the whole batch and without the others."""

    leads = False


@pytest.mark.parametrize("leads", [True, False])
def test_the_leader_alone_says_that_a_gradient_is_not_finite(
    leads: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = ALONE if leads else _Follower()
    monkeypatch.setattr("training.processes.joined", lambda _: nullcontext((processes, torch.device("cpu"))))
    arguments = train_arguments(tmp_path / "run", save_toy_zip(tmp_path / "halves.zip"), total_kimg=3)

    code = main([*arguments, *(f"--set={name}={value}" for name, value in EXPLODING.items())])

    said = capsys.readouterr().err
    assert code == 2
    assert said.count("is not finite") == int(leads)
    assert bool(said) == leads


def _train(run_dir: Path, data: Path, total_kimg: float) -> list[str]:
    """A run whose schedules need no end, so that it may be lengthened."""
    recipe = ("network=mlp", "r2_gamma=0.1", "r1_interval=2", "objective=relativistic", "lr_decay_start=1")
    return [*train_arguments(run_dir, data, total_kimg), *(f"--set={field}" for field in recipe)]


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    """The lines of a run without what its clock says."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def test_torchrun_goes_on_with_a_run_of_one_process_and_ends_as_one_would_have(tmp_path: Path) -> None:
    data, alone, together = save_toy_zip(tmp_path / "halves.zip"), tmp_path / "alone", tmp_path / "together"
    assert main(_train(alone, data, total_kimg=0.128)) == 0
    assert main(_train(together, data, total_kimg=0.064)) == 0
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "training"]

    ended = subprocess.run(
        [sys.executable, *launcher, *_train(together, data, total_kimg=0.128)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )

    assert ended.returncode == 0, ended.stderr
    assert "going on from 0.064 kimg, not bit-exact: processes was 1 and is now 2" in ended.stderr
    assert ended.stdout.count("trained: 0.128 kimg") == 1  # one of them speaks
    for ours, theirs in zip(_metrics(together), _metrics(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    ours, theirs = (load_newest(RunFolder(run)).state for run in (together, alone))
    for network in ("G", "D", "G_ema"):
        torch.testing.assert_close(ours[network], theirs[network], rtol=1e-5, atol=1e-5)


def test_what_the_leader_refuses_ends_all_of_them(tmp_path: Path) -> None:
    data, run_dir = save_toy_zip(tmp_path / "halves.zip"), tmp_path / "run"
    assert main(_train(run_dir, data, total_kimg=0.032)) == 0
    other_run = [*_train(run_dir, data, total_kimg=0.032), "--set=G_lr=0.1"]

    leader, other = start("-m", "training", *other_run)

    refused, ended = (process.communicate(timeout=60)[1] for process in (leader, other))
    assert (leader.returncode, other.returncode) == (2, 2), ended
    assert "G_lr was 0.002 and is now 0.1" in refused
    assert ended.startswith("gantrain: another process of this run has ended")


class _Recorded(Processes):
    """One of several processes, without the others."""

    def average(self, tensors: object) -> None:
        pass

    def gather(self, figures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return figures


def test_the_shares_of_the_processes_are_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reals, classes, latents of both phases: each row is where it would be in one process."""
    config, dataset = toy_config(network="mlp", d_steps=2), toy_dataset()

    def shown(processes: Processes) -> list[Batch]:
        seen: list[Batch] = []

        def note(state: TrainState, rules: object, batches: list[Batch]) -> dict[str, Any]:
            seen.extend(batches)
            return {}

        for name in ("discriminator_phase", "generator_phase"):
            monkeypatch.setattr(f"training.loop.{name}", note)
        reals = DatasetReals(dataset, config.seed)
        Trainer(config, reals, TrainState.fresh(config, dataset.shape), processes).run_iteration()
        return seen

    whole, shares = shown(ALONE), [shown(_Recorded(rank, 4)) for rank in range(4)]

    assert len(whole) == 3
    for i, batch in enumerate(whole):
        for name in ("reals", "class_idx", "z"):
            assert torch.equal(torch.cat([getattr(share[i], name) for share in shares]), getattr(batch, name))


def test_microbatches_are_consecutive_rows_of_the_share() -> None:
    config = toy_config(batch_size=24, microbatches=2)

    rows = [own_microbatches(config, Processes(rank, 3)) for rank in range(3)]

    assert rows == [[slice(0, 4), slice(4, 8)], [slice(8, 12), slice(12, 16)], [slice(16, 20), slice(20, 24)]]


def test_a_batch_that_cannot_be_split_equally_is_refused() -> None:
    with pytest.raises(InvalidValue) as refusal:
        own_microbatches(toy_config(batch_size=16, microbatches=2), Processes(0, 3))

    assert str(refusal.value) == "batch_size must be a multiple of processes × microbatches (3 × 2), got 16"


def test_a_process_alone_joins_nothing() -> None:
    with joined("cpu") as (processes, device):
        assert processes == ALONE
        assert device.type == "cpu"
        assert not torch.distributed.is_initialized()


def test_under_torchrun_a_device_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with (
        pytest.raises(InvalidValue, match="--device must be auto, cpu or cuda under torchrun, got 'cuda:1'"),
        joined("cuda:1"),
    ):
        pass


def test_a_stray_rank_in_the_environment_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(InvalidValue) as refusal, joined("cpu"):
        pass

    assert str(refusal.value) == (
        "RANK must come with WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as torchrun sets them, "
        "got no LOCAL_RANK: start with torchrun, or unset RANK"
    )
