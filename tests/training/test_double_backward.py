"""Convolutions are differentiated twice by cheaper kernels, and to the same numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.double_backward import CheapDoubleBackward
from training.penalties import squared_slope

LAYERS: dict[str, dict[str, Any]] = {
    "1×1": {"kernel_size": 1},
    "grouped 3×3, without bias": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
    "4×4 of stride 2": {"kernel_size": 4, "stride": 2, "padding": 1},
    "uneven, dilated": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
}


def discriminator(layer: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A network around one of `LAYERS`, whose slope depends on every weight and on where it is taken."""
    D = nn.Sequential(
        nn.Conv2d(3, 6, kernel_size=3, padding=1),
        nn.Softplus(),
        nn.Conv2d(6, 8, **LAYERS[layer]),
        nn.Softplus(),
        nn.Flatten(),
        nn.LazyLinear(1),
        nn.Flatten(0),
    ).to(dtype)
    D(images_of(dtype))
    return D


def images_of(dtype: torch.dtype = torch.float64) -> Tensor:
    images = torch.randn(5, 3, 9, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_of_a_slope_is_torchs_own(layer: str) -> None:
    D, gradients = discriminator(layer), []

    for context in (CheapDoubleBackward(), nullcontext()):
        images = images_of()
        with context:
            logits = D(images)
        loss = (logits + squared_slope(logits, images)).sum()
        gradients.append(torch.autograd.grad(loss, [images, *D.parameters()]))

    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_that_are_not_differentiated_again_are_torchs_to_the_last_bit(layer: str) -> None:
    D, gradients = discriminator(layer, torch.float32), []

    for context in (CheapDoubleBackward(), nullcontext()):
        images = images_of(torch.float32)
        with context:
            logits = D(images)
        gradients.append(torch.autograd.grad(logits.sum(), [images, *D.parameters()]))

    assert all(torch.equal(ours, torchs) for ours, torchs in zip(*gradients, strict=True))


def test_what_has_no_second_gradient_is_an_error_and_no_wrong_number() -> None:
    D, images = discriminator("1×1"), images_of()
    with CheapDoubleBackward():
        logits = D(images)

    (twice,) = torch.autograd.grad(squared_slope(logits, images).sum(), images, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        twice.sum().backward()
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(logits.sum(), D[2].weight, create_graph=True)
