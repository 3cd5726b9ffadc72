"""The DCGAN pair at every resolution, with and without classes."""

from __future__ import annotations

import pytest
import torch

from training.config import IMG_RESOLUTIONS, TrainConfig
from training.data import DataShape
from training.networks import Discriminator, Generator, build_pair
from training.networks.dcgan import MAX_CHANNELS, channels_at


@pytest.mark.parametrize("img_resolution", IMG_RESOLUTIONS)
@pytest.mark.parametrize(("img_channels", "num_classes"), [(1, 0), (3, 5)])
def test_a_pair_speaks_images_of_its_resolution(
    img_resolution: int, img_channels: int, num_classes: int
) -> None:
    G = Generator(
        z_dim=6,
        img_resolution=img_resolution,
        img_channels=img_channels,
        num_classes=num_classes,
        base_channels=4,
    )
    D = Discriminator(
        img_resolution=img_resolution, img_channels=img_channels, num_classes=num_classes, base_channels=4
    )
    class_idx = torch.tensor([0, 4, 2]) if num_classes else None

    images = G(torch.randn(3, 6), class_idx)
    logits = D(images, class_idx)

    assert images.shape == (3, img_channels, img_resolution, img_resolution)
    assert images.abs().max() <= 1
    assert logits.shape == (3,)


def test_the_class_reaches_the_image_and_the_logit() -> None:
    config = TrainConfig(preset="test", total_kimg=1, img_resolution=16, G_channels=4, D_channels=4)
    G, D = build_pair(config, DataShape(img_channels=1, num_classes=2))
    z = torch.randn(1, config.z_dim)
    first, second = torch.tensor([0]), torch.tensor([1])

    images = [G.eval()(z, class_idx) for class_idx in (first, second)]
    logits = [D(images[0], class_idx) for class_idx in (first, second)]

    assert not torch.equal(*images)
    assert not torch.equal(*logits)


def test_only_the_generator_normalises_by_the_batch() -> None:
    config = TrainConfig(preset="test", total_kimg=1, img_resolution=32)

    G, D = build_pair(config, DataShape(img_channels=1, num_classes=0))

    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in G.modules())
    assert not list(D.buffers())


def test_the_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    shape = DataShape(img_channels=1, num_classes=3)
    config = TrainConfig(preset="test", total_kimg=1, seed=5, img_resolution=16, G_channels=4, D_channels=4)
    before = torch.get_rng_state()

    pairs = [build_pair(config, shape) for _ in range(2)]
    (other, _) = build_pair(config.override({"seed": "6"}), shape)

    assert torch.equal(torch.get_rng_state(), before)
    for one, two in zip(*pairs, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(pairs[0][0].to_image.weight, other.to_image.weight)


def test_widths_double_at_each_halving_up_to_a_limit() -> None:
    widths = [channels_at(resolution, 128, 64) for resolution in (64, 32, 16, 8, 4)]

    assert widths == [64, 128, 256, 512, MAX_CHANNELS]
