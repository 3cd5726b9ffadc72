"""The small classifier whose features a Fréchet distance can be taken on where Inception's weights are not.

`gantrain extractor` trains it on the labelled data that the generators learn from: two CPU minutes on
Fashion-MNIST. Two networks: one to measure with, and one to ask of which class an image is, so that no
generator is judged by what it was chosen with. Refuses to own: figures, and how an extractor is run
(`training.metrics.extractor`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

from training.data import DataOrder, Dataset
from training.errors import DataError
from training.files import atomic_file
from training.tracing import to_onnx, trace
from training.weights import store_weights

Network = Literal["pooled", "strided"]
NETWORKS: Final[tuple[Network, ...]] = get_args(Network)
FEATURE_DIM: Final = 128
_log = logging.getLogger(__name__)
_BATCH_SIZE: Final = 128
_LR: Final = 1e-3
_ROWS_A_PASS: Final = 500


class Pooled(nn.Module):
    """Two convolutions with max pooling, then a layer of 128: the features are its output after the ReLU.

    forward: images [N, C, R, R] float32 in [0, 1]
    returns features [N, 128] and logits [N, num_classes], float32
    """

    def __init__(self, img_resolution: int, img_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(img_channels, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.to_features = nn.Linear(64 * (img_resolution // 4) ** 2, FEATURE_DIM)
        self.to_logits = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = max_pool2d(relu(self.conv1(images)), 2)  # [N, 32, R/2, R/2]
        x = max_pool2d(relu(self.conv2(x)), 2)  # [N, 64, R/4, R/4]
        features = relu(self.to_features(x.flatten(1)))  # [N, 128]
        return features, self.to_logits(features)


class Strided(nn.Module):
    """Three convolutions with BatchNorm, two of stride 2, and the classes at once from their last map.

    Another network than `Pooled`, for a judge; its features are the mean of that map.

    forward: as of `Pooled`
    """

    def __init__(self, img_resolution: int, img_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = ((img_channels, 32, 2), (32, 64, 1), (64, FEATURE_DIM, 2))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel_size=3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                )
                for a, b, stride in widths
            )
        )
        self.to_logits = nn.Linear(FEATURE_DIM * (img_resolution // 4) ** 2, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(images)  # [N, 128, R/4, R/4]
        return x.mean((2, 3)), self.to_logits(x.flatten(1))


_NETWORKS: Final[dict[Network, Callable[[int, int, int], nn.Module]]] = {"pooled": Pooled, "strided": Strided}


class OfPixels(nn.Module):
    """A classifier as an extractor file has it: images uint8 [N, H, W, C] -> features, logits."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255  # [N, C, H, W]
        features, logits = self.classifier(scaled)
        return features, logits


def train_classifier(
    dataset: Dataset, *, network: Network = "pooled", seed: int = 0, epochs: int = 3
) -> nn.Module:
    """Return a classifier of `dataset`, in eval mode, trained by Adam along a cosine.

    Raises DataError for data without labels, and for labels that are all one class.
    """
    if dataset.class_idx is None:
        raise DataError(f"a classifier learns classes, {dataset.name} has no labels")
    if (dataset.class_idx == dataset.class_idx[0]).all():
        only = dataset.class_idx[0]
        raise DataError(f"a classifier learns classes, all images of {dataset.name} are of the class {only}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _NETWORKS[network](
            dataset.images.shape[2], dataset.shape.img_channels, dataset.num_classes
        )
    images, class_idx = torch.from_numpy(dataset.images), torch.from_numpy(dataset.class_idx)
    order, total = DataOrder(len(dataset), seed), len(dataset) * epochs
    optimizer = torch.optim.Adam(classifier.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, -(-total // _BATCH_SIZE))
    for cur_nimg in range(0, total, _BATCH_SIZE):
        rows = torch.from_numpy(order.rows(cur_nimg, _BATCH_SIZE))
        _, logits = classifier(images[rows].to(torch.float32) / 255)
        loss = cross_entropy(logits, class_idx[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        epoch = min(cur_nimg + _BATCH_SIZE, total) // len(dataset)
        if epoch > cur_nimg // len(dataset):
            _log.info("epoch %d of %d: loss %.3f", epoch, epochs, loss.item())
    return classifier.eval().requires_grad_(False)


def save_extractor(classifier: nn.Module, dataset: Dataset, path: Path) -> None:
    """Write `classifier` as an ONNX file, its weights in float16: equal ones are equal bytes."""
    example = torch.from_numpy(dataset.images[:2]).permute(0, 2, 3, 1)  # [2, H, W, C] uint8
    model = to_onnx(trace(OfPixels(classifier), [example]), ["features", "logits"], ["images"])
    store_weights(model, "fp16")
    with atomic_file(path) as file:
        file.write(model.SerializeToString(deterministic=True))
