"""A data set in memory, and the order in which a run shows it.

The images stay uint8: a quarter of the memory, and the scale to floats is written once, in the
loop. The order is a pure function of (seed, position), so a resumed run goes on where it stopped
without saved state. Refuses to own: files (the readers beside it), torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from training.errors import DataError

Split = Literal["train", "test"]
"""What is learned from, and what was held out of it."""


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """What the networks must know of a data set."""

    img_channels: int
    """1 (grey) or 3 (RGB); 0 where samples are points."""
    num_classes: int
    """0: no labels."""
    point_dim: int = 0
    """Coordinates of a sample that is a point; 0 where samples are images."""

    def sample_shape(self, img_resolution: int) -> tuple[int, ...]:
        """Shape of one sample: (point_dim,), or (C, R, R)."""
        return (self.point_dim,) if self.point_dim else (self.img_channels, img_resolution, img_resolution)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and, where there are labels, their classes."""

    name: str
    images: npt.NDArray[np.uint8]
    """[N, C, H, W]"""
    class_idx: npt.NDArray[np.int64] | None = None
    """[N], or None without labels."""
    class_names: tuple[str, ...] = ()
    """One name a class, or none."""
    licence: str = ""
    """Licence of the data, where it is known."""
    source: str = ""
    """Where it is to be had, in a sentence, where that is known and no default of `--data`."""

    def __post_init__(self) -> None:
        count, channels, _, _ = self.images.shape
        assert self.images.dtype == np.uint8
        assert self.class_idx is None or self.class_idx.shape == (count,)
        if count < 2:
            raise DataError(f"a data set must hold at least 2 images, {self.name} holds {count}")
        if channels not in (1, 3):
            raise DataError(f"images must have 1 or 3 channels, those of {self.name} have {channels}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return 0 if self.class_idx is None else int(self.class_idx.max()) + 1

    @property
    def shape(self) -> DataShape:
        return DataShape(img_channels=self.images.shape[1], num_classes=self.num_classes)

    @cached_property
    def digest(self) -> str:
        """sha256 (64 hex) over sizes, pixels and labels, as the networks see them."""
        digest = hashlib.sha256(repr((self.images.shape, self.num_classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self.class_idx is not None:
            digest.update(self.class_idx.astype("<i8").data)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a run folder and a manifest say about the data."""
        return {
            "name": self.name,
            "digest": self.digest,
            "num_images": len(self),
            "img_channels": self.shape.img_channels,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "licence": self.licence,
            "source": self.source,
        }

    def padded(self, img_resolution: int) -> Dataset:
        """Return the data set with black margins that make every image `img_resolution` square."""
        height, width = self.images.shape[2:]
        if max(height, width) > img_resolution:
            raise DataError(
                f"images must be at most img_resolution ({img_resolution}) on each side, "
                f"those of {self.name} are {width}×{height}: raise img_resolution"
            )
        top, left = (img_resolution - height) // 2, (img_resolution - width) // 2
        margins = (
            (0, 0),
            (0, 0),
            (top, img_resolution - height - top),
            (left, img_resolution - width - left),
        )
        return replace(self, images=np.pad(self.images, margins))  # [N, C, R, R]


class DataOrder:
    """Which image is shown when: each epoch is a permutation drawn from (seed, epoch) alone."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def rows(self, cur_nimg: int, count: int) -> npt.NDArray[np.int64]:
        """Return the indices [count] of the images that follow the first `cur_nimg` shown."""
        parts = []
        while count > 0:
            epoch, first = divmod(cur_nimg, self.num_images)
            part = self._permutation_of(epoch)[first : first + count]
            parts.append(part)
            cur_nimg += len(part)
            count -= len(part)
        return np.concatenate(parts)

    def _permutation_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch))))
            self._permutation = stream.permutation(self.num_images)
            self._epoch = epoch
        return self._permutation
