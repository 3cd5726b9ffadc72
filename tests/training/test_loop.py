"""An iteration of the alternating game: what each phase is given; and that a run learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import toy_config, toy_dataset

from training.config import GAMES
from training.loop import Trainer, train
from training.phases import Batch, discriminator_phase, generator_phase
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.servable import torch_render
from training.snapshot import TrainState, load_newest
from training.streams import generator_at


def test_the_two_phases_and_every_iteration_draw_fresh_latents() -> None:
    draws = [
        torch.randn(4, generator=generator_at(0, cur_nimg, phase)).tolist()
        for cur_nimg in (0, 16, 32)
        for phase in ("D", "G")
    ]

    assert len({tuple(draw) for draw in draws}) == len(draws)
    assert torch.randn(4, generator=generator_at(0, 16, "G")).tolist() == draws[3]


def test_an_iteration_draws_nothing_from_the_global_generator() -> None:
    config, dataset = toy_config(), toy_dataset()
    trainer = Trainer(config, DatasetReals(dataset, config.seed), TrainState.fresh(config, dataset.shape))
    before = torch.get_rng_state()

    trainer.run_iteration()

    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.state.cur_nimg == config.batch_size


def _played(iterations: int = 3, **changes: object) -> TrainState:
    """The state after some iterations of a pair without BatchNorm, where rows do not touch."""
    config, dataset = toy_config(**({"network": "mlp"} | changes)), toy_dataset()
    trainer = Trainer(config, DatasetReals(dataset, config.seed), TrainState.fresh(config, dataset.shape))
    for _ in range(iterations):
        trainer.run_iteration()
    return trainer.state


@pytest.mark.parametrize(
    "recipe",
    [
        {"objective": "relativistic", "r2_gamma": 0.1, "r1_interval": 1},
        {"r2_gamma": 0.1, "r1_interval": 1, "penalty_form": "finite_difference"},
        {"objective": "wasserstein", "r1_gamma": 0.0, "gp_weight": 10.0, "d_steps": 2},
        {"network": "style"},
    ],
)
def test_a_batch_in_microbatches_trains_as_the_whole_one(recipe: dict[str, object]) -> None:
    whole, parts = _played(**recipe), _played(**recipe, microbatches=4)

    assert parts.cur_nimg == whole.cur_nimg
    for network in ("G", "D", "G_ema"):
        values = getattr(parts, network).state_dict()
        torch.testing.assert_close(values, getattr(whole, network).state_dict(), rtol=1e-5, atol=1e-5)
    for network in ("G", "D"):  # Adam hides the scale of a gradient
        pairs = zip(getattr(parts, network).parameters(), getattr(whole, network).parameters(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def _noting_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """A list that the batches of the phases are added to as they are played."""
    seen: list[Batch] = []

    def noting(phase: Callable[..., object]) -> Callable[..., object]:
        def note(state: TrainState, rules: object, batches: list[Batch]) -> object:
            seen.extend(batches)
            return phase(state, rules, batches)

        return note

    monkeypatch.setattr("training.loop.discriminator_phase", noting(discriminator_phase))
    monkeypatch.setattr("training.loop.generator_phase", noting(generator_phase))
    return seen


def test_each_network_learns_at_its_own_rate_and_both_fall_alike() -> None:
    """Two time scales: Heusel 2017."""
    rates = []
    for cur_nimg in (0, 128):
        config = toy_config(network="mlp", G_lr=1e-4, D_lr=4e-4, lr_decay_start=0.0, lr_floor=0.5)
        state = TrainState.fresh(config, toy_dataset().shape)
        state.cur_nimg = cur_nimg
        Trainer(config, DatasetReals(toy_dataset(), 0), state).run_iteration()
        rates += [optimizer.param_groups[0]["lr"] for optimizer in (state.G_optimizer, state.D_optimizer)]

    assert rates == pytest.approx([1e-4, 4e-4, 5e-5, 2e-4])


def test_each_step_of_the_discriminator_sees_the_next_reals_and_fresh_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, dataset = toy_config(d_steps=3, r1_interval=3), toy_dataset()
    trainer = Trainer(config, DatasetReals(dataset, config.seed), TrainState.fresh(config, dataset.shape))
    seen = _noting_batches(monkeypatch)

    figures = trainer.run_iteration()

    assert len(seen) == 4
    assert trainer.state.cur_nimg == config.iteration_nimg == 48
    expected, _ = DatasetReals(dataset, config.seed).batch(0, 48)
    assert torch.equal(torch.cat([batch.reals.detach() for batch in seen[:3]]), expected)
    rows = [tuple(row) for batch in seen for row in batch.z.tolist()]
    assert len(set(rows)) == len(rows)
    assert figures["D_loss"].shape == (48,)
    assert figures["G_loss"].shape == figures["r1_penalty"].shape == (16,)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("objective", ["nonsaturating", "relativistic"])
def test_the_generator_never_sees_the_latents_of_phase_1_and_its_pairs_share_a_class(
    objective: str, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset = toy_config(objective=objective), toy_dataset(labelled=labelled)
    trainer = Trainer(config, DatasetReals(dataset, 0), TrainState.fresh(config, dataset.shape))
    seen = _noting_batches(monkeypatch)

    for _ in range(2):
        trainer.run_iteration()

    rows = [tuple(row) for batch in seen for row in batch.z.tolist()]
    assert len(set(rows)) == len(rows) == 4 * config.batch_size
    if labelled and objective == "relativistic":
        for batch in seen:
            left, right = batch.reals.detach()[:, 0].mean(1).unflatten(1, (2, 8)).mean(2).T
            assert torch.equal((right > left).long(), batch.class_idx)


@pytest.mark.parametrize("objective", GAMES)
def test_every_objective_plays_with_every_kind_of_tick(objective: str, tmp_path: Path) -> None:
    config = toy_config(objective=objective, r1_gamma=0.0, gp_weight=10.0, total_kimg=0.032)
    run = RunFolder(tmp_path)

    train(config, toy_dataset(), run, tick_kimg=1)

    (row,) = (json.loads(line) for line in run.metrics_file.read_text().splitlines())
    assert {"D_real_logit", "D_fake_logit", "gradient_penalty"} <= row.keys()
    assert ("D_real_probability" in row) == (objective not in ("wasserstein", "hinge"))


def _halves(G: Callable[..., np.ndarray], z_dim: int) -> np.ndarray:
    """Mean level [class, half] and its spread over 64 latents, for both classes."""
    latents = np.random.RandomState(1).randn(128, z_dim).astype(np.float32)
    class_idx = np.arange(128) % 2
    images = G(latents, class_idx, np.ones(128, dtype=np.float32)).astype(float)[..., 0]
    halves = images.reshape(128, 16, 2, 8).mean(axis=(1, 3))  # [N, half]
    return np.stack([halves[class_idx == one].mean(axis=0) for one in (0, 1)])


def test_a_few_kimg_teach_the_generator_where_each_class_has_its_light(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(total_kimg=6, G_lr=2e-3, D_lr=2e-3, adam_beta1=0.0)
    dataset, run = toy_dataset(), RunFolder(tmp_path)
    untrained = _halves(torch_render(TrainState.fresh(config, dataset.shape).G_ema), config.z_dim)

    state = train(config, dataset, run, tick_kimg=1)

    trained = _halves(torch_render(state.G_ema), config.z_dim)
    contrast = trained.diagonal() - trained[::-1].diagonal()  # bright half less dark half, per class
    assert (untrained.diagonal() - untrained[::-1].diagonal() < 40).all()
    assert (contrast > 100).all()
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    probabilities = [(row["D_real_probability"], row["D_fake_probability"]) for row in rows]
    gaps = [real - fake for real, fake in probabilities]
    assert max(gaps) > 0.15  # D learned to tell them apart
    assert gaps[-1] < max(gaps)  # and G to fool it again
    assert caplog.records == []  # the sentinel has nothing to say of a healthy run
    assert not any("won_since" in row or "collapsed_since" in row for row in rows)
    assert min(rows[-1]["grid_spread"], rows[-1]["grid_nearest"]) > 0.5
    assert all(0 < row["D_real_accuracy"] < 1 and 0 < row["D_fake_accuracy"] < 1 for row in rows)
    assert all(row["D_gradient_norm"] > 0 and row["G_gradient_norm"] > 0 for row in rows)


def test_a_tick_leaves_metrics_a_grid_and_a_snapshot(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    train(toy_config(total_kimg=0.128), toy_dataset(), run, tick_kimg=0.064)

    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["cur_nimg"] for row in rows] == [64, 128]
    assert set(rows[0]) == {
        "cur_nimg",
        "D_loss",
        "G_loss",
        "D_real_logit",
        "D_fake_logit",
        "D_real_probability",
        "D_fake_probability",
        "r1_penalty",
        "images_per_s",
        "D_real_accuracy",
        "D_fake_accuracy",
        "D_gradient_norm",
        "G_gradient_norm",
        "grid_spread",
        "grid_nearest",
        "train_s",
        "maintenance_s",
    }
    assert all(0 < row["D_real_probability"] < 1 and row["images_per_s"] > 0 for row in rows)
    grids = sorted(path.name for path in (tmp_path / "grids").iterdir())
    assert grids == ["nimg0000000064.png", "nimg0000000128.png"]
    assert load_newest(run).cur_nimg == 128
