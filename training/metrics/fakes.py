"""Images to be judged, and what is known of how they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.calibration import Sampler
from models.errors import InvalidValue, show
from models.golden import Render
from models.sampling import Prior, latents_from_seeds, resolve_class_idx
from training.metrics.classes import ClassIdx
from training.metrics.counting import counted
from training.metrics.extractor import Images
from training.metrics.neighbours import MIN_IMAGES

FIRST_SEED: Final = 3_000_000_000
"""Where the seeds of evaluation begin: far from those that grids, previews and users' first trials take."""
SEEDS_A_SEED: Final = 1_000_000
MAX_EVALUATION_SEED: Final = 999
ROWS_A_PASS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many images, and which."""

    n: int = 10_000
    """Of a generator or of the data; of files all that there are."""
    seed: int = 0
    """Which seeds a generator gets: `evaluation_seeds`."""
    truncation_psi: float = 1.0
    sampler: Sampler = "plain"
    proposals: int | None = None
    """Of the sampler mh; None: the model's own number."""

    def __post_init__(self) -> None:
        """Raise InvalidValue for what no target could give."""
        if self.n < MIN_IMAGES:
            raise InvalidValue(f"n must be at least {MIN_IMAGES}, got {show(self.n)}")
        if self.sampler == "plain" and self.proposals is not None:
            raise InvalidValue(
                f"proposals must be left out where sampler is plain, got {show(self.proposals)}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether images are wanted as they are."""
        return (self.truncation_psi, self.sampler) == (1, "plain")


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


def sampler_text(sampler: str, proposals: int) -> str:
    """What a protocol says of how fakes were chosen."""
    return sampler if sampler == "plain" else f"{sampler}, {proposals} proposals"


Make = Callable[[Sequence[int], ClassIdx], Images]
"""(seeds, class_idx [N]) -> images [N, H, W, C]"""


def plain(render: Render, *, z_dim: int, prior: Prior, truncation_psi: float) -> Make:
    """Each seed's own image."""

    def make(seeds: Sequence[int], class_idx: ClassIdx) -> Images:
        psi = np.full(len(seeds), truncation_psi, dtype=np.float32)
        return render(latents_from_seeds(seeds, z_dim, prior), class_idx, psi)

    return make


def made(
    make: Make, seeds: Sequence[int], num_classes: int, rows_a_pass: int = ROWS_A_PASS
) -> tuple[Images, ClassIdx | None]:
    """The images [N, H, W, C] of `seeds`, each in its default class [N], a few at a time."""
    classes = resolve_class_idx(None, list(seeds), num_classes)
    class_idx = np.array(classes or [0] * len(seeds), dtype=np.int64)
    passes = []
    for first in counted("images", range(0, len(seeds), rows_a_pass)):
        rows = slice(first, first + rows_a_pass)
        passes.append(make(seeds[rows], class_idx[rows]))
    return np.concatenate(passes), None if classes is None else class_idx
