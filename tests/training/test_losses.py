"""The losses are the paper's, sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from training.config import OBJECTIVES
from training.losses import (
    LOSSES,
    discriminator_loss,
    minimax_generator_loss,
    nonsaturating_generator_loss,
    r1_penalty,
)

LOGITS = torch.linspace(-6, 6, 25)


def test_the_discriminator_loss_is_cross_entropy_with_real_1_and_fake_0() -> None:
    real_logits, fake_logits = LOGITS, LOGITS.flip(0) * 0.5

    loss = discriminator_loss(real_logits, fake_logits)

    ones, zeros = torch.ones(25), torch.zeros(25)
    expected = bce(real_logits, ones, reduction="none") + bce(fake_logits, zeros, reduction="none")
    torch.testing.assert_close(loss, expected)


def test_the_minimax_generator_minimises_what_the_discriminator_maximises() -> None:
    loss = minimax_generator_loss(LOGITS)

    torch.testing.assert_close(loss, torch.log(1 - torch.sigmoid(LOGITS)))


def test_the_nonsaturating_generator_wants_its_fakes_called_real() -> None:
    loss = nonsaturating_generator_loss(LOGITS)

    torch.testing.assert_close(loss, bce(LOGITS, torch.ones(25), reduction="none"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_per_sample_and_finite_where_a_sigmoid_is_0_or_1(objective: str) -> None:
    extreme = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])

    D_loss, G_loss = LOSSES[objective].D(extreme, extreme.flip(0)), LOSSES[objective].G(extreme)

    assert D_loss.shape == G_loss.shape == extreme.shape
    assert torch.isfinite(D_loss).all()
    assert torch.isfinite(G_loss).all()


def test_at_equilibrium_the_discriminator_pays_log_4() -> None:
    undecided = torch.zeros(3)

    loss = discriminator_loss(undecided, undecided)

    torch.testing.assert_close(loss, torch.full((3,), 4.0).log())


def test_only_the_nonsaturating_gradient_stays_alive_where_the_discriminator_is_certain() -> None:
    certain = torch.full((2,), -20.0, requires_grad=True)

    (minimax,) = torch.autograd.grad(minimax_generator_loss(certain).sum(), certain)
    (nonsaturating,) = torch.autograd.grad(nonsaturating_generator_loss(certain).sum(), certain)

    assert minimax.abs().max() < 1e-8
    assert (nonsaturating < -0.99).all()


def test_r1_is_the_squared_length_of_the_gradient_of_each_image() -> None:
    reals = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    real_logits = (reals.flatten(1) ** 2 * weight).sum(1) / 2  # its gradient is weight * x

    penalty = r1_penalty(real_logits, reals)

    torch.testing.assert_close(penalty, ((weight * reals.flatten(1)) ** 2).sum(1))
    assert penalty.requires_grad
