"""The phases of an iteration: what is computed, and who moves.

`discriminator_phase` and `generator_phase` are the two steps of algorithm 1 in Goodfellow 2014
(arXiv:1406.2661); `elbo_phase` is the only one of a VAE. Each takes one optimizer step on the mean loss of a
batch, given in equal microbatches. Refuses to own: the losses and penalties, where batches come from
(`training.loop`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.augment import NO_AUGMENT, Augment
from training.config import Precision
from training.double_backward import CheapDoubleBackward
from training.elbo import kl_divergence, reconstruction_loss
from training.guard import take_step
from training.losses import Losses
from training.networks.spectral_norm import advance_power_iteration
from training.networks.style import advance_w_avg, collected_w
from training.penalties import (
    NO_PENALTIES,
    PenaltyWeights,
    finite_difference_slope,
    gradient_penalty,
    squared_slope,
)
from training.processes import ALONE, Processes
from training.snapshot import TrainState
from training.streams import RowDraws


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


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the phases of a game are played."""

    losses: Losses
    weights: PenaltyWeights = NO_PENALTIES
    augment: Augment = NO_AUGMENT
    """What D sees its images through."""
    precision: Precision = "fp32"
    processes: Processes = ALONE
    """Those that each play on a part of the batch."""


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


def discriminator_phase(state: TrainState, rules: Rules, microbatches: Sequence[Batch]) -> Figures:
    """Phase 1: D takes one step on the mean loss of equal `microbatches`, and G is frozen."""
    advance_power_iteration(state.D)
    state.D_optimizer.zero_grad(set_to_none=True)
    mean_loss, parts = torch.zeros((), device=state.device), []
    for batch in microbatches:
        with frozen(state.G), torch.no_grad():
            fakes = computed(state.G, batch.z, batch.class_idx, precision=rules.precision)  # [N, …]
        loss, figures = _judge(state.D, rules, batch, fakes)  # [N]
        mean_loss += _backward(loss.mean() / len(microbatches))
        parts.append(figures)
    rules.processes.average([mean_loss, *gradients(state.D)])
    norms = take_step(mean_loss, D=state.D_optimizer)
    return joined(parts) | norms


def generator_phase(state: TrainState, rules: Rules, microbatches: Sequence[Batch]) -> Figures:
    """Phase 2: G takes one step on the mean loss of equal `microbatches`, their z fresh, and D is frozen."""
    state.G_optimizer.zero_grad(set_to_none=True)
    mean_loss, parts = torch.zeros((), device=state.device), []
    for batch in microbatches:
        with frozen(state.D):
            fakes = computed(state.G, batch.z, batch.class_idx, precision=rules.precision)  # [N, …]
            fakes = rules.augment(fakes, batch.draws)
            fake_logits = computed(state.D, fakes, batch.class_idx, precision=rules.precision)  # [N]
            real_logits = fake_logits  # an objective that is not paired does not look at them
            if rules.losses.paired:
                reals = rules.augment(batch.reals, batch.draws)
                real_logits = computed(state.D, reals, batch.class_idx, precision=rules.precision)  # [N]
            loss = rules.losses.G(real_logits, fake_logits)  # [N]
            mean_loss += _backward(loss.mean() / len(microbatches))
        parts.append({"G_loss": loss.detach()})
    rules.processes.average([mean_loss, *gradients(state.G), *collected_w(state.G)])
    norms = take_step(mean_loss, G=state.G_optimizer)
    advance_w_avg(state.G)
    return joined(parts) | norms


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
    processes.average([mean_loss, *gradients(state.D), *gradients(state.G), *collected_w(state.G)])
    norms = take_step(mean_loss, D=state.D_optimizer, G=state.G_optimizer)
    advance_w_avg(state.G)
    return joined(parts) | norms


def _backward(loss: Tensor) -> Tensor:
    """Add the gradients of loss [], and return it detached."""
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach()


def _judge(D: nn.Module, rules: Rules, batch: Batch, fakes: Tensor) -> tuple[Tensor, Figures]:
    """D's loss with its penalties [N], and its figures.

    Penalties are of the samples as they are, in fp32. Without augmentation R1 and R2 share the loss's
    forward pass, which then is fp32 too: that is cheaper than a pass of each precision.
    """
    losses, weights, augment = rules.losses, rules.weights, rules.augment
    shared = (weights.r1 > 0 or weights.r2 > 0) and not augment

    def logits_of(samples: Tensor, precision: Precision = "fp32") -> Tensor:
        has_slope = samples.requires_grad and precision == "fp32"
        with CheapDoubleBackward() if has_slope else nullcontext():
            return computed(D, samples, batch.class_idx, precision=precision)

    reals, sigma = batch.reals, weights.sigma
    reals.requires_grad_(weights.r1 > 0 and not sigma)
    fakes.requires_grad_(weights.r2 > 0 and not sigma)
    precision: Precision = "fp32" if shared else rules.precision
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


def joined(parts: Sequence[Figures]) -> Figures:
    """One row after the other; a figure that some parts lack has the rows of the others."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
