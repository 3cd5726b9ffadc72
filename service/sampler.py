"""From rows to files: queue, device, encoding, in that order and overlapping.

One `ModelSampler` a served model. Images are encoded in a thread pool as their portions arrive,
while the device works on the next ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.store import Artifact
from service.dispatch import Dispatcher, Portion
from service.encoding import EncodedImage, Format, encode_image
from service.metrics import Metrics
from service.provenance import Rendering
from service.rows import Rows


@dataclass
class Timing:
    """Where one request's time went, in seconds."""

    queue_s: float = 0.0
    """From accepted to the first device start."""
    device_s: float = 0.0
    """Device time of the microbatches that held its rows."""
    encode_s: float = 0.0
    """Encoding, summed over threads."""
    input_s: float = 0.0
    """Writing those microbatches for their workers."""
    output_s: float = 0.0
    """Taking their pixels from their workers."""

    def add(self, portion: Portion) -> None:
        self.queue_s = portion.queue_s if not self.device_s else min(self.queue_s, portion.queue_s)
        self.device_s += portion.device_s
        self.input_s += portion.input_s
        self.output_s += portion.output_s

    def header(self) -> str:
        """The value of `Server-Timing`, in milliseconds."""
        parts = {"queue": self.queue_s, "device": self.device_s, "encode": self.encode_s}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in parts.items())


class ModelSampler:
    """Makes the images of one served model."""

    def __init__(
        self,
        artifact: Artifact,
        dispatcher: Dispatcher,
        encoders: Executor,
        metrics: Metrics,
        marks: bool = True,
    ) -> None:
        self.artifact = artifact
        self.dispatcher = dispatcher
        self._encoders = encoders
        self._metrics = metrics
        self._marks = marks
        self._rendering: Rendering | None = None

    @property
    def rendering(self) -> Rendering | None:
        """What names and marks this model's images; None until its first worker is ready."""
        device = self.dispatcher.device
        if self._rendering is None and device is not None:
            manifest = self.artifact.manifest
            self._rendering = Rendering(manifest, device.provider, device.runtime_version, self._marks)
        return self._rendering

    async def pixels(self, rows: Rows, source: str) -> tuple[npt.NDArray[np.uint8], Timing]:
        """Make the pixels [N, H, W, C] of `rows`. Raises Overloaded, Unavailable, WorkerCrashed."""
        timing = Timing()
        images = np.empty((len(rows), *self.artifact.manifest.img_shape), dtype=np.uint8)
        async for portion in self._portions(rows, timing):
            images[portion.start : portion.start + len(portion.images)] = portion.images
        self._metrics.images.labels(self.dispatcher.name, source).inc(len(rows))
        return images, timing

    async def encoded(self, rows: Rows, fmt: Format, source: str) -> tuple[list[EncodedImage], Timing]:
        """Make the image files of `rows`, in their order. Raises as `pixels` does."""
        timing = Timing()
        images: list[EncodedImage] = []
        loop = asyncio.get_running_loop()
        jobs: list[tuple[int, asyncio.Future[tuple[list[EncodedImage], float]]]] = []
        try:
            async for portion in self._portions(rows, timing):
                job = loop.run_in_executor(self._encoders, self._encode, rows, portion, fmt)
                jobs.append((portion.start, job))
            for _, job in sorted(jobs, key=lambda one: one[0]):
                encoded, encode_s = await job
                images += encoded
                timing.encode_s += encode_s
        finally:
            for _, job in jobs:
                job.cancel()  # what has not begun when the request ends early
        self._metrics.encode_seconds.labels(fmt).observe(timing.encode_s)
        self._metrics.images.labels(self.dispatcher.name, source).inc(len(rows))
        return images, timing

    async def _portions(self, rows: Rows, timing: Timing) -> AsyncIterator[Portion]:
        """Submit `rows` and yield their portions; whatever ends the request, no row of it keeps waiting."""
        statistics = self.dispatcher.statistics
        statistics.asked()
        accepted = time.monotonic()
        try:
            ticket = self.dispatcher.submit(rows)
            try:
                async for portion in ticket.portions():
                    timing.add(portion)
                    yield portion
            finally:
                self.dispatcher.cancel(ticket)
        except BaseException:
            statistics.fail.add(time.monotonic() - accepted)
            raise
        seconds = time.monotonic() - accepted
        statistics.succeeded(seconds, timing.queue_s, timing.input_s, timing.device_s, timing.output_s)
        self._metrics.queue_seconds.labels(self.dispatcher.name).observe(timing.queue_s)

    def _encode(self, rows: Rows, portion: Portion, fmt: Format) -> tuple[list[EncodedImage], float]:
        started = time.perf_counter()
        rendering = self.rendering
        assert rendering is not None  # a worker made these pixels
        images = [
            encoded_image(self.artifact, rendering, rows, portion.start + offset, pixels, fmt)
            for offset, pixels in enumerate(portion.images)
        ]
        return images, time.perf_counter() - started


def encoded_image(
    artifact: Artifact,
    rendering: Rendering,
    rows: Rows,
    row: int,
    pixels: npt.NDArray[np.uint8],
    fmt: Format,
) -> EncodedImage:
    """One row's pixels [H, W, C] as its file: what endpoint and offline runs both write."""
    seed = rows.seed(row)
    class_idx = int(rows.class_idx[row]) if artifact.manifest.num_classes else None
    psi = float(rows.truncation_psi[row])
    data = encode_image(pixels, fmt, rendering.mark(seed, class_idx, psi))
    return EncodedImage(rows.name(row), seed, class_idx, psi, data)
