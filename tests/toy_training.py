"""A toy data set and a config to match: a run of seconds that has something to learn.

Two classes of 16×16 grey images: a bright left half, or a bright right half, each with its own
brightness. What a generator must learn is where the light is, and that it varies.
"""

from __future__ import annotations

import numpy as np

from training.config import TrainConfig
from training.data import Dataset

# Without a penalty and with rates that are too high, minimax G ends as one image for all seeds.
COLLAPSING = {
    "network": "mlp",
    "objective": "minimax",
    "G_channels": 64,
    "D_channels": 64,
    "G_lr": 2e-2,
    "D_lr": 2e-2,
    "adam_beta1": 0.0,
    "r1_gamma": 0.0,
    "lr_decay_start": 1.0,
}
# Gradients of a slope penalty grow with the fourth power of weights that grow by 1 a step.
EXPLODING = {"network": "residual", "G_lr": 1.0, "D_lr": 1.0, "r1_gamma": 10.0, "r1_interval": 1}


def toy_dataset(num_images: int = 256, labelled: bool = True) -> Dataset:
    """Images [N, 1, 16, 16]; the class is the bright half, 0 left and 1 right."""
    stream = np.random.RandomState(0)
    class_idx = np.arange(num_images) % 2
    levels = stream.randint(128, 256, size=num_images)
    images = np.zeros((num_images, 1, 16, 16), dtype=np.uint8)
    for image, side, level in zip(images, class_idx, levels, strict=True):
        image[0, :, 8 * side : 8 * side + 8] = level
    return Dataset(
        name="halves",
        images=images,
        class_idx=class_idx if labelled else None,
        class_names=("left", "right") if labelled else (),
        licence="CC0-1.0",
    )


def toy_config(**changes: object) -> TrainConfig:
    """A pair of a few thousand parameters."""
    fields = {
        "preset": "fashion-mnist",
        "total_kimg": 0.128,
        "batch_size": 16,
        "img_resolution": 16,
        "z_dim": 8,
        "class_dim": 4,
        "G_channels": 8,
        "D_channels": 8,
        "r1_gamma": 0.1,
    }
    return TrainConfig.from_dict(fields | changes)
