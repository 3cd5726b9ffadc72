"""A figure and how it was taken: what makes two figures comparable, and only then.

Refuses to own: how figures are computed, and how they are laid out (`training.metrics.table`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

PIXELS: Final = "pixels"
"""In the place of an extractor's name where a figure is of the pixels alone."""
PLAIN: Final[dict[str, Any]] = {"truncation_psi": 1.0, "sampler": "plain"}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that moves a figure besides the fakes. Figures of two protocols are not to be compared."""

    extractor: str
    """Name of what made the features; PIXELS where nothing did."""
    extractor_digest: str
    """sha256 (64 hex) of its file or weights; empty for pixels."""
    data: str
    """Name of the data set that the reals are of."""
    data_digest: str
    """sha256 (64 hex) over the pixels and labels of the split, at the size of the fakes."""
    split: str
    """Which part of the data the reals are: "test" or "train"."""
    n_real: int
    """Reals, drawn from the split by `seed`."""
    n_fake: int
    resize: str
    """What the extractor does to the size of images first: "none", or a size and a filter."""
    seed: int
    """Of the reals that are drawn, of the fakes that a generator makes, and of subsets."""
    truncation_psi: float = 1.0
    sampler: str = "plain"
    """How fakes were chosen: "plain", or another sampler and its settings."""

    def to_json(self) -> dict[str, Any]:
        """Without truncation and sampler where they are plain."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if PLAIN.get(name) != value}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, and how it was taken."""

    name: str
    value: float
    protocol: Protocol
    of_reals: float | None = None
    """The same number of real images, which is what a perfect generator gets: of as many from the training
    split in the place of the fakes, or of the reals themselves where the figure is of one set. None: it was
    not taken."""

    def to_json(self) -> dict[str, Any]:
        """`{"name", "value", "protocol": {…}}`, and "of_reals" where it was taken."""
        told = {} if self.of_reals is None else {"of_reals": self.of_reals}
        return {"name": self.name, "value": self.value, **told, "protocol": self.protocol.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "protocol": Protocol(**values["protocol"])})
