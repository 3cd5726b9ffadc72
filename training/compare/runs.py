"""One run of a contender, and the file that keeps those which are finished.

A run is the package's own `Trainer`; its G_ema is judged by the yardstick that all share. Refuses to own:
which runs there are (`training.compare.contenders`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from training.config import TrainConfig
from training.data import Dataset
from training.environment import environment
from training.errors import NotFinite
from training.files import atomic_file
from training.kept_runs import read_kept_runs
from training.loop import Trainer
from training.metrics.fakes import Fakes, evaluation_seeds, made, plain
from training.metrics.protocol import Figure, Protocol
from training.metrics.yardstick import Yardstick
from training.reals import DatasetReals
from training.servable import torch_render
from training.snapshot import TrainState

FIGURES = (
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "coverage",
    "class_min_share",
    "sharpness",
)


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A finished run."""

    config: TrainConfig
    figures: tuple[Figure, ...]
    """Of G_ema; that of classes only where the extractor finds the data's."""
    cpu_s: float
    """CPU seconds of the process in training."""
    num_images: int
    """Real images shown."""
    not_finite_nimg: int | None
    """Where a loss or a gradient was not finite, which ended the run; None: it went to its end."""
    environment: dict[str, Any]
    """What it was computed on."""

    def value(self, name: str) -> float:
        """A figure; infinite where there is none."""
        return next((one.value for one in self.figures if one.name == name), float("inf"))

    def to_json(self) -> str:
        """One line of the file."""
        return json.dumps(
            {
                **dataclasses.asdict(self),
                "config": self.config.to_dict(),
                "figures": [one.to_json() for one in self.figures],
            }
        )

    @classmethod
    def from_json(cls, line: str) -> Self:
        values = json.loads(line)
        config = TrainConfig.from_dict(values.pop("config"))
        figures = tuple(Figure.from_json(one) for one in values.pop("figures"))
        return cls(config=config, figures=figures, **values)


def play(config: TrainConfig, dataset: Dataset, yardstick: Yardstick, n: int) -> ComparedRun:
    """Train one run on the CPU, to its end or to a loss that is not finite, and judge `n` images of G_ema."""
    state = TrainState.fresh(config, dataset.shape)
    trainer = Trainer(config, DatasetReals(dataset, config.seed), state)
    not_finite_nimg = None
    began_s = time.process_time()
    try:
        while state.cur_nimg < config.total_nimg:
            trainer.run_iteration()
    except NotFinite:
        not_finite_nimg = state.cur_nimg
    cpu_s = time.process_time() - began_s
    make = plain(torch_render(state.G_ema), z_dim=config.z_dim, prior="normal", truncation_psi=1.0)
    images, _ = made(make, evaluation_seeds(0, n), num_classes=0)
    asked = [name for name in FIGURES if yardstick.has_own_classes or name != "class_min_share"]
    return ComparedRun(
        config=config,
        figures=yardstick.figures(Fakes(label=config.preset, images=images), asked),
        cpu_s=round(cpu_s, 4),  # it is divided by, and the smallest runs take milliseconds
        num_images=state.cur_nimg,
        not_finite_nimg=not_finite_nimg,
        environment=environment(),
    )


def play_all(
    configs: Sequence[TrainConfig], file: Path, dataset: Dataset, yardstick: Yardstick, n: int
) -> Iterator[ComparedRun]:
    """Yield the run of each config in turn; one that `file` holds, taken by the same protocol, is not played.

    Each finished run is added to `file` at once, so an interrupted command goes on where it was. Raises
    RunError for a file that is not of such runs.
    """
    protocol = yardstick.protocol(n)
    for config in configs:
        kept = read_runs(file)
        run = next((one for one in kept if one.config == config and _taken_by(one, protocol)), None)
        if run is None:
            run = play(config, dataset, yardstick, n)
            with atomic_file(file) as content:
                content.writelines(f"{one.to_json()}\n".encode() for one in (*kept, run))
        yield run


def read_runs(file: Path) -> list[ComparedRun]:
    """Read the runs of a file; none where it is not there yet. Raises RunError for a line that is none."""
    return read_kept_runs(file, ComparedRun.from_json, "gantrain compare")


def tuned(searched: Iterable[ComparedRun], num_seeds: int) -> list[TrainConfig]:
    """Configs of the table: each contender at the learning rate of its least distance, on seeds from 0 on."""
    best: dict[str, ComparedRun] = {}
    for run in searched:
        name = run.config.preset
        if name not in best or run.value("frechet_distance") < best[name].value("frechet_distance"):
            best[name] = run
    return [dataclasses.replace(run.config, seed=seed) for run in best.values() for seed in range(num_seeds)]


def _taken_by(run: ComparedRun, protocol: Protocol) -> bool:
    return any(one.protocol == protocol for one in run.figures)
