"""Differentiable augmentation (Zhao 2020, arXiv:2006.10738): D sees reals and fakes through the same T.

With few images D learns them by heart. It cannot where it never sees an image as it is, and since G's
gradient flows through T as well, G still learns the images and not their augmentations. Each row is
changed on its own, by draws that the caller brings. Refuses to own: when and how strongly
(`training.loop`, `training.schedules`), random streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from training.config import Augmentation
from training.streams import RowDraws

MAX_SHIFT: Final = 1 / 8
CUTOUT_SIDE: Final = 1 / 2


@dataclass(frozen=True)
class Augment:
    """T: some augmentations, one after the other."""

    names: tuple[Augmentation, ...] = ()
    """None of them: every image stays as it is."""
    strength: float = 1.0
    """How far each goes: 1 is the paper's, 0 changes nothing."""

    def __bool__(self) -> bool:
        return bool(self.names) and self.strength > 0

    def __call__(self, images: Tensor, draws: RowDraws) -> Tensor:
        """Return T(images), [N, C, R, R] both, differentiable; `draws` are of these N rows."""
        if self:
            for name in self.names:
                images = _AUGMENTATIONS[name](images, draws, self.strength)
        return images


NO_AUGMENT: Final = Augment()


def _color(images: Tensor, draws: RowDraws, strength: float) -> Tensor:
    """Brightness by ±0.5, saturation by a factor of 0 to 2, contrast by a factor of 0.5 to 1.5."""
    offsets = strength * (draws.uniform(3, 1, 1, 1) - 0.5)
    brightness, saturation, contrast = offsets.unbind(1)  # each [N, 1, 1, 1]
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)  # [N, 1, R, R]
    images = grey + (1 + 2 * saturation) * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # [N, 1, 1, 1]
    return mean + (1 + contrast) * (images - mean)


def _translation(images: Tensor, draws: RowDraws, strength: float) -> Tensor:
    """A shift by up to an eighth of the side, each way; what comes in is 0."""
    side = images.shape[-1]
    most = round(strength * MAX_SHIFT * side)
    shifts = (draws.uniform(2) * (2 * most + 1)).long().clamp(max=2 * most)  # [N, 2] of 0 to 2 * most
    padded = pad(images, (most,) * 4).permute(0, 2, 3, 1)  # [N, R + 2 most, R + 2 most, C]
    places = torch.arange(side, device=images.device) + shifts[:, :, None]  # [N, 2, R]
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    shifted = padded[rows, places[:, 0, :, None], places[:, 1, None]]  # [N, R, R, C]
    return shifted.permute(0, 3, 1, 2)  # [N, C, R, R], channels last in memory


def _cutout(images: Tensor, draws: RowDraws, strength: float) -> Tensor:
    """A square of half the side becomes 0; its centre is anywhere, so it may reach over the edge."""
    side = images.shape[-1]
    cut = round(strength * CUTOUT_SIDE * side)
    first = (draws.uniform(2) * side).long() - cut // 2  # [N, 2]
    places = torch.arange(side, device=images.device)
    inside = (places >= first[:, :, None]) & (places < first[:, :, None] + cut)  # [N, 2, R]
    hole = inside[:, 0, :, None] & inside[:, 1, None]  # [N, R, R]
    return images * ~hole[:, None]


_AUGMENTATIONS: Final[dict[Augmentation, Callable[[Tensor, RowDraws, float], Tensor]]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
