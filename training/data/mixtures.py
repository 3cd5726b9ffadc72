"""Mixtures of Gaussians with equal weights, known in closed form, and how well samples cover them.

The two of the mode-collapse tests (PacGAN: Lin 2017, arXiv:1712.04086, section 4.1): ring 8 and grid 25.
A sample is of high quality within 3 sigma of a mean. Refuses to own: torch, training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

HIGH_QUALITY_SIGMAS: Final = 3.0
FAIR_SHARE: Final = 0.1
"""A mode counts for `modes10` with this part of the samples that are its due."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """K isotropic Gaussians of one sigma, each as likely as the others."""

    name: str
    means: Floats
    """[K, point_dim]"""
    sigma: float

    @property
    def point_dim(self) -> int:
        return int(self.means.shape[1])

    @property
    def scale(self) -> float:
        """Root mean square of a coordinate: what points are divided by to have a size near 1."""
        return math.sqrt(float(np.square(self.means).mean()) + self.sigma**2)

    def points(self, count: int, stream: np.random.Generator) -> npt.NDArray[np.float32]:
        """Draw [count, point_dim] points."""
        modes = stream.integers(len(self.means), size=count)
        noise = stream.standard_normal((count, self.point_dim))
        return (self.means[modes] + self.sigma * noise).astype(np.float32)

    def density(self, points: npt.ArrayLike) -> Floats:
        """The probability density [N] at points [N, point_dim]."""
        log_density = -_squared_distances(points, self.means) / (2 * self.sigma**2)  # [N, K]
        volume = (math.sqrt(2 * math.pi) * self.sigma) ** self.point_dim
        density: Floats = np.exp(log_density).mean(axis=1) / volume
        return density


def ring() -> Mixture:
    """Ring 8: means on the unit circle, sigma 0.01."""
    angles = 2 * np.pi * np.arange(8) / 8
    return Mixture(name="ring", means=np.stack([np.cos(angles), np.sin(angles)], axis=1), sigma=0.01)


def grid() -> Mixture:
    """Grid 25: means at {-4, -2, 0, 2, 4}², sigma 0.05."""
    axis = np.arange(-4.0, 5.0, 2.0)
    return Mixture(name="grid", means=np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), sigma=0.05)


MIXTURES: Final = {mixture.name: mixture for mixture in (ring(), grid())}


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How samples lie on a mixture."""

    modes: int
    """Modes with at least one high-quality sample."""
    modes10: int
    """Modes with at least 10 % of a fair share, samples / modes, in high-quality samples."""
    high_quality: float
    """Share of samples within 3 sigma of a mean; of the data itself in the plane, 1 - exp(-4.5) = 0.989."""
    jsd: float
    """Jensen-Shannon divergence, in nats, of the histogram of high-quality samples over the modes to the
    uniform one: 0 where every mode has its share, ln 2 where no sample is of high quality."""


def coverage(points: npt.ArrayLike, mixture: Mixture) -> Coverage:
    """Judge samples [N, point_dim]; one that is not finite belongs to no mode."""
    points = np.asarray(points, dtype=np.float64)
    distances = _squared_distances(np.where(np.isfinite(points), points, np.inf), mixture.means)  # [N, K]
    good = distances.min(axis=1) <= (HIGH_QUALITY_SIGMAS * mixture.sigma) ** 2  # [N]
    num_modes = len(mixture.means)
    counts = np.bincount(distances[good].argmin(axis=1), minlength=num_modes)  # [K]
    return Coverage(
        modes=int((counts > 0).sum()),
        modes10=int((counts >= FAIR_SHARE * len(points) / num_modes).sum()),
        high_quality=float(good.mean()),
        jsd=_jsd_to_uniform(counts),
    )


def _squared_distances(points: npt.ArrayLike, means: Floats) -> Floats:
    """[N, point_dim] and [K, point_dim] -> [N, K]."""
    differences = np.asarray(points, dtype=np.float64)[:, None, :] - means[None, :, :]  # [N, K, point_dim]
    squared: Floats = np.square(differences).sum(axis=2)
    return squared


def _jsd_to_uniform(counts: npt.NDArray[np.int64]) -> float:
    """½KL(p‖m) + ½KL(u‖m) with m = (p + u)/2, in nats: Lin 1991, of a histogram [K]."""
    if not counts.any():
        return math.log(2)
    p, u = counts / counts.sum(), np.full(len(counts), 1 / len(counts))
    m = (p + u) / 2
    present = p > 0
    return float((p[present] * np.log(p[present] / m[present])).sum() / 2 + (u * np.log(u / m)).sum() / 2)
