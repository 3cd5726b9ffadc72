"""What a tick says of the game, and when the sentinel speaks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import toy_dataset

from training.data import Dataset
from training.watch import ALARM_TICKS, GridSpread, TickAverages, alarms, distances


def test_a_figure_that_few_iterations_have_is_their_mean() -> None:
    averages = TickAverages()
    for figures in ({"a": [1.0, 3.0], "b": [10.0, 20.0]}, {"a": [5.0, 7.0]}, {"a": [0.0, 2.0]}):
        averages.add({name: torch.tensor(values) for name, values in figures.items()})
    averages.add_time(num_images=6, seconds=0.5)

    row = averages.take_row()

    assert row == {"a": 3.0, "b": 15.0, "images_per_s": 12.0}
    assert averages.to_dict() == TickAverages().to_dict()


def _row(kimg: int, **figures: float) -> dict[str, Any]:
    """A healthy tick but for `figures`."""
    healthy = {"D_real_probability": 0.6, "D_fake_probability": 0.4, "D_loss": 1.2}
    return {"cur_nimg": 1_000 * kimg, "grid_spread": 0.8, "grid_nearest": 0.7, **healthy, **figures}


WON = {"D_real_probability": 0.995, "D_fake_probability": 0.004}


def test_the_sentinel_speaks_at_the_third_bad_tick_in_a_row_and_names_the_first() -> None:
    rows = [_row(10), _row(20, **WON), _row(30), _row(40, **WON), _row(50, **WON), _row(60, **WON)]

    spoken = [alarms(rows[:count], "nonsaturating") for count in range(1, 7)]

    assert ALARM_TICKS == 3
    assert spoken == [{}, {}, {}, {}, {}, {"won_since": 40_000}]
    assert alarms([*rows, _row(70)], "nonsaturating") == {}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (WON, {"won_since": 30_000}),
        ({"D_real_probability": 1.0, "D_fake_probability": 0.02}, {}),
        ({"D_real_probability": 0.98, "D_fake_probability": 0.0}, {}),
        ({"grid_spread": 0.2}, {"collapsed_since": 30_000}),
        ({"grid_nearest": 0.2}, {"collapsed_since": 30_000}),
        ({"grid_spread": 0.3, "grid_nearest": 0.3}, {}),
        ({"grid_spread": 0.0, **WON}, {"won_since": 30_000, "collapsed_since": 30_000}),
    ],
)
def test_the_sentinel_knows_a_won_game_from_a_collapse(
    figures: dict[str, float], expected: dict[str, int]
) -> None:
    assert alarms([_row(kimg, **figures) for kimg in (30, 40, 50)], "minimax") == expected


@pytest.mark.parametrize(
    ("spreads", "expected"),
    [
        ([0.02, 0.02, 0.02, 0.02], {}),  # nothing learned yet: no collapse
        ([0.02, 0.5, 0.1, 0.1, 0.1], {"collapsed_since": 3_000}),
        ([0.12, 0.1, 0.001, 0.001, 0.001], {"collapsed_since": 3_000}),
        ([0.02, 0.5, 0.1, 0.2, 0.1], {}),
        ([2.0, 0.3, 0.3, 0.3], {}),  # more than reals is no measure for it
    ],
)
def test_a_grid_that_is_still_learned_is_held_against_its_own_past(
    spreads: list[float], expected: dict[str, int]
) -> None:
    rows = [_row(kimg, grid_spread=spread) for kimg, spread in enumerate(spreads, start=1)]

    assert alarms(rows, "minimax") == expected


@pytest.mark.parametrize(
    ("objective", "D_loss", "expected"),
    [
        ("hinge", 0.001, {"won_since": 30_000}),
        ("hinge", 0.5, {}),
        ("wasserstein", 0.001, {}),
        ("wasserstein", -50.0, {}),
    ],
)
def test_a_game_without_probabilities_is_won_where_its_loss_has_no_gradient(
    objective: Any, D_loss: float, expected: dict[str, int]
) -> None:
    rows = [_row(kimg, D_loss=D_loss) for kimg in (30, 40, 50)]
    for row in rows:
        del row["D_real_probability"], row["D_fake_probability"]

    assert alarms(rows, objective) == expected


def test_distances_are_those_written_out_by_hand() -> None:
    levels = np.array([0, 3, 9, 200], dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (4, 2, 2, 1))

    of_one_class = distances(images, np.zeros(4, dtype=np.int64))
    of_two = distances(images, np.array([0, 0, 0, 1]))
    of_four = distances(images, np.arange(4))
    of_one_image = distances(images[:1], np.zeros(1, dtype=np.int64))

    between = [3, 9, 200, 6, 197, 191]
    assert of_one_class == pytest.approx((np.mean(between), np.median([3, 3, 6, 191])))
    assert of_two == pytest.approx((6.0, 3.0))  # the fourth has no mate
    assert of_four == pytest.approx(of_one_class)  # no class has two: all pairs
    assert of_one_image == (0.0, 0.0)


def _grid_of(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("labelled", [True, False])
def test_reals_in_a_grid_are_as_far_apart_as_reals(labelled: bool) -> None:
    dataset = toy_dataset(labelled=labelled)
    class_idx = np.arange(80) % 2 if labelled else np.zeros(80, dtype=np.int64)
    spread = GridSpread(dataset, class_idx)

    figures = spread.figures(_grid_of(dataset.images[:80]))

    assert 0.8 < figures["grid_spread"] < 1.25
    assert 0.3 < figures["grid_nearest"] < 3  # brightness is on a line: its neighbours are near and chance


def test_one_image_and_a_few_images_are_told_from_many() -> None:
    stream = np.random.RandomState(0)
    images = stream.randint(0, 256, size=(80, 1, 8, 8)).astype(np.uint8)
    spread = GridSpread(Dataset(name="noise", images=images), np.zeros(80, dtype=np.int64))

    many, few, one = (_grid_of(images[np.arange(80) % count]) for count in (80, 4, 1))

    assert spread.figures(many) == pytest.approx({"grid_spread": 1.0, "grid_nearest": 1.0})
    assert spread.figures(few)["grid_spread"] > 0.6
    assert spread.figures(few)["grid_nearest"] == pytest.approx(0.0, abs=1e-6)
    assert spread.figures(one)["grid_spread"] == pytest.approx(0.0, abs=1e-6)


def test_a_class_that_has_collapsed_is_told_although_the_classes_differ() -> None:
    dataset = toy_dataset()
    class_idx = np.arange(16) % 2
    one_a_class = _grid_of(dataset.images[class_idx])

    figures = GridSpread(dataset, class_idx).figures(one_a_class)

    assert figures["grid_spread"] == pytest.approx(0.0, abs=1e-6)


def test_reals_that_do_not_differ_give_no_alarm() -> None:
    dataset = Dataset(name="grey", images=np.full((4, 1, 8, 8), 7, dtype=np.uint8))
    spread = GridSpread(dataset, np.zeros(80, dtype=np.int64))

    figures = spread.figures(np.full((80, 8, 8, 1), 7, dtype=np.uint8))

    assert all(math.isfinite(share) and share == 1.0 for share in figures.values())
