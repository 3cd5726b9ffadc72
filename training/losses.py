"""The two-player games: what D and G each minimise, sample by sample.

Every loss takes logits [N] and returns values [N] float32; the loop reduces them, in one visible
place. With D(x) = sigmoid(logit), log D(x) is -softplus(-logit) and log(1 - D(x)) is
-softplus(logit), which stays finite where the logarithm of a sigmoid would not. Refuses to own:
networks, penalties, reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


LOSSES: dict[Objective, Losses] = {
    "minimax": Losses(D=discriminator_loss, G=minimax_generator_loss),
    "nonsaturating": Losses(D=discriminator_loss, G=nonsaturating_generator_loss),
}
