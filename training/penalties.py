"""Penalties on the slope of D: what keeps the game from being won early.

Each is a pure function that returns one value a sample, for samples of any shape: images
[N, C, R, R], points [N, 2]. `logits_of` is D with its classes bound: samples [N, …] -> logits [N].
Refuses to own: when a penalty is due and what it weighs (`training.schedules`), the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor], Tensor]
"""Samples [N, …] -> logits [N]."""


@dataclass(frozen=True, kw_only=True)
class PenaltyWeights:
    """What the penalties weigh in one step of D; 0 is not computed."""

    r1: float = 0.0
    """γ of R1, which enters as γ/2."""
    r2: float = 0.0
    """γ of R2, the same."""
    gp: float = 0.0
    """λ of the gradient penalty."""
    sigma: float = 0.0
    """Step of the finite difference that stands for R1 and R2; 0: they are exact."""


NO_PENALTIES = PenaltyWeights()


def squared_slope(logits: Tensor, samples: Tensor) -> Tensor:
    """|∇x D(x)|² [N], differentiable once more.

    logits [N] must have been computed from `samples` [N, …] while these required a gradient. On reals
    it is R1, on fakes R2, both without γ/2: Mescheder 2018, equations 9 and 10, arXiv:1801.04406.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)  # [N, …]
    return gradient.square().flatten(1).sum(1)  # [N]


def finite_difference_slope(
    logits_of: LogitsOf, logits: Tensor, samples: Tensor, noise: Tensor, sigma: float
) -> Tensor:
    """((D(x + σε) - D(x)) / σ)² [N], whose mean over ε ~ N(0, 1) is |∇x D(x)|² + O(σ²).

    logits [N] are D's of `samples` [N, …]; noise [N, …] is ε. First order only: a forward pass more
    in place of a double backward.
    """
    return ((logits_of(samples + sigma * noise) - logits) / sigma).square()


def gradient_penalty(logits_of: LogitsOf, reals: Tensor, fakes: Tensor, mix: Tensor) -> Tensor:
    """(|∇x D(x)| - 1)² [N] between reals and fakes: Gulrajani 2017, equation 3, arXiv:1704.00028.

    reals and fakes [N, …]; mix [N] in [0, 1] is the share of the real in each point.
    """
    share = mix.reshape(-1, *[1] * (reals.dim() - 1))  # [N, 1, …]
    between = (share * reals + (1 - share) * fakes).detach().requires_grad_(True)  # [N, …]
    slope = squared_slope(logits_of(between), between)  # [N]
    # The root of 0 has no derivative; this is far below any slope that matters.
    return ((slope + 1e-12).sqrt() - 1).square()
