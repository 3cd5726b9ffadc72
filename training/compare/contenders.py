"""Who is compared, and the one search that tunes them all.

All have the same pair of networks, batches, Adam and cosine; labels are left out, so that which classes G
makes is its own affair. What is searched is the learning rate of both networks, the same three for everyone,
on a seed that the table has not. Refuses to own: training, figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from models.errors import InvalidValue, show
from training.config import TrainConfig
from training.coverage.search import FIRST_SEED

LEARNING_RATES: Final = (1e-3, 2e-3, 4e-3)

CONTENDERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "minimax": {"objective": "minimax"},
    "nonsaturating": {"objective": "nonsaturating"},
    "least-squares": {"objective": "least_squares"},
    "wasserstein-gp": {"objective": "wasserstein", "gp_weight": 10.0},
    "hinge-sn": {"objective": "hinge", "D_spectral_norm": True},
    "relativistic-r1-r2": {
        "objective": "relativistic",
        "r1_gamma": 1.0,
        "r2_gamma": 1.0,
        "r1_interval": 4,
    },
    "vae": {"objective": "elbo"},
}
"""The game of each with its regulariser, as fields of a config, in the order of the table."""
VAE: Final = "vae"
_SHARED: Final[Mapping[str, Any]] = {
    "G_channels": 32,
    "D_channels": 32,
    "adam_beta1": 0.0,
    "lr_decay_start": 0.0,
}


def config_of(
    name: str, lr: float, *, total_kimg: float, seed: int, changes: Mapping[str, str]
) -> TrainConfig:
    """The config of one run; `changes` are fields as text, for all contenders alike."""
    fields = {**_SHARED, **CONTENDERS[name], "G_lr": lr, "D_lr": lr}
    config = TrainConfig(preset=name, total_kimg=total_kimg, seed=seed, **fields)
    return config.override(changes)


def trials(names: Iterable[str], *, total_kimg: float, changes: Mapping[str, str]) -> list[TrainConfig]:
    """The search: every learning rate, on one seed. Raises InvalidValue for a name that is none."""
    return [
        config_of(_known(name), lr, total_kimg=total_kimg, seed=FIRST_SEED, changes=changes)
        for name in names
        for lr in LEARNING_RATES
    ]


def _known(name: str) -> str:
    if name not in CONTENDERS:
        raise InvalidValue(f"contenders must be of {', '.join(CONTENDERS)}, got {show(name)}")
    return name
