"""What a classifier's answers tell of images: Inception Score, the histogram of classes, accuracy.

Refuses to own: the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.metrics.distances import Floats

Logits = npt.NDArray[np.floating[Any]]
"""[N, K]"""
ClassIdx = npt.NDArray[np.int64]
"""[N]"""

SCORE_SPLITS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How images are spread over the classes that a classifier finds."""

    min_share: float
    """Of the rarest class."""
    max_share: float
    """Of the most frequent one."""
    jsd: float
    """Jensen-Shannon divergence, in nats, from the reals' histogram: 0 where they are alike, at most ln 2."""


def inception_score(logits: Logits, seed: int) -> float:
    """exp E KL(p(y|x) ‖ p(y)), the mean of 10 parts: Salimans 2016, section 4, arXiv:1606.03498.

    The parts are drawn, since p(y) is of a part: images that come class by class would score 1.
    """
    order = np.random.RandomState(seed).permutation(len(logits))
    log_p = _log_softmax(logits[order])  # [N, K]
    scores = [_score(part) for part in np.array_split(log_p, min(SCORE_SPLITS, len(log_p)))]
    return float(np.mean(scores))


def histogram(fake_logits: Logits, real_logits: Logits) -> Histogram:
    """Spread of fakes [N, K] over the classes, held against that of reals [M, K]."""
    p, q = _shares(fake_logits), _shares(real_logits)
    m = (p + q) / 2
    jsd = sum(float((one[one > 0] * np.log(one[one > 0] / m[one > 0])).sum()) for one in (p, q)) / 2
    return Histogram(min_share=float(p.min()), max_share=float(p.max()), jsd=jsd)


def accuracy(logits: Logits, class_idx: ClassIdx | int) -> float:
    """Share of images [N, K] in which the class [N] is found that they are to show, or one class in all."""
    return float(np.mean(logits.argmax(axis=1) == class_idx))


def _score(log_p: Floats) -> float:
    p = np.exp(log_p)
    log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))


def _log_softmax(logits: Logits) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def _shares(logits: Logits) -> Floats:
    """The share [K] of images in which each class is found."""
    shares: Floats = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1]) / len(logits)
    return shares
