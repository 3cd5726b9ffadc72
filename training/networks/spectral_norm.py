"""Spectral normalisation of D (Miyato 2018, arXiv:1802.05957): every layer's weight over its largest
singular value, so no layer stretches by more than 1.

The singular value is followed by power iteration, one round for each step of D. In torch's own form that
round happens in every forward in train mode: D's pass over reals and the one over fakes then see two
weights, phase 2 moves a frozen D, and the steps of a gradient accumulation differ. Here a forward only
reads: `advance_power_iteration` moves the vectors, and the loop calls it where phase 1 begins. The vectors
are buffers, so a snapshot has them and a resumed run goes on exactly. Refuses to own: the loop.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

FIRST_ROUNDS: Final = 15


class SpectralNorm(nn.Module):
    """weight / σ(weight), with σ = uᵀ W v as algorithm 1 has it; W is the weight as [rows, the rest]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach()
        self.register_buffer("u", normalize(weight.new_empty(len(weight)).normal_(), dim=0))
        self.register_buffer("v", weight.new_empty(weight[0].numel()))
        for _ in range(FIRST_ROUNDS):
            self.advance(weight)

    u: Tensor
    v: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        # Products by element: matrix products would be rounded to bf16 where D computes in it.
        sigma = (self.u[:, None] * weight.flatten(1) * self.v).sum()
        return weight / sigma

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        """One round of power iteration: v = Wᵀ u, u = W v, each to length 1."""
        W = weight.flatten(1)
        self.v.copy_(normalize(W.t().mv(self.u), dim=0))
        self.u.copy_(normalize(W.mv(self.v), dim=0))


def normalise_spectrally(network: nn.Module) -> None:
    """Put every weight of `network` that is a matrix under `SpectralNorm`, class embeddings too."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))


def advance_power_iteration(network: nn.Module) -> None:
    """Follow the weights one round further; nothing happens to a network without `SpectralNorm`."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm):
            module[0].advance(module.original)
