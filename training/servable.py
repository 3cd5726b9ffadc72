"""G as it is served: latents in, finished pixels out.

The one place where a G of this package meets uint8. `gantrain grid` and the ticks of a run use
it in torch, an export traces it, so a grid cell and a served image differ by rounding at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.golden import Render
from models.sampling import latents_from_seeds, resolve_class_idx
from training.networks import Generator

_ROWS_A_PASS = 64


class ServableGenerator(nn.Module):
    """A conditional or unconditional G with truncation in z, scaling, rounding and NHWC inside.

    forward: latents [N, z_dim] float32, truncation_psi [N] float32, class_idx [N] int64 (if conditional)
    returns images [N, R, R, C] uint8
    """

    def __init__(self, G: Generator) -> None:
        super().__init__()
        self.G = G

    def forward(self, latents: Tensor, truncation_psi: Tensor, class_idx: Tensor | None = None) -> Tensor:
        z = latents * truncation_psi[:, None]  # [N, z_dim]; psi 1 changes no bit
        images = self.G(z, class_idx)  # [N, C, R, R] in [-1, 1]
        levels = torch.round((images + 1.0) * 127.5).clamp(0.0, 255.0)
        return levels.to(torch.uint8).permute(0, 2, 3, 1)  # [N, R, R, C]


@torch.no_grad()
def render_seeds(G: Generator, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the images [N, R, R, C] uint8 that `seeds` name, each in its default class, psi 1.

    `G` is used in eval mode and left in the mode it came in.
    """
    was_training = G.training
    servable = ServableGenerator(G).eval()
    latents = torch.from_numpy(latents_from_seeds(seeds, G.z_dim))  # [N, z_dim]
    classes = resolve_class_idx(None, list(seeds), G.num_classes)
    passes = []
    for first in range(0, len(seeds), _ROWS_A_PASS):
        rows = slice(first, first + _ROWS_A_PASS)
        z = latents[rows]
        class_idx = None if classes is None else torch.tensor(classes[rows])
        passes.append(servable(z, torch.ones(len(z)), class_idx).numpy())
    G.train(was_training)
    return np.concatenate(passes)


def torch_render(G: Generator) -> Render:
    """Return a function that renders rows of NumPy arrays through `G` in eager torch, in eval mode."""
    servable = ServableGenerator(G).eval()

    @torch.no_grad()
    def render(
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        rows = (latents, truncation_psi, class_idx) if G.num_classes else (latents, truncation_psi)
        images: npt.NDArray[np.uint8] = servable(*(torch.tensor(values) for values in rows)).numpy()
        return images

    return render
