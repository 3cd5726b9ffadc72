"""The row batcher at work: one model's queue, its workers, and where each microbatch is.

Lives in the API process's event loop. Admits requests, forms microbatches while the device works
on earlier ones (no delay timer), hands each to one worker, and scatters its pixels back to the
requests. Knows which worker holds what, so a worker's death is an end-of-file and its microbatches
are simply sent again: sampling is a pure function. What packs with what is `batching`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from models.store import Artifact
from service.batching import MicrobatchSize, RowQueue, Segment
from service.channel import Channel
from service.errors import Overloaded, ServiceError, TooLarge, Unavailable, WorkerCrashed
from service.metrics import Metrics, ModelState
from service.settings import Settings
from service.slots import Slot, SlotLayout, create_memory, map_slots
from service.statistics import Statistics
from service.ticket import Portion, Ticket

# One microbatch on the device and one formed behind it: a new row waits for at most these two.
_SLOTS_PER_WORKER: Final = 2
_MAX_REPLAYS: Final = 2

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Microbatch:
    """Rows that run together on one worker."""

    segments: Sequence[Segment[Ticket]]
    deaths: int = 0
    """Workers that died while they held it."""
    input_s: float = 0.0
    """What writing it for the worker took, the last time."""

    @property
    def rows(self) -> int:
        return sum(len(segment) for segment in self.segments)

    def apart(self) -> list[Microbatch]:
        """The same rows, each alone."""
        return [
            Microbatch([Segment(segment.request, row, row + 1)], self.deaths)
            for segment in self.segments
            for row in range(segment.start, segment.stop)
        ]


@dataclass(frozen=True)
class DeviceFacts:
    """What a model's workers said of what they run on; the same for all of them."""

    provider: str
    """ONNX Runtime's execution provider."""
    runtime_version: str
    golden_difference: int
    """Largest grey-level difference of the golden rows replayed at start; 0 is bit-exact."""


@dataclass(eq=False)
class Worker:
    """The API process's end of one worker."""

    channel: Channel
    slots: list[Slot]
    pid: int
    free_slots: list[int] = field(default_factory=lambda: list(range(_SLOTS_PER_WORKER)))
    running: dict[int, tuple[Microbatch, int]] = field(default_factory=dict)
    """run id -> (microbatch, slot)"""
    last_run: int = 0
    """The newest run id it was given: idle workers take turns."""


