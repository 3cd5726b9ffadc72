"""Schedules at 0, at the knee, at the end and beyond it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from training.config import TrainConfig
from training.penalties import NO_PENALTIES
from training.schedules import augment_at, ema_beta, lr_scale, needs_total, penalty_weights

CONFIG = TrainConfig(
    preset="test",
    total_kimg=100,
    batch_size=50,
    lr_decay_start=0.4,
    lr_floor=0.1,
    r1_gamma=0.5,
    r2_gamma=0.25,
    r1_interval=4,
    ema_half_life_kimg=2.0,
    ema_rampup=0.05,
)


@pytest.mark.parametrize(
    ("cur_nimg", "expected"), [(0, 1.0), (40_000, 1.0), (70_000, 0.55), (100_000, 0.1), (250_000, 0.1)]
)
def test_the_learning_rate_is_flat_to_the_knee_then_falls_along_a_cosine(
    cur_nimg: int, expected: float
) -> None:
    scale = lr_scale(cur_nimg, CONFIG)

    assert scale == pytest.approx(expected)


def test_the_learning_rate_never_rises_and_has_no_jump() -> None:
    scales = [lr_scale(nimg, CONFIG) for nimg in range(0, 110_000, 100)]

    steps = [before - after for before, after in pairwise(scales)]
    assert min(steps) >= 0
    assert max(steps) < 0.01


def test_a_decay_that_starts_at_the_end_is_no_decay() -> None:
    config = TrainConfig(preset="test", total_kimg=10, lr_decay_start=1.0, r1_gamma=0.5, gamma_floor=0.0)

    places = (0, 5_000, 10_000, 10_064)  # an iteration with several steps of D may reach beyond the end

    assert {lr_scale(nimg, config) for nimg in places} == {1.0}
    assert {penalty_weights(nimg * 512, config).r1 for nimg in (0, 19, 20, 40)} == {0.5 * 8}


@pytest.mark.parametrize(
    ("cur_nimg", "expected"), [(0, 0.0), (10_000, 0.3), (20_000, 0.6), (100_000, 0.6), (250_000, 0.6)]
)
def test_augmentation_grows_along_a_straight_line_up_to_its_knee(cur_nimg: int, expected: float) -> None:
    config = dataclasses.replace(CONFIG, augment="color,cutout", augment_strength=0.6, augment_rampup=0.2)

    augment = augment_at(cur_nimg, config)

    assert augment.names == ("color", "cutout")
    assert augment.strength == pytest.approx(expected)


def test_without_a_rampup_augmentation_is_as_strong_from_the_first_image() -> None:
    augment = augment_at(0, dataclasses.replace(CONFIG, augment="color", augment_strength=0.6))

    assert augment.strength == 0.6


def test_the_ema_starts_as_a_copy() -> None:
    beta = ema_beta(0, CONFIG)

    assert beta == 0.0


@pytest.mark.parametrize(("cur_nimg", "half_life_nimg"), [(10_000, 500), (40_000, 2_000), (500_000, 2_000)])
def test_the_ema_half_life_grows_with_the_run_up_to_its_limit(cur_nimg: int, half_life_nimg: int) -> None:
    beta = ema_beta(cur_nimg, CONFIG)

    assert beta ** (half_life_nimg / CONFIG.batch_size) == pytest.approx(0.5)


def test_lazy_penalties_weigh_as_much_as_if_they_were_computed_each_time() -> None:
    weights = [penalty_weights(step * CONFIG.batch_size, CONFIG) for step in range(8)]

    assert [one.r1 for one in weights] == [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert sum(one.r1 for one in weights) / len(weights) == CONFIG.r1_gamma
    assert sum(one.r2 for one in weights) / len(weights) == CONFIG.r2_gamma


@pytest.mark.parametrize(
    ("cur_nimg", "expected"), [(0, 1.0), (40_000, 1.0), (70_000, 0.625), (100_000, 0.25), (250_000, 0.25)]
)
def test_gamma_is_flat_to_the_knee_then_falls_to_its_floor(cur_nimg: int, expected: float) -> None:
    config = dataclasses.replace(CONFIG, gamma_floor=0.25, r1_interval=1)

    weights = penalty_weights(cur_nimg, config)

    assert weights.r1 == pytest.approx(0.5 * expected)
    assert weights.r2 == pytest.approx(0.25 * expected)


def test_the_ema_forgets_as_fast_in_images_when_an_iteration_shows_more_of_them() -> None:
    betas = [ema_beta(50_000, dataclasses.replace(CONFIG, d_steps=d_steps)) for d_steps in (1, 3)]

    assert betas[0] ** 3 == pytest.approx(betas[1])


def test_without_gamma_r1_and_r2_are_never_computed() -> None:
    config = TrainConfig(preset="test", total_kimg=1)

    weights = {penalty_weights(nimg, config) for nimg in range(0, 2_000, config.batch_size)}

    assert weights == {NO_PENALTIES}


def test_the_gradient_penalty_is_computed_in_every_step() -> None:
    config = TrainConfig(preset="test", total_kimg=1, gp_weight=10)

    weights = {penalty_weights(nimg, config).gp for nimg in range(0, 2_000, config.batch_size)}

    assert weights == {10.0}


@pytest.mark.parametrize(("form", "sigma"), [("exact", 0.0), ("finite_difference", 0.05)])
def test_only_the_finite_difference_takes_a_step(form: str, sigma: float) -> None:
    config = TrainConfig(preset="test", total_kimg=1, r1_gamma=1, penalty_form=form)

    assert penalty_weights(0, config).sigma == sigma


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"lr_decay_start": 0.4}, "learning rates"),
        ({"lr_decay_start": 0.4, "lr_floor": 1.0}, None),
        ({"lr_decay_start": 1.0, "gamma_floor": 0.5}, None),
        ({"lr_decay_start": 0.4, "lr_floor": 1.0, "gamma_floor": 0.5}, "γ falls"),
        ({"lr_decay_start": 0.4, "lr_floor": 1.0, "gamma_floor": 0.5, "r1_gamma": 0, "r2_gamma": 0}, None),
        ({"lr_decay_start": 1.0, "augment": "color", "augment_rampup": 0.2}, "augmentation grows"),
        ({"lr_decay_start": 1.0, "augment": "color"}, None),
    ],
)
def test_the_schedule_that_keeps_a_run_from_growing_is_named_where_there_is_one(
    changed: dict[str, object], reason: str | None
) -> None:
    config = dataclasses.replace(CONFIG, **changed)
    longer = dataclasses.replace(config, total_kimg=2 * config.total_kimg)

    named = needs_total(config)

    assert (named is None) == (reason is None)
    assert reason is None or reason in named
    schedules = [
        [schedule(nimg, one) for nimg in range(0, 100_000, 200)]
        for one in (config, longer)
        for schedule in (lr_scale, penalty_weights, augment_at, ema_beta)
    ]
    assert (schedules[:4] == schedules[4:]) == (named is None)
