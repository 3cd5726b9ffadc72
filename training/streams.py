"""Randomness of a run as a function of its position: the same (seed, cur_nimg, phase), the same draws.

No generator outlives a step, so a resumed run has no random state to lose, and nothing here or
elsewhere in the package draws from torch's global generator during training.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.device import CPU

Phase = Literal["D", "G"]


def generator_at(seed: int, cur_nimg: int, phase: Phase) -> torch.Generator:
    """Return a fresh torch generator for one phase of the iteration that begins at `cur_nimg`."""
    words = np.random.SeedSequence((seed, cur_nimg, "DG".index(phase))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


class RowDraws:
    """The draws of some rows of a batch: what they get does not depend on how the batch is split.

    Each method draws for the whole batch [batch_size, …] and returns `rows` of it, on `device`.
    """

    def __init__(
        self,
        stream: torch.Generator,
        batch_size: int,
        rows: slice,
        device: torch.device = CPU,
    ) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._rows = rows
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) [rows, *shape] float32."""
        return self._mine(torch.randn(self._batch_size, *shape, generator=self._stream))

    def uniform(self, *shape: int) -> Tensor:
        """U[0, 1) [rows, *shape] float32."""
        return self._mine(torch.rand(self._batch_size, *shape, generator=self._stream))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers of 0 to high - 1, [rows, *shape] int64."""
        return self._mine(torch.randint(high, (self._batch_size, *shape), generator=self._stream))

    def noise_like(self, samples: Tensor) -> Tensor:
        """N(0, 1) of the shape of `samples` [rows, …], drawn where they are: too much for a trip."""
        if self._device.type == "cpu":
            return self.normal(*samples.shape[1:])
        (seed,) = torch.randint(2**63 - 1, (1,), generator=self._stream).tolist()
        stream = torch.Generator(self._device).manual_seed(seed)
        whole = (self._batch_size, *samples.shape[1:])
        return torch.randn(whole, generator=stream, device=self._device)[self._rows]

    def _mine(self, whole: Tensor) -> Tensor:
        return whole[self._rows].to(self._device, non_blocking=True)
