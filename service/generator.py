"""One artifact, opened on one device: seeds in, pixels out, what D says of them, and what renders them.

The server's workers, offline runs and `ganserve verify` all make images here, so they cannot disagree.
"""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from models.choosing import choose_images
from models.sampling import LatentSampler
from models.store import Artifact
from service.device import Accelerator, DeviceOptions
from service.provenance import Rendering
from service.rows import Rows
from service.session import DiscriminatorSession, Session
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
        self._open_discriminator = partial(
            DiscriminatorSession, artifact, accelerator, threads, device_id, options or DeviceOptions()
        )

    @cached_property
    def discriminator(self) -> DiscriminatorSession:
        """Opened when it is first asked for; only of an artifact with a calibration."""
        return self._open_discriminator()

    def make(
        self,
        seeds: npt.NDArray[np.int64],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
        latents: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """seeds [N], class_idx [N], truncation_psi [N] -> images [N, H, W, C] uint8.

        `latents` [N, z_dim] are those of the rows whose seed is LATENTS_GIVEN; others may be drawn into it.
        """
        numbers = seeds.tolist()
        if latents is None or LATENTS_GIVEN not in numbers:
            latents = self._sampler.draw(numbers)
        else:
            drawn = seeds != LATENTS_GIVEN
            latents[drawn] = self._sampler.draw(seeds[drawn])
        return self.session.run(latents, class_idx, truncation_psi)

    def judge_rows(self, rows: Rows) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """`judge` of rows that seeds name."""
        latents = np.empty((len(rows), self.manifest.z_dim), np.float32)  # drawn
        proposals = np.full(len(rows), rows.proposals)
        return self.judge(rows.seeds, rows.class_idx, rows.truncation_psi, latents, proposals)

    def judge(
        self,
        seeds: npt.NDArray[np.int64],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
        latents: npt.NDArray[np.float32],
        proposals: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """The same rows where D has something to do: images [N, H, W, C] uint8 and realness [N] float64.

        `proposals` [N] are how many images each row's is chosen from; with 1 it is the plain one, with 0 that
        one too, and its realness is not told (0). Rows with the same number run together.
        """
        calibration = self.manifest.calibration
        assert calibration is not None
        images = np.empty((len(seeds), *self.manifest.img_shape), dtype=np.uint8)
        realness = np.zeros(len(seeds))
        for count in np.unique(proposals).tolist():
            rows = np.flatnonzero(proposals == count)
            classes, psi = class_idx[rows], truncation_psi[rows]
            if count > 1:
                drawn, uniforms = self._sampler.draw_proposals(seeds[rows], count)
                images[rows], logits = choose_images(
                    self.session.run,
                    self.discriminator.score,
                    calibration.scale,
                    drawn,
                    uniforms,
                    classes,
                    psi,
                )
            else:
                images[rows] = self.make(seeds[rows], classes, psi, latents[rows])
                if not count:
                    continue
                logits = self.discriminator.score(images[rows], classes)
            realness[rows] = calibration.realness(logits)
        return images, realness
