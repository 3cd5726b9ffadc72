"""Images to be judged, and what is known of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.errors import InvalidValue, show
from models.golden import Render
from models.sampling import Prior, latents_from_seeds, resolve_class_idx
from training.metrics.classes import ClassIdx
from training.metrics.counting import counted
from training.metrics.extractor import Images

FIRST_SEED: Final = 3_000_000_000
"""Where the seeds of evaluation begin: far from those that grids, previews and users' first trials take."""
SEEDS_A_SEED: Final = 1_000_000
MAX_EVALUATION_SEED: Final = 999
_ROWS_A_PASS: Final = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Fakes:
    """Images that a generator made."""

    label: str
    """What made them, for people."""
    images: Images
    """[N, H, W, C]"""
    class_idx: ClassIdx | None = None
    """The class [N] that each was to show; None: no classes, or not known."""
    truncation_psi: float = 1.0
    sampler: str = "plain"
    learned_from: str = ""
    """Name of the data that the generator learned from; empty where it is not known."""


def evaluation_seeds(seed: int, count: int) -> range:
    """The seeds of the fakes: those from 3,000,000,000 + 1,000,000 · `seed` on.

    Consecutive ones, so that each in its default class draws the classes evenly. Raises InvalidValue.
    """
    if not 0 <= seed <= MAX_EVALUATION_SEED:
        raise InvalidValue(f"seed must be between 0 and {MAX_EVALUATION_SEED}, got {show(seed)}")
    if not 1 <= count <= SEEDS_A_SEED:
        raise InvalidValue(f"n must be between 1 and {SEEDS_A_SEED}, got {show(count)}")
    first = FIRST_SEED + seed * SEEDS_A_SEED
    return range(first, first + count)


def default_classes(seeds: Sequence[int], num_classes: int) -> ClassIdx | None:
    """The class [N] that each seed has where none is asked for; None without classes."""
    classes = resolve_class_idx(None, list(seeds), num_classes)
    return None if classes is None else np.array(classes, dtype=np.int64)


def rendered(
    render: Render,
    seeds: Sequence[int],
    *,
    z_dim: int,
    prior: Prior,
    num_classes: int,
    truncation_psi: float,
) -> Images:
    """The images [N, H, W, C] that `seeds` name, each in its default class, a few at a time."""
    classes = default_classes(seeds, num_classes)
    class_idx = np.zeros(len(seeds), dtype=np.int64) if classes is None else classes
    passes = []
    for first in counted("images", range(0, len(seeds), _ROWS_A_PASS)):
        rows = slice(first, first + _ROWS_A_PASS)
        latents = latents_from_seeds(seeds[rows], z_dim, prior)  # [B, z_dim]
        psi = np.full(len(latents), truncation_psi, dtype=np.float32)
        passes.append(render(latents, class_idx[rows], psi))
    return np.concatenate(passes)
