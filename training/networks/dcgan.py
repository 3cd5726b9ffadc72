"""The DCGAN pair (Radford 2015, arXiv:1511.06434) for any power of two from 16 to 256.

G doubles the resolution with transposed convolutions of kernel 4 and stride 2: at equal quality
they cost a sixteenth of upsample-then-convolve where the artifact is served. BatchNorm is in G
only. Refuses to own: losses, optimizers, the scale of pixels in files.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.base import Discriminator, Generator, ProjectionHead

FIRST_RESOLUTION = 4
MAX_CHANNELS = 512


def channels_at(resolution: int, img_resolution: int, base_channels: int) -> int:
    """Width of the feature map at `resolution`: `base_channels` at half size, doubled at each halving."""
    return min(base_channels * img_resolution // (2 * resolution), MAX_CHANNELS)


def feature_resolutions(img_resolution: int) -> list[int]:
    """Resolutions of the feature maps below the image, ascending: 32 gives [4, 8, 16]."""
    resolutions = [FIRST_RESOLUTION]
    while resolutions[-1] * 2 < img_resolution:
        resolutions.append(resolutions[-1] * 2)
    return resolutions


def feature_widths(img_resolution: int, base_channels: int) -> list[int]:
    """Width of the map at each of `feature_resolutions`."""
    return [channels_at(r, img_resolution, base_channels) for r in feature_resolutions(img_resolution)]


class DcganGenerator(Generator):
    """Latents become images [N, img_channels, R, R] in [-1, 1]: 4×4, then doubled to R."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        widths = feature_widths(config.img_resolution, config.G_channels)
        self.first = nn.Sequential(
            nn.ConvTranspose2d(self.in_dim, widths[0], FIRST_RESOLUTION, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(_up(a, b) for a, b in pairwise(widths)))
        self.to_image = nn.ConvTranspose2d(widths[-1], shape.img_channels, kernel_size=4, stride=2, padding=1)
        self.apply(init_dcgan)

    def forward(self, z: Tensor, class_idx: Tensor | None = None) -> Tensor:
        x = self.first(self.conditioned(z, class_idx)[:, :, None, None])  # [N, C, 4, 4]
        x = self.blocks(x)  # [N, base_channels, R/2, R/2]
        return torch.tanh(self.to_image(x))  # [N, img_channels, R, R]


class DcganDiscriminator(Discriminator):
    """Images become logits [N]: halved down to 4×4 by convolutions of stride 2, without normalisation."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        widths = [shape.img_channels, *reversed(feature_widths(config.img_resolution, config.D_channels))]
        self.blocks = nn.Sequential(*(down(a, b) for a, b in pairwise(widths)))
        self.head = ProjectionHead(widths[-1] * FIRST_RESOLUTION**2, shape.num_classes)
        self.apply(init_dcgan)

    def forward(self, samples: Tensor, class_idx: Tensor | None = None) -> Tensor:
        features = channels_last_features(self.blocks(samples))  # [N, F]
        logits: Tensor = self.head(features, class_idx)  # [N]
        return logits


def channels_last_features(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H·W·C]: a view of maps that are channels last in memory, and so is its gradient.

    Flattened in the other order, D's last map gets a gradient in the wrong layout: 7 % of D's time on a CPU.
    """
    return x.permute(0, 2, 3, 1).flatten(1)


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """[N, A, R, R] -> [N, B, 2R, 2R]."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def down(in_channels: int, out_channels: int) -> nn.Sequential:
    """[N, A, 2R, 2R] -> [N, B, R, R]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
    )


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), as the DCGAN paper has them; biases at zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
