"""The check before an optimizer's step: on a loss or a gradient that is not finite none is taken.

One NaN in a gradient makes NaN of every weight that it reaches, and of Adam's moments for good. A CPU
looks at once. A CUDA device is not waited for: its fused Adam is given a flag, skips the step and all that
follow on the device, and the flag is read where the loop waits anyway. Refuses to own: what is kept then,
and what to try (`training.advice`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.errors import NotFinite


def adam(
    parameters: Iterable[nn.Parameter], lr: float, config: TrainConfig, *, waits: bool
) -> torch.optim.Adam:
    """Adam for `take_step`; `waits` is False for a device that the loop does not wait for."""
    betas = (config.adam_beta1, config.adam_beta2)
    # Fused: a step costs a third, which is 2-3 % of an iteration of small networks on a CPU.
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)
    if not waits:
        device = optimizer.param_groups[0]["params"][0].device
        _attributes(optimizer)["found_inf"] = torch.zeros((), device=device)  # torch's name for the flag
    return optimizer


def take_step(loss: Tensor, **optimizers: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take a step of each network's optimizer, by network, or of none.

    loss [] is the mean that was differentiated. Returns {network}_gradient_norm of each: the norm of all its
    gradients together, [1]. Raises NotFinite, with no weight of any changed, where the loss or a gradient is
    not finite; on a device that is not waited for `check_steps` does.
    """
    norms = {name: torch.nn.utils.get_total_norm(_gradients(one)) for name, one in optimizers.items()}
    not_finite = ~torch.isfinite(loss + sum(norms.values()))
    for network, optimizer in optimizers.items():
        flag = _attributes(optimizer).get("found_inf")
        if flag is not None:
            flag.copy_(torch.maximum(flag, not_finite))
        elif not torch.isfinite(loss + norms[network]):
            part = "gradient" if torch.isfinite(loss) else "loss"
            raise NotFinite(f"the {part} of {network} is not finite, so its step was not taken")
    for optimizer in optimizers.values():
        optimizer.step()
    return {f"{network}_gradient_norm": norm.reshape(1) for network, norm in norms.items()}


def check_steps(optimizer: torch.optim.Optimizer, network: str) -> None:
    """Raise NotFinite where a device has skipped steps of `network`. Waits for the device."""
    flag = _attributes(optimizer).get("found_inf")
    if flag is not None and flag:
        raise NotFinite(f"a loss or a gradient is not finite, so {network} took no more steps")


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return vars(optimizer)
