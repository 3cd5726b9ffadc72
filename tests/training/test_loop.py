"""The alternating game: who moves in which phase, and that it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import toy_config, toy_dataset

from training.config import GAMES
from training.loop import (
    Batch,
    Trainer,
    discriminator_phase,
    frozen,
    generator_phase,
    train,
)
from training.losses import LOSSES
from training.penalties import NO_PENALTIES, PenaltyWeights
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.servable import torch_render
from training.snapshot import TrainState, load_newest
from training.streams import RowDraws, generator_at

LOSS = LOSSES["nonsaturating"]


def _state() -> TrainState:
    """A pair in which G has taken one step, so that it holds gradients and optimizer state."""
    state = TrainState.fresh(toy_config(), toy_dataset().shape)
    generator_phase(state, LOSS, [_batch()])
    return state


def _batch(count: int = 16) -> Batch:
    draws = RowDraws(torch.Generator().manual_seed(count), count, slice(None))
    return Batch(
        reals=draws.normal(1, 16, 16), class_idx=torch.arange(count) % 2, z=draws.normal(8), draws=draws
    )


def _bits(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and gradient, copied."""
    bits = {name: value.clone() for name, value in network.state_dict().items()}
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    return bits | {f"{name}.grad": grad.clone() for name, grad in grads.items() if grad is not None}


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return (before.keys() | after.keys()) - same


@pytest.mark.parametrize("objective", GAMES)
@pytest.mark.parametrize(
    "weights",
    [
        NO_PENALTIES,
        PenaltyWeights(r1=2.0, r2=1.0),
        PenaltyWeights(r1=2.0, r2=1.0, sigma=0.05),
        PenaltyWeights(gp=10.0),
    ],
)
def test_phase_1_leaves_every_bit_of_the_generator_and_moves_the_discriminator(
    objective: str, weights: PenaltyWeights
) -> None:
    state = _state()
    G_before, D_before = _bits(state.G), _bits(state.D)

    discriminator_phase(state, LOSSES[objective], [_batch()], weights)

    assert _changed(G_before, _bits(state.G)) == set()
    still = {name for name, _ in state.D.named_parameters()} - _changed(D_before, _bits(state.D))
    assert still <= {"head.to_logit.bias"}  # a constant that some games leave open


@pytest.mark.parametrize("objective", GAMES)
def test_phase_2_leaves_every_bit_of_the_discriminator_and_moves_the_generator(objective: str) -> None:
    state = _state()
    discriminator_phase(state, LOSS, [_batch()])
    G_before, D_before = _bits(state.G), _bits(state.D)

    generator_phase(state, LOSSES[objective], [_batch()])

    assert _changed(D_before, _bits(state.D)) == set()
    moved = _changed(G_before, _bits(state.G))
    assert {name for name, _ in state.G.named_parameters()} <= moved
    assert {name for name, _ in state.G.named_buffers()} <= moved


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (NO_PENALTIES, set()),
        (PenaltyWeights(r1=2.0), {"r1_penalty"}),
        (PenaltyWeights(r1=2.0, r2=1.0, sigma=0.05), {"r1_penalty", "r2_penalty"}),
        (PenaltyWeights(gp=10.0), {"gradient_penalty"}),
    ],
)
def test_a_penalty_is_told_beside_the_loss_and_changes_the_step(
    weights: PenaltyWeights, names: set[str]
) -> None:
    state, plain = _state(), _state()

    figures = discriminator_phase(state, LOSS, [_batch()], weights)
    plain_figures = discriminator_phase(plain, LOSS, [_batch()])

    assert figures.keys() - plain_figures.keys() == names
    assert torch.equal(figures["D_loss"], plain_figures["D_loss"])
    assert figures.pop("D_gradient_norm").shape == (1,)
    assert all(values.shape == (16,) and not values.requires_grad for values in figures.values())
    assert (_changed(_bits(plain.D), _bits(state.D)) == set()) == (names == set())


def test_equal_microbatches_give_the_gradient_of_the_whole_batch_where_rows_do_not_touch() -> None:
    whole, parts = _state(), _state()
    batch = _batch()
    halves = [
        Batch(reals=batch.reals[rows], class_idx=batch.class_idx[rows], z=batch.z[rows], draws=batch.draws)
        for rows in (slice(0, 8), slice(8, 16))
    ]
    whole.G.eval()  # BatchNorm by its running statistics: rows do not touch
    parts.G.eval()

    figures = discriminator_phase(whole, LOSS, [batch], PenaltyWeights(r1=1.0))
    in_halves = discriminator_phase(parts, LOSS, halves, PenaltyWeights(r1=1.0))

    for name, values in figures.items():
        torch.testing.assert_close(in_halves[name], values, rtol=1e-5, atol=1e-6)
    for one, other in zip(whole.D.parameters(), parts.D.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "D_dtypes"),
    [
        (NO_PENALTIES, {torch.bfloat16}),
        (PenaltyWeights(r1=1.0), {torch.float32}),
        (PenaltyWeights(r2=1.0, sigma=0.05), {torch.float32}),
        (PenaltyWeights(gp=1.0), {torch.bfloat16, torch.float32}),
    ],
)
def test_in_bf16_penalties_losses_and_weights_are_fp32(
    weights: PenaltyWeights, D_dtypes: set[torch.dtype]
) -> None:
    state = TrainState.fresh(toy_config(), toy_dataset().shape)
    seen: dict[str, list[torch.dtype]] = {"G": [], "D": []}
    for name, network in (("G", state.G.first), ("D", state.D.blocks)):
        network.register_forward_hook(lambda _, __, x, name=name: seen[name].append(x.dtype))

    figures = discriminator_phase(state, LOSS, [_batch()], weights, precision="bf16")

    assert set(seen["G"]) == {torch.bfloat16}
    assert set(seen["D"]) == D_dtypes
    if weights.gp:  # reals and fakes in bf16, what lies between them in fp32
        assert seen["D"] == [torch.bfloat16, torch.bfloat16, torch.float32]
    figures |= generator_phase(state, LOSS, [_batch()], precision="bf16")
    assert seen["D"][-1] == torch.bfloat16
    assert {values.dtype for values in figures.values()} == {torch.float32}
    gradients = [p.grad for network in (state.G, state.D) for p in network.parameters() if p.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_a_penalty_in_bf16_is_that_of_fp32_to_the_last_digits() -> None:
    in_bf16, in_fp32 = _state(), _state()
    weights = PenaltyWeights(r1=1.0)

    figures = [
        discriminator_phase(state, LOSS, [_batch()], weights, precision=precision)["r1_penalty"]
        for state, precision in ((in_bf16, "bf16"), (in_fp32, "fp32"))
    ]

    assert torch.equal(*figures)  # of the reals: no bf16 on the way to them


def test_a_frozen_network_normalises_as_in_training_and_thaws_as_it_was() -> None:
    norm = nn.BatchNorm2d(2)
    images = torch.randn(8, 2, 4, 4) * 5 + 3

    with frozen(norm):
        normalised = norm(images)

    assert normalised.mean().abs() < 1e-5
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert all(parameter.requires_grad for parameter in norm.parameters())
    assert norm.track_running_stats


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
    config, dataset = toy_config(network="mlp", **changes), toy_dataset()
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
        def note(state: TrainState, losses: object, batches: list[Batch], *rest: object) -> object:
            seen.extend(batches)
            return phase(state, losses, batches, *rest)

        return note

    monkeypatch.setattr("training.loop.discriminator_phase", noting(discriminator_phase))
    monkeypatch.setattr("training.loop.generator_phase", noting(generator_phase))
    return seen


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
