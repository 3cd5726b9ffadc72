"""A config becomes a pair: the families by name.

A family is a class of G and one of D, both built from the config and the shape of the data. Refuses to
own: networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from models.errors import InvalidValue
from training.config import Network, TrainConfig
from training.data.dataset import DataShape
from training.networks.base import Discriminator, Generator
from training.networks.dcgan import DcganDiscriminator, DcganGenerator
from training.networks.encoder import Encoder
from training.networks.mlp import MlpDiscriminator, MlpGenerator
from training.networks.residual import ResidualDiscriminator, ResidualGenerator
from training.networks.spectral_norm import normalise_spectrally
from training.networks.style import StyleGenerator


@dataclass(frozen=True, kw_only=True)
class Family:
    """The two networks of one kind."""

    G: type[Generator]
    D: type[Discriminator]
    takes_points: bool = False
    """Works on points in the plane as well as on images."""


FAMILIES: Final[dict[Network, Family]] = {
    "mlp": Family(G=MlpGenerator, D=MlpDiscriminator, takes_points=True),
    "dcgan": Family(G=DcganGenerator, D=DcganDiscriminator),
    "residual": Family(G=ResidualGenerator, D=ResidualDiscriminator),
    "style": Family(G=StyleGenerator, D=DcganDiscriminator),
}


def build_pair(config: TrainConfig, shape: DataShape) -> tuple[Generator, Discriminator | Encoder]:
    """Build G and D for `config` on data of `shape`; the weights are a function of `config.seed` alone.

    Without a game (objective elbo) G is the decoder, and in D's place is the encoder. Raises InvalidValue
    where `config` is for images and the data are points.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        G = build_generator(config, shape)
        if config.objective == "elbo":
            return G, Encoder(config, shape)
        D = _family(config, shape).D(config, shape)
        if config.D_spectral_norm:
            normalise_spectrally(D)
    return G, D


def build_generator(config: TrainConfig, shape: DataShape) -> Generator:
    """Build G alone: what an export or a grid needs. Its weights are whatever the global generator gives."""
    return _family(config, shape).G(config, shape)


def _family(config: TrainConfig, shape: DataShape) -> Family:
    family = FAMILIES[config.network]
    if shape.point_dim and not family.takes_points:
        raise InvalidValue(f"network must be mlp for data of points, got {config.network!r}")
    if shape.point_dim and config.objective == "elbo":
        raise InvalidValue("objective must be a game for data of points, got 'elbo'")
    return family
