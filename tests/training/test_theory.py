"""The game against theory, on a density of one dimension that is known in closed form.

Goodfellow 2014, proposition 1: for a fixed G the best D is p_data / (p_data + p_g). Theorem 1: where the
game ends, p_g is p_data and D cannot tell them apart. Both are played with the package's own phases.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.config import TrainConfig
from training.data import DataShape
from training.data.mixtures import Mixture
from training.loop import Trainer
from training.losses import LOSSES
from training.networks import Generator
from training.phases import Batch, Rules, discriminator_phase
from training.reals import MixtureReals
from training.schedules import lr_scale
from training.snapshot import TrainState
from training.streams import RowDraws, generator_at

HILLS = Mixture(name="hills", means=np.array([[-1.2], [1.2]]), sigma=0.6)


class NormalGenerator(Generator):
    """G(z) = a z + b, so p_g is N(b, a²)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__(config_of(total_kimg=1), DataShape(img_channels=0, num_classes=0, point_dim=1))
        self.a, self.b = torch.nn.Parameter(torch.tensor(a)), torch.nn.Parameter(torch.tensor(b))

    def forward(self, z: Tensor, class_idx: Tensor | None = None) -> Tensor:
        return self.a * z + self.b


def config_of(**changes: object) -> TrainConfig:
    fields = {
        "preset": "theory",
        "network": "mlp",
        "z_dim": 1,
        "G_channels": 32,
        "D_channels": 32,
        "G_lr": 4e-3,
        "D_lr": 4e-3,
        "adam_beta1": 0.0,
        "lr_decay_start": 0.0,
    }
    return TrainConfig.from_dict(fields | changes)


def test_a_converged_discriminator_is_the_ratio_of_the_densities() -> None:
    config = config_of(total_kimg=200, batch_size=512, objective="minimax", D_lr=1e-2)
    reals = MixtureReals(HILLS, config.seed)
    state = TrainState.fresh(config, reals.shape)
    state.G = NormalGenerator(a=1.1, b=0.4)

    while state.cur_nimg < config.total_nimg:
        state.D_optimizer.param_groups[0]["lr"] = config.D_lr * lr_scale(state.cur_nimg, config)
        points, _ = reals.batch(state.cur_nimg, config.batch_size)
        stream = generator_at(config.seed, state.cur_nimg, "D")
        draws = RowDraws(stream, config.batch_size, slice(None), state.device)
        batch = Batch(reals=points, class_idx=None, z=draws.normal(config.z_dim), draws=draws)
        discriminator_phase(state, Rules(losses=LOSSES[config.objective]), [batch])
        state.cur_nimg += config.batch_size

    x = np.linspace(-3, 3, 601)  # in units of the mixture's scale, as the networks see points
    p_data = HILLS.density(x[:, None] * HILLS.scale) * HILLS.scale
    p_g = np.exp(-(((x - 0.4) / 1.1) ** 2) / 2) / (1.1 * math.sqrt(2 * math.pi))
    support = p_data + p_g > 0.05  # an interval that holds 98 % of the samples that D sees
    best = p_data[support] / (p_data + p_g)[support]
    with torch.no_grad():
        D = torch.sigmoid(state.D(torch.from_numpy(x[support, None]).float())).numpy()
    assert (p_data + p_g)[support].sum() / 2 * (x[1] - x[0]) > 0.98
    assert best.max() - best.min() > 0.4  # no constant is near it
    assert np.abs(D - best).max() < 0.05


def test_a_stable_run_ends_with_fakes_like_the_data_and_a_discriminator_that_cannot_tell() -> None:
    config = config_of(
        total_kimg=160, batch_size=256, objective="relativistic", r1_gamma=0.1, r2_gamma=0.1, r1_interval=1
    )
    reals = MixtureReals(HILLS, config.seed)
    state = TrainState.fresh(config, reals.shape)
    trainer = Trainer(config, reals, state)
    at_first = kolmogorov_smirnov(state.G_ema)

    while state.cur_nimg < config.total_nimg:
        trainer.run_iteration()

    points, _ = reals.batch(config.total_nimg, 10_000)  # never shown
    with torch.no_grad():
        gap = (state.D(points).sigmoid().mean() - state.D(samples(state.G)).sigmoid().mean()).item()
    assert at_first > 0.3
    assert kolmogorov_smirnov(state.G_ema) < 0.05
    assert abs(gap) < 0.05


def samples(G: Generator) -> Tensor:
    """Points [10,000, 1] in units of the mixture's scale, from evenly spaced quantiles of z."""
    quantiles = (torch.arange(10_000) + 0.5) / 10_000
    with torch.no_grad():
        fakes: Tensor = G(torch.distributions.Normal(0.0, 1.0).icdf(quantiles)[:, None])
    return fakes


def kolmogorov_smirnov(G: Generator) -> float:
    """The largest difference between the distribution functions of p_g, by samples, and of p_data."""
    x = np.sort(samples(G).numpy()[:, 0].astype(np.float64)) * HILLS.scale
    by_theory = cumulative(x)
    steps = np.arange(len(x) + 1) / len(x)
    return float(max(np.abs(by_theory - steps[1:]).max(), np.abs(by_theory - steps[:-1]).max()))


def cumulative(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The distribution function of p_data."""
    standard = (x[:, None] - HILLS.means[:, 0]) / (HILLS.sigma * math.sqrt(2))  # [N, K]
    return np.array([sum(0.5 * (1 + math.erf(s)) for s in row) / len(row) for row in standard])
