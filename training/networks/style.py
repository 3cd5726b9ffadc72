"""A generator of the StyleGAN2 kind (Karras 2019, arXiv:1812.04948; Karras 2020, arXiv:1912.04958).

A mapping network turns z into w; each convolution of the synthesis network is modulated by w; images are
summed over the resolutions. Truncation happens in w, row by row and without an `if`, so it is part of the
graph that is served. Four things differ from the papers, for the sake of serving:

- The modulated convolution scales activations, not weights: the same numbers (equations 1 and 3 commute with
  the convolution), and one plain convolution for a whole batch where the fused form needs one kernel a row.
- Noise is constant, drawn once when the network is built: a seed names an image.
- Upsampling is bilinear behind the convolution. Measured in ONNX Runtime on one CPU thread, 64 channels,
  16×16 to 32×32, time an image: 0.12 ms; the papers' transposed convolution and blur 0.22, a transposed
  convolution of kernel 4 0.51, bilinear before the convolution 0.89.
- w_avg is a mean for each class, so psi 0 is the average image of a class.

D is the DCGAN's. Style mixing and path length regularisation are left out. Refuses to own: losses,
optimizers, the scale of pixels in files.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear, one_hot

from models.manifest import Truncation
from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.base import Generator
from training.networks.dcgan import FIRST_RESOLUTION, channels_at, feature_resolutions

MAPPING_LAYERS: Final = 4
MAPPING_LR: Final = 0.01
"""Learning rate of the mapping network, as a share of G's: 2019, section C."""
W_AVG_BETA: Final = 0.995
"""Share of w_avg that survives a step of G."""
SLOPE: Final = 0.2
GAIN: Final = math.sqrt(2)
"""Of a leaky ReLU, which halves the power of what goes in."""


class ScaledLinear(nn.Module):
    """A linear layer with weights from N(0, 1), scaled when they are used: all learn equally fast.

    forward: [N, A] -> [N, B]. The equalised learning rate of Karras 2018, arXiv:1710.10196, section 4.1.
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: float = 0.0, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr)
        self.bias = nn.Parameter(torch.full((out_dim,), bias / lr))
        self.lr = lr
        self.gain = lr / math.sqrt(in_dim)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.gain, self.bias * self.lr)


class Mapping(nn.Module):
    """z with its class becomes w, and the running mean of w is kept.

    A forward that G learns from only collects; `advance_w_avg` moves the mean, once a step of G, so that it
    is the same however a batch is split. K is max(num_classes, 1).
    forward: z [N, in_dim], class_idx [N] (None if unconditional) -> w [N, w_dim]
    """

    w_avg: Tensor
    """[K, w_dim]"""
    w_sums: Tensor
    """[K, w_dim]: of the rows since G stepped. No snapshot has them: between iterations there are none."""
    w_counts: Tensor
    """[K, 1]: how many rows they are the sums of, float32."""

    def __init__(self, in_dim: int, w_dim: int, num_classes: int) -> None:
        super().__init__()
        sizes = [in_dim] + [w_dim] * MAPPING_LAYERS
        self.layers = nn.ModuleList(ScaledLinear(a, b, lr=MAPPING_LR) for a, b in pairwise(sizes))
        num_means = max(num_classes, 1)
        self.register_buffer("w_avg", torch.zeros(num_means, w_dim))
        self.register_buffer("w_sums", torch.zeros(num_means, w_dim), persistent=False)
        self.register_buffer("w_counts", torch.zeros(num_means, 1), persistent=False)

    def forward(self, z: Tensor, class_idx: Tensor | None) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)  # [N, in_dim] of length sqrt(in_dim)
        for layer in self.layers:
            w = leaky_relu(layer(w), SLOPE) * GAIN
        if self.training and w.requires_grad:
            with torch.autocast(w.device.type, enabled=False):
                self._collect(w.detach().float(), class_idx)
        return w

    def averages(self, class_idx: Tensor | None) -> Tensor:
        """w_avg of each row's class: [N, w_dim], or [1, w_dim] for all."""
        return self.w_avg if class_idx is None else self.w_avg[class_idx]

    @torch.no_grad()
    def advance(self) -> None:
        """Move w_avg toward the means of what was collected, where a class has any, and begin anew."""
        means = self.w_sums / self.w_counts.clamp(min=1e-6)  # a mean over processes may be below 1
        self.w_avg.lerp_(means, (1 - W_AVG_BETA) * (self.w_counts > 0).to(means.dtype))
        self.w_sums.zero_()
        self.w_counts.zero_()

    @torch.no_grad()
    def _collect(self, w: Tensor, class_idx: Tensor | None) -> None:
        classes = w.new_zeros(len(w), dtype=torch.int64) if class_idx is None else class_idx
        rows = one_hot(classes, len(self.w_avg)).to(w.dtype)  # [N, K]
        self.w_sums += rows.T @ w
        self.w_counts += rows.sum(dim=0)[:, None]


