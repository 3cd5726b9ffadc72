"""Spectral normalisation of D: what it bounds, and who may move its vectors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from training.config import TrainConfig
from training.data import DataShape
from training.loop import train
from training.losses import LOSSES
from training.networks import build_pair
from training.networks.spectral_norm import advance_power_iteration, normalise_spectrally
from training.penalties import PenaltyWeights
from training.phases import Batch, Rules, discriminator_phase, generator_phase
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.snapshot import TrainState
from training.streams import RowDraws

SHAPE = DataShape(img_channels=1, num_classes=3)


def _discriminator(network: str) -> nn.Module:
    config = TrainConfig.from_dict(
        {
            "preset": "test",
            "total_kimg": 1,
            "network": network,
            "img_resolution": 16,
            "G_channels": 4,
            "D_channels": 8,
            "D_spectral_norm": True,
        }
    )
    return build_pair(config, SHAPE)[1]


def _largest_singular_value(module: nn.Module) -> float:
    return float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2))


@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_every_layer_has_a_largest_singular_value_of_one(network: str) -> None:
    D = _discriminator(network)
    for _ in range(200):
        advance_power_iteration(D)

    values = [
        _largest_singular_value(module) for module in D.modules() if parametrize.is_parametrized(module)
    ]

    assert len(values) > 3
    assert all(value == pytest.approx(1.0, abs=0.02) for value in values)


def test_a_forward_moves_no_vector_and_one_round_moves_each() -> None:
    D = _discriminator("dcgan").train()
    before = {name: value.clone() for name, value in D.named_buffers()}

    D(torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0]))
    after_forward = {name: value.clone() for name, value in D.named_buffers()}
    with torch.no_grad():
        for parameter in D.parameters():
            parameter += torch.randn(parameter.shape)
    advance_power_iteration(D)
    after_round = dict(D.named_buffers())

    assert before
    assert all(torch.equal(before[name], after_forward[name]) for name in before)
    assert not any(torch.equal(before[name], after_round[name]) for name in before if name.endswith("v"))


def test_the_vectors_follow_weights_that_move_a_little_each_step() -> None:
    layer = nn.Linear(20, 30)
    normalise_spectrally(layer)
    stream = torch.Generator().manual_seed(0)
    for _ in range(300):
        with torch.no_grad():
            original = layer.parametrizations.weight.original
            original += 0.01 * torch.randn(original.shape, generator=stream)
        advance_power_iteration(layer)

    assert _largest_singular_value(layer) == pytest.approx(1.0, abs=0.05)


def test_the_vectors_are_in_the_state_so_that_a_copy_answers_with_the_same_bits() -> None:
    D = _discriminator("mlp")
    for _ in range(3):
        advance_power_iteration(D)
    other = _discriminator("mlp")
    images, class_idx = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])

    other.load_state_dict(copy.deepcopy(D.state_dict()))

    advance_power_iteration(D)
    advance_power_iteration(other)
    assert torch.equal(D(images, class_idx), other(images, class_idx))
    assert torch.equal(D.state_dict()["head.to_logit.parametrizations.weight.0.u"].abs(), torch.ones(1))


def test_gradients_flow_through_the_division() -> None:
    layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    normalise_spectrally(layer)
    x = torch.randn(2, 5, dtype=torch.float64)
    original = layer.parametrizations.weight.original

    def answer(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"parametrizations.weight.original": weight}, (x,))

    assert torch.autograd.gradcheck(answer, (original.detach().clone().requires_grad_(),))


def test_a_network_whose_branches_begin_at_zero_is_refused() -> None:
    with pytest.raises(InvalidValue, match="D_spectral_norm must be false for the network residual"):
        _discriminator("residual")


def test_one_step_of_d_is_one_round_and_phase_2_moves_no_bit_of_d() -> None:
    config, dataset = toy_config(D_spectral_norm=True, objective="hinge"), toy_dataset()
    state = TrainState.fresh(config, dataset.shape)
    expected = copy.deepcopy(state.D.state_dict())
    follower = TrainState.fresh(config, dataset.shape).D
    advance_power_iteration(follower)
    images, class_idx = DatasetReals(dataset, 0).batch(0, 16)
    draws = RowDraws(torch.Generator().manual_seed(0), 16, slice(None))
    batch = Batch(reals=images, class_idx=class_idx, z=torch.randn(16, 8), draws=draws)

    generator_phase(state, Rules(losses=LOSSES["hinge"]), [batch])
    after_phase_2 = copy.deepcopy(state.D.state_dict())
    discriminator_phase(
        state, Rules(losses=LOSSES["hinge"], weights=PenaltyWeights(r1=1.0, sigma=0.05)), [batch, batch]
    )

    assert all(torch.equal(expected[name], after_phase_2[name]) for name in expected)
    assert all(torch.equal(value, follower.get_buffer(name)) for name, value in state.D.named_buffers())


def test_a_stopped_run_goes_on_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config = toy_config(total_kimg=0.096, D_spectral_norm=True, objective="hinge", r1_gamma=0.0)
    answers = iter([False] * 3 + [True] * 9)
    whole = train(config, toy_dataset(), RunFolder(tmp_path / "whole"), tick_kimg=1)

    train(
        config, toy_dataset(), RunFolder(tmp_path / "parts"), tick_kimg=1, should_stop=lambda: next(answers)
    )
    again = train(config, toy_dataset(), RunFolder(tmp_path / "parts"), tick_kimg=1)

    ours = again.D.state_dict()
    assert any(name.endswith(".u") for name in ours)
    assert all(torch.equal(value, ours[name]) for name, value in whole.D.state_dict().items())
