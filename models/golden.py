"""Golden rows: seeds, parameters and the exact pixels an artifact must give, and what its D says of them.

Written at export from ONNX Runtime's CPU provider; replayed by `gantrain verify` and, a few rows,
when a worker starts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import DamagedArtifact, show
from models.manifest import DISCRIMINATOR_FILE, Manifest
from models.sampling import MAX_SEED, MAX_TRUNCATION_PSI, latents_from_seeds, rounded_logits

# (latents [N, z_dim] float32, class_idx [N] int64, truncation_psi [N] float32) -> images [N, H, W, C] uint8
Render = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]], npt.NDArray[np.uint8]
]
# (images [N, H, W, C] uint8, class_idx [N] int64) -> D's logits [N] float32
Score = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], npt.NDArray[np.float32]]


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
    realness: npt.NDArray[np.float32] | None = None
    """[N]: D's logits of the images; None for an artifact without a discriminator."""

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "seeds": self.seeds,
            "class_idx": self.class_idx,
            "truncation_psi": self.truncation_psi,
            "images": self.images,
        }
        if self.realness is not None:
            arrays["realness"] = self.realness
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path, manifest: Manifest) -> Golden:
        """Read golden rows and check their shapes against `manifest`. Raises DamagedArtifact."""
        file = f"{manifest.name}:{manifest.version}: {path.name}"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                golden = cls(
                    seeds=arrays["seeds"].astype(np.int64),
                    class_idx=arrays["class_idx"].astype(np.int64),
                    truncation_psi=arrays["truncation_psi"].astype(np.float32),
                    images=arrays["images"],
                    realness=arrays["realness"].astype(np.float32) if "realness" in arrays else None,
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DamagedArtifact(f"{file} cannot be read: {error}") from None
        rows = len(golden.seeds)
        wanted = (rows, *manifest.img_shape)
        if rows == 0 or golden.images.shape != wanted or golden.images.dtype != np.uint8:
            raise DamagedArtifact(
                f"{file} must hold images uint8 {wanted} with at least one row, "
                f"got {golden.images.dtype} {golden.images.shape}"
            )
        if {golden.seeds.shape, golden.class_idx.shape, golden.truncation_psi.shape} != {(rows,)}:
            raise DamagedArtifact(f"{file} must hold one class_idx and one truncation_psi a row")
        logits = golden.realness
        judged = logits is not None and logits.shape == (rows,) and np.isfinite(logits).all()
        if manifest.calibration is not None and not judged:
            raise DamagedArtifact(f"{file} must hold one realness a row: the model has a discriminator")
        fits = (golden.class_idx >= 0) & (golden.class_idx < max(manifest.num_classes, 1))
        fits &= (golden.truncation_psi >= 0) & (golden.truncation_psi <= MAX_TRUNCATION_PSI)
        fits &= (golden.seeds >= 0) & (golden.seeds <= MAX_SEED)
        if not fits.all():
            raise DamagedArtifact(f"{file} must hold seeds, class_idx and truncation_psi in their ranges")
        return golden

    def largest_difference(self, render: Render, manifest: Manifest, rows: int | None = None) -> int:
        """Render the first `rows` rows (all if None); return the largest grey-level difference, 0..255.

        0 means bit-exact.
        """
        latents = latents_from_seeds(self.seeds[:rows], manifest.z_dim, manifest.prior)  # [N, Z] float32
        images = render(latents, self.class_idx[:rows], self.truncation_psi[:rows])  # [N, H, W, C] uint8
        return int(np.abs(images.astype(np.int16) - self.images[:rows].astype(np.int16)).max())

    def largest_realness_difference(self, score: Score, rows: int | None = None) -> float:
        """Score the golden images of the first `rows` rows (all if None); return the largest difference of
        logits, as they are compared.

        0 means that the same proposals are chosen here. Raises DamagedArtifact for other than a number a row.
        """
        assert self.realness is not None
        logits = score(self.images[:rows], self.class_idx[:rows])  # [N]
        if logits.shape != (wanted := self.class_idx[:rows].shape) or not np.isfinite(logits).all():
            got = show(logits.tolist())
            raise DamagedArtifact(f"{DISCRIMINATOR_FILE} must give finite logits {wanted}, got {got}")
        return float(np.abs(rounded_logits(logits) - rounded_logits(self.realness[:rows])).max())
