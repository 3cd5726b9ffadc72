"""The search that tunes a recipe: which trials it plays, and which of them it chooses.

Refuses to own: the values that are tried (`training.coverage.recipes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

from training.config import TrainConfig
from training.coverage.recipes import Settings, config_of, trials
from training.coverage.runs import CoverageRun
from training.coverage.table import by_recipe, settings_of

FIRST_SEED: Final = 1_000
"""Where the seeds of the search begin: none of them is a table's."""


def trial_configs(names: Iterable[str], *, total_kimg: float, num_seeds: int) -> list[TrainConfig]:
    """Every trial of the recipes, on seeds from `FIRST_SEED` on."""
    return [
        config_of(name, settings, total_kimg=total_kimg, seed=seed)
        for name in names
        for settings in trials(name)
        for seed in range(FIRST_SEED, FIRST_SEED + num_seeds)
    ]


def best_runs(runs: Iterable[CoverageRun]) -> list[list[CoverageRun]]:
    """Return the runs of each recipe's best settings: most modes10, then most high quality, as means."""
    best = []
    for of_recipe in by_recipe(runs):
        trials: dict[Settings, list[CoverageRun]] = {}
        for run in of_recipe:
            trials.setdefault(settings_of(run), []).append(run)
        best.append(max(trials.values(), key=_merit))
    return best


def _merit(runs: Sequence[CoverageRun]) -> tuple[float, float]:
    found = [run.coverage for run in runs]
    return fmean(one.modes10 for one in found), fmean(one.high_quality for one in found)
