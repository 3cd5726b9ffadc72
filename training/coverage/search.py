"""The search that tunes a recipe: which trials a round plays, and which of them go on.

Refuses to own: the values that are tried, and how long (`training.coverage.recipes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from training.config import TrainConfig
from training.coverage.recipes import Settings, config_of
from training.coverage.runs import CoverageRun
from training.coverage.table import by_recipe, settings_of

FIRST_SEED: Final = 1_000
"""Where the seeds of the search begin: none of them is a table's."""


def trial_configs(
    candidates: Mapping[str, Iterable[Settings]], *, total_kimg: float, num_seeds: int
) -> list[TrainConfig]:
    """One round: every candidate of each recipe, on seeds from `FIRST_SEED` on."""
    return [
        config_of(name, settings, total_kimg=total_kimg, seed=seed)
        for name, of_recipe in candidates.items()
        for settings in of_recipe
        for seed in range(FIRST_SEED, FIRST_SEED + num_seeds)
    ]


def better_half(runs: Iterable[CoverageRun]) -> dict[str, list[Settings]]:
    """The candidates of the next round: of each recipe the better half of its settings, the best first."""
    ranked = {trials[0][0].config.preset: trials for trials in _ranked(runs)}
    return {
        name: [settings_of(trial[0]) for trial in trials[: (len(trials) + 1) // 2]]
        for name, trials in ranked.items()
    }


def best_runs(runs: Iterable[CoverageRun]) -> list[list[CoverageRun]]:
    """Return the runs of each recipe's best settings."""
    return [trials[0] for trials in _ranked(runs)]


def _ranked(runs: Iterable[CoverageRun]) -> list[list[list[CoverageRun]]]:
    """Of each recipe the runs of each settings: most modes10 first, then most high quality, as means."""
    recipes = []
    for of_recipe in by_recipe(runs):
        trials: dict[Settings, list[CoverageRun]] = {}
        for run in of_recipe:
            trials.setdefault(settings_of(run), []).append(run)
        recipes.append(sorted(trials.values(), key=_merit, reverse=True))
    return recipes


def _merit(runs: Sequence[CoverageRun]) -> tuple[float, float]:
    found = [run.coverage for run in runs]
    return fmean(one.modes10 for one in found), fmean(one.high_quality for one in found)
