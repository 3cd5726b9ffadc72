"""The alternating game of Goodfellow 2014 (arXiv:1406.2661, algorithm 1), and the run around it.

`discriminator_phase` and `generator_phase` are the paper's two steps, `Trainer.run_iteration` plays
both on one batch, and `train` repeats that from wherever the run folder stands to `total_kimg`, with
a tick of bookkeeping in between. Refuses to own: the losses, the networks, what a run folder looks like.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import InvalidValue, show
from training.augment import NO_AUGMENT, Augment
from training.config import Precision, TrainConfig
from training.data import Dataset
from training.device import CPU, check_precision
from training.elbo import kl_divergence, reconstruction_loss
from training.ema import update_ema
from training.guard import check_steps, take_step
from training.losses import LOSSES, Losses
from training.networks.spectral_norm import advance_power_iteration
from training.penalties import (
    NO_PENALTIES,
    PenaltyWeights,
    finite_difference_slope,
    gradient_penalty,
    squared_slope,
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


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Hold every bit of `network`: its parameters take no gradient, its BatchNorms measure nothing.

    In train mode BatchNorm still normalises by the batch it is given; only the running statistics rest.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    network.requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        network.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True


Figures = dict[str, Tensor]
"""What a phase says about the game by name, each [N], detached, or [1]: the norm of all gradients together.

Figures of penalties are unweighted."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one device run of a phase plays on; row i of everything belongs together."""

    reals: Tensor
    """[N, …] float32; in phase 2 only a paired objective reads them."""
    class_idx: Tensor | None
    """[N] int64: asked of the fakes, and the classes of the reals where they are read."""
    z: Tensor
    """[N, z_dim] float32, drawn for this phase alone."""
    draws: RowDraws
    """Further randomness of these rows."""


def computed(network: nn.Module, *inputs: Tensor | None, precision: Precision) -> Tensor:
    """What `network` makes of `inputs`, as float32; the way there may be bf16."""
    output: Tensor
    if precision == "fp32":
        output = network(*inputs)
        return output
    with torch.autocast(next(network.parameters()).device.type, torch.bfloat16):
        output = network(*inputs)
    return output.float()


def gradients(network: nn.Module) -> list[Tensor]:
    """The gradients that `network` has, in the order of its parameters."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def statistics(*networks: nn.Module) -> Iterator[Tensor]:
    """What `networks` measure of their batches and keep: BatchNorm's running means and variances."""
    for network in networks:
        yield from (buffer for buffer in network.buffers() if buffer.is_floating_point())


def discriminator_phase(
    state: TrainState,
    losses: Losses,
    microbatches: Sequence[Batch],
    weights: PenaltyWeights = NO_PENALTIES,
    augment: Augment = NO_AUGMENT,
    precision: Precision = "fp32",
    processes: Processes = ALONE,
) -> Figures:
    """Phase 1: D takes one step on the mean loss of equal `microbatches`, and G is frozen."""
    advance_power_iteration(state.D)
    state.D_optimizer.zero_grad(set_to_none=True)
    mean_loss, parts = torch.zeros((), device=state.device), []
    for batch in microbatches:
        with frozen(state.G), torch.no_grad():
            fakes = computed(state.G, batch.z, batch.class_idx, precision=precision)  # [N, …]
        loss, figures = _judge(state.D, losses, batch, fakes, weights, augment, precision)  # [N]
        mean_loss += _backward(loss.mean() / len(microbatches))
        parts.append(figures)
    processes.average([mean_loss, *gradients(state.D)])
    norm = take_step(state.D_optimizer, "D", mean_loss, gradients(state.D))
    return _joined(parts) | {"D_gradient_norm": norm}


def generator_phase(
    state: TrainState,
    losses: Losses,
    microbatches: Sequence[Batch],
    augment: Augment = NO_AUGMENT,
    precision: Precision = "fp32",
    processes: Processes = ALONE,
) -> Figures:
    """Phase 2: G takes one step on the mean loss of equal `microbatches`, their z fresh, and D is frozen."""
    state.G_optimizer.zero_grad(set_to_none=True)
    mean_loss, parts = torch.zeros((), device=state.device), []
    for batch in microbatches:
        with frozen(state.D):
            fakes = computed(state.G, batch.z, batch.class_idx, precision=precision)  # [N, …]
            fakes = augment(fakes, batch.draws)
            fake_logits = computed(state.D, fakes, batch.class_idx, precision=precision)  # [N]
            real_logits = fake_logits  # an objective that is not paired does not look at them
            if losses.paired:
                reals = augment(batch.reals, batch.draws)
                real_logits = computed(state.D, reals, batch.class_idx, precision=precision)  # [N]
            loss = losses.G(real_logits, fake_logits)  # [N]
            mean_loss += _backward(loss.mean() / len(microbatches))
        parts.append({"G_loss": loss.detach()})
    processes.average([mean_loss, *gradients(state.G)])
    norm = take_step(state.G_optimizer, "G", mean_loss, gradients(state.G))
    return _joined(parts) | {"G_gradient_norm": norm}


