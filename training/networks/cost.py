"""What a pair costs: parameters, and multiply-accumulates an image, which is what serving G takes.

Counted by running the networks on torch's meta device, where nothing is computed. Activations, norms and
resampling are not counted. Refuses to own: time (`gantrain bench`, `ganserve bench`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.config import TrainConfig
from training.data.dataset import DataShape
from training.networks.build import build_pair


@dataclass(frozen=True)
class Cost:
    """Of one network."""

    parameters: int
    macs: int
    """Multiply-accumulates of a forward pass, an image or point."""

    @classmethod
    def of(cls, network: nn.Module, *inputs: Tensor | None) -> Self:
        """Count `network` on `inputs` of one row each."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(*inputs)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return cls(parameters=parameters, macs=counter.get_total_flops() // 2)

    def __str__(self) -> str:
        return f"{_millions(self.parameters)} parameters, {_millions(self.macs)} MACs an image"


def pair_costs(config: TrainConfig, shape: DataShape) -> tuple[Cost, Cost]:
    """Count G and D (a VAE's decoder and encoder) for `config` on data of `shape`."""
    with torch.device("meta"):
        G, D = build_pair(config, shape)
        class_idx = torch.zeros(1, dtype=torch.int64) if shape.num_classes else None
        samples = torch.zeros(1, *shape.sample_shape(config.img_resolution))
        return Cost.of(G, torch.zeros(1, config.z_dim), class_idx), Cost.of(D, samples, class_idx)


def cost_sentences(config: TrainConfig, shape: DataShape) -> str:
    """What `pair_costs` counts, for people."""
    G, D = pair_costs(config, shape)
    second = "Encoder" if config.objective == "elbo" else "D"
    return f"G: {G}. {second}: {D}."


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"
