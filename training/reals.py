"""Where a run's reals come from: a data set resident as uint8, or anything else that keeps the protocol.

What is real at which position is a pure function of (seed, position), so a resumed run goes on where it
stopped, and a batch is the same however it is split. Refuses to own: files and the order of a data set
(`training.data`).
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data import DataOrder, Dataset, DataShape
from training.data.mixtures import Mixture
from training.device import CPU
from training.streams import RowDraws


class Reals(Protocol):
    """An endless sequence of real samples, one an image position."""

    @property
    def shape(self) -> DataShape:
        """What the networks must know."""
        ...

    def batch(self, cur_nimg: int, count: int) -> tuple[Tensor, Tensor | None]:
        """The samples [count, …] float32 that follow the first `cur_nimg`, and their classes [count].

        The sample at a position is the same whichever batch it is asked in. Classes are None where the
        data has none. The tensors are the caller's to change.
        """
        ...

    def draw_classes(self, draws: RowDraws) -> Tensor | None:
        """Classes [rows] int64, as frequent as in the data, to ask G for; None where there are none."""
        ...


class DatasetReals:
    """The images of a data set, all of them on `device`, in an order that is drawn from (seed, epoch)."""

    def __init__(self, dataset: Dataset, seed: int, device: torch.device = CPU) -> None:
        self.shape = dataset.shape
        self._order = DataOrder(len(dataset), seed)
        self._images = torch.from_numpy(dataset.images).to(device)  # [N, C, R, R] uint8
        class_idx = dataset.class_idx
        self._class_idx = None if class_idx is None else torch.from_numpy(class_idx).to(device)  # [N]

    def batch(self, cur_nimg: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Images [count, C, R, R] in [-1, 1], channels last in memory, and their classes [count]."""
        rows = torch.from_numpy(self._order.rows(cur_nimg, count)).to(self._images.device)
        images = self._images[rows].to(torch.float32) / 127.5 - 1.0  # [N, C, R, R] in [-1, 1]
        reals = images.contiguous(memory_format=torch.channels_last)
        return reals, None if self._class_idx is None else self._class_idx[rows]

    def draw_classes(self, draws: RowDraws) -> Tensor | None:
        """Classes [rows] of images drawn with replacement."""
        return None if self._class_idx is None else self._class_idx[draws.integers(len(self._class_idx))]


class MixtureReals:
    """Points of a mixture divided by its `scale`, drawn a block at a time from (seed, block)."""

    BLOCK: Final = 8192

    def __init__(self, mixture: Mixture, seed: int, device: torch.device = CPU) -> None:
        self.shape = DataShape(img_channels=0, num_classes=0, point_dim=mixture.point_dim)
        self._device = device
        self._mixture = mixture
        self._seed = seed
        self._index = -1
        self._block = np.empty((0, mixture.point_dim), dtype=np.float32)

    def batch(self, cur_nimg: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Points [count, point_dim] in units of the mixture's scale, without classes."""
        parts = []
        while count > 0:
            index, first = divmod(cur_nimg, self.BLOCK)
            part = self._block_at(index)[first : first + count]
            parts.append(part)
            cur_nimg += len(part)
            count -= len(part)
        return torch.from_numpy(np.concatenate(parts)).to(
            self._device
        ), None  # a copy: the caller's to change

    def draw_classes(self, draws: RowDraws) -> Tensor | None:
        """None: a mixture has no classes."""
        return None

    def _block_at(self, index: int) -> npt.NDArray[np.float32]:
        if index != self._index:
            stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, index))))
            points = self._mixture.points(self.BLOCK, stream)  # [BLOCK, point_dim]
            self._index, self._block = index, points / np.float32(self._mixture.scale)
        return self._block
