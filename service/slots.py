"""Shared memory between the API process and one worker: rows go in, pixels come back.

A slot holds the inputs and the images of one microbatch. The memory is an anonymous file
(`memfd_create`) that the API process makes for each worker and passes over their socket: no
name that could be left behind, no /dev/shm whose size (64 MiB in a container) would be a limit.
It is reserved whole at start, so that too little memory is a sentence, not a SIGBUS in traffic.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.manifest import Manifest
from service.errors import StartError

LATENTS_GIVEN = -1
"""In `seeds`: this row's latents were given by the caller, and no seed names them."""


@dataclass(frozen=True)
class SlotLayout:
    """Sizes that both sides must agree on."""

    rows: int
    z_dim: int
    img_shape: tuple[int, int, int]

    @classmethod
    def of(cls, manifest: Manifest, rows: int) -> SlotLayout:
        return cls(rows, manifest.z_dim, manifest.img_shape)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """One slot as a structured dtype; every field begins at a multiple of its item's size."""
        return np.dtype(
            [
                ("seeds", np.int64, (self.rows,)),
                ("class_idx", np.int64, (self.rows,)),
                ("latents", np.float32, (self.rows, self.z_dim)),
                ("truncation_psi", np.float32, (self.rows,)),
                ("images", np.uint8, (self.rows, *self.img_shape)),
            ],
            align=True,
        )


@dataclass(frozen=True)
class Slot:
    """Views into one slot; they alias shared memory."""

    seeds: npt.NDArray[np.int64]
    """[rows]; LATENTS_GIVEN where `latents` holds the row's latents."""
    class_idx: npt.NDArray[np.int64]
    """[rows]"""
    latents: npt.NDArray[np.float32]
    """[rows, z_dim]"""
    truncation_psi: npt.NDArray[np.float32]
    """[rows]"""
    images: npt.NDArray[np.uint8]
    """[rows, H, W, C]; written by the worker"""


def create_memory(layout: SlotLayout, slots: int) -> int:
    """Return the descriptor of memory for `slots` slots, every page reserved. Raises StartError."""
    n_bytes = layout.dtype.itemsize * slots
    fd = os.memfd_create("ganserve-slots", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        os.close(fd)
        raise StartError(
            f"{n_bytes / 2**20:.1f} MiB of shared memory could not be reserved ({error.strerror}): "
            f"give more memory, or lower --max-microbatch (now {layout.rows}) or --workers"
        ) from None
    return fd


def map_slots(fd: int, layout: SlotLayout, slots: int) -> list[Slot]:
    """Map the memory behind `fd`; the mapping lives as long as a returned view does."""
    memory = mmap.mmap(fd, layout.dtype.itemsize * slots)
    records = np.ndarray((slots,), dtype=layout.dtype, buffer=memory)
    return [Slot(**{name: record[name] for name in layout.dtype.names or ()}) for record in records]
