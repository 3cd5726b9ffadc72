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
from training.networks.dcgan import FIRST_RESOLUTION, channels_last_features, down, feature_widths, init_dcgan


class Encoder(nn.Module):
    """q(z|x): the mean of each latent, and beside them the logarithm of each variance.

    forward: images [N, img_channels, R, R] float32 in [-1, 1], class_idx [N] int64 (None if unconditional)
    returns [N, 2 z_dim] float32; no row depends on another
    """

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__()
        widths = [shape.img_channels, *reversed(feature_widths(config.img_resolution, config.D_channels))]
        self.blocks = nn.Sequential(*(down(a, b) for a, b in pairwise(widths)))
        class_dim = config.class_dim if shape.num_classes else 0
        self.class_embedding = nn.Embedding(shape.num_classes, class_dim) if shape.num_classes else None
        self.to_moments = nn.Linear(widths[-1] * FIRST_RESOLUTION**2 + class_dim, 2 * config.z_dim)
        self.apply(init_dcgan)

    def forward(self, images: Tensor, class_idx: Tensor | None = None) -> Tensor:
        features = channels_last_features(self.blocks(images))  # [N, F]
        if self.class_embedding is not None:
            features = torch.cat([features, self.class_embedding(class_idx)], dim=1)  # [N, F + class_dim]
        moments: Tensor = self.to_moments(features)  # [N, 2 z_dim]
        return moments
