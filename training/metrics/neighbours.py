"""What the nearest neighbours of features tell: precision, recall, density, coverage, and whether G copies.

A sample's ball reaches to its k-th neighbour in its own set. Distances are computed a block of rows at a
time, so memory does not grow with the square of the samples. Refuses to own: features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.metrics.distances import Features, Floats

PRECISION_K: Final = 3
DENSITY_K: Final = 5
MIN_IMAGES: Final = DENSITY_K + 2
"""Of either set."""
_BLOCK_ROWS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """How reals and fakes lie among each other."""

    precision: float
    """Share of fakes inside the ball of some real: Kynkäänniemi 2019, equation 2, arXiv:1904.06991, k = 3."""
    recall: float
    """Share of reals inside the ball of some fake: the same, with the sets turned round."""
    density: float
    """Balls of reals that a fake is in, over k: Naeem 2020, equation 5, arXiv:2002.09797, k = 5. 1 where the
    sets are alike; more than 1 is possible."""
    coverage: float
    """Share of reals whose ball has a fake in it: the same, equation 6, k = 5."""


def neighbourhoods(reals: Features, fakes: Features) -> Neighbourhoods:
    """Judge fakes [M, F] among reals [N, F], of more than 5 samples each."""
    assert min(len(reals), len(fakes)) > DENSITY_K
    real_radii, fake_radii = _radii(reals), _radii(fakes)  # [2, N] and [2, M], squared
    precise = np.zeros(len(fakes), dtype=bool)
    balls = np.zeros(len(fakes), dtype=np.int64)
    recalled, covered = np.zeros(len(reals), dtype=bool), np.zeros(len(reals), dtype=bool)
    for rows, squared in _blocks(reals, fakes):  # [B, M]
        precise |= (squared <= real_radii[0, rows, None]).any(axis=0)
        recalled[rows] = (squared <= fake_radii[0]).any(axis=1)
        in_balls = squared <= real_radii[1, rows, None]
        balls += in_balls.sum(axis=0)
        covered[rows] = in_balls.any(axis=1)
    return Neighbourhoods(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / DENSITY_K),
        coverage=float(covered.mean()),
    )


def nearest_distances(
    samples: Features, training: Features, own: npt.NDArray[np.int64] | None = None
) -> Floats:
    """The distance [N] of each of `samples` [N, F] to the nearest of `training` [M, F].

    Where the samples are training images themselves, `own` [N] is the row of each, which is passed over.
    The nearest is found in float32, and its distance is of float64.
    """
    samples, training = samples.astype(np.float32), training.astype(np.float32)
    nearest = np.empty(len(samples), dtype=np.int64)
    for rows, squared in _blocks(samples, training):
        if own is not None:
            squared[np.arange(len(squared)), own[rows]] = np.inf
        nearest[rows] = squared.argmin(axis=1)
    distances: Floats = np.linalg.norm(samples.astype(np.float64) - training[nearest], axis=1)
    return distances


def _radii(features: Features) -> Floats:
    """The squared distances [2, N] to the 3rd and to the 5th neighbour; the nearest is each sample itself."""
    radii = np.empty((2, len(features)))
    for rows, squared in _blocks(features, features):
        squared.partition((PRECISION_K, DENSITY_K), axis=1)
        radii[:, rows] = squared[:, (PRECISION_K, DENSITY_K)].T
    return radii


def _blocks(x: Features, y: Features) -> Iterator[tuple[slice, Features]]:
    """Squared distances [B, M] of the next rows of x [N, F] to y [M, F], and which rows they are.

    In float64, or in float32 where both are.
    """
    kind = np.float32 if x.dtype == y.dtype == np.float32 else np.float64
    x, y = x.astype(kind), y.astype(kind)
    y_squared = np.square(y).sum(axis=1)
    for first in range(0, len(x), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        squared = np.square(x[rows]).sum(axis=1)[:, None] + y_squared - 2 * (x[rows] @ y.T)
        yield rows, np.maximum(squared, 0)
