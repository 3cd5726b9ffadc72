"""The average that is exported: weights and buffers, by half-life."""

from __future__ import annotations

import torch
from torch import nn

from training.ema import update_ema


def _network(value: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    for tensor in norm.state_dict().values():
        tensor.fill_(value)
    return norm


def test_weights_and_buffers_move_and_counters_are_copied() -> None:
    G_ema, G = _network(0.0), _network(8.0)

    update_ema(G_ema, G, beta=0.75)

    averages = G_ema.state_dict()
    assert averages["weight"].tolist() == [2.0, 2.0, 2.0]
    assert averages["running_mean"].tolist() == [2.0, 2.0, 2.0]
    assert averages["running_var"].tolist() == [2.0, 2.0, 2.0]
    assert averages["num_batches_tracked"].item() == 8


def test_after_one_half_life_half_of_the_old_weights_is_left() -> None:
    G_ema, G = _network(1.0), _network(0.0)
    steps = 40

    for _ in range(steps):
        update_ema(G_ema, G, beta=0.5 ** (1 / steps))

    torch.testing.assert_close(G_ema.weight.detach(), torch.full((3,), 0.5))


def test_beta_0_is_a_copy_that_shares_no_memory() -> None:
    G_ema, G = _network(1.0), _network(5.0)

    update_ema(G_ema, G, beta=0.0)
    G.weight.data.fill_(9.0)

    assert G_ema.weight.tolist() == [5.0, 5.0, 5.0]
