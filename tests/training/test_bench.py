"""`gantrain bench`: that the loop beside ours learns the same, and that the tables say what was asked."""

from __future__ import annotations

import re

import pytest
import torch
from toy_training import toy_dataset

from training.__main__ import main
from training.bench import PlainLoop, bench_penalties, bench_recipes
from training.device import CPU
from training.losses import LOSSES
from training.phases import Batch, Rules, discriminator_phase, generator_phase
from training.presets import preset
from training.snapshot import TrainState
from training.streams import RowDraws

TINY = {
    "batch_size": "4",
    "img_resolution": "16",
    "z_dim": "4",
    "class_dim": "4",
    "G_channels": "4",
    "D_channels": "4",
}


def test_the_plain_loop_learns_the_same_mathematics() -> None:
    config = preset("ns-dcgan").override(TINY)
    dataset = toy_dataset()
    plain = PlainLoop(config, dataset, CPU)
    state = TrainState.fresh(config, dataset.shape)
    draws = RowDraws(torch.Generator().manual_seed(0), 4, slice(None))
    reals, class_idx = draws.normal(1, 16, 16), draws.integers(2)
    z_D, asked, z_G = draws.normal(4), draws.integers(2), draws.normal(4)
    rules = Rules(losses=LOSSES["nonsaturating"])

    for _ in range(3):
        plain_D_loss, plain_G_loss = plain.learn(reals, class_idx, z_D, asked, z_G)
        figures = discriminator_phase(
            state, rules, [Batch(reals=reals, class_idx=class_idx, z=z_D, draws=draws)]
        )
        figures |= generator_phase(state, rules, [Batch(reals=reals, class_idx=asked, z=z_G, draws=draws)])

        assert figures["D_loss"].mean().item() == pytest.approx(plain_D_loss, rel=1e-4)
        assert figures["G_loss"].mean().item() == pytest.approx(plain_G_loss, rel=1e-4)

    for ours, theirs in ((state.D, plain.D), (state.G, plain.G)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_recipes_are_measured_beside_the_plain_loop() -> None:
    rows = bench_recipes(["hinge-sn"], device=CPU, rounds=1, changes=TINY)

    assert [row.name for row in rows] == ["plain loop", "ns-dcgan", "hinge-sn"]
    assert rows[0].ratio == 1
    assert all(
        row.ratio == pytest.approx(row.images_per_s / rows[0].images_per_s) and row.images_per_s > 0
        for row in rows
    )


def test_a_batch_larger_than_the_noise_is_measured_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bench._NUM_IMAGES", 3)

    rows = bench_recipes([], device=CPU, rounds=1, changes=TINY)

    assert [row.name for row in rows] == ["plain loop", "ns-dcgan"]


def test_penalties_are_measured_beside_none_and_cost_something() -> None:
    rows = {row.name: row for row in bench_penalties(device=CPU, rounds=3, changes=TINY)}

    assert rows["no penalty"].ratio == 1
    assert rows["exact, each step"].ratio < 1
    assert {"exact, every 4th", "finite difference, each step"} <= set(rows)


def test_the_command_prints_conditions_and_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [f"--set={name}={value}" for name, value in TINY.items()]

    code = main(["bench", "--device=cpu", "--rounds=1", *sets])

    printed = capsys.readouterr().out
    assert code == 0
    assert "CPU, " in printed
    assert "1 threads; torch" in printed
    assert re.search(r"\| plain loop \| \d+ \| 1\.00 \| 1\.00 \|", printed)
    assert re.search(r"\| exact, each step \| \d+ \| 0\.\d\d \| \d\.\d\d \|", printed)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("objective", "elbo"),
        ("objective", "relativistic"),
        ("d_steps", "2"),
        ("r1_gamma", "1.0"),
        ("r2_gamma", "1.0"),
        ("gp_weight", "10.0"),
        ("augment", "color"),
        ("D_spectral_norm", "true"),
        ("microbatches", "2"),
    ],
)
def test_another_game_than_the_plain_loops_is_refused(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"--set={field}={value}" for field, value in (TINY | {name: text}).items()]

    assert main(["bench", "--device=cpu", "--rounds=1", *sets]) == 2

    assert f"--set {name} must be left to the presets, since the plain loop" in capsys.readouterr().err
