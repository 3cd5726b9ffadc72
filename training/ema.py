"""G_ema: the moving average of G that is exported.

Averages buffers as well as weights: G's BatchNorm statistics belong to the weights they were
measured with, and an average that forgets them renders other images. Refuses to own: the
half-life (`training.schedules`).
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, beta: float) -> None:
    """Move every weight and buffer of `G_ema` to beta * G_ema + (1 - beta) * G; integers are copied."""
    averages = G_ema.state_dict()
    for name, value in G.state_dict().items():
        if value.is_floating_point():
            averages[name].lerp_(value, 1.0 - beta)
        else:
            averages[name].copy_(value)
