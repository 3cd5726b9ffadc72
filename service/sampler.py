"""From rows to files: queue, device, encoding, in that order and overlapping.

One `ModelSampler` a served version: a reload puts another in its place, and requests that began with
the old one end with it. What one microbatch made is encoded in one job of a thread pool, while the
device works on the next: a job a request would cost more than encoding a small image.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from models.store import Artifact
from service.batching import Priority
from service.dispatch import Dispatcher
from service.encoding import EncodedImage, Format, encode_image
from service.errors import ServiceError
from service.line import Line
from service.metrics import Metrics
from service.provenance import Rendering
from service.rows import Rows
from service.settings import Settings
from service.ticket import Portion, Ticket


class ModelSampler:
    """Makes the images of one served version. Used in the event loop's thread only."""

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        encoders: Executor,
        metrics: Metrics,
        on_ready: Callable[[], object] = lambda: None,
        replaces: ModelSampler | None = None,
    ) -> None:
        """Serve `artifact` as a model of its own, or, once `replaces.dispatcher` switches to its line,
        in the place of another version."""
        self.artifact = artifact
        self._marks = settings.marks
        self._rendering: Rendering | None = None
        self.name = artifact.manifest.name
        self.line = Line(artifact, settings, self._deliver)
        self.dispatcher: Dispatcher = (
            replaces.dispatcher if replaces else Dispatcher(self.line, settings, metrics, on_ready)
        )
        self._encoders = encoders

    @property
    def rendering(self) -> Rendering | None:
        """What names and marks this model's images; None until its first worker is ready."""
        device = self.line.device
        if self._rendering is None and device is not None:
            manifest = self.artifact.manifest
            self._rendering = Rendering(manifest, device.provider, device.runtime_version, self._marks)
        return self._rendering

    def submit(self, rows: Rows, fmt: Format | None, priority: Priority = "interactive") -> Ticket:
        """Accept `rows`, to be made into `fmt` (None: pixels). Raises Overloaded, Unavailable."""
        statistics = self.line.statistics
        statistics.asked()
        ticket = Ticket(rows, fmt, self.artifact.manifest.img_shape, priority)
        try:
            self.dispatcher.submit(ticket, self.line)
        except ServiceError:
            statistics.fail.add(0.0)
            raise
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Let go of a ticket that ended: its rows that wait still are dropped."""
        self.dispatcher.forget(ticket)
        seconds, timing, statistics = ticket.seconds, ticket.timing, self.line.statistics
        if ticket.succeeded:
            statistics.succeeded(seconds, timing.queue_s, timing.input_s, timing.device_s, timing.output_s)
        else:
            statistics.fail.add(seconds)

    def _deliver(self, portions: list[Portion]) -> None:
        """Place the pixels of one microbatch; send those that become files to be encoded."""
        to_encode = []
        for portion in portions:
            if portion.ticket.ended:
                continue
            if portion.ticket.fmt is None:
                portion.ticket.place(portion.start, portion.images)
            else:
                to_encode.append(portion)
        if to_encode:
            self.dispatcher.to_encode(sum(len(portion.images) for portion in to_encode))
            self._encoders.submit(self._encode, to_encode, asyncio.get_running_loop())

    def _encode(self, portions: list[Portion], loop: asyncio.AbstractEventLoop) -> None:
        """Encode one microbatch's images, in a thread of the pool."""
        rendering = self.rendering
        assert rendering is not None  # a worker made these pixels
        files: list[tuple[list[EncodedImage], float] | Exception] = []
        for portion in portions:
            ticket = portion.ticket
            assert ticket.fmt is not None
            if ticket.ended:  # while its pixels waited for this thread
                files.append(([], 0.0))
                continue
            started = time.perf_counter()
            try:
                encoded = [
                    encoded_image(
                        self.artifact, rendering, ticket.rows, portion.start + offset, pixels, ticket.fmt
                    )
                    for offset, pixels in enumerate(portion.images)
                ]
                files.append((encoded, time.perf_counter() - started))
            except Exception as error:  # out of memory, say: this request fails, not its neighbours
                files.append(error)
        loop.call_soon_threadsafe(self._encoded, portions, files)

    def _encoded(
        self, portions: list[Portion], files: list[tuple[list[EncodedImage], float] | Exception]
    ) -> None:
        self.dispatcher.to_encode(-sum(len(portion.images) for portion in portions))
        for portion, made in zip(portions, files, strict=True):
            if isinstance(made, Exception):
                portion.ticket.fail(made)
                continue
            encoded, encode_s = made
            portion.ticket.timing.encode_s += encode_s
            portion.ticket.place(portion.start, encoded)


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
