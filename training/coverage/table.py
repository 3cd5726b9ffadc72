"""Runs of coverage as text: one line a run, and the worst of each recipe.

Refuses to own: the runs (`training.coverage.runs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from training.coverage.recipes import RECIPES, Settings
from training.coverage.runs import CoverageRun

HEADER: Final = (
    f"{'recipe':24}{'lr':>8}{'beta1':>7}{'weight':>8}{'seed':>6}"
    f"{'modes':>7}{'modes10':>9}{'HQ %':>7}{'JSD':>8}{'CPU s':>8}"
)


def settings_of(run: CoverageRun) -> Settings:
    """Return what the search set in a run's config."""
    config = run.config
    weight_fields = RECIPES[config.preset].weight_fields
    return Settings(
        lr=config.G_lr,
        beta1=config.adam_beta1,
        weight=getattr(config, weight_fields[0]) if weight_fields else None,
    )


def run_line(run: CoverageRun) -> str:
    """One run; where it ended before its time, that too."""
    line = _line([run], str(run.config.seed))
    if run.not_finite_nimg is None:
        return line
    return f"{line}  not finite at {run.not_finite_nimg / 1000:g} kimg"


def worst_line(runs: Sequence[CoverageRun]) -> str:
    """The worst figure, each on its own, of the runs of one recipe and settings; the longest time."""
    return _line(runs, "worst")


def by_recipe(runs: Iterable[CoverageRun]) -> list[list[CoverageRun]]:
    """Return the runs of each recipe that has some, in the order of the recipes."""
    groups: dict[str, list[CoverageRun]] = {name: [] for name in RECIPES}
    for run in runs:
        groups[run.config.preset].append(run)
    return [group for group in groups.values() if group]


def _line(runs: Sequence[CoverageRun], seed: str) -> str:
    settings = settings_of(runs[0])
    weight = "-" if settings.weight is None else f"{settings.weight:g}"
    found = [run.coverage for run in runs]
    return (
        f"{runs[0].config.preset:24}{settings.lr:>8g}{settings.beta1:>7g}{weight:>8}{seed:>6}"
        f"{min(one.modes for one in found):>7}{min(one.modes10 for one in found):>9}"
        f"{100 * min(one.high_quality for one in found):>7.1f}{max(one.jsd for one in found):>8.4f}"
        f"{max(run.cpu_s for run in runs):>8.1f}"
    )
