"""The alternating game of Goodfellow 2014 (arXiv:1406.2661, algorithm 1), and the run around it.

`discriminator_phase` and `generator_phase` are the paper's two steps, `Trainer.run_iteration` plays
both on one batch, and `train` repeats that from wherever the run folder stands to `total_kimg`, with
a tick of bookkeeping in between. Refuses to own: the losses, the networks, what a run folder looks like.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data import DataOrder, Dataset
from training.ema import update_ema
from training.errors import RunError
from training.grid import grid_columns, save_grid
from training.losses import LOSSES, Losses, r1_penalty
from training.progress import Progress
from training.run_folder import RunFolder
from training.schedules import ema_beta, lr_scale, r1_weight
from training.servable import render_seeds
from training.snapshot import TrainState, load_snapshot, save_snapshot
from training.streams import generator_at

GRID_ROWS = 8


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Hold every bit of `network`: its parameters take no gradient, its BatchNorms measure nothing.

    In train mode BatchNorm still normalises by the batch it is given; only the running statistics rest.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        network.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True


def discriminator_phase(
    state: TrainState,
    losses: Losses,
    reals: Tensor,
    class_idx: Tensor | None,
    z: Tensor,
    r1_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Phase 1: D learns real -> 1, fake -> 0, and G is frozen.

    reals [N, C, R, R] in [-1, 1]; class_idx [N] of the reals, and asked of the fakes; z [N, z_dim].
    Returns the loss without its penalty, D(x) and D(G(z)) as probabilities, each [N], detached.
    """
    with frozen(state.G), torch.no_grad():
        fakes = state.G(z, class_idx)  # [N, C, R, R]
    reals.requires_grad_(r1_weight > 0)
    real_logits = state.D(reals, class_idx)  # [N]
    fake_logits = state.D(fakes, class_idx)  # [N]
    loss = losses.D(real_logits, fake_logits)  # [N]
    penalty = r1_weight / 2 * r1_penalty(real_logits, reals) if r1_weight > 0 else torch.zeros(())
    state.D_optimizer.zero_grad(set_to_none=True)
    (loss + penalty).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    state.D_optimizer.step()
    return loss.detach(), real_logits.detach().sigmoid(), fake_logits.detach().sigmoid()


def generator_phase(state: TrainState, losses: Losses, class_idx: Tensor | None, z: Tensor) -> Tensor:
    """Phase 2: G learns D(G(z)) -> 1, and D is frozen.

    z [N, z_dim] is fresh, class_idx [N]. Returns the loss [N], detached.
    """
    with frozen(state.D):
        fake_logits = state.D(state.G(z, class_idx), class_idx)  # [N]
        loss = losses.G(fake_logits)  # [N]
        state.G_optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    state.G_optimizer.step()
    return loss.detach()


@dataclass(frozen=True)
class IterationFigures:
    """What one iteration says about the game, each [N]."""

    D_loss: Tensor
    G_loss: Tensor
    D_real_probability: Tensor
    D_fake_probability: Tensor


class Trainer:
    """Plays iterations of one config on one data set."""

    def __init__(self, config: TrainConfig, dataset: Dataset, state: TrainState) -> None:
        self.config = config
        self.state = state
        self._losses = LOSSES[config.objective]
        self._order = DataOrder(len(dataset), config.seed)
        self._images = torch.from_numpy(dataset.images)  # [N, C, R, R] uint8
        self._class_idx = None if dataset.class_idx is None else torch.from_numpy(dataset.class_idx)  # [N]

    def run_iteration(self) -> IterationFigures:
        """Phase 1 on the next batch of reals, phase 2 on fresh latents, then G_ema."""
        config, state = self.config, self.state
        self._set_lr()
        reals, class_idx = self._next_reals()
        z = self._latents(generator_at(config.seed, state.cur_nimg, "D"))
        D_loss, real_probability, fake_probability = discriminator_phase(
            state, self._losses, reals, class_idx, z, r1_weight(state.cur_nimg, config)
        )
        stream = generator_at(config.seed, state.cur_nimg, "G")
        G_loss = generator_phase(state, self._losses, self._draw_classes(stream), self._latents(stream))
        state.cur_nimg += config.batch_size
        update_ema(state.G_ema, state.G, ema_beta(state.cur_nimg, config))
        return IterationFigures(D_loss, G_loss, real_probability, fake_probability)

    def _set_lr(self) -> None:
        scale = lr_scale(self.state.cur_nimg, self.config)
        self.state.G_optimizer.param_groups[0]["lr"] = self.config.G_lr * scale
        self.state.D_optimizer.param_groups[0]["lr"] = self.config.D_lr * scale

    def _next_reals(self) -> tuple[Tensor, Tensor | None]:
        rows = torch.from_numpy(self._order.rows(self.state.cur_nimg, self.config.batch_size))
        images = self._images[rows].to(torch.float32) / 127.5 - 1.0  # [N, C, R, R] in [-1, 1]
        reals = images.contiguous(memory_format=torch.channels_last)
        return reals, None if self._class_idx is None else self._class_idx[rows]

    def _latents(self, stream: torch.Generator) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.z_dim, generator=stream)  # [N, z_dim]

    def _draw_classes(self, stream: torch.Generator) -> Tensor | None:
        """Classes [N] as frequent as in the data."""
        if self._class_idx is None:
            return None
        rows = torch.randint(len(self._class_idx), (self.config.batch_size,), generator=stream)
        return self._class_idx[rows]