def collected_w(network: nn.Module) -> list[Tensor]:
    """What `network` collected for `advance_w_avg`, by reference; its mean over processes serves as well."""
    mappings = [module for module in network.modules() if isinstance(module, Mapping)]
    return [tensor for one in mappings for tensor in (one.w_sums, one.w_counts)]


def advance_w_avg(network: nn.Module) -> None:
    """Move every w_avg by what was collected; nothing happens to a network without `Mapping`."""
    for module in network.modules():
        if isinstance(module, Mapping):
            module.advance()


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by w, row by row, and whose output has unit power again.

    forward: x [N, A, R, R], w [N, w_dim] -> [N, B, R, R]. 2020, equations 1 and 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int, *, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.to_scales = ScaledLinear(w_dim, in_channels, bias=1.0)
        self.gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s, weight = self.to_scales(w), self.weight * self.gain  # [N, A], [B, A, K, K]
        y = conv2d(x * s[:, :, None, None], weight, padding="same")  # equation 1, on the activations
        if self.demodulate:
            power = s.square() @ weight.square().sum(dim=(2, 3)).T  # [N, B]: sum of (s_i w_ijk)²
            y = y * torch.rsqrt(power + 1e-8)[:, :, None, None]  # equation 3
        return y


class StyleLayer(nn.Module):
    """Modulated convolution, upsampling if asked for, constant noise, bias, leaky ReLU.

    forward: x [N, A, r, r], w [N, w_dim] -> [N, B, R, R] with R = r or 2r
    """

    noise: Tensor
    """[1, 1, R, R], drawn when the layer is built."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, *, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv(in_channels, out_channels, w_dim, kernel_size=3)
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.up = up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.conv(x, w)
        if self.up:
            x = _doubled(x)
        return leaky_relu(x + self.noise * self.noise_strength + self.bias, SLOPE) * GAIN


class StyleGenerator(Generator):
    """Latents become images [N, img_channels, R, R] in [-1, 1], with truncation toward w_avg.

    forward: z [N, z_dim], class_idx [N] (None if unconditional), truncation_psi [N] (None: off)
    """

    truncation: Truncation = "w"

    def __init__(self, config: TrainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        z_dim, img_channels = config.z_dim, shape.img_channels
        resolutions = [*feature_resolutions(config.img_resolution), config.img_resolution]
        widths = [max(1, channels_at(r, config.img_resolution, config.G_channels)) for r in resolutions]
        self.mapping = Mapping(self.in_dim, z_dim, shape.num_classes)
        self.start = nn.Parameter(torch.randn(1, widths[0], FIRST_RESOLUTION, FIRST_RESOLUTION))
        self.first = StyleLayer(widths[0], widths[0], z_dim, FIRST_RESOLUTION, up=False)
        self.ups, self.layers, self.to_image = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for a, b, resolution in zip(widths, widths[1:], resolutions[1:], strict=False):
            self.ups.append(StyleLayer(a, b, z_dim, resolution, up=True))
            self.layers.append(StyleLayer(b, b, z_dim, resolution, up=False))
        for width in widths:
            self.to_image.append(ModulatedConv(width, img_channels, z_dim, kernel_size=1, demodulate=False))
        self.bias = nn.Parameter(torch.zeros(img_channels, 1, 1))

    def forward(
        self, z: Tensor, class_idx: Tensor | None = None, truncation_psi: Tensor | None = None
    ) -> Tensor:
        w = self.mapping(self.conditioned(z, class_idx), class_idx)  # [N, w_dim]
        if truncation_psi is not None:
            psi = truncation_psi[:, None]  # [N, 1]; 1 changes no bit of w, 0 leaves w_avg alone
            w = (1 - psi) * self.mapping.averages(class_idx) + psi * w  # 2019, section B
        return self.synthesis(w)

    def synthesis(self, w: Tensor) -> Tensor:
        """[N, w_dim] -> images [N, img_channels, R, R]."""
        x = self.first(self.start, w)  # [N, W, 4, 4]
        first, *others = self.to_image
        image = first(x, w)
        for up, layer, to_image in zip(self.ups, self.layers, others, strict=True):
            x = layer(up(x, w), w)  # [N, W, R, R]
            image = _doubled(image) + to_image(x, w)
        return torch.tanh(image + self.bias)


def _doubled(x: Tensor) -> Tensor:
    """[N, C, R, R] -> [N, C, 2R, 2R]."""
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
