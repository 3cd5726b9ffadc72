"""How much fine detail images have, of their pixels alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS_A_PASS = 500


def laplacian(images: npt.NDArray[np.uint8]) -> float:
    """The mean magnitude of the Laplacian, in grey levels, over all inner pixels of images [N, H, W, C].

    The Laplacian is the difference between four times a pixel and its four neighbours: 0 in what is flat or
    blurred, large at edges and in texture.
    """
    total = 0.0
    for first in range(0, len(images), _ROWS_A_PASS):
        x = images[first : first + _ROWS_A_PASS].astype(np.int16)
        inner = x[:, 1:-1, 1:-1]
        around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
        total += float(np.abs(4 * inner - around).sum(dtype=np.int64))
    count, height, width, channels = images.shape
    inner_values = float(count * (height - 2) * (width - 2) * channels)
    return total / inner_values


def sharpness(fakes: npt.NDArray[np.uint8], reals: npt.NDArray[np.uint8]) -> float:
    """The detail of fakes [N, H, W, C] as a share of that of reals [M, H, W, C]: less than 1 is blurred."""
    return laplacian(fakes) / max(laplacian(reals), 1e-9)
