"""The second network of a variational autoencoder: an image becomes a distribution over latents.

Built like the DCGAN's D, whichever family the decoder is of. Refuses to own: sampling, losses
(`training.elbo`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.dcgan import (
    FIRST_RESOLUTION,
    channels_at,
    channels_last_features,
    down,
    feature_resolutions,
    init_dcgan,
)


class Encoder(nn.Module):
    """q(z|x): the mean of each latent, and beside them the logarithm of each variance.

    forward: images [N, img_channels, R, R] float32 in [-1, 1], class_idx [N] int64 (None if unconditional)
    returns [N, 2 z_dim] float32; no row depends on another
    """

    def __init__(
        self,
        *,
        z_dim: int,
        img_resolution: int,
        img_channels: int,
        num_classes: int = 0,
        class_dim: int = 32,
        base_channels: int = 64,
    ) -> None:
        super().__init__()
        resolutions = feature_resolutions(img_resolution)[::-1]
        widths = [img_channels, *(channels_at(r, img_resolution, base_channels) for r in resolutions)]
        self.blocks = nn.Sequential(*(down(a, b) for a, b in pairwise(widths)))
        self.class_embedding = nn.Embedding(num_classes, class_dim) if num_classes else None
        feature_dim = widths[-1] * FIRST_RESOLUTION**2 + (class_dim if num_classes else 0)
        self.to_moments = nn.Linear(feature_dim, 2 * z_dim)
        self.apply(init_dcgan)

    def forward(self, images: Tensor, class_idx: Tensor | None = None) -> Tensor:
        features = channels_last_features(self.blocks(images))  # [N, F]
        if self.class_embedding is not None:
            features = torch.cat([features, self.class_embedding(class_idx)], dim=1)  # [N, F + class_dim]
        moments: Tensor = self.to_moments(features)  # [N, 2 z_dim]
        return moments


def encoder(config: TrainConfig, shape: DataShape) -> Encoder:
    return Encoder(
        z_dim=config.z_dim,
        img_resolution=config.img_resolution,
        img_channels=shape.img_channels,
        num_classes=shape.num_classes,
        class_dim=config.class_dim,
        base_channels=config.D_channels,
    )
