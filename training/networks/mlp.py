"""Multi-layer perceptrons: the pair for points in the plane, and the plainest one for small images.

Three hidden layers each, no normalisation: 3×128 is what mode-coverage tests on 2-D mixtures use.
Refuses to own: losses, optimizers.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.base import Discriminator, Generator, ProjectionHead

HIDDEN_LAYERS = 3


class MlpGenerator(Generator):
    """Latents become points [N, point_dim], as they come; or images [N, C, R, R] in [-1, 1], through tanh."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.sample_shape = shape.sample_shape(config.img_resolution)
        self.hidden = _hidden(self.in_dim, config.G_channels, nn.ReLU())
        self.to_sample = nn.Linear(config.G_channels, math.prod(self.sample_shape))

    def forward(self, z: Tensor, class_idx: Tensor | None = None) -> Tensor:
        x = self.hidden(self.conditioned(z, class_idx))  # [N, width]
        samples: Tensor = self.to_sample(x).unflatten(1, self.sample_shape)  # [N, *sample_shape]
        return torch.tanh(samples) if len(self.sample_shape) > 1 else samples


class MlpDiscriminator(Discriminator):
    """Samples of any shape become logits [N]."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        size = math.prod(shape.sample_shape(config.img_resolution))
        self.hidden = _hidden(size, config.D_channels, nn.LeakyReLU(0.2))
        self.head = ProjectionHead(config.D_channels, shape.num_classes)

    def forward(self, samples: Tensor, class_idx: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.hidden(samples.flatten(1)), class_idx)  # [N]
        return logits


def _hidden(in_dim: int, width: int, activation: nn.Module) -> nn.Sequential:
    """in_dim -> width -> width -> width, each with its activation; weights as torch's Linear draws them."""
    sizes = [in_dim] + [width] * HIDDEN_LAYERS
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation)]
    return nn.Sequential(*layers)
