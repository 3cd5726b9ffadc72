"""Grids: which image lies where, and which seeds they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_training import toy_config, toy_dataset

from training.grid import grid_columns, save_grid, tile
from training.servable import render_seeds
from training.snapshot import TrainState


def test_images_lie_row_by_row_and_a_short_last_row_ends_in_black() -> None:
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), dtype=np.uint8)

    canvas = tile(images, columns=2)

    assert canvas.shape == (6, 6, 1)
    assert canvas[::2, ::3, 0].tolist() == [[1, 2], [3, 4], [5, 0]]


@pytest.mark.parametrize(("num_classes", "columns"), [(0, 10), (1, 10), (2, 2), (10, 10), (16, 16), (17, 10)])
def test_a_class_has_a_column_where_there_are_few_enough(num_classes: int, columns: int) -> None:
    assert grid_columns(num_classes) == columns


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_file_holds_the_pixels_enlarged_without_smoothing(channels: int, tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, size=(4, 5, 5, channels)).astype(np.uint8)

    save_grid(tmp_path / "grid.png", images, columns=2, scale=3)

    pixels = np.asarray(Image.open(tmp_path / "grid.png")).reshape(30, 30, channels)
    assert np.array_equal(pixels[1::3, 1::3], tile(images, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_cell_is_the_image_of_its_seed_whatever_is_beside_it() -> None:
    G = TrainState.fresh(toy_config(), toy_dataset().shape).G_ema
    for i, weight in enumerate(G.parameters()):  # far from the small weights of a fresh network
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(i))

    together = render_seeds(G, range(70))
    alone = render_seeds(G, [66])

    assert together.shape == (70, 16, 16, 1)
    assert np.abs(together[66].astype(int) - alone[0]).max() <= 1  # eager torch promises no more
    assert together.std() > 10


def test_rendering_leaves_the_mode_of_the_network_as_it_was() -> None:
    state = TrainState.fresh(toy_config(), toy_dataset().shape)

    render_seeds(state.G, [0])
    render_seeds(state.G_ema, [0])

    assert state.G.training
    assert not state.G_ema.training
