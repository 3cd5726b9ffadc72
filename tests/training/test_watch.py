"""What a tick says of the game."""

from __future__ import annotations

import torch

from training.watch import TickAverages


def test_a_figure_that_few_iterations_have_is_their_mean() -> None:
    averages = TickAverages()
    for figures in ({"a": [1.0, 3.0], "b": [10.0, 20.0]}, {"a": [5.0, 7.0]}, {"a": [0.0, 2.0]}):
        averages.add({name: torch.tensor(values) for name, values in figures.items()})
    averages.add_time(num_images=6, seconds=0.5)

    row = averages.take_row()

    assert row == {"a": 3.0, "b": 15.0, "images_per_s": 12.0}
    assert averages.to_dict() == TickAverages().to_dict()
