"""Penalties measure the slope of D where they say, in samples of any shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.penalties import finite_difference_slope, gradient_penalty, squared_slope

SHAPES = [(2,), (1, 4, 4), (3, 8, 8)]


def _stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _quadratic(samples: Tensor) -> Tensor:
    """D(x) = i |x|² / 2 of row i = 1, 2, …: its slope is i x."""
    rows = torch.arange(1, len(samples) + 1)
    return rows * samples.flatten(1).square().sum(1) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_slope_is_that_of_each_sample(shape: tuple[int, ...]) -> None:
    samples = torch.randn(4, *shape, generator=_stream()).requires_grad_()

    penalty = squared_slope(_quadratic(samples), samples)

    rows = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(penalty, rows.square() * samples.flatten(1).square().sum(1))
    assert penalty.requires_grad


@pytest.mark.parametrize("shape", SHAPES)
def test_the_finite_difference_is_the_squared_slope_on_average(shape: tuple[int, ...]) -> None:
    sample = torch.randn(1, *shape, generator=_stream()).requires_grad_()
    direction = torch.randn(sample[0].numel(), generator=_stream())

    def logits_of(samples: Tensor) -> Tensor:
        return torch.tanh(samples.flatten(1) @ direction / 4)

    exact = squared_slope(logits_of(sample), sample)
    samples = sample.detach().expand(100_000, *shape)
    noise = torch.randn(samples.shape, generator=_stream())
    estimate = finite_difference_slope(logits_of, logits_of(samples), samples, noise, sigma=1e-3)

    assert estimate.shape == (100_000,)
    torch.testing.assert_close(estimate.mean(), exact.detach()[0], rtol=0.02, atol=0)


def test_the_finite_difference_trains_the_discriminator_without_a_double_backward() -> None:
    weight = torch.ones(2, requires_grad=True)
    samples = torch.randn(3, 2, generator=_stream())
    noise = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    def logits_of(points: Tensor) -> Tensor:
        return points @ weight

    penalty = finite_difference_slope(logits_of, logits_of(samples), samples, noise, sigma=0.05)
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)

    torch.testing.assert_close(penalty, torch.tensor([1.0, 1.0, 4.0]))
    torch.testing.assert_close(gradient, torch.tensor([6.0, 6.0]))  # of w₀² + w₁² + (w₀ + w₁)²


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_penalty_wants_a_slope_of_1_between_reals_and_fakes(shape: tuple[int, ...]) -> None:
    reals, fakes = (torch.randn(4, *shape, generator=_stream()) + shift for shift in (0, 3))
    mix = torch.tensor([0.0, 0.25, 0.5, 1.0])

    penalty = gradient_penalty(_quadratic, reals, fakes, mix)

    share = mix[:, None]
    between = share * reals.flatten(1) + (1 - share) * fakes.flatten(1)
    slope = torch.tensor([1.0, 2.0, 3.0, 4.0]) * between.norm(dim=1)
    torch.testing.assert_close(penalty, (slope - 1).square())


def test_a_flat_discriminator_pays_1_and_its_gradient_is_finite() -> None:
    weight = torch.zeros(2, requires_grad=True)

    penalty = gradient_penalty(
        lambda points: points @ weight, torch.ones(3, 2), torch.zeros(3, 2), torch.rand(3)
    )
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)

    torch.testing.assert_close(penalty, torch.ones(3))
    assert torch.isfinite(gradient).all()
