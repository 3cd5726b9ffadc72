"""The residual pair: how it begins, what it is made of, and that the stable recipe trains and exports it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate
from toy_training import toy_config, toy_dataset

from models.store import Store
from training.config import TrainConfig
from training.data import DataShape
from training.export import export_run
from training.graph_session import GraphSession
from training.loop import train
from training.networks import build_pair
from training.networks.residual import Downsample, ResidualBlock, Upsample
from training.run_folder import RunFolder
from training.servable import torch_render


def _pair(**changes: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    fields = {"preset": "test", "total_kimg": 1, "network": "residual", "G_channels": 32, "D_channels": 32}
    return build_pair(TrainConfig.from_dict(fields | changes), DataShape(img_channels=3, num_classes=0))


def test_a_block_begins_as_its_shortcut() -> None:
    block = ResidualBlock(16, depth=4)
    x = torch.randn(2, 16, 8, 8)

    assert torch.equal(block(x), x)
    assert block.branch[0](x).abs().mean() > 0.1  # what is inside is there, and waits


@pytest.mark.parametrize("img_resolution", [32, 128])
@pytest.mark.parametrize("blocks", [1, 4])
def test_signals_keep_their_size_through_any_depth(img_resolution: int, blocks: int) -> None:
    G, D = _pair(img_resolution=img_resolution, residual_blocks=blocks)
    with torch.no_grad():
        for network in (G, D):
            for module in network.modules():
                if isinstance(module, ResidualBlock):  # as training soon has it: branches that do something
                    torch.nn.init.normal_(module.branch[4].weight, std=0.01)

        images = G(torch.randn(16, 64))
        logits = D(images)

    assert 0.05 < images.std() < 1
    assert logits.abs().max() < 20
    assert not [module for module in (*G.modules(), *D.modules()) if "Norm" in type(module).__name__]


def test_resampling_and_the_mixing_of_channels_commute_so_the_cheap_order_is_taken() -> None:
    up, down = Upsample(6, 4), Downsample(6, 4)
    x = torch.randn(2, 6, 8, 8)

    dear = up.conv(interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
    bilinear = interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)

    torch.testing.assert_close(up(x), dear)
    torch.testing.assert_close(down(x), down.conv(bilinear))
    torch.testing.assert_close(avg_pool2d(x, 2), bilinear)


def test_the_stable_recipe_teaches_it_and_the_export_makes_the_same_images(tmp_path: Path) -> None:
    config = toy_config(
        network="residual",
        objective="relativistic",
        total_kimg=1,
        adam_beta1=0.0,
        G_lr=4e-3,
        D_lr=4e-3,
        r1_gamma=0.1,
        r2_gamma=0.1,
        r1_interval=2,
    )
    run = RunFolder(tmp_path / "run")

    state = train(config, toy_dataset(), run, tick_kimg=1)
    artifact = export_run(run, Store(tmp_path / "store"), name="halves")

    latents = np.random.RandomState(1).randn(64, config.z_dim).astype(np.float32)
    class_idx = np.arange(64) % 2
    rows = (latents, class_idx, np.ones(64, dtype=np.float32))
    images = GraphSession(artifact.path / "model.onnx").render(*rows).astype(int)  # [N, 16, 16, 1]
    halves = images.reshape(64, 16, 2, 8).mean(axis=(1, 3))  # [N, half]
    left, right = halves[class_idx == 0].mean(axis=0), halves[class_idx == 1].mean(axis=0)
    assert left[0] - left[1] > 80
    assert right[1] - right[0] > 80
    assert np.abs(images - torch_render(state.G_ema)(*rows)).max() <= 1


def test_a_generator_begins_without_a_chequered_pattern() -> None:
    G, _ = _pair()

    with torch.no_grad():
        images = G(torch.randn(4, 64))  # [N, 3, 32, 32]

    cells = images.unflatten(2, (16, 2)).unflatten(4, (16, 2))  # [N, 3, 16, 2, 16, 2]
    assert torch.allclose(cells, cells[:, :, :, :1, :, :1].expand_as(cells), atol=1e-5)
    assert images.std() > 0.05
