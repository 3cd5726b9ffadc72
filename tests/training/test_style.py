"""The StyleGAN2 kind of network: modulation as in the paper, truncation toward w_avg, a servable graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from toy_training import toy_config, toy_dataset

from models.manifest import GRAPH_FILE
from models.store import Store
from training.data import DataShape
from training.export import export_run
from training.graph_session import GraphSession
from training.loop import train
from training.networks.style import (
    W_AVG_BETA,
    Mapping,
    ModulatedConv,
    StyleGenerator,
    advance_w_avg,
    collected_w,
)
from training.phases import frozen
from training.run_folder import RunFolder
from training.verify import verify


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(num_classes: int = 3) -> StyleGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = StyleGenerator(toy_config(network="style"), DataShape(img_channels=3, num_classes=num_classes))
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.fill_(0.3)
        G.mapping.w_avg.normal_()
    return G.eval()


def fused(conv: ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
    """Equations 1 to 3 as the paper has them: the weights of each row are scaled, and then normalised."""
    images = []
    for row, scales in zip(x.double(), conv.to_scales(w).double(), strict=True):
        weight = conv.weight.double() * conv.gain * scales[None, :, None, None]  # w'_ijk = s_i w_ijk
        if conv.demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        images.append(conv2d(row[None], weight, padding="same"))
    return torch.cat(images)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
@torch.no_grad()
def test_scaling_activations_is_the_papers_scaling_of_weights(kernel_size: int, demodulate: bool) -> None:
    conv = ModulatedConv(5, 7, 6, kernel_size, demodulate=demodulate)
    x, w = torch.randn(4, 5, 8, 8, generator=seeded()), torch.randn(4, 6, generator=seeded(1))

    difference = (conv(x, w) - fused(conv, x, w)).abs().max()

    assert difference <= 1e-6 * fused(conv, x, w).abs().max().clamp(min=1)


@torch.no_grad()
def test_demodulated_maps_have_unit_power() -> None:
    conv = ModulatedConv(64, 64, 6, 3)
    x, w = torch.randn(8, 64, 16, 16, generator=seeded()), 5 * torch.randn(8, 6, generator=seeded(1))

    power = conv(x, w)[:, :, 2:-2, 2:-2].square().mean()

    assert 0.8 < power < 1.2


@torch.no_grad()
def test_psi_1_changes_no_bit_psi_0_is_the_average_of_the_class_and_rows_have_their_own() -> None:
    G = small()
    z, class_idx = torch.randn(4, 8, generator=seeded()), torch.tensor([0, 2, 2, 0])

    untruncated = G(z, class_idx)
    mixed = G(z, class_idx, torch.tensor([1.0, 0.0, 0.0, 0.5]))

    assert torch.equal(G(z, class_idx, torch.ones(4)), untruncated)
    averages = G.synthesis(G.mapping.w_avg)
    assert torch.allclose(mixed[1:3], averages[[2, 2]], atol=1e-6)
    assert (averages[2] - averages[0]).abs().max() > 0.1
    half = G.synthesis((G.mapping.w_avg[:1] + G.mapping(G.conditioned(z, class_idx), class_idx)[3:]) / 2)
    assert torch.allclose(mixed[3:], half, atol=1e-5)
    assert torch.allclose(mixed[:1], untruncated[:1], atol=1e-6)


def test_w_avg_follows_the_mean_of_w_at_each_step_of_g_and_rests_while_it_is_frozen() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mapping = Mapping(8, 8, num_classes=2)
    z, class_idx = torch.randn(64, 8, generator=seeded()), torch.arange(64) // 32

    with frozen(mapping), torch.no_grad():
        mapping(z, class_idx)
    mapping.eval()(z, class_idx)
    advance_w_avg(mapping)
    assert not mapping.w_avg.any()

    mapping.train()
    for _ in range(20):
        w = mapping(z, class_idx)
        advance_w_avg(mapping)
    means = w.detach().reshape(2, 32, 8).mean(dim=1)
    assert torch.allclose(mapping.w_avg, (1 - W_AVG_BETA**20) * means, atol=1e-5)

    with torch.autocast("cpu", torch.bfloat16):
        mapping(z, class_idx)
    advance_w_avg(mapping)
    assert torch.allclose(mapping.w_avg, (1 - W_AVG_BETA**21) * means, atol=1e-4)

    before = mapping.w_avg.clone()
    mapping(z[:8], class_idx[:8])  # a batch without class 1
    advance_w_avg(mapping)
    assert torch.equal(mapping.w_avg[1], before[1])
    assert not torch.equal(mapping.w_avg[0], before[0])


def test_w_avg_moves_alike_however_the_rows_of_a_step_are_split() -> None:
    whole, parts = small().mapping.train(), small().mapping.train()
    z, class_idx = torch.randn(15, 12, generator=seeded()), torch.tensor([0] * 9 + [1] * 5 + [2])
    before = whole.w_avg.clone()

    whole(z, class_idx)
    advance_w_avg(whole)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 15)):  # the first two have one class alone
        parts(z[rows], class_idx[rows])
    assert torch.equal(parts.w_avg, before)
    for tensor in collected_w(parts):
        tensor /= 8  # as the mean over eight processes does, of which this one alone has rows
    advance_w_avg(parts)

    torch.testing.assert_close(parts.w_avg, whole.w_avg, rtol=1e-6, atol=1e-6)
    assert not torch.isclose(whole.w_avg, before, rtol=0, atol=1e-4).all(dim=1).any()  # of each class
    assert not any(tensor.any() for tensor in collected_w(parts))


def test_a_run_of_it_exports_and_verifies(tmp_path: Path) -> None:
    run, store = RunFolder(tmp_path / "run"), Store(tmp_path / "store")
    train(toy_config(network="style", total_kimg=0.064), toy_dataset(labelled=False), run, tick_kimg=1)

    artifact = export_run(run, store, name="style")

    assert artifact.manifest.truncation == "w"
    assert len(list(verify(store, "style", run.path))) == 4
    rows = np.random.RandomState(0).randn(4, 8).astype(np.float32), np.zeros(4, dtype=np.int64)
    average = GraphSession(artifact.file(GRAPH_FILE)).render(*rows, np.zeros(4, dtype=np.float32))
    assert np.array_equal(average[:1], average[3:])
    operators = {node.op_type for node in onnx.load(artifact.file(GRAPH_FILE)).graph.node}
    assert {"Conv", "Resize"} <= operators
    assert not {"ConvTranspose", "Loop", "If"} & operators
