"""The two-player games: what D and G each minimise, sample by sample.

Every loss takes logits [N] and returns values [N] float32, and so does the penalty that can be added
to D's; the loop reduces them, in one visible place. With D(x) = sigmoid(logit), log D(x) is
-softplus(-logit) and log(1 - D(x)) is -softplus(logit), which stays finite where the logarithm of a
sigmoid would not. Refuses to own: networks, weights, reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from training.config import Objective


@dataclass(frozen=True)
class Losses:
    """One game: the loss of each phase."""

    D: Callable[[Tensor, Tensor], Tensor]
    """(real_logits [N], fake_logits [N]) -> [N], minimised in phase 1."""
    G: Callable[[Tensor], Tensor]
    """fake_logits [N] -> [N], minimised in phase 2."""


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))): Goodfellow 2014, equation 1, arXiv:1406.2661. Real -> 1, fake -> 0."""
    return softplus(-real_logits) + softplus(fake_logits)


def minimax_generator_loss(fake_logits: Tensor) -> Tensor:
    """log(1 - D(G(z))), the same equation seen from G. Saturates where D is certain of a fake."""
    return -softplus(fake_logits)


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-log D(G(z)): Goodfellow 2014, end of section 3. The same fixed point, a gradient that stays alive."""
    return softplus(-fake_logits)


def r1_penalty(real_logits: Tensor, reals: Tensor) -> Tensor:
    """|∇x D(x)|², sample by sample: Mescheder 2018, equation 9 without γ/2, arXiv:1801.04406.

    real_logits [N] must have been computed from `reals` [N, C, R, R] while these required a gradient.
    Keeps D flat around the data: without it D wins, and classes fall to a few images each.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)  # [N, C, R, R]
    return gradient.square().sum(dim=(1, 2, 3))  # [N]


LOSSES: dict[Objective, Losses] = {
    "minimax": Losses(D=discriminator_loss, G=minimax_generator_loss),
    "nonsaturating": Losses(D=discriminator_loss, G=nonsaturating_generator_loss),
}
