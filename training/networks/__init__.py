"""Networks: pairs (G, D) built from a config and the sizes of a data set.

Networks are code and sizes only. They own no optimizer, no loss and no file, and they speak
floats (images in [-1, 1]): uint8 begins and ends at the borders (`training.data`, `training.export`).
"""

from training.networks.base import Discriminator, Generator
from training.networks.build import build_generator, build_pair
from training.networks.encoder import Encoder

__all__ = ["Discriminator", "Encoder", "Generator", "build_generator", "build_pair"]
