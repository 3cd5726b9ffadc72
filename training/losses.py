"""The two-player games: what D and G each minimise, sample by sample.

Every loss takes (real_logits [N], fake_logits [N]) and returns [N] float32, whether its equation reads
both or not; the loop reduces, in one visible place. With D(x) = sigmoid(logit), log D(x) is
-softplus(-logit) and log(1 - D(x)) is -softplus(logit), which stays finite where the logarithm of a
sigmoid would not. Refuses to own: networks, weights, reduction, penalties (`training.penalties`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from training.config import Game

Loss = Callable[[Tensor, Tensor], Tensor]
"""(real_logits [N], fake_logits [N]) -> [N]"""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One game: the loss of each phase, and what D's logits say of a sample."""

    D: Loss
    """Minimised in phase 1."""
    G: Loss
    """Minimised in phase 2. Its fakes are those of phase 2; its reals are read where `paired` says so."""
    paired: bool = False
    """Whether G's loss reads the reals: row i is then a pair of one class."""
    probabilities: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """D's logits of reals and fakes as probabilities of being real, [N] each; None: they are none."""
    boundary: float | None = 0.0
    """D calls real what has a logit above it; None: D only says which of a pair is more real."""

    def accuracies(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Whether D is right about each real and each fake, 1 or 0, [N] float32 each."""
        if self.boundary is None:
            right = (real_logits > fake_logits).float()
            return right, right
        return (real_logits > self.boundary).float(), (fake_logits <= self.boundary).float()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))): Goodfellow 2014, equation 1, arXiv:1406.2661. Real -> 1, fake -> 0."""
    return softplus(-real_logits) + softplus(fake_logits)


def minimax_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """log(1 - D(G(z))), the same equation seen from G. Saturates where D is certain of a fake."""
    return -softplus(fake_logits)


def nonsaturating_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(G(z)): Goodfellow 2014, end of section 3. The same fixed point, a gradient that stays alive."""
    return softplus(-fake_logits)


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½(D(x) - 1)² + ½D(G(z))²: Mao 2017, equation 9, arXiv:1611.04076. Real -> 1, fake -> 0."""
    return ((real_logits - 1).square() + fake_logits.square()) / 2


def least_squares_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½(D(G(z)) - 1)², the same equation."""
    return (fake_logits - 1).square() / 2


def wasserstein_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D(G(z)) - D(x): Arjovsky 2017, equation 2, arXiv:1701.07875. Means something while D is Lipschitz."""
    return fake_logits - real_logits


def negative_logit_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-D(G(z)): G's half of the Wasserstein game, and of the hinge game."""
    return -fake_logits


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))): Miyato 2018, equation 16, arXiv:1802.05957."""
    return relu(1 - real_logits) + relu(1 + fake_logits)


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log σ(D(x) - D(G(z))): Jolicoeur-Martineau 2018, equation 7, arXiv:1807.00734.

    Called RpGAN in Huang 2024, equation 2, arXiv:2501.05441: each fake is judged against a real, so
    there is no place where all of the data or all of the fakes fall on one side of D.
    """
    return softplus(fake_logits - real_logits)


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log σ(D(G(z)) - D(x)), the same equation with the pair turned round."""
    return softplus(real_logits - fake_logits)


def logistic_probabilities(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """σ(D(x)) and σ(D(G(z))): at its optimum D is p_data / (p_data + p_g)."""
    return real_logits.sigmoid(), fake_logits.sigmoid()


def least_squares_probabilities(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """D(x) and D(G(z)) as they are, cut to [0, 1]: the optimum is the same ratio, without a sigmoid."""
    return real_logits.clamp(0, 1), fake_logits.clamp(0, 1)


def relativistic_probabilities(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """σ(D(x) - D(G(z))) and one minus it: of a pair, how surely D calls the real one real."""
    real_probability = torch.sigmoid(real_logits - fake_logits)
    return real_probability, 1 - real_probability


LOSSES: Final[dict[Game, Losses]] = {
    "minimax": Losses(D=discriminator_loss, G=minimax_generator_loss, probabilities=logistic_probabilities),
    "nonsaturating": Losses(
        D=discriminator_loss, G=nonsaturating_generator_loss, probabilities=logistic_probabilities
    ),
    "least_squares": Losses(
        D=least_squares_discriminator_loss,
        G=least_squares_generator_loss,
        probabilities=least_squares_probabilities,
        boundary=0.5,
    ),
    "wasserstein": Losses(
        D=wasserstein_discriminator_loss, G=negative_logit_loss, probabilities=None, boundary=None
    ),
    "hinge": Losses(D=hinge_discriminator_loss, G=negative_logit_loss, probabilities=None),
    "relativistic": Losses(
        D=relativistic_discriminator_loss,
        G=relativistic_generator_loss,
        paired=True,
        probabilities=relativistic_probabilities,
        boundary=None,
    ),
}
