"""What is watched while a run goes on: the means of a tick, and a sentinel that judges the ticks.

Everything that a later line of `metrics.jsonl` depends on is in the snapshot or in earlier lines, so a run
that was stopped or killed leaves the lines of an uninterrupted one. Refuses to own: files, the loop, what
to try (`training.advice`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from training.config import Objective
from training.data import Dataset

Row = Mapping[str, Any]
"""One line of `metrics.jsonl`."""

WON_SINCE: Final = "won_since"
"""In a line: D is certain of every sample, since the tick of this `cur_nimg`."""
COLLAPSED_SINCE: Final = "collapsed_since"
"""In a line: G makes the same few images, since the tick of this `cur_nimg`."""
ALARM_TICKS: Final = 3
"""The sentinel speaks when so many ticks in a row are bad."""
CERTAIN: Final = 0.99
"""D is certain where it gives reals at least this probability on average, and fakes at most what is left."""
COLLAPSED: Final = 0.25
"""A grid is collapsed whose images are closer than this share of the distance between reals."""
LEARNING_NIMG: Final = 20_000
"""Up to here a grid is held against its own past, since a G that begins makes one grey for all seeds."""


def alarms(rows: Sequence[Row], objective: Objective) -> dict[str, int]:
    """Return WON_SINCE and COLLAPSED_SINCE, each where the last ticks of `rows` say so: when it began."""
    bad: dict[str, Callable[[int], bool]] = {
        WON_SINCE: lambda i: _is_won(rows[i], objective),
        COLLAPSED_SINCE: lambda i: _is_collapsed(rows[i], rows[:i]),
    }
    streaks = {name: list(takewhile(is_bad, reversed(range(len(rows))))) for name, is_bad in bad.items()}
    return {
        name: rows[streak[-1]]["cur_nimg"] for name, streak in streaks.items() if len(streak) >= ALARM_TICKS
    }


def _is_collapsed(row: Row, past: Sequence[Row]) -> bool:
    for name in ("grid_spread", "grid_nearest"):
        best = 1.0 if row["cur_nimg"] > LEARNING_NIMG else max((one[name] for one in past), default=0.0)
        if row[name] < COLLAPSED * min(best, 1.0):
            return True
    return False


def _is_won(row: Row, objective: Objective) -> bool:
    if "D_real_probability" in row:
        return bool(row["D_real_probability"] >= CERTAIN and row["D_fake_probability"] <= 1 - CERTAIN)
    if objective == "hinge":  # all beyond the margin: D's loss has no gradient
        return bool(row["D_loss"] <= 1 - CERTAIN)
    return False  # a Wasserstein D has nothing to be certain of: the further apart, the more G is told


def distances(images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]) -> tuple[float, float]:
    """How far apart images [N, H, W, C] of one class are, in grey levels: any two, and each and its nearest.

    The mean of the one, the median of the other; the distance of two images is the root of the mean square
    over their pixels. Where no class [N] has two images all pairs count; without a pair both are 0.
    """
    pixels = images.reshape(len(images), -1).astype(np.float64)  # [N, H*W*C]
    squares = np.square(pixels).mean(axis=1)
    products = pixels @ pixels.T / pixels.shape[1]
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))  # [N, N]
    others = ~np.eye(len(images), dtype=bool)
    pairs = (class_idx[:, None] == class_idx[None]) & others
    pairs = pairs if pairs.any() else others
    if not pairs.any():
        return 0.0, 0.0
    nearest = np.where(pairs, apart, np.inf).min(axis=1)
    return float(apart[pairs].mean()), float(np.median(nearest[pairs.any(axis=1)]))


class GridSpread:
    """How far apart the images of a grid are, as shares of what as many reals of the same classes are."""

    def __init__(self, dataset: Dataset, class_idx: npt.NDArray[np.int64]) -> None:
        """class_idx [N] of the grid's cells; zeros without classes."""
        self._class_idx = class_idx
        of_data = np.zeros(len(dataset), dtype=np.int64) if dataset.class_idx is None else dataset.class_idx
        chosen = [
            _spaced(np.flatnonzero(of_data == one), int(count))
            for one, count in zip(*np.unique(class_idx, return_counts=True), strict=True)
        ]
        rows = np.concatenate(chosen)
        self._of_reals = distances(dataset.images[rows].transpose(0, 2, 3, 1), of_data[rows])

    def figures(self, images: npt.NDArray[np.uint8]) -> dict[str, float]:
        """The shares of images [N, H, W, C], 1 where reals do not differ.

        `grid_spread` is 0 where all are one image, and `grid_nearest` where they are a few.
        """
        shares = (
            one / of_reals if of_reals > 0 else 1.0
            for one, of_reals in zip(distances(images, self._class_idx), self._of_reals, strict=True)
        )
        return dict(zip(("grid_spread", "grid_nearest"), shares, strict=True))


def _spaced(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the rows, from all over them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


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
