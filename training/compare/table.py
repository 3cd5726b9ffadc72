"""Compared runs as text: a line a run, a table of the contenders, and what the numbers say.

Refuses to own: the runs (`training.compare.runs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Final

from training.compare.contenders import CONTENDERS, VAE
from training.compare.runs import FIGURES, ComparedRun

_TITLES: Final = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "class_min_share": "rarest class",
}
Groups = Mapping[str, Sequence[ComparedRun]]
_SHARES: Final = ("precision", "recall", "coverage", "class_min_share")


def run_line(run: ComparedRun) -> str:
    """One run; where it ended before its time, that too."""
    figures = "  ".join(f"{_title(name)} {_text(name, run.value(name))}" for name in FIGURES)
    line = f"{run.config.preset} lr {run.config.G_lr:g} seed {run.config.seed}: {figures}  {_speed([run])}"
    if run.not_finite_nimg is None:
        return line
    return f"{line}  not finite at {run.not_finite_nimg / 1000:g} kimg"


def table(runs: Iterable[ComparedRun]) -> str:
    """A line a contender: means over its seeds, of the distance its least and most too; real images last."""
    groups = by_contender(runs)
    header = ["", "learning rate", *map(_title, FIGURES), "images a CPU second"]
    lines = [header, ["---"] * len(header), *(_row(name, group) for name, group in groups.items())]
    first = next(iter(groups.values()))[0]
    reals = {one.name: one.of_reals for one in first.figures if one.of_reals is not None}
    if "frechet_distance" in reals:
        lines.append(["real images", "", *(_text(name, reals.get(name, inf)) for name in FIGURES), ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_contender(runs: Iterable[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """The runs of each contender that has some, in the order of the contenders."""
    groups: dict[str, list[ComparedRun]] = {name: [] for name in CONTENDERS}
    for run in runs:
        groups[run.config.preset].append(run)
    figures = [one for group in groups.values() for run in group for one in run.figures]
    for name in FIGURES:
        protocols = {one.protocol for one in figures if one.name == name}
        assert len(protocols) <= 1, f"{name} of several protocols in one column"
    return {name: group for name, group in groups.items() if group}


def sentences(runs: Iterable[ComparedRun]) -> list[str]:
    """What the numbers say of the two claims: GANs are sharper than a VAE, and fail at diversity.

    Empty without a VAE or without a GAN. Whether a claim is true here is decided by the numbers.
    """
    groups = by_contender(runs)
    vae = groups.pop(VAE, None)
    if vae is None or not groups:
        return []
    return [_of_sharpness(groups, vae), _of_diversity(groups, vae)]


def _of_sharpness(gans: Groups, vae: Sequence[ComparedRun]) -> str:
    means = {name: _mean("sharpness", group) for name, group in gans.items()}
    least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    of_vae = _mean("sharpness", vae)
    claim = "GAN samples are sharper than the VAE's"
    if means[least] <= of_vae:
        claim = "Not every GAN's samples are sharper than the VAE's"
    return (
        f"{claim}: {means[least]:.2f} ({least}) to {means[most]:.2f} ({most}) of the fine detail of real "
        f"images, the VAE {of_vae:.2f}."
    )


def _of_diversity(gans: Groups, vae: Sequence[ComparedRun]) -> str:
    """Held against what real images get: 1 would be a set as precise, or as diverse, as they are."""
    precision, recall = (
        {name: _mean(figure, group) / _reals(figure, group) for name, group in gans.items()}
        for figure in ("precision", "recall")
    )
    least, most = min(recall, key=recall.__getitem__), max(recall, key=recall.__getitem__)
    lost = fmean(recall.values()) < fmean(precision.values())
    claim = "Diversity is where GANs fail" if lost else "Diversity is not where these GANs fail first"
    return (
        f"{claim}: on average they have {fmean(precision.values()):.0%} of the precision of real images and "
        f"{fmean(recall.values()):.0%} of their recall, from {recall[least]:.0%} ({least}) to "
        f"{recall[most]:.0%} ({most}); the VAE {_mean('precision', vae) / _reals('precision', vae):.0%} and "
        f"{_mean('recall', vae) / _reals('recall', vae):.0%}."
    )


def _row(name: str, group: Sequence[ComparedRun]) -> list[str]:
    cells = [_text(figure, _mean(figure, group)) for figure in FIGURES]
    distances = [run.value("frechet_distance") for run in group]
    cells[0] += f" ({min(distances):.1f}-{max(distances):.1f})"
    return [name, f"{group[0].config.G_lr:g}", *cells, _speed(group)]


def _mean(figure: str, group: Sequence[ComparedRun]) -> float:
    return fmean(run.value(figure) for run in group)


def _reals(figure: str, group: Sequence[ComparedRun]) -> float:
    """What real images get; 1 where it was not taken, which is the most that a share can be."""
    return next((one.of_reals for one in group[0].figures if one.name == figure and one.of_reals), 1.0)


def _speed(group: Sequence[ComparedRun]) -> str:
    return f"{fmean(run.num_images / run.cpu_s for run in group):.0f}"


def _title(figure: str) -> str:
    return _TITLES.get(figure, figure)


def _text(figure: str, value: float) -> str:
    if value == inf:
        return "none"
    if figure in _SHARES:
        return f"{value:.1%}"
    return f"{value:.4f}" if figure == "kernel_distance" else f"{value:.2f}"
