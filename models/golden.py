"""Golden rows: seeds, parameters and the exact pixels an artifact must give.

Written at export from ONNX Runtime's CPU provider; replayed by `gantrain verify` and, a few rows,
when a worker starts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import DamagedArtifact
from models.manifest import Manifest
from models.sampling import MAX_SEED, MAX_TRUNCATION_PSI, latents_from_seeds

# (latents [N, z_dim] float32, class_idx [N] int64, truncation_psi [N] float32) -> images [N, H, W, C] uint8
Render = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]], npt.NDArray[np.uint8]
]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Rows whose pixels are known."""

    seeds: npt.NDArray[np.int64]
    """[N], each 0..2**32-1."""
    class_idx: npt.NDArray[np.int64]
    """[N]; zeros for an unconditional model."""
    truncation_psi: npt.NDArray[np.float32]
    """[N]; ones for a model without truncation."""
    images: npt.NDArray[np.uint8]
    """[N, H, W, C]."""

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            seeds=self.seeds,
            class_idx=self.class_idx,
            truncation_psi=self.truncation_psi,
            images=self.images,
        )

    @classmethod
    def load(cls, path: Path, manifest: Manifest) -> Golden:
        """Read golden rows and check their shapes against `manifest`. Raises DamagedArtifact."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                golden = cls(
                    seeds=arrays["seeds"].astype(np.int64),
                    class_idx=arrays["class_idx"].astype(np.int64),
                    truncation_psi=arrays["truncation_psi"].astype(np.float32),
                    images=arrays["images"],
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DamagedArtifact(f"{path.name} cannot be read: {error}") from None
        rows = len(golden.seeds)
        wanted = (rows, *manifest.img_shape)
        if rows == 0 or golden.images.shape != wanted or golden.images.dtype != np.uint8:
            raise DamagedArtifact(
                f"{path.name} must hold images uint8 {wanted} with at least one row, "
                f"got {golden.images.dtype} {golden.images.shape}"
            )
        if {golden.seeds.shape, golden.class_idx.shape, golden.truncation_psi.shape} != {(rows,)}:
            raise DamagedArtifact(f"{path.name} must hold one class_idx and one truncation_psi a row")
        fits = (golden.class_idx >= 0) & (golden.class_idx < max(manifest.num_classes, 1))
        fits &= (golden.truncation_psi >= 0) & (golden.truncation_psi <= MAX_TRUNCATION_PSI)
        fits &= (golden.seeds >= 0) & (golden.seeds <= MAX_SEED)
        if not fits.all():
            raise DamagedArtifact(
                f"{path.name} must hold seeds, class_idx and truncation_psi in their ranges"
            )
        return golden

    def largest_difference(self, render: Render, manifest: Manifest, rows: int | None = None) -> int:
        """Render the first `rows` rows (all if None); return the largest grey-level difference, 0..255.

        0 means bit-exact.
        """
        latents = latents_from_seeds(self.seeds[:rows], manifest.z_dim, manifest.prior)  # [N, Z] float32
        images = render(latents, self.class_idx[:rows], self.truncation_psi[:rows])  # [N, H, W, C] uint8
        return int(np.abs(images.astype(np.int16) - self.images[:rows].astype(np.int16)).max())