class Dispatcher:
    """Queue and workers of one model. Every method runs in the event loop's thread."""

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        metrics: Metrics,
        deliver: Callable[[list[Portion]], None],
    ) -> None:
        """Queue for `artifact`; `deliver` takes what one microbatch made."""
        self.artifact = artifact
        self._deliver = deliver
        self.name = artifact.manifest.name
        self.workers: list[Worker] = []
        self.device: DeviceFacts | None = None  # None until the first worker is ready
        self.statistics = Statistics()
        self._layout = SlotLayout.of(artifact.manifest, settings.max_microbatch)
        self._max_queued_rows = settings.max_queued_rows
        self._max_pixel_bytes = settings.max_pixel_bytes
        self._metrics = metrics
        self._queue: RowQueue[Ticket] = RowQueue()
        self._replays: deque[Microbatch] = deque()
        self._size = MicrobatchSize(settings.max_microbatch, settings.max_microbatch_ms / 1000)
        self._next_run = 0
        metrics.start_at_zero(self.name)
        metrics.states[self.name] = lambda: ModelState(self.queued_rows, len(self.workers))

    @property
    def ready(self) -> bool:
        """A worker is there to run rows."""
        return bool(self.workers)

    @property
    def queued_rows(self) -> int:
        return self._queue.rows + sum(batch.rows for batch in self._replays)

    # -- requests ---------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Accept a request, or raise TooLarge, Unavailable (no worker yet) or Overloaded (no room)."""
        rows = ticket.rows
        pixel_bytes = len(rows) * math.prod(self.artifact.manifest.img_shape)
        if pixel_bytes > self._max_pixel_bytes:
            raise TooLarge(
                f"max_pixel_bytes is {self._max_pixel_bytes} bytes of pixels a request, "
                f"got {pixel_bytes} in {len(rows)} images"
            )
        if self.device is None:
            raise Unavailable(f"model {self.name} is loading", retry_after_s=1)
        if self.queued_rows + len(rows) > self._max_queued_rows:
            raise Overloaded(
                f"the queue of {self.name} has room for {self._max_queued_rows} rows and holds "
                f"{self.queued_rows}; {len(rows)} more do not fit",
                retry_after_s=self._seconds_of(self.queued_rows),
            )
        self._queue.add(ticket, len(rows))
        self._pump()

    def forget(self, ticket: Ticket) -> None:
        """Drop the rows of a request that ended, as far as no worker has them yet."""
        self._queue.discard(ticket)

    def _seconds_of(self, rows: int) -> int:
        """How long `rows` rows take all workers, by what rows were measured to cost; at least 1."""
        row_s = self._size.row_s or 0.0
        return max(1, math.ceil(rows * row_s / max(1, len(self.workers))))

    # -- workers ----------------------------------------------------------------------------------

    def attach(self, channel: Channel, hello: dict[str, Any]) -> None:
        """Take in a worker that said hello: give it its memory, and work."""
        fd = create_memory(self._layout, _SLOTS_PER_WORKER)
        try:
            channel.send({"rows": self._layout.rows, "slots": _SLOTS_PER_WORKER}, fd)
            slots = map_slots(fd, self._layout, _SLOTS_PER_WORKER)
        finally:
            os.close(fd)
        worker = Worker(channel, slots, hello["pid"])
        self.workers.append(worker)
        self.device = DeviceFacts(hello["provider"], hello["runtime"], hello["golden_difference"])
        asyncio.get_running_loop().add_reader(channel.fileno(), self._read, worker)
        manifest = self.artifact.manifest
        self._metrics.model_info.labels(
            self.name, manifest.version, manifest.digest, self.device.provider
        ).set(1)
        self._pump()

    def close(self) -> None:
        """Let go of every worker; each ends when its connection does."""
        for worker in self.workers:
            self._detach(worker)
        self.workers.clear()

    def _read(self, worker: Worker) -> None:
        """Take in what `worker` has to say; the event loop calls this when there is something."""
        while True:
            try:
                message = worker.channel.receive()
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self._lost(worker)
                return
            if "done" in message:
                self._done(worker, message)
            else:
                self._failed(worker, message)

    def _done(self, worker: Worker, message: dict[str, Any]) -> None:
        batch, slot = worker.running.pop(message["done"])
        started = time.perf_counter()
        images = worker.slots[slot].images[: batch.rows].copy()  # [rows, H, W, C]
        output_s = time.perf_counter() - started
        # The pixels are ours now, so the slot may take the next microbatch.
        worker.free_slots.append(slot)
        device_s = message["device_s"]
        self._size.measured(batch.rows, device_s)
        self._pump()  # the device first: requests can wait for their pixels while it works

        metrics = self._metrics
        metrics.device_seconds.labels(self.name).observe(device_s)
        metrics.worker_busy_seconds.labels(self.name).inc(device_s)
        metrics.batch_rows.labels(self.name).observe(batch.rows)
        metrics.batches.labels(self.name, batch.rows).inc()  # the CPU provider runs any number: no padding
        self.statistics.ran(batch.rows, batch.input_s, device_s, output_s)
        row, portions = 0, []
        for segment in batch.segments:
            ticket, rows = segment.request, len(segment)
            timing = ticket.timing
            queue_s = message["started"] - ticket.accepted
            timing.queue_s = min(timing.queue_s, queue_s) if timing.device_s else queue_s
            timing.device_s += device_s
            timing.input_s += batch.input_s
            timing.output_s += output_s
            portions.append(Portion(ticket, segment.start, images[row : row + rows]))
            row += rows
        self._deliver(portions)

    def _failed(self, worker: Worker, message: dict[str, Any]) -> None:
        """The session refused a microbatch: its requests run alone, so that the one at fault fails alone."""
        batch, slot = worker.running.pop(message["failed"])
        worker.free_slots.append(slot)
        logger.error("%s: a microbatch of %d rows failed: %s", self.name, batch.rows, message["error"])
        if len(batch.segments) > 1:
            self._replays.extend(Microbatch([segment]) for segment in batch.segments)
        else:
            batch.segments[0].request.fail(ServiceError("the generator failed on these rows"))
        self._pump()

    def _lost(self, worker: Worker) -> None:
        """A worker died: what it held is sent again, and what keeps killing workers is given up."""
        self.workers.remove(worker)
        self._detach(worker)
        self._metrics.worker_restarts.labels(self.name).inc()
        logger.warning("%s: worker %d died with %d microbatches", self.name, worker.pid, len(worker.running))
        for batch, _ in worker.running.values():
            batch.deaths += 1
            self._replay(batch)
        self._pump()

    def _replay(self, batch: Microbatch) -> None:
        if batch.deaths <= _MAX_REPLAYS:
            self._replays.append(batch)
        elif batch.deaths == _MAX_REPLAYS + 1 and batch.rows > 1:
            self._replays.extend(batch.apart())
        else:
            for segment in batch.segments:
                segment.request.fail(
                    WorkerCrashed(f"workers died {batch.deaths} times while they made these rows")
                )
            return
        self._metrics.replayed_batches.labels(self.name).inc()

    @staticmethod
    def _detach(worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.channel.fileno())
        worker.channel.close()

    # -- microbatches -----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand out microbatches while a worker can take one."""
        while (choice := self._next_worker()) is not None:
            worker, max_rows = choice
            batch = self._replays.popleft() if self._replays else Microbatch(self._queue.take(max_rows))
            live = [segment for segment in batch.segments if not segment.request.ended]
            if live:
                batch.segments = live
                self._run(worker, batch)

    def _next_worker(self) -> tuple[Worker, int] | None:
        """The worker to give rows to and how many, or None where waiting fills the microbatch better.

        Idle workers share what waits. A busy worker gets its second microbatch only when that one
        is full: a smaller one would be closed too early to take in rows that arrive meanwhile.
        """
        waiting = self._queue.rows
        if not waiting and not self._replays:
            return None
        idle = [worker for worker in self.workers if not worker.running]
        cap = self._size.rows
        if idle:
            rested = min(idle, key=lambda worker: worker.last_run)
            return rested, min(cap, max(1, math.ceil(waiting / len(idle))))
        if waiting >= cap or self._replays:
            for worker in self.workers:
                if worker.free_slots:
                    return worker, cap
        return None

    def _run(self, worker: Worker, batch: Microbatch) -> None:
        started = time.perf_counter()
        slot_index = worker.free_slots.pop()
        slot = worker.slots[slot_index]
        row = 0
        for segment in batch.segments:
            rows, there = segment.request.rows, slice(row, row + len(segment))
            here = slice(segment.start, segment.stop)
            slot.seeds[there] = rows.seeds[here]
            slot.class_idx[there] = rows.class_idx[here]
            slot.truncation_psi[there] = rows.truncation_psi[here]
            if rows.latents is not None:
                slot.latents[there] = rows.latents[here]
            row += len(segment)
        batch.input_s = time.perf_counter() - started
        self._next_run += 1
        worker.running[self._next_run] = batch, slot_index
        worker.last_run = self._next_run
        try:
            worker.channel.send({"run": self._next_run, "slot": slot_index, "rows": row})
        except OSError:  # never for a full buffer: two packets of a hundred bytes are out at most
            logger.debug("%s: worker %d is gone; its end-of-file will say so", self.name, worker.pid)
