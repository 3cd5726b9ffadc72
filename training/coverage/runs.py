"""One run of coverage, many runs of it, and the file that keeps those which are finished.

A run is the package's own `Trainer` on a mixture: same loop, losses, schedules and streams as a run on
images. Refuses to own: which runs there are (`training.coverage.recipes`).
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

from models.sampling import latents_from_seeds
from training.config import TrainConfig
from training.data.mixtures import Coverage, Mixture, coverage
from training.environment import environment
from training.errors import NotFinite
from training.files import atomic_file
from training.kept_runs import read_kept_runs
from training.loop import Trainer
from training.networks import Generator
from training.reals import MixtureReals
from training.snapshot import TrainState

NUM_SAMPLES: Final = 2_500
"""Samples that a run is judged on: those of the seeds 0 to 2,499."""


@dataclass(frozen=True, kw_only=True)
class CoverageRun:
    """A finished run."""

    mixture: str
    config: TrainConfig
    coverage: Coverage
    """Of G_ema."""
    cpu_s: float
    """CPU seconds of the process, all of its threads, in training."""
    not_finite_nimg: int | None
    """Where a loss or a gradient was not finite, which ended the run; None: it went to its end."""
    environment: dict[str, Any]
    """What it was computed on."""

    def to_json(self) -> str:
        """One line of the file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> CoverageRun:
        values = json.loads(line)
        config, found = TrainConfig.from_dict(values.pop("config")), Coverage(**values.pop("coverage"))
        return cls(config=config, coverage=found, **values)


def play(mixture: Mixture, config: TrainConfig) -> CoverageRun:
    """Train one run on the CPU, to its end or to a loss that is not finite, and judge G_ema."""
    reals = MixtureReals(mixture, config.seed)
    state = TrainState.fresh(config, reals.shape)
    trainer = Trainer(config, reals, state)
    not_finite_nimg = None
    began_s = time.process_time()
    try:
        while state.cur_nimg < config.total_nimg:
            trainer.run_iteration()
    except NotFinite:
        not_finite_nimg = state.cur_nimg
    return CoverageRun(
        mixture=mixture.name,
        config=config,
        coverage=judge(state.G_ema, mixture),
        cpu_s=round(time.process_time() - began_s, 1),
        not_finite_nimg=not_finite_nimg,
        environment=environment(),
    )


def judge(G: Generator, mixture: Mixture) -> Coverage:
    """The coverage of `NUM_SAMPLES` points that G makes."""
    z = torch.from_numpy(latents_from_seeds(range(NUM_SAMPLES), G.z_dim))  # [N, z_dim]
    with torch.no_grad():
        points = G(z).numpy() * mixture.scale  # [N, point_dim]
    return coverage(points, mixture)


def play_all(
    mixture: Mixture, configs: Sequence[TrainConfig], file: Path, *, processes: int = 1
) -> Iterator[CoverageRun]:
    """Yield the run of each config, in the order they end; those that `file` holds come first, unplayed.

    Each finished run is added to `file` at once, so an interrupted command goes on where it was. Every run
    has one thread, in `processes` at a time. Raises RunError for a file that is not of such runs.
    """
    runs = read_runs(file)
    known = {(run.mixture, run.config): run for run in runs}
    missing = [config for config in configs if (mixture.name, config) not in known]
    yield from (known[mixture.name, config] for config in configs if config not in missing)
    for run in _played(mixture, missing, processes):
        runs.append(run)
        with atomic_file(file) as content:
            content.writelines(f"{run.to_json()}\n".encode() for run in runs)
        yield run


def read_runs(file: Path) -> list[CoverageRun]:
    """Read the runs of a file; none where it is not there yet. Raises RunError for a line that is none."""
    return read_kept_runs(file, CoverageRun.from_json, "gantrain coverage")


def _played(mixture: Mixture, configs: Sequence[TrainConfig], processes: int) -> Iterator[CoverageRun]:
    if processes == 1:
        with _one_thread():
            for config in configs:
                yield play(mixture, config)
        return
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker) as pool:
        futures = [pool.submit(play, mixture, config) for config in configs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends a worker without a traceback
    torch.set_num_threads(1)
