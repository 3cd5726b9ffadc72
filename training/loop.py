"""The alternating game of Goodfellow 2014 (arXiv:1406.2661, algorithm 1), and the run around it.

`Trainer.run_iteration` plays the phases (`training.phases`) on the next reals and fresh latents, and `train`
repeats that from wherever the run folder stands to `total_kimg`, with a tick of bookkeeping in between.
Refuses to own: what a phase computes, the networks, what a run folder looks like.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from models.errors import InvalidValue, show
from training.config import TrainConfig
from training.data import Dataset
from training.device import CPU, check_compiler, check_precision
from training.ema import update_ema
from training.guard import check_steps
from training.losses import LOSSES, Losses
from training.phases import (
    Batch,
    Figures,
    Rules,
    discriminator_phase,
    elbo_phase,
    generator_phase,
    joined,
    statistics,
)
from training.processes import ALONE, Processes
from training.progress import Progress
from training.reals import DatasetReals, Reals
from training.resume import open_run
from training.run_folder import RunFolder
from training.schedules import augment_at, ema_beta, lr_scale, penalty_weights
from training.snapshot import TrainState, follow_leader
from training.streams import Phase, RowDraws, generator_at
from training.ticks import Ticks


class Trainer:
    """Plays iterations of one config on one source of reals."""

    def __init__(
        self, config: TrainConfig, reals: Reals, state: TrainState, processes: Processes = ALONE
    ) -> None:
        self.config = config
        self.state = state
        if config.augment and reals.shape.point_dim:
            raise InvalidValue(f"augment must be empty for data of points, got {show(config.augment)}")
        self._reals = reals
        self._processes = processes
        self._microbatches = own_microbatches(config, processes)

    def run_iteration(self) -> Figures:
        """One iteration on the next reals, then G_ema."""
        config, state = self.config, self.state
        self._set_lr()
        figures = self._autoencode() if config.objective == "elbo" else self._play(LOSSES[config.objective])
        self._processes.average(statistics(state.G, state.D))
        state.cur_nimg += config.iteration_nimg
        update_ema(state.G_ema, state.G, ema_beta(state.cur_nimg, config))
        return self._processes.gather(figures)

    def _autoencode(self) -> Figures:
        """The one phase of a VAE."""
        cur_nimg, config = self.state.cur_nimg, self.config
        batches = [self._discriminator_batch(cur_nimg, rows) for rows in self._microbatches]
        return elbo_phase(self.state, batches, config.elbo_sigma, config.precision, self._processes)

    def _play(self, losses: Losses) -> Figures:
        """Phase 1 on the next reals, `d_steps` times; phase 2 on fresh latents."""
        config, state = self.config, self.state
        rules = Rules(
            losses=losses,
            augment=augment_at(state.cur_nimg, config),
            precision=config.precision,
            processes=self._processes,
        )
        D_figures = []
        for cur_nimg in range(state.cur_nimg, state.cur_nimg + config.iteration_nimg, config.batch_size):
            D_batches = [self._discriminator_batch(cur_nimg, rows) for rows in self._microbatches]
            due = replace(rules, weights=penalty_weights(cur_nimg, config))
            D_figures.append(discriminator_phase(state, due, D_batches))
        G_batches = [
            self._generator_batch(batch, rows, losses.paired)
            for batch, rows in zip(D_batches, self._microbatches, strict=True)
        ]
        G_figures = generator_phase(state, rules, G_batches)
        return joined(D_figures) | G_figures

    def _set_lr(self) -> None:
        scale = lr_scale(self.state.cur_nimg, self.config)
        self.state.G_optimizer.param_groups[0]["lr"] = self.config.G_lr * scale
        self.state.D_optimizer.param_groups[0]["lr"] = self.config.D_lr * scale

    def _discriminator_batch(self, cur_nimg: int, rows: slice) -> Batch:
        """Rows of the batch of reals that begins at `cur_nimg`, and latents of their own."""
        reals, class_idx = self._reals.batch(cur_nimg + rows.start, rows.stop - rows.start)
        draws = self._draws(cur_nimg, "D", rows)
        return Batch(reals=reals, class_idx=class_idx, z=draws.normal(self.config.z_dim), draws=draws)

    def _generator_batch(self, D_batch: Batch, rows: slice, paired: bool) -> Batch:
        """Fresh latents; the reals and their classes are phase 1's where the objective pairs them."""
        draws = self._draws(self.state.cur_nimg, "G", rows)
        class_idx = D_batch.class_idx if paired else self._reals.draw_classes(draws)
        z = draws.normal(self.config.z_dim)
        return Batch(reals=D_batch.reals.detach(), class_idx=class_idx, z=z, draws=draws)

    def _draws(self, cur_nimg: int, phase: Phase, rows: slice) -> RowDraws:
        stream = generator_at(self.config.seed, cur_nimg, phase)
        return RowDraws(stream, self.config.batch_size, rows, self.state.device)


