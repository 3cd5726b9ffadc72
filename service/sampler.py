"""From rows to files: queue, device, encoding, in that order and overlapping.

One `ModelSampler` a served version: a reload puts another in its place, and requests that began with
the old one end with it. Workers on the CPU
bring files. What comes as pixels (from a GPU, or too large for its slot) is encoded here, one microbatch
in one job of a thread pool while the device works on the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from models.manifest import Manifest
from models.store import Artifact
from service.batching import Priority
from service.dispatch import Dispatcher
from service.encoding import EncodedImage, Format
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
            self._rendering = Rendering(
                manifest, device.provider, device.runtime_version, self._marks, device.arithmetic
            )
        return self._rendering

    def submit(self, rows: Rows, fmt: Format | None, priority: Priority = "interactive") -> Ticket:
        """Accept `rows`, to be made into `fmt` (None: pixels). Raises Overloaded, Unavailable."""
        statistics = self.line.statistics
        statistics.asked()
        try:
            self.dispatcher.check_room(rows, self.line)
        except ServiceError:
            statistics.fail.add(0.0)
            raise
        ticket = Ticket(rows, fmt, self.line.layout.img_shape, priority)  # with memory for its pixels
        self.dispatcher.submit(ticket, self.line)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Let go of a ticket that ended: its rows that wait still are dropped."""
        timing, statistics = ticket.timing, self.line.statistics
        if ticket.succeeded:
            statistics.succeeded(
                ticket.seconds, timing.queue_s, timing.input_s, timing.device_s, timing.output_s
            )
        else:
            self.dispatcher.forget(ticket)
            statistics.fail.add(ticket.seconds)

    def _deliver(self, portions: list[Portion]) -> None:
        """Place what one microbatch made; pixels that become files are sent to be encoded."""
        to_encode = []
        for portion in portions:
            ticket = portion.ticket
            if ticket.ended:
                continue
            if ticket.fmt is None or isinstance(portion.images, list):
                ticket.timing.encode_s += portion.encode_s
                ticket.place(portion.start, portion.images)
            else:
                to_encode.append(portion)
        if to_encode:
            self.dispatcher.to_encode(sum(len(portion.images) for portion in to_encode))
            self._encoders.submit(self._encode, to_encode, asyncio.get_running_loop())

    def _encode(self, portions: list[Portion], loop: asyncio.AbstractEventLoop) -> None:
        """Encode one microbatch's images, in a thread of the pool."""
        rendering = self.rendering
        assert rendering is not None  # a worker made these pixels
        encoded: list[Portion | Exception] = []
        for portion in portions:
            ticket = portion.ticket
            started = time.perf_counter()
            try:
                # No files where the request ended while its pixels waited for this thread.
                files = [] if ticket.ended else encoded_files(rendering, portion)
                encoded.append(Portion(ticket, portion.start, files, time.perf_counter() - started))
            except Exception as error:  # out of memory, say: this request fails, not its neighbours
                encoded.append(error)
        loop.call_soon_threadsafe(self._encoded, portions, encoded)

    def _encoded(self, portions: list[Portion], encoded: list[Portion | Exception]) -> None:
        self.dispatcher.to_encode(-sum(len(portion.images) for portion in portions))
        for portion, files in zip(portions, encoded, strict=True):
            if isinstance(files, Exception):
                portion.ticket.fail(files)
            else:
                self._deliver([files])


def encoded_files(rendering: Rendering, portion: Portion) -> list[bytes]:
    """The pixels of `portion` as files of its request's format."""
    rows, fmt = portion.ticket.rows, portion.ticket.fmt
    assert fmt is not None
    return [
        rendering.encode(
            pixels,
            fmt,
            rows.seed(row),
            int(rows.class_idx[row]),
            float(rows.truncation_psi[row]),
            rows.proposals,
        )
        for row, pixels in enumerate(portion.images, portion.start)
    ]


def named_images(
    manifest: Manifest,
    rows: Rows,
    files: Sequence[bytes],
    realness: npt.NDArray[np.float64] | None = None,
) -> list[EncodedImage]:
    """Each of `rows` with its file and what names it, and how real it is where that is asked for."""
    judged = rows.judged_facts(realness)
    return [
        EncodedImage(
            rows.name(row),
            rows.seed(row),
            int(rows.class_idx[row]) if manifest.num_classes else None,
            float(rows.truncation_psi[row]),
            file,
            judged[row],
        )
        for row, file in enumerate(files)
    ]
