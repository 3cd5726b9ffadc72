"""The recipes that coverage compares, and the one search that tunes them all.

Everything that is not the recipe is the same for all: the pair (three hidden layers of 128), z of 2,
batches of 128, one step of D a step of G, Adam's beta2 0.99, learning rates on a cosine from the first
image down to 0.5 %. What is searched is the learning rate of both networks, Adam's beta1 and, where a
recipe has a penalty, its weight: `trials` lists the same eight pairs of learning rate and beta1 for every
recipe, and `gantrain coverage --tune` plays them, on seeds of their own, in rounds: the better half of one
is played longer in the next (Jamieson 2015, arXiv:1502.07943). `TUNED` holds what was chosen.
Refuses to own: training, the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from models.errors import InvalidValue, show
from training.config import TrainConfig

LEARNING_RATES: Final = (5e-4, 1e-3, 2e-3, 4e-3)
BETA1S: Final = (0.0, 0.5)
GAMMAS: Final = (0.1, 0.02)
"""Of R1 and R2, in coordinates of unit size."""
GP_WEIGHTS: Final = (0.1, 1.0)

TRIAL_KIMG: Final[Mapping[str, tuple[float, ...]]] = {"ring": (128,), "grid": (192, 384)}
"""Length of a trial in each round of the search on each mixture."""
TOTAL_KIMG: Final[Mapping[str, float]] = {"ring": 1_280, "grid": 3_072}
"""Length of a run on each mixture."""


@dataclass(frozen=True)
class Settings:
    """What is searched."""

    lr: float
    """Learning rate of G and of D."""
    beta1: float
    weight: float | None = None
    """Weight of the recipe's penalty; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A game with its regulariser, as fields of a config."""

    fields: Mapping[str, Any]
    weight_fields: tuple[str, ...] = ()
    """Fields that `Settings.weight` goes to."""
    weights: tuple[float, ...] = ()
    """The weights that are searched; empty where the recipe has no penalty."""
    tuned_as: str = ""
    """The recipe whose tuned settings it takes: a cheaper form of the same; empty: its own."""


_RPGAN: Final = {"objective": "relativistic", "r1_interval": 1}
_GAMMA_FIELDS: Final = ("r1_gamma", "r2_gamma")

RECIPES: Final[Mapping[str, Recipe]] = {
    "minimax": Recipe(fields={"objective": "minimax"}),
    "nonsaturating": Recipe(fields={"objective": "nonsaturating"}),
    "lsgan": Recipe(fields={"objective": "least_squares"}),
    "wgan-gp": Recipe(fields={"objective": "wasserstein"}, weight_fields=("gp_weight",), weights=GP_WEIGHTS),
    "hinge-sn": Recipe(fields={"objective": "hinge", "D_spectral_norm": True}),
    "rpgan-r1-r2": Recipe(fields=_RPGAN, weight_fields=_GAMMA_FIELDS, weights=GAMMAS),
    "rpgan-r1-r2-difference": Recipe(
        fields={**_RPGAN, "penalty_form": "finite_difference", "penalty_sigma": 0.01},
        weight_fields=_GAMMA_FIELDS,
        tuned_as="rpgan-r1-r2",
    ),
    "rpgan-r1-r2-lazy": Recipe(
        fields={**_RPGAN, "r1_interval": 4}, weight_fields=_GAMMA_FIELDS, tuned_as="rpgan-r1-r2"
    ),
}
"""Recipes by name, in the order of the table."""