def own_microbatches(config: TrainConfig, processes: Processes) -> list[slice]:
    """The rows of a batch that this process computes, in equal consecutive parts.

    Raises InvalidValue where a batch cannot be split equally.
    """
    parts = processes.count * config.microbatches
    if config.batch_size % parts:
        raise InvalidValue(
            f"batch_size must be a multiple of processes × microbatches "
            f"({processes.count} × {config.microbatches}), got {config.batch_size}"
        )
    count = config.batch_size // parts
    first = processes.rank * config.microbatches
    return [slice(i * count, (i + 1) * count) for i in range(first, first + config.microbatches)]


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: RunFolder,
    *,
    tick_kimg: float,
    device: torch.device = CPU,
    processes: Processes = ALONE,
    override: bool = False,
    stop_on_collapse: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train in `run` until `config.total_kimg`, or until `should_stop` says so between two iterations.

    Goes on from the folder's snapshot if there is one. Each tick leaves a line of metrics, a grid and a
    snapshot; a stop leaves a snapshot. Raises RunError for a folder of another run (`override` goes on all
    the same) or in use, for a loss or gradient that is not finite, and where nothing can be written; its
    Collapsed where `stop_on_collapse` asks for it. Of several `processes` the leader alone reads and writes
    `run`, and the others begin with its state.
    """
    check_precision(config.precision, device)
    if config.compile:
        check_compiler(device)
    own_microbatches(config, processes)  # refuses a batch that cannot be split, before anything is written
    with run.held() if processes.leads else nullcontext():
        if processes.leads:
            state = open_run(config, dataset, run, device, override=override)
        else:
            state = TrainState.fresh(config, dataset.shape, device)
        follow_leader(state, processes)
        trainer = Trainer(config, DatasetReals(dataset, config.seed, device), state, processes)
        ticks = Ticks(config, dataset, run, state) if processes.leads else None
        tick_nimg = max(round(tick_kimg * 1000), 1)

        def stops() -> bool:
            collapsed = stop_on_collapse and ticks is not None and ticks.collapsed
            return processes.any(collapsed or should_stop())

        with (
            Progress(config.total_nimg, state.cur_nimg, shown=processes.leads) as progress,
            ticks.telling_what_is_kept() if ticks else nullcontext(),
        ):
            while state.cur_nimg < config.total_nimg and not stops():
                tick_end_nimg = min((state.cur_nimg // tick_nimg + 1) * tick_nimg, config.total_nimg)
                _play_tick(trainer, tick_end_nimg, progress, stops)
                if ticks is None:
                    continue
                if state.cur_nimg >= tick_end_nimg:
                    progress.tick(ticks.leave_tick())
                else:
                    ticks.leave_snapshot()
        if stop_on_collapse and ticks:
            ticks.check_collapse()
    return state


def _play_tick(
    trainer: Trainer, tick_end_nimg: int, progress: Progress, should_stop: Callable[[], bool]
) -> None:
    """Play iterations, at least one, until the tick's end or a stop."""
    state, iteration_nimg = trainer.state, trainer.config.iteration_nimg
    began_nimg, began_s = state.cur_nimg, time.monotonic()
    while True:
        state.averages.add(trainer.run_iteration())
        progress.advance(iteration_nimg)
        if state.cur_nimg >= tick_end_nimg or should_stop():
            break
    check_steps(state.D_optimizer, "D")
    check_steps(state.G_optimizer, "G")
    seconds = time.monotonic() - began_s
    state.averages.add_time(state.cur_nimg - began_nimg, seconds)
    state.train_s += seconds
