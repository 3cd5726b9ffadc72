"""What every peer does for a request: latents, graph and PNG encoder are ganserve's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from models.sampling import LatentSampler
from models.store import Store
from service.device import DeviceOptions
from service.encoding import encode_png
from service.session import Session

PATH: Final = "/v1/samples"
WORKERS: Final = 2
ROWS: Final = 16
"""Of one microbatch, at most."""


def generator() -> Callable[[Sequence[int]], list[bytes]]:
    """Open the graph that PEERS_STORE and PEERS_MODEL name; return what makes PNG files of seeds."""
    artifact = Store(os.environ["PEERS_STORE"]).resolve(os.environ["PEERS_MODEL"])
    session = Session(artifact, "cpu", 1, 0, DeviceOptions())
    sampler = LatentSampler(artifact.manifest.z_dim, artifact.manifest.prior)

    def make(seeds: Sequence[int]) -> list[bytes]:
        class_idx, psi = np.zeros(len(seeds), np.int64), np.ones(len(seeds), np.float32)
        return [encode_png(pixels) for pixels in session.run(sampler.draw(seeds), class_idx, psi)]

    return make
