"""G as it is served: latents in, finished pixels out; and D, which judges them: pixels in, logits out.

The one place in torch where a G meets uint8. `gantrain grid` and the ticks of a run use it, an export
traces it, so a grid cell and a served image differ by rounding at most. It takes any module that makes
images of latents; G of this package is the case that knows its own sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.golden import Render, Score
from models.manifest import Truncation
from models.sampling import latents_from_seeds, resolve_class_idx
from training.errors import GraphRefused
from training.networks import Discriminator, Generator
from training.pixels import DEFAULT_RANGE, RANGES, axes_to_nhwc, flat_sizes

_ROWS_A_PASS = 64

Call = Callable[..., Any]
"""(module, z [N, z_dim], class_idx [N] if there are classes, truncation_psi [N] if in w) -> images [N, …]."""


def call_module(module: nn.Module, *rows: Tensor) -> Any:
    """The plain call. Not `nn.Module.__call__`: torch puts another in its place while it traces."""
    return module(*rows)


def call_generator(G: Generator, z: Tensor, *rows: Tensor) -> Any:
    """The call of a G of this package, whose second input is None where there are no classes."""
    return G(z, *rows) if G.num_classes else G(z, None, *rows)


class Servable(nn.Module):
    """A module with the inputs that serving feeds, and truncation in z, scaling, rounding and NHWC inside.

    forward: latents [N, z_dim] float32, class_idx [N] int64 (if conditional), truncation_psi [N] float32
    (if there is truncation)
    returns images [N, H, W, C] uint8
    """

    def __init__(
        self,
        module: nn.Module,
        call: Call = call_module,
        *,
        num_classes: int = 0,
        truncation: Truncation = "none",
        value_range: str = DEFAULT_RANGE,
        layout: str = "NCHW",
    ) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.num_classes = num_classes
        self.truncation = truncation
        self.value_range = value_range
        self.layout = layout

    def forward(self, latents: Tensor, *rows: Tensor) -> Tensor:
        images = self.images(latents, *rows)  # in self.layout and self.value_range
        low, high = RANGES[self.value_range]
        levels = torch.round((images - low) * (255 / (high - low))).clamp(0.0, 255.0).to(torch.uint8)
        sizes = flat_sizes(self.layout)
        if sizes is not None:
            levels = levels.reshape(-1, *sizes)
        return levels.permute(axes_to_nhwc(self.layout))  # [N, H, W, C]

    def images(self, latents: Tensor, *rows: Tensor) -> Tensor:
        """The module's own answer, float32; `rows` are class_idx and truncation_psi, where it has them.

        Raises GraphRefused for an answer that is no tensor.
        """
        if self.truncation == "z":
            *rows, truncation_psi = rows  # type: ignore[assignment]  # a list of what is left
            latents = latents * truncation_psi[:, None]  # [N, z_dim]; psi 1 changes no bit
        images = self.call(self.module, latents, *rows)
        if not isinstance(images, Tensor):
            raise GraphRefused(
                f"the module must give one tensor of images, it gives {type(images).__name__}: "
                "take the images out in call"
            )
        return images.to(torch.float32)


class ServableDiscriminator(nn.Module):
    """A D with the inputs that serving feeds: finished pixels, as G's graph makes them.

    forward: images [N, H, W, C] uint8, class_idx [N] int64 (if conditional)
    returns realness [N] float32: D's raw logit
    """

    def __init__(self, D: Discriminator) -> None:
        super().__init__()
        self.module = D

    def forward(self, images: Tensor, *rows: Tensor) -> Tensor:
        samples = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0  # [N, C, H, W], as reals are
        realness: Tensor = self.module.forward(samples, *rows)  # [N]
        return realness


class ServableGenerator(Servable):
    """A G of this package, whose sizes are its own."""

    def __init__(self, G: Generator) -> None:
        super().__init__(G, call_generator, num_classes=G.num_classes, truncation=G.truncation)


@torch.no_grad()
def render_seeds(G: Generator, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the images [N, R, R, C] uint8 that `seeds` name, each in its default class, psi 1.

    `G` is used where it is, in eval mode, and left in the mode it came in.
    """
    was_training = G.training
    render = torch_render(G)
    latents = latents_from_seeds(seeds, G.z_dim)  # [N, z_dim]
    classes = np.array(resolve_class_idx(None, list(seeds), G.num_classes) or [0] * len(seeds))
    ones = np.ones(len(seeds), dtype=np.float32)
    passes = []
    for first in range(0, len(seeds), _ROWS_A_PASS):
        rows = slice(first, first + _ROWS_A_PASS)
        passes.append(render(latents[rows], classes[rows], ones[rows]))
    G.train(was_training)
    return np.concatenate(passes)


def torch_render(G: Generator) -> Render:
    """Return a function that renders rows of NumPy arrays through `G`, in eager torch and eval mode."""
    servable, device = ServableGenerator(G).eval(), next(G.parameters()).device

    @torch.no_grad()
    def render(
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        rows = [row.to(device) for row in rows_of(servable, latents, class_idx, truncation_psi)]
        images: npt.NDArray[np.uint8] = servable(*rows).cpu().numpy()
        return images

    return render


def torch_score(D: Discriminator) -> Score:
    """Return a function that scores images of NumPy arrays by `D`, in eager torch and eval mode."""
    servable = ServableDiscriminator(D).eval()

    @torch.no_grad()
    def score(images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        rows = [class_idx] if D.num_classes else []
        logits: npt.NDArray[np.float32] = servable(*map(torch.tensor, [images, *rows])).numpy()
        return logits

    return score


def rows_of(
    servable: Servable,
    latents: npt.NDArray[np.float32],
    class_idx: npt.NDArray[np.int64],
    truncation_psi: npt.NDArray[np.float32],
) -> list[Tensor]:
    """The tensors that `servable` takes, in its order; what it has no input for is left out."""
    rows: list[npt.NDArray[Any]] = [latents]
    if servable.num_classes:
        rows.append(class_idx)
    if servable.truncation != "none":
        rows.append(truncation_psi)
    return [torch.tensor(values) for values in rows]
