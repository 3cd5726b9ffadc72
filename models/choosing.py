"""Of several images of one seed the one that D's chain ends at: rows in, chosen rows out.

What makes and scores images is handed in, so the server, offline runs and the measurement at export
choose by the same few lines. Refuses to own: sessions, batching, where a calibration comes from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.golden import Render, Score
from models.sampling import mh_choices


def choose_images(
    render: Render,
    score: Score,
    scale: float,
    latents: npt.NDArray[np.float32],
    uniforms: npt.NDArray[np.float64],
    class_idx: npt.NDArray[np.int64],
    truncation_psi: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return each row's chosen image [N, H, W, C] uint8 and its logit [N].

    latents [N, K, z_dim] and uniforms [N, K] are those of `LatentSampler.draw_proposals`, class_idx and
    truncation_psi [N] count for all proposals of a row, `scale` is the calibration's. All N·K images are
    made in one run.
    """
    rows, proposals, z_dim = latents.shape
    classes = class_idx.repeat(proposals)  # [N·K]
    images = render(latents.reshape(-1, z_dim), classes, truncation_psi.repeat(proposals))  # [N·K, H, W, C]
    logits = score(images, classes).reshape(rows, proposals)
    chosen = mh_choices(logits, uniforms, scale) + proposals * np.arange(rows)  # of N·K
    return images[chosen], logits.reshape(-1)[chosen]
