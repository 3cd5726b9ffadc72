"""The losses are the papers', sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from training.config import GAMES, Game
from training.losses import LOSSES

LOGITS = torch.linspace(-6, 6, 25)
OTHERS = LOGITS.flip(0) * 0.5
ONES, ZEROS = torch.ones(25), torch.zeros(25)


def _cross_entropy() -> Tensor:
    return bce(LOGITS, ONES, reduction="none") + bce(OTHERS, ZEROS, reduction="none")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("minimax", _cross_entropy()),
        ("nonsaturating", _cross_entropy()),
        ("least_squares", 0.5 * (LOGITS - 1) ** 2 + 0.5 * OTHERS**2),
        ("wasserstein", OTHERS - LOGITS),
        ("hinge", (1 - LOGITS).clamp(min=0) + (1 + OTHERS).clamp(min=0)),
        ("relativistic", -torch.log(torch.sigmoid(LOGITS - OTHERS))),
    ],
)
def test_the_discriminator_minimises_its_papers_equation(objective: str, expected: Tensor) -> None:
    loss = LOSSES[objective].D(LOGITS, OTHERS)  # reals, fakes

    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("minimax", torch.log(1 - torch.sigmoid(OTHERS))),
        ("nonsaturating", bce(OTHERS, ONES, reduction="none")),
        ("least_squares", 0.5 * (OTHERS - 1) ** 2),
        ("wasserstein", -OTHERS),
        ("hinge", -OTHERS),
        ("relativistic", -torch.log(torch.sigmoid(OTHERS - LOGITS))),
    ],
)
def test_the_generator_minimises_its_papers_equation(objective: str, expected: Tensor) -> None:
    loss = LOSSES[objective].G(LOGITS, OTHERS)  # reals, fakes

    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("objective", GAMES)
def test_a_generator_reads_the_reals_only_where_the_game_says_that_it_is_paired(objective: str) -> None:
    losses = LOSSES[objective]

    differs = not torch.equal(losses.G(LOGITS, OTHERS), losses.G(LOGITS + 1, OTHERS))

    assert differs == losses.paired


@pytest.mark.parametrize("objective", GAMES)
def test_losses_are_per_sample_and_finite_where_a_sigmoid_is_0_or_1(objective: str) -> None:
    extreme = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])

    D_loss, G_loss = (loss(extreme, extreme.flip(0)) for loss in (LOSSES[objective].D, LOSSES[objective].G))

    assert D_loss.shape == G_loss.shape == extreme.shape
    assert torch.isfinite(D_loss).all()
    assert torch.isfinite(G_loss).all()


@pytest.mark.parametrize("objective", GAMES)
def test_each_phase_moves_the_logits_its_own_way(objective: str) -> None:
    """D raises reals above fakes, G raises fakes, from a point where neither is certain."""
    real_logits, fake_logits = (torch.zeros(3, requires_grad=True) for _ in range(2))

    D_real, D_fake = torch.autograd.grad(
        LOSSES[objective].D(real_logits, fake_logits + 0.1).sum(), (real_logits, fake_logits)
    )
    (G_fake,) = torch.autograd.grad(LOSSES[objective].G(real_logits, fake_logits).sum(), fake_logits)

    assert (D_real < 0).all()
    assert (D_fake > 0).all()
    assert (G_fake < 0).all()


@pytest.mark.parametrize(
    ("objective", "log_of"), [("minimax", 4.0), ("nonsaturating", 4.0), ("relativistic", 2.0)]
)
def test_at_equilibrium_the_discriminator_pays_a_known_price(objective: str, log_of: float) -> None:
    undecided = torch.zeros(3)

    loss = LOSSES[objective].D(undecided, undecided)

    torch.testing.assert_close(loss, torch.full((3,), log_of).log())


def test_only_the_minimax_gradient_dies_where_the_discriminator_is_certain() -> None:
    certain = torch.full((2,), -20.0, requires_grad=True)

    sizes = {}
    for objective, losses in LOSSES.items():
        (gradient,) = torch.autograd.grad(losses.G(-certain.detach(), certain).sum(), certain)
        sizes[objective] = float(gradient.abs().max())

    assert sizes.pop("minimax") < 1e-8
    assert min(sizes.values()) > 0.99


@pytest.mark.parametrize(
    ("objective", "real", "fake"),
    [
        ("minimax", torch.sigmoid(LOGITS), torch.sigmoid(OTHERS)),
        ("nonsaturating", torch.sigmoid(LOGITS), torch.sigmoid(OTHERS)),
        ("least_squares", LOGITS.clamp(0, 1), OTHERS.clamp(0, 1)),
        ("relativistic", torch.sigmoid(LOGITS - OTHERS), torch.sigmoid(OTHERS - LOGITS)),
    ],
)
def test_logits_are_told_as_probabilities_where_they_are_such(
    objective: str, real: Tensor, fake: Tensor
) -> None:
    probabilities = LOSSES[objective].probabilities(LOGITS, OTHERS)

    torch.testing.assert_close(probabilities, (real, fake))


@pytest.mark.parametrize("objective", ["wasserstein", "hinge"])
def test_logits_that_are_no_probabilities_are_not_told_as_such(objective: str) -> None:
    assert LOSSES[objective].probabilities is None


@pytest.mark.parametrize(
    ("objective", "right_reals", "right_fakes"),
    [
        ("nonsaturating", [1, 0, 1], [1, 0, 0]),
        ("hinge", [1, 0, 1], [1, 0, 0]),
        ("least_squares", [1, 0, 0], [1, 1, 0]),
        ("wasserstein", [1, 0, 0], [1, 0, 0]),
        ("relativistic", [1, 0, 0], [1, 0, 0]),
    ],
)
def test_d_is_right_where_its_game_says_so(
    objective: Game, right_reals: list[int], right_fakes: list[int]
) -> None:
    real_logits, fake_logits = torch.tensor([2.0, -1.0, 0.25]), torch.tensor([-2.0, 0.25, 3.0])

    of_reals, of_fakes = LOSSES[objective].accuracies(real_logits, fake_logits)

    assert (of_reals.tolist(), of_fakes.tolist()) == (right_reals, right_fakes)
