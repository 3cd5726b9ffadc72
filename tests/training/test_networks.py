"""Every family of networks: shapes, classes, rows, and weights that are a function of the seed."""

from __future__ import annotations

import pytest
import torch

from models.errors import InvalidValue
from training.config import IMG_RESOLUTIONS, NETWORKS, TrainConfig
from training.data import DataShape
from training.networks import build_pair
from training.networks.dcgan import MAX_CHANNELS, channels_at

IMAGES = DataShape(img_channels=3, num_classes=5)
POINTS = DataShape(img_channels=0, num_classes=0, point_dim=2)


def _config(**changes: object) -> TrainConfig:
    fields = {
        "preset": "test",
        "total_kimg": 1,
        "img_resolution": 16,
        "z_dim": 6,
        "class_dim": 4,
        "G_channels": 4,
        "D_channels": 4,
    }
    return TrainConfig.from_dict(fields | changes)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("img_resolution", "img_channels", "num_classes"),
    [(16, 1, 0), *((img_resolution, 3, 5) for img_resolution in IMG_RESOLUTIONS)],
)
def test_a_pair_speaks_images_of_its_resolution(
    network: str, img_resolution: int, img_channels: int, num_classes: int
) -> None:
    G, D = build_pair(
        _config(network=network, img_resolution=img_resolution),
        DataShape(img_channels=img_channels, num_classes=num_classes),
    )
    class_idx = torch.tensor([0, 4, 2]) if num_classes else None

    images = G(torch.randn(3, 6), class_idx)
    logits = D(images, class_idx)

    assert images.shape == (3, img_channels, img_resolution, img_resolution)
    assert images.abs().max() <= 1
    assert logits.shape == (3,)


def test_a_pair_for_the_plane_speaks_points_of_any_size() -> None:
    G, D = build_pair(_config(network="mlp"), POINTS)

    points = G(torch.randn(3, 6)) * 100

    assert points.shape == (3, 2)
    assert D(points).shape == (3,)


def test_a_network_for_images_is_refused_for_points() -> None:
    with pytest.raises(InvalidValue, match="network must be mlp for data of points, got 'dcgan'"):
        build_pair(_config(network="dcgan"), POINTS)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_class_reaches_the_image_and_the_logit(network: str) -> None:
    G, D = build_pair(_config(network=network), IMAGES)
    z = torch.randn(1, 6)
    first, second = torch.tensor([0]), torch.tensor([1])

    images = [G.eval()(z, class_idx) for class_idx in (first, second)]
    logits = [D(images[0], class_idx) for class_idx in (first, second)]

    assert not torch.equal(*images)
    assert not torch.equal(*logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_no_row_depends_on_its_batch_except_in_a_generator_that_trains(network: str) -> None:
    G, D = build_pair(_config(network=network), IMAGES)
    z, class_idx = torch.randn(4, 6), torch.tensor([0, 4, 2, 1])

    images = G.eval()(z, class_idx)
    logits = D(images, class_idx)  # in train mode: D has no other

    rows = [slice(i, i + 1) for i in range(4)]
    alone = torch.cat([G(z[row], class_idx[row]) for row in rows])
    judged_alone = torch.cat([D(images[row], class_idx[row]) for row in rows])
    assert torch.allclose(alone, images, atol=1e-5)  # torch chooses kernels by the batch size
    assert torch.allclose(judged_alone, logits, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in D.modules())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(network: str) -> None:
    config = _config(network=network, seed=5)
    before = torch.get_rng_state()

    pairs = [build_pair(config, IMAGES) for _ in range(2)]
    (other, _) = build_pair(config.override({"seed": "6"}), IMAGES)

    assert torch.equal(torch.get_rng_state(), before)
    for one, two in zip(*pairs, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name
    weights, others = (G.class_embedding.weight for G in (pairs[0][0], other))
    assert not torch.equal(weights, others)


def test_widths_double_at_each_halving_up_to_a_limit() -> None:
    widths = [channels_at(resolution, 128, 64) for resolution in (64, 32, 16, 8, 4)]

    assert widths == [64, 128, 256, 512, MAX_CHANNELS]
