"""How far apart two sets of features are as distributions: Fréchet distance, its limit, kernel distance.

NumPy in float64. What is drawn (subsets) comes from a seed. Refuses to own: what the features are of, what a
distance on them is called (`training.metrics.measure`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating[Any]]
"""[N, F]"""

KERNEL_SUBSETS: Final = 100
KERNEL_SUBSET_SIZE: Final = 1_000
LIMIT_POINTS: Final = 15
LIMIT_SMALLEST: Final = 0.25
"""The smallest subset that the limit is fitted on, as a share of the fakes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean [F] and covariance [F, F] of a distribution, float64."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, features: Features) -> Self:
        """The moments of features [N, F], with the unbiased covariance."""
        values = features.astype(np.float64)
        return cls(mean=values.mean(axis=0), covariance=np.atleast_2d(np.cov(values, rowvar=False)))

    @cached_property
    def root(self) -> Floats:
        """The symmetric root of the covariance [F, F]."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Floats = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        return root


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """|μp - μq|² + tr(Σp + Σq - 2(Σp^½ Σq Σp^½)^½): Dowson 1982; Heusel 2017, equation 6, arXiv:1706.08500.

    The root of the product is taken of a symmetric matrix, whose eigenvalues are real.
    """
    product = np.linalg.eigvalsh(p.root @ q.covariance @ p.root).clip(0)
    traces = np.trace(p.covariance) + np.trace(q.covariance) - 2 * np.sqrt(product).sum()
    return max(0.0, float(np.square(p.mean - q.mean).sum() + traces))  # below only by rounding


def deviation(features: Features) -> float:
    """The standard deviation of features [N, F], over all of them: the root of the covariance's trace."""
    return float(np.sqrt(features.astype(np.float64).var(axis=0, ddof=1).sum()))


def frechet_distance_limit(reals: Gaussian, fakes: Features, seed: int) -> float:
    """The Fréchet distance that endless fakes [N, F] would have: Chong 2020, arXiv:1911.07023.

    At N samples it is too large by about a constant over N. So it is taken of 15 subsets, from a quarter of
    the fakes to all, a line is fitted against 1/N, and where 1/N is 0 is the limit. Of an extractor with
    Inception's features this is FID∞.
    """
    stream = np.random.RandomState(seed)
    sizes = np.linspace(max(2, LIMIT_SMALLEST * len(fakes)), len(fakes), LIMIT_POINTS).astype(np.int64)
    distances = [
        frechet_distance(reals, Gaussian.of(fakes[stream.permutation(len(fakes))[:size]])) for size in sizes
    ]
    _, limit = np.polyfit(1 / sizes, distances, 1)
    return float(limit)


def kernel_distance(reals: Features, fakes: Features, seed: int) -> float:
    """The squared maximum mean discrepancy of k(x, y) = (x·y/F + 1)³: Bińkowski 2018, arXiv:1801.01401.

    Unbiased, so the mean over equal distributions is 0 and single values may be below. The mean of 100
    subsets of 1,000 of features [N, F] and [M, F] each (all, where there are fewer).
    """
    stream = np.random.RandomState(seed)
    size = min(KERNEL_SUBSET_SIZE, len(reals), len(fakes))
    x, y = reals.astype(np.float64), fakes.astype(np.float64)
    subsets = [
        _mmd2(x[stream.permutation(len(x))[:size]], y[stream.permutation(len(y))[:size]])
        for _ in range(KERNEL_SUBSETS)
    ]
    return float(np.mean(subsets))


def standardised(reals: Features, fakes: Features) -> tuple[Floats, Floats]:
    """Both sets moved and scaled so that `reals` have mean 0, and variance 1 on average over the features.

    The kernel adds 1 to a product, so it means nothing on features of any scale, as raw ReLU features are.
    The scale is one for all: on a scale of its own a feature that fires in a few images would decide the
    cubes (of 10,000 Fashion-MNIST images each, real ones then came out further from reals than fakes did).
    """
    values = reals.astype(np.float64)
    mean, scale = values.mean(axis=0), float(np.sqrt(values.var(axis=0).mean()))
    scale = scale or 1.0  # reals that are all alike
    return (values - mean) / scale, (fakes.astype(np.float64) - mean) / scale


def _mmd2(x: Floats, y: Floats) -> float:
    """Equation 4 there: no sample meets itself. x and y are of one size [m, F]."""
    m, dim = x.shape
    k_xx, k_yy, k_xy = ((a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))  # [m, m] each
    within = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())
