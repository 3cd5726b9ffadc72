"""What is advised can be done: no remedy that the config has, or that it refuses."""

from __future__ import annotations

import pytest
from toy_training import toy_config

from training.advice import when_collapsed, when_not_finite, when_won


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"r1_gamma": 0.0}, "G_lr and D_lr below 0.0004 and 0.0004 or r1_gamma above 0"),
        ({"r1_gamma": 0.1}, "G_lr and D_lr below 0.0004 and 0.0004"),
        ({"precision": "bf16"}, "precision=fp32 or G_lr and D_lr below 0.0004 and 0.0004"),
        ({"objective": "elbo", "r1_gamma": 0.0}, "G_lr and D_lr below 0.0004 and 0.0004"),
        ({"r1_gamma": 0.0, "gp_weight": 10.0}, "G_lr and D_lr below 0.0004 and 0.0004"),
    ],
)
def test_for_what_is_not_finite(changed: dict[str, object], sentence: str) -> None:
    assert when_not_finite(toy_config(**changed)) == sentence


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"r1_gamma": 0.5, "augment": "color"}, "r1_gamma above 0.5 or D_lr below 0.0004"),
        (
            {"objective": "minimax", "augment": "color"},
            "r1_gamma above 0.1 or D_lr below 0.0004 or objective=nonsaturating",
        ),
        (
            {"objective": "hinge", "r1_gamma": 0.0, "gp_weight": 10.0},
            "gp_weight above 10 or D_lr below 0.0004 or augment=color,translation,cutout "
            "(few images are learned by heart)",
        ),
    ],
)
def test_for_a_won_game(changed: dict[str, object], sentence: str) -> None:
    assert when_won(toy_config(**changed)) == sentence


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {},
            "objective=relativistic with r1_gamma and r2_gamma above 0 or "
            "G_lr and D_lr below 0.0004 and 0.0004",
        ),
        ({"objective": "relativistic", "r2_gamma": 0.1}, "G_lr and D_lr below 0.0004 and 0.0004"),
        ({"objective": "elbo", "r1_gamma": 0.0, "elbo_sigma": 0.2}, "elbo_sigma below 0.2"),
    ],
)
def test_for_a_collapse(changed: dict[str, object], sentence: str) -> None:
    assert when_collapsed(toy_config(**changed)) == sentence
