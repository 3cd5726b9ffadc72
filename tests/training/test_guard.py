"""No optimizer steps on a loss or a gradient that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toy_training import toy_config

from training.errors import NotFinite
from training.guard import adam, check_steps, take_step

FINE = torch.tensor(1.0)
BROKEN = [
    (torch.tensor(math.nan), 0.5, "loss"),
    (torch.tensor(math.inf), 0.5, "loss"),
    (FINE, math.nan, "gradient"),
    (FINE, -math.inf, "gradient"),
]


def _network(waits: bool) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A network that has taken one step, so that its optimizer has moments."""
    network = nn.Linear(3, 2)
    optimizer = adam(network.parameters(), 0.1, toy_config(), waits=waits)
    _set_gradients(network, 0.25)
    take_step(FINE, D=optimizer)
    return network, optimizer


def _set_gradients(network: nn.Module, last: float) -> None:
    """Gradients of ones, and `last` in one place of the last tensor."""
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    parameter.grad[-1] = last


def _bits(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"].values()
    moments = [one[name].clone() for one in state for name in ("step", "exp_avg", "exp_avg_sq")]
    return [parameter.detach().clone() for parameter in network.parameters()] + moments


@pytest.mark.parametrize("waits", [True, False])
def test_a_step_on_finite_gradients_moves_the_weights_and_tells_their_norm(waits: bool) -> None:
    network, optimizer = _network(waits)
    before = _bits(network, optimizer)

    _set_gradients(network, 2.0)
    norm = take_step(FINE, D=optimizer)["D_gradient_norm"]

    assert norm.shape == (1,)
    assert norm.item() == pytest.approx(math.sqrt(7 * 1 + 2.0**2))
    assert not any(torch.equal(*pair) for pair in zip(before, _bits(network, optimizer), strict=True))
    check_steps(optimizer, "D")


@pytest.mark.parametrize(("loss", "gradient", "part"), BROKEN)
def test_what_is_not_finite_is_refused_before_a_bit_of_weights_or_moments_changes(
    loss: torch.Tensor, gradient: float, part: str
) -> None:
    network, optimizer = _network(waits=True)
    before = _bits(network, optimizer)
    _set_gradients(network, gradient)

    with pytest.raises(NotFinite, match=f"the {part} of D is not finite, so its step was not taken"):
        take_step(loss, D=optimizer)

    assert all(torch.equal(*pair) for pair in zip(before, _bits(network, optimizer), strict=True))


@pytest.mark.parametrize(("loss", "gradient", "part"), BROKEN)
def test_a_device_that_is_not_waited_for_skips_this_step_and_all_that_follow(
    loss: torch.Tensor, gradient: float, part: str
) -> None:
    network, optimizer = _network(waits=False)
    before = _bits(network, optimizer)

    _set_gradients(network, gradient)
    take_step(loss, G=optimizer)
    _set_gradients(network, 0.5)
    take_step(FINE, G=optimizer)

    assert all(torch.equal(*pair) for pair in zip(before, _bits(network, optimizer), strict=True))
    with pytest.raises(NotFinite, match="a loss or a gradient is not finite, so G took no more steps"):
        check_steps(optimizer, "G")


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("broken", ["D", "G"])
def test_of_two_that_step_together_none_steps_where_one_cannot(waits: bool, broken: str) -> None:
    pair = {name: _network(waits) for name in ("D", "G")}
    optimizers = {name: optimizer for name, (_, optimizer) in pair.items()}
    before = {name: _bits(*pair[name]) for name in pair}
    for name, (network, _) in pair.items():
        _set_gradients(network, math.nan if name == broken else 0.5)

    if waits:
        with pytest.raises(NotFinite, match=f"the gradient of {broken} is not finite"):
            take_step(FINE, **optimizers)
    else:
        take_step(FINE, **optimizers)

    for name in pair:
        assert all(torch.equal(*bits) for bits in zip(before[name], _bits(*pair[name]), strict=True))
