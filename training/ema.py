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
    averages, values = G_ema.state_dict(), G.state_dict()
    names = [name for name, value in values.items() if value.is_floating_point()]
    # One call for all of them: hundreds of small ones cost 1 % of an iteration, and more on a GPU.
    torch._foreach_lerp_([averages[name] for name in names], [values[name] for name in names], 1.0 - beta)
    for name in values.keys() - set(names):
        averages[name].copy_(values[name])