class TickAverages:
    """Means of the figures since the last tick, summed as tensors: no wait for a device in an iteration."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._iterations = 0
        self._began_s = time.monotonic()

    def add(self, figures: IterationFigures) -> None:
        for name, values in vars(figures).items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + values.mean()
        self._iterations += 1

    def row(self, state: TrainState, batch_size: int) -> dict[str, Any]:
        """One line of `metrics.jsonl`; `state.train_s` grows by the tick's length."""
        tick_s = time.monotonic() - self._began_s
        state.train_s += tick_s
        return {
            "cur_nimg": state.cur_nimg,
            **{name: float(total) / self._iterations for name, total in self._sums.items()},
            "images_per_s": round(self._iterations * batch_size / tick_s, 1),
            "train_s": round(state.train_s, 1),
        }


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: RunFolder,
    *,
    tick_kimg: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train in `run` until `config.total_kimg`, or until `should_stop` says so between two iterations.

    Goes on from the folder's snapshot if there is one. Each tick, and the end, leaves a snapshot, a
    line of metrics and a grid. Raises RunError for a folder of another run, or a loss that is not finite.
    """
    run.open(config, dataset.facts())
    state = TrainState.fresh(config, dataset.shape)
    if run.snapshot_file.exists():
        state.load_dict(load_snapshot(run.snapshot_file).state)
    trainer = Trainer(config, dataset, state)
    tick_nimg = max(round(tick_kimg * 1000), 1)
    with Progress(config.total_nimg, state.cur_nimg) as progress:
        if state.cur_nimg:
            progress.say(f"going on from {state.cur_nimg / 1000:g} kimg")
        while state.cur_nimg < config.total_nimg and not should_stop():
            tick_end_nimg = min((state.cur_nimg // tick_nimg + 1) * tick_nimg, config.total_nimg)
            row = _run_tick(trainer, tick_end_nimg, progress, should_stop)
            _finish_tick(config, dataset, run, state, row)
            progress.tick(row)
    return state


def _run_tick(
    trainer: Trainer, tick_end_nimg: int, progress: Progress, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Play iterations, at least one, until the tick's end or a stop. Returns the tick's line of metrics."""
    averages = TickAverages()
    batch_size = trainer.config.batch_size
    while True:
        averages.add(trainer.run_iteration())
        progress.advance(batch_size)
        if trainer.state.cur_nimg >= tick_end_nimg or should_stop():
            return averages.row(trainer.state, batch_size)


def _finish_tick(
    config: TrainConfig, dataset: Dataset, run: RunFolder, state: TrainState, row: dict[str, Any]
) -> None:
    """Leave what a tick leaves; a state that is not finite never replaces a good snapshot."""
    if not all(math.isfinite(value) for value in row.values()):
        raise RunError(
            f"the losses are not finite at {state.cur_nimg / 1000:g} kimg; the snapshot before is kept. "
            "Try a lower G_lr and D_lr in a new run folder"
        )
    save_snapshot(run.snapshot_file, config, dataset.facts(), state)
    run.append_metrics(row)
    columns = grid_columns(dataset.num_classes)
    seeds = range(columns * GRID_ROWS)
    save_grid(run.grid_file(state.cur_nimg), render_seeds(state.G_ema, seeds), columns)
