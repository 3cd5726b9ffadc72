"""One artifact, opened on one device: seeds in, pixels out, and what renders them as files.

The server's workers, offline runs and `ganserve verify` all make images here, so they cannot disagree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.sampling import LatentSampler
from models.store import Artifact
from service.device import Accelerator, DeviceOptions
from service.provenance import Rendering
from service.session import Session
from service.slots import LATENTS_GIVEN

GOLDEN_ROWS_AT_START = 8
"""How many golden rows are made again when a process begins."""


class Generator:
    """Makes the images of one artifact. Not for use by two threads at once.

    Raises as Session does.
    """

    def __init__(
        self,
        artifact: Artifact,
        accelerator: Accelerator = "cpu",
        threads: int = 1,
        device_id: int = 0,
        options: DeviceOptions | None = None,
        marks: bool = True,
    ) -> None:
        self.manifest = artifact.manifest
        self.session = Session(artifact, accelerator, threads, device_id, options or DeviceOptions())
        self.rendering = Rendering(
            self.manifest, self.session.provider, self.session.runtime_version, marks, self.session.arithmetic
        )
        self._sampler = LatentSampler(self.manifest.z_dim, self.manifest.prior)

    def make(
        self,
        seeds: npt.NDArray[np.int64],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
        latents: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """seeds [N], class_idx [N], truncation_psi [N] -> images [N, H, W, C] uint8.

        `latents` [N, z_dim] are those of the rows whose seed is LATENTS_GIVEN; the others are drawn into it.
        """
        if latents is None:
            latents = self._sampler.draw(seeds)
        else:
            drawn = seeds != LATENTS_GIVEN
            latents[drawn] = self._sampler.draw(seeds[drawn])
        return self.session.run(latents, class_idx, truncation_psi)
