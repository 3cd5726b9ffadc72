"""Shared memory between the API process and one worker: rows go in, files or pixels come back.

A slot holds the inputs and the images of one microbatch. The memory is an anonymous file
(`memfd_create`) that the API process makes for each worker and passes over their socket: no
name that could be left behind, no /dev/shm whose size (64 MiB in a container) would be a limit.
It is reserved whole at start, so that too little memory is a sentence, not a SIGBUS in traffic.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.manifest import Manifest
from service.errors import StartError

_FILE_OVERHEAD_BYTES: Final = 4096  # marks, tables and headers of a file beyond its pixels

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
                ("formats", np.uint8, (self.rows,)),
                ("encode_s", np.float64, (self.rows,)),
                ("file_bytes", np.int64, (self.rows,)),
                (
                    "made",
                    np.uint8,
                    (self.rows, self.pixel_bytes * 17 // 16 + _FILE_OVERHEAD_BYTES),
                ),
                ("proposals", np.int64, (self.rows,)),
                ("realness", np.float64, (self.rows,)),
            ],
            align=True,
        )

    @cached_property
    def pixel_bytes(self) -> int:
        """Bytes of one image's pixels."""
        return math.prod(self.img_shape)


@dataclass(frozen=True, eq=False)
class Slot:
    """Views into one slot, or into its first rows; they alias shared memory."""

    seeds: npt.NDArray[np.int64]
    """[rows]; LATENTS_GIVEN where `latents` holds the row's latents."""
    class_idx: npt.NDArray[np.int64]
    """[rows]"""
    latents: npt.NDArray[np.float32]
    """[rows, z_dim]"""
    truncation_psi: npt.NDArray[np.float32]
    """[rows]"""
    formats: npt.NDArray[np.uint8]
    """[rows]; what the worker encodes: 1 + the place in `encoding.FORMATS`, 0 for pixels"""
    encode_s: npt.NDArray[np.float64]
    """[rows]; what encoding took, written by the worker"""
    file_bytes: npt.NDArray[np.int64]
    """[rows]; written by the worker: how long the file in `made` is, 0 where `made` holds pixels"""
    made: npt.NDArray[np.uint8]
    """[rows, bytes]; written by the worker: each row's file, or its pixels"""
    proposals: npt.NDArray[np.int64]
    """[rows], of a microbatch for D: how many images each row is chosen from, 0 where D has nothing to do"""
    realness: npt.NDArray[np.float64]
    """[rows], of the same: how real each image is, written by the worker"""
    images: npt.NDArray[np.uint8]
    """[rows, H, W, C]: `made` as pixels"""
    files: list[memoryview]
    """Each row of `made`, of the whole slot, as the place of a file"""
    _firsts: dict[int, Slot] = field(default_factory=dict)

    def first(self, rows: int) -> Slot:
        """The first `rows` rows. Kept: to cut every field anew costs as much as what is done with them."""
        if rows not in self._firsts:
            arrays = [one.name for one in fields(self) if one.name not in ("files", "_firsts")]
            views = {name: getattr(self, name)[:rows] for name in arrays}
            self._firsts[rows] = Slot(**views, files=self.files)
        return self._firsts[rows]


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
    return [_slot(record, layout) for record in records]


def _slot(record: Any, layout: SlotLayout) -> Slot:
    columns = {name: record[name] for name in layout.dtype.names or ()}
    images = columns["made"][:, : layout.pixel_bytes].reshape(layout.rows, *layout.img_shape)  # no copy
    return Slot(**columns, images=images, files=[memoryview(made) for made in columns["made"]])
