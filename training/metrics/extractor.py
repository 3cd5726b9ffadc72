"""What an extractor is: it turns images into features, and where it classifies, into logits, a few at a time.

Refuses to own: which there are (`extractor_files`, `networks`), training one (`classifier`), figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from training.metrics.counting import counted

Images = npt.NDArray[np.uint8]
"""[N, H, W, C]"""

_ROWS_A_RUN: Final = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What an extractor says of N images."""

    features: npt.NDArray[np.float32]
    """[N, F]"""
    logits: npt.NDArray[np.float32] | None
    """[N, K], where it is a classifier."""


class Extractor(Protocol):
    """Images become features."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """sha256 (64 hex) of its file or weights."""
        ...

    @property
    def resize(self) -> str:
        """What it does to the size of images: "none", or a size and a filter."""
        ...

    @property
    def is_inception(self) -> bool:
        """Whether its features are those that FID, KID and Inception Score are defined on."""
        ...

    def answers(self, images: Images) -> Answers:
        """Raises InvalidValue for images of a shape that it does not take."""
        ...


def in_passes(
    run: Callable[[Images], Sequence[Any]], images: Images, outputs: list[str], rows_a_pass: int = _ROWS_A_RUN
) -> Answers:
    """Run an extractor on a few images at a time, and put together what it answers under `outputs`."""
    passes = counted("features", range(0, len(images), rows_a_pass))
    parts = [run(images[first : first + rows_a_pass]) for first in passes]
    joined = {
        name: np.concatenate([np.asarray(part[i], dtype=np.float32) for part in parts])
        for i, name in enumerate(outputs)
    }
    return Answers(features=joined["features"], logits=joined.get("logits"))
