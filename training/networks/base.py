"""What every pair looks like from outside: latents become samples, a sample becomes a logit.

The loop, snapshots, grids and exports know these two classes only; each family of networks extends
them, and is built from the config and the shape of the data. Classes enter the same way in all of
them: beside z in G, by projection in D. Refuses to own: the layers between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.manifest import Truncation
from training.config import TrainConfig
from training.data.dataset import DataShape


class Generator(nn.Module, ABC):
    """Latents (and a class) become a sample.

    forward: z [N, z_dim] float32, class_idx [N] int64 (None if unconditional)
    returns images [N, img_channels, R, R] float32 in [-1, 1], or points [N, point_dim] float32;
    in eval mode no row depends on another
    """

    truncation: Truncation = "z"
    """Toward what it can be pulled: "z" from outside, "w" by a third input of forward, psi [N]."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__()
        self.z_dim = config.z_dim
        self.num_classes = shape.num_classes
        class_dim = config.class_dim if shape.num_classes else 0
        self.class_embedding = nn.Embedding(shape.num_classes, class_dim) if shape.num_classes else None
        self.in_dim = config.z_dim + class_dim

    @abstractmethod
    def forward(self, z: Tensor, class_idx: Tensor | None = None) -> Tensor: ...

    def conditioned(self, z: Tensor, class_idx: Tensor | None) -> Tensor:
        """Return [N, in_dim]: z with the class's embedding beside it, or z itself without classes."""
        if self.class_embedding is None:
            return z
        return torch.cat([z, self.class_embedding(class_idx)], dim=1)  # [N, z_dim + class_dim]


class Discriminator(nn.Module, ABC):
    """A sample (and a class) becomes one logit: large means real. No row depends on another.

    forward: samples as a Generator makes them, class_idx [N] int64 (None if unconditional)
    returns [N] float32
    """

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__()
        self.num_classes = shape.num_classes

    @abstractmethod
    def forward(self, samples: Tensor, class_idx: Tensor | None = None) -> Tensor: ...


class ProjectionHead(nn.Module):
    """Features become a logit: linear, plus their product with the class (Miyato 2018, arXiv:1802.05637).

    forward: features [N, feature_dim] float32, class_idx [N] int64 (None if unconditional)
    returns [N] float32
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.to_logit = nn.Linear(feature_dim, 1)
        self.class_embedding = nn.Embedding(num_classes, feature_dim) if num_classes else None

    def forward(self, features: Tensor, class_idx: Tensor | None = None) -> Tensor:
        logits: Tensor = self.to_logit(features).squeeze(1)  # [N]
        if self.class_embedding is not None:
            logits = logits + (self.class_embedding(class_idx) * features).sum(1)  # [N]
        return logits