def elbo_phase(
    state: TrainState,
    microbatches: Sequence[Batch],
    sigma: float,
    precision: Precision = "fp32",
    processes: Processes = ALONE,
) -> Figures:
    """The only phase of a VAE: encoder (in D's place) and decoder take one step on the same mean loss."""
    for optimizer in (state.D_optimizer, state.G_optimizer):
        optimizer.zero_grad(set_to_none=True)
    mean_loss, parts = torch.zeros((), device=state.device), []
    for batch in microbatches:
        moments = computed(state.D, batch.reals, batch.class_idx, precision=precision)  # [N, 2 z_dim]
        mean, log_variance = moments.chunk(2, dim=1)  # [N, z_dim] each
        z = mean + (log_variance / 2).exp() * batch.z  # [N, z_dim]: a draw of q that gradients flow through
        reconstructions = computed(state.G, z, batch.class_idx, precision=precision)  # [N, …]
        figures = {
            "reconstruction_loss": reconstruction_loss(batch.reals, reconstructions, sigma),  # [N]
            "kl_divergence": kl_divergence(mean, log_variance),  # [N]
        }
        loss = figures["reconstruction_loss"] + figures["kl_divergence"]  # [N]
        mean_loss += _backward(loss.mean() / len(microbatches))
        parts.append({name: values.detach() for name, values in figures.items()})
    processes.average([mean_loss, *gradients(state.D), *gradients(state.G)])
    norms = {
        "D_gradient_norm": take_step(state.D_optimizer, "D", mean_loss, gradients(state.D)),
        "G_gradient_norm": take_step(state.G_optimizer, "G", mean_loss, gradients(state.G)),
    }
    return _joined(parts) | norms


def _backward(loss: Tensor) -> Tensor:
    """Add the gradients of loss [], and return it detached."""
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach()


def _judge(
    D: nn.Module,
    losses: Losses,
    batch: Batch,
    fakes: Tensor,
    weights: PenaltyWeights,
    augment: Augment,
    precision: Precision,
) -> tuple[Tensor, Figures]:
    """D's loss with its penalties [N], and its figures.

    Penalties are of the samples as they are, in fp32. Without augmentation R1 and R2 share the loss's
    forward pass, which then is fp32 too: that is cheaper than a pass of each precision.
    """
    shared = (weights.r1 > 0 or weights.r2 > 0) and not augment

    def logits_of(samples: Tensor, precision: Precision = "fp32") -> Tensor:
        return computed(D, samples, batch.class_idx, precision=precision)

    reals, sigma = batch.reals, weights.sigma
    reals.requires_grad_(weights.r1 > 0 and not sigma)
    fakes.requires_grad_(weights.r2 > 0 and not sigma)
    precision = "fp32" if shared else precision
    real_logits = logits_of(augment(reals, batch.draws), precision)  # [N]
    fake_logits = logits_of(augment(fakes, batch.draws), precision)  # [N]
    loss = losses.D(real_logits, fake_logits)  # [N]
    figures = {"D_loss": loss, "D_real_logit": real_logits, "D_fake_logit": fake_logits}
    figures["D_real_accuracy"], figures["D_fake_accuracy"] = losses.accuracies(real_logits, fake_logits)
    if losses.probabilities is not None:
        probabilities = losses.probabilities(real_logits, fake_logits)
        figures["D_real_probability"], figures["D_fake_probability"] = probabilities

    def slope(logits: Tensor, samples: Tensor) -> Tensor:
        if not shared:
            logits = logits_of(samples)
        if not sigma:
            return squared_slope(logits, samples)
        return finite_difference_slope(logits_of, logits, samples, batch.draws.noise_like(samples), sigma)

    if weights.r1 > 0:
        figures["r1_penalty"] = slope(real_logits, reals)  # [N]
        loss = loss + weights.r1 / 2 * figures["r1_penalty"]
    if weights.r2 > 0:
        figures["r2_penalty"] = slope(fake_logits, fakes)  # [N]
        loss = loss + weights.r2 / 2 * figures["r2_penalty"]
    if weights.gp > 0:
        figures["gradient_penalty"] = gradient_penalty(logits_of, reals, fakes, batch.draws.uniform())  # [N]
        loss = loss + weights.gp * figures["gradient_penalty"]
    return loss, {name: values.detach() for name, values in figures.items()}


def _joined(parts: Sequence[Figures]) -> Figures:
    """One row after the other; a figure that some parts lack has the rows of the others."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


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
        augment = augment_at(state.cur_nimg, config)
        D_figures = []
        for cur_nimg in range(state.cur_nimg, state.cur_nimg + config.iteration_nimg, config.batch_size):
            D_batches = [self._discriminator_batch(cur_nimg, rows) for rows in self._microbatches]
            weights = penalty_weights(cur_nimg, config)
            D_figures.append(
                discriminator_phase(
                    state, losses, D_batches, weights, augment, config.precision, self._processes
                )
            )
        G_batches = [
            self._generator_batch(batch, rows, losses.paired)
            for batch, rows in zip(D_batches, self._microbatches, strict=True)
        ]
        G_figures = generator_phase(state, losses, G_batches, augment, config.precision, self._processes)
        return _joined(D_figures) | G_figures

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
