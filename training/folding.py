"""Weights that are computed in each forward become the weights they come to.

Weight norm (Salimans 2016, arXiv:1602.07868), spectral norm (Miyato 2018, arXiv:1802.05957) and any other
parametrization are functions of the weights alone, so what serves needs their value only.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from training.errors import GraphRefused

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def plain_copy(module: Module) -> Module:
    """Return a copy of `module` on the CPU, its floats in float32, in eval mode, without gradients.

    Raises GraphRefused for a module that holds what cannot be copied.
    """
    for one, hook in _hooks(module):  # the old hooks leave a computed tensor, which cannot be copied
        setattr(one, hook.name, getattr(one, hook.name).detach())
    try:
        plain = copy.deepcopy(module)
    except Exception as error:  # whatever an attribute of the module raises
        raise GraphRefused(
            f"the module cannot be copied: {type(error).__name__}: {error}. "
            "Take what is no weight (a lock, a file, a tensor with its graph) out of it"
        ) from None
    plain.eval().requires_grad_(False)
    return plain.to(device="cpu", dtype=torch.float32)


@torch.no_grad()
def folded(module: Module) -> Module:
    """Return a copy of `module` in eval mode whose weights are plain: the same numbers, without their norms.

    Knows parametrizations of every kind (`torch.nn.utils.parametrizations`) and the hooks that
    `torch.nn.utils.weight_norm` and `spectral_norm` put before a forward.
    """
    plain = plain_copy(module)
    for one, hook in _hooks(plain):
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(one, hook.name)
    for one in list(plain.modules()):
        if parametrize.is_parametrized(one):
            _fold_parametrizations(one)
    return plain


def _fold_parametrizations(module: nn.Module) -> None:
    """As `parametrize.remove_parametrizations`, which breaks the module that this one was copied from."""
    values = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _hooks(module: nn.Module) -> list[tuple[nn.Module, WeightNorm | SpectralNorm]]:
    return [
        (one, hook)
        for one in module.modules()
        for hook in one._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    ]
