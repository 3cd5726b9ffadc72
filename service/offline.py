"""Images without a server: `ganserve sample`.

The same rows, session and encoder as the endpoint, so the same bytes for the same render id.
Files appear by temporary name and rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from models.sampling import LatentSampler, SeedRanges
from models.store import Artifact
from service.device import CUDA_BUCKETS, Accelerator
from service.encoding import Format
from service.errors import StartError
from service.provenance import Rendering
from service.rows import Rows
from service.session import Session
from service.signing import ImageSigner

_MICROBATCH: Final = 16


def sample_to_folder(
    artifact: Artifact,
    seeds: SeedRanges,
    out: Path,
    *,
    class_idx: int | None = None,
    truncation_psi: float | None = None,
    fmt: Format = "png",
    accelerator: Accelerator = "cpu",
    threads: int = 1,
    marks: bool = True,
    signer: ImageSigner | None = None,
) -> Iterator[int]:
    """Write one file a seed, `seed0000000042.png`, into `out`; yield how many were written so far.

    `marks`: write into each image what it is and how to make it again, as the endpoint does. `signer`:
    sign each file; its bytes are then never the same twice.
    Raises InvalidValue for parameters the model does not have, StartError for a folder that
    cannot be written.
    """
    session = Session(artifact, accelerator, threads)
    microbatch = CUDA_BUCKETS[-1] if accelerator == "cuda" else _MICROBATCH
    manifest = artifact.manifest
    rendering = Rendering(manifest, session.provider, session.runtime_version, marks, session.arithmetic)
    sampler = LatentSampler(manifest.z_dim, manifest.prior)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"out must be a folder that can be written: {error.strerror}, got {out}") from None

    written = 0
    pending: list[Future[int]] = []
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode") as encoders:
        for start in range(0, len(seeds), microbatch):
            rows = Rows.of_seeds(manifest, seeds[start : start + microbatch], class_idx, truncation_psi)
            latents = rows.drawn_latents(sampler)  # [n, z_dim] float32
            images = session.run(latents, rows.class_idx, rows.truncation_psi)  # [n, H, W, C] uint8
            pending.append(encoders.submit(_write, rendering, rows, images, out, fmt, signer))
            if len(pending) > 4:  # encoding must not fall behind without bound
                written += pending.pop(0).result()
                yield written
        for job in pending:
            written += job.result()
            yield written


def _write(
    rendering: Rendering,
    rows: Rows,
    images: np.ndarray,
    out: Path,
    fmt: Format,
    signer: ImageSigner | None,
) -> int:
    for row, pixels in enumerate(images):
        data = rendering.encode(
            pixels, fmt, rows.seed(row), int(rows.class_idx[row]), float(rows.truncation_psi[row])
        )
        if signer is not None:
            data = signer.sign(data, fmt)
        target = out / f"{rows.name(row)}.{fmt}"
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.rename(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StartError(f"{target} cannot be written: {error.strerror}") from None
    return len(images)
