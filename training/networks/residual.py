"""A modern pair without normalisation layers, for any power of two from 16 to 256.

After R3GAN (Huang 2024, arXiv:2501.05441, section 4): G starts from a learned 4×4 basis that is scaled
by linear(z); every resolution has residual blocks, a grouped 3×3 convolution between two 1×1 ones; D is
the mirror image. Without BatchNorm what keeps a deep pair trainable is its start (Fixup, Zhang 2019,
arXiv:1901.09321): each branch ends in a convolution at zero, so the network begins as its shortcuts.

Two things differ from the paper, for the sake of what serving costs: no block works at the image's own
resolution, where the last doubling is a sub-pixel convolution (Shi 2016, arXiv:1609.05158) and D begins
with its inverse; and images end in tanh, as in every G here.

Resampling is bilinear behind a 1×1 convolution: both are linear and one mixes channels, the other
pixels, so they commute, and the convolution costs a quarter at the lower resolution. Measured in ONNX
Runtime on one CPU thread, against a transposed convolution of kernel 4 between the same widths, at
256→128 channels and 16×16, 128→64 and 32×32, 64→32 and 64×64 (time, transposed convolution = 1):

    1×1, nearest 0.10 0.13 0.20            1×1, bilinear 0.11 0.15 0.21
    1×1, bilinear by a depthwise transposed convolution 0.26 0.37 0.50
    1×1 to four phases, pixel shuffle 0.35 0.43 0.75
    bilinear, 1×1 0.51 0.71 1.01           bilinear, 3×3 2.17 2.06 2.09

Refuses to own: losses, optimizers, the scale of pixels in files.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.base import Discriminator, Generator, ProjectionHead
from training.networks.dcgan import FIRST_RESOLUTION, feature_widths

EXPANSION: Final = 2
GROUP_WIDTH: Final = 16
SLOPE: Final = 0.2

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class ResidualBlock(nn.Module):
    """x + branch(x), [N, C, R, R] both; the branch is 0 until training moves its last convolution.

    `depth` is the number of such blocks in the network: Fixup scales the convolutions inside by it.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        gain = nn.init.calculate_gain("leaky_relu", SLOPE) * depth**-0.25  # L^(-1/(2m-2)), m = 3 layers
        self.branch = nn.Sequential(
            _init(nn.Conv2d(channels, inner, kernel_size=1), gain),
            nn.LeakyReLU(SLOPE),
            _init(nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=_groups(inner)), gain),
            nn.LeakyReLU(SLOPE),
            _init(nn.Conv2d(inner, channels, kernel_size=1), 0.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class Upsample(nn.Module):
    """[N, A, R, R] -> [N, B, 2R, 2R]: 1×1 convolution, then bilinear."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _init(nn.Conv2d(in_channels, out_channels, kernel_size=1), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=False)
        return y


class Downsample(nn.Module):
    """[N, A, 2R, 2R] -> [N, B, R, R]: bilinear (at exactly half that is the mean of 2×2), then 1×1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _init(nn.Conv2d(in_channels, out_channels, kernel_size=1), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(avg_pool2d(x, 2))
        return y


class ResidualGenerator(Generator):
    """Latents become images [N, img_channels, R, R] in [-1, 1]."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        widths = feature_widths(config.img_resolution, config.G_channels)
        self.basis = nn.Parameter(torch.randn(widths[0], FIRST_RESOLUTION, FIRST_RESOLUTION))
        self.to_scales = _init(nn.Linear(self.in_dim, widths[0]), 1.0)
        self.layers = _resampled(Upsample, widths, config.residual_blocks)
        self.to_image = _init(nn.Conv2d(widths[-1], 4 * shape.img_channels, kernel_size=3, padding=1), 1.0)
        with torch.no_grad():  # its four phases begin alike, so no chequered pattern: arXiv:1707.02937
            self.to_image.weight.copy_(self.to_image.weight[::4].repeat_interleave(4, dim=0))

    def forward(self, z: Tensor, class_idx: Tensor | None = None) -> Tensor:
        scales = self.to_scales(self.conditioned(z, class_idx))  # [N, W]
        x = self.layers(scales[:, :, None, None] * self.basis)  # [N, W, 4, 4] -> [N, base_channels, R/2, R/2]
        return torch.tanh(pixel_shuffle(self.to_image(x), 2))  # [N, img_channels, R, R]


class ResidualDiscriminator(Discriminator):
    """Images become logits [N]: G's mirror image, with a learned 4×4 basis to look at the last map."""

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        widths = feature_widths(config.img_resolution, config.D_channels)[::-1]
        self.from_image = _init(nn.Conv2d(4 * shape.img_channels, widths[0], kernel_size=3, padding=1), 1.0)
        self.layers = _resampled(Downsample, widths, config.residual_blocks)
        self.basis = _init(nn.Conv2d(widths[-1], widths[-1], FIRST_RESOLUTION, groups=widths[-1]), 1.0)
        self.head = ProjectionHead(widths[-1], shape.num_classes)
        _init(self.head.to_logit, 1.0)

    def forward(self, samples: Tensor, class_idx: Tensor | None = None) -> Tensor:
        x = self.from_image(pixel_unshuffle(samples, 2))  # [N, base_channels, R/2, R/2]
        features = self.basis(self.layers(x)).flatten(1)  # [N, W, 4, 4] -> [N, W]
        logits: Tensor = self.head(features, class_idx)  # [N]
        return logits


def _resampled(resample: type[Upsample | Downsample], widths: list[int], blocks: int) -> nn.Sequential:
    """`blocks` residual blocks of each width, resampled in between."""
    depth = blocks * len(widths)
    layers: list[nn.Module] = [ResidualBlock(widths[0], depth) for _ in range(blocks)]
    for a, b in pairwise(widths):
        layers += [resample(a, b), *(ResidualBlock(b, depth) for _ in range(blocks))]
    return nn.Sequential(*layers)


def _groups(channels: int) -> int:
    """Groups of GROUP_WIDTH channels where they divide, else the nearest width that does."""
    return channels // math.gcd(channels, GROUP_WIDTH)


def _init(layer: Layer, gain: float) -> Layer:
    """Weights from N(0, gain² / fan_in), biases at zero."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
