"""What is watched while a run goes on: the means of a tick, as `metrics.jsonl` has them.

Everything that a later line depends on is in the snapshot, so a run that was stopped or killed leaves the
lines of an uninterrupted one. Refuses to own: files, the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class TickAverages:
    """Means of the figures since the last tick, summed as tensors: no wait for a device in an iteration.

    A figure that only some iterations have (a lazy penalty) is the mean of those.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._num_images = 0
        self._seconds = 0.0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in one iteration's figures, each [N]."""
        for name, values in figures.items():
            mean = values.mean()
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
            self._counts[name] += 1

    def add_time(self, num_images: int, seconds: float) -> None:
        """Take in how long the iterations took."""
        self._num_images += num_images
        self._seconds += seconds

    def take_row(self) -> dict[str, float]:
        """Return the means by name, with the rate, and begin anew."""
        row = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        row["images_per_s"] = round(self._num_images / self._seconds, 1)
        self.load_dict({"sums": {}, "counts": {}, "num_images": 0, "seconds": 0.0})
        return row

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "num_images": self._num_images,
            "seconds": self._seconds,
        }

    def load_dict(self, values: Mapping[str, Any]) -> None:
        """Take over what `to_dict` gave."""
        self._sums = dict(values["sums"])
        self._counts = Counter(values["counts"])
        self._num_images = values["num_images"]
        self._seconds = values["seconds"]
