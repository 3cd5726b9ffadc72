"""The variational autoencoder: its loss against closed forms, and a run that is exported and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_of
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from models.store import Store
from training.data import DataShape
from training.elbo import kl_divergence, reconstruction_loss
from training.export import export_run
from training.graph_session import GraphSession
from training.loop import train
from training.networks import Encoder, Generator, build_pair
from training.run_folder import RunFolder
from training.servable import torch_render
from training.snapshot import TrainState


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)

    values = kl_divergence(mean, log_variance)

    expected = kl_of(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(values, expected)
    assert kl_divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_the_reconstruction_loss_is_the_gaussians_density_up_to_its_constant() -> None:
    images, reconstructions = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)

    values = reconstruction_loss(images, reconstructions, sigma=0.3)

    density = Normal(reconstructions, 0.3).log_prob(images).flatten(1).sum(1)
    constant = Normal(0.0, 0.3).log_prob(torch.zeros(())) * 4
    torch.testing.assert_close(values, constant - density)


def test_the_encoder_looks_at_image_and_class_and_each_row_alone() -> None:
    config = toy_config(objective="elbo", r1_gamma=0)
    _, encoder = build_pair(config, toy_dataset().shape)
    assert isinstance(encoder, Encoder)
    images = torch.randn(4, 1, 16, 16)

    moments = encoder(images, torch.tensor([0, 1, 0, 1]))

    assert moments.shape == (4, 2 * config.z_dim)
    assert torch.allclose(encoder(images[1:2], torch.tensor([1])), moments[1:2], atol=1e-6)
    assert not torch.allclose(encoder(images[1:2], torch.tensor([0])), moments[1:2], atol=1e-6)


def _reconstruction_levels(state: TrainState) -> float:
    """Mean distance, in grey levels, of the toy images from what the VAE makes of their means."""
    dataset = toy_dataset()
    images = torch.from_numpy(dataset.images[:64]) / 127.5 - 1
    class_idx = torch.from_numpy(dataset.class_idx[:64])
    with torch.no_grad():
        mean, _ = state.D(images, class_idx).chunk(2, dim=1)
        return float((state.G_ema(mean, class_idx) - images).abs().mean() * 127.5)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_trained_decoder_is_exported_and_served_like_any_generator(labelled: bool, tmp_path: Path) -> None:
    config = toy_config(
        objective="elbo", elbo_sigma=0.2, total_kimg=1.6, G_lr=4e-3, D_lr=4e-3, r1_gamma=0, adam_beta1=0.0
    )
    dataset, run = toy_dataset(labelled=labelled), RunFolder(tmp_path / "run")

    state = train(config, dataset, run, tick_kimg=2)
    artifact = export_run(run, Store(tmp_path / "store"), name="vae")

    session = GraphSession(artifact.path / "model.onnx")
    latents = np.random.RandomState(0).randn(6, config.z_dim).astype(np.float32)
    rows = (latents, np.arange(6) % 2, np.ones(6, dtype=np.float32))
    images = session.render(*rows)
    assert isinstance(state.G, Generator)
    assert images.shape == (6, 16, 16, 1)
    assert np.abs(images.astype(int) - torch_render(state.G_ema)(*rows).astype(int)).max() <= 1
    if labelled:
        assert (
            _reconstruction_levels(state)
            < 25
            < _reconstruction_levels(TrainState.fresh(config, dataset.shape))
        )


def test_a_stopped_run_goes_on_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config = toy_config(objective="elbo", total_kimg=0.096, r1_gamma=0)
    dataset, parts = toy_dataset(), RunFolder(tmp_path / "parts")
    answers = iter([False] * 3 + [True] * 9)
    whole = train(config, dataset, RunFolder(tmp_path / "whole"), tick_kimg=1)

    train(config, dataset, parts, tick_kimg=1, should_stop=lambda: next(answers))
    again = train(config, dataset, parts, tick_kimg=1)

    for one, other in ((whole.D, again.D), (whole.G_ema, again.G_ema)):
        ours = other.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("r1_gamma", 0.1, "objective elbo has no discriminator: r1_gamma must be 0, got 0.1"),
        ("augment", "color", "objective elbo has no discriminator: augment must be '', got 'color'"),
        ("d_steps", 2, "objective elbo has no discriminator: d_steps must be 1, got 2"),
    ],
)
def test_what_belongs_to_a_discriminator_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        toy_config(**({"objective": "elbo", "r1_gamma": 0} | {field: value}))


def test_points_are_for_games() -> None:
    config = toy_config(objective="elbo", network="mlp", r1_gamma=0)

    with pytest.raises(InvalidValue, match="objective must be a game for data of points, got 'elbo'"):
        build_pair(config, DataShape(img_channels=0, num_classes=0, point_dim=2))