TUNED: Final[Mapping[tuple[str, str], Settings]] = {
    ("minimax", "ring"): Settings(lr=1e-3, beta1=0.0),
    ("nonsaturating", "ring"): Settings(lr=5e-4, beta1=0.0),
    ("lsgan", "ring"): Settings(lr=4e-3, beta1=0.5),
    ("wgan-gp", "ring"): Settings(lr=2e-3, beta1=0.0, weight=0.1),
    ("hinge-sn", "ring"): Settings(lr=1e-3, beta1=0.0),
    ("rpgan-r1-r2", "ring"): Settings(lr=4e-3, beta1=0.0, weight=0.02),
    ("minimax", "grid"): Settings(lr=1e-3, beta1=0.0),
    ("nonsaturating", "grid"): Settings(lr=2e-3, beta1=0.0),
    ("lsgan", "grid"): Settings(lr=2e-3, beta1=0.0),
    ("wgan-gp", "grid"): Settings(lr=2e-3, beta1=0.0, weight=0.1),
    ("hinge-sn", "grid"): Settings(lr=2e-3, beta1=0.0),
    ("rpgan-r1-r2", "grid"): Settings(lr=4e-3, beta1=0.0, weight=0.02),
}
"""By recipe and mixture: what the search chose, with two seeds a trial on the ring and one on the grid."""


def recipe(name: str) -> Recipe:
    """Return a recipe. Raises InvalidValue for a name that is none."""
    if name not in RECIPES:
        raise InvalidValue(f"recipes must be of {', '.join(RECIPES)}, got {show(name)}")
    return RECIPES[name]


def table_configs(
    names: Iterable[str], mixture: str, *, total_kimg: float, num_seeds: int, settings: str = ""
) -> list[TrainConfig]:
    """Every recipe on the seeds from 0 on, with its tuned settings or with `settings`: lr,beta1[,weight]."""
    return [
        config_of(name, chosen, total_kimg=total_kimg, seed=seed)
        for name in names
        for chosen in [settings_from(settings, name) if settings else tuned(name, mixture)]
        for seed in range(num_seeds)
    ]


def settings_from(text: str, name: str) -> Settings:
    """Read settings for a recipe, lr,beta1 and, where it has a penalty, its weight.

    Raises InvalidValue for anything else; what the numbers may be, a config says.
    """
    wanted = 3 if recipe(name).weight_fields else 2
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != wanted:
        words = "lr,beta1,weight" if wanted == 3 else "lr,beta1"
        raise InvalidValue(f"--settings must be {words} for {name}, numbers with commas, got {show(text)}")
    return Settings(*numbers)


def tuned(name: str, mixture: str) -> Settings:
    """Return the settings that the search chose for a recipe on a mixture, a cheaper form's with it.

    Raises InvalidValue where it has not been played.
    """
    searched = recipe(name).tuned_as or name
    if (searched, mixture) not in TUNED:
        raise InvalidValue(
            f"recipes must have been tuned: {searched} has no tuned settings on the {mixture}: "
            f"`gantrain coverage --mixture {mixture} --recipes {searched} --tune` finds them"
        )
    return TUNED[searched, mixture]


def tuned_on(mixture: str) -> list[str]:
    """Return the recipes that have tuned settings on a mixture, in the order of the table."""
    return [name for name in RECIPES if (RECIPES[name].tuned_as or name, mixture) in TUNED]


def trials(name: str) -> list[Settings]:
    """The search of a recipe: each learning rate with each beta1; each learning rate meets two weights.

    Eight for every recipe, so that none is searched harder than another. Empty for a cheaper form,
    which takes the settings of the exact one.
    """
    chosen = recipe(name)
    if chosen.tuned_as:
        return []
    pairs = product(range(len(LEARNING_RATES)), range(len(BETA1S)))
    return [
        Settings(
            lr=LEARNING_RATES[i],
            beta1=BETA1S[j],
            weight=chosen.weights[(i + j) % len(chosen.weights)] if chosen.weights else None,
        )
        for i, j in pairs
    ]


def config_of(name: str, settings: Settings, *, total_kimg: float, seed: int) -> TrainConfig:
    """Return the config of one run of a recipe."""
    chosen = recipe(name)
    return TrainConfig(
        preset=name,
        total_kimg=total_kimg,
        seed=seed,
        network="mlp",
        batch_size=128,
        z_dim=2,
        G_channels=128,
        D_channels=128,
        G_lr=settings.lr,
        D_lr=settings.lr,
        adam_beta1=settings.beta1,
        adam_beta2=0.99,
        lr_decay_start=0.0,
        lr_floor=0.005,
        **chosen.fields,
        **dict.fromkeys(chosen.weight_fields, settings.weight),
    )
