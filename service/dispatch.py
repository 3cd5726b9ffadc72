"""The row batcher at work: one model's queue, its workers, and where each microbatch is.

Lives in the API process's event loop. Admits requests, forms microbatches while the device works
on earlier ones (no delay timer), hands each to one worker, and scatters its pixels back to the
requests. Knows which worker holds what, so a worker's death is an end-of-file and its microbatches
are simply sent again: sampling is a pure function. A worker that hangs is killed, which is a death;
one that is idle is asked for a sign of life now and then.
What packs with what is `batching`'s business, which version is served `served`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from service.channel import Channel, Done, Process, Run
from service.encoding import FORMATS, Format
from service.errors import (
    Overloaded,
    ServiceError,
    StartError,
    TooLarge,
    Unavailable,
    VersionRefused,
    WorkerCrashed,
)
from service.line import DeviceFacts, Line
from service.metrics import Metrics, ModelState
from service.microbatch import Microbatch
from service.rows import Rows
from service.settings import Settings
from service.slots import Slot, create_memory, map_slots
from service.switch import Switch
from service.ticket import Ticket

# One microbatch on the device and one formed behind it: a new row waits for at most these two.
_SLOTS_PER_WORKER: Final = 2
_FORM_AHEAD_S: Final = 0.005  # before a busy worker is expected to finish, its next microbatch is formed
_ALARM_S: Final = 0.001  # the step of the event loop's clock: an alarm set for less rings at once, for ms
_MAX_REPLAYS: Final = 2
_MAX_DEATHS: Final = 5  # without a finished microbatch between them: the workers crash in a loop
_CALM_S: Final = 10.0  # a worker that was ready for so long shows that the loop has ended
_SLOW_FACTOR: Final = 20.0  # times its measured cost, beside worker_timeout_s, a microbatch may take
_PING_S: Final = 2.5  # an idle worker is asked so often, at most, for a sign of life
_LINGER_S: Final = 5.0  # a replaced version stays so long at least: a request may be about to be submitted

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """The API process's end of one worker."""

    channel: Channel
    process: Process
    slots: dict[Line, list[Slot]] = field(default_factory=dict)
    """The memory of each version that it serves or loads."""
    loading: list[Line] = field(default_factory=list)
    """What it was told to load and has not, in that order."""
    loaded: dict[Line, float] = field(default_factory=dict)
    """What it can run, and since when (monotonic)."""
    free_slots: list[int] = field(default_factory=lambda: list(range(_SLOTS_PER_WORKER)))
    running: dict[int, tuple[Microbatch, int]] = field(default_factory=dict)
    """run id -> (microbatch, slot), the oldest first: that one is on the device"""
    last_run: int = 0
    """The newest run id it was given: of idle workers the last one that ran goes first."""
    busy_since: float = 0.0
    """When its oldest microbatch had the device to itself (monotonic)."""
    alarm: asyncio.TimerHandle | None = None
    """Set while it is busy for longer: rings when its next microbatch is to be formed."""
    loading_since: float = 0.0
    """When it began to load the first of `loading` (monotonic)."""
    pinged: float = 0.0
    """When it was last asked for a sign of life (monotonic)."""
    answered: bool = True
    """It has given it since."""


class Dispatcher:
    """Lines and workers of one model. Every method runs in the event loop's thread."""

    def __init__(
        self,
        line: Line,
        settings: Settings,
        metrics: Metrics,
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve `line` with the workers that `attach` brings; `on_ready` hears of each that is ready."""
        self.name = line.artifact.manifest.name
        self.workers: list[Worker] = []
        self.line = line
        """The version that new requests get."""
        self._lines = [self.line]  # and those replaced, and the one being loaded, in turn
        self._switch: Switch | None = None
        self._settings = settings
        self._metrics = metrics
        self._on_ready = on_ready
        self._replays: deque[Microbatch] = deque()
        self._next_run = 0
        self._deaths = 0  # since a microbatch was finished
        # Each encoder has a microbatch in hand and one that waits: more would only take memory.
        self._max_rows_to_encode = 2 * settings.encode_pool_threads * settings.microbatch_rows
        self._rows_to_encode = 0
        # On a GPU the worker's one process keeps the device busy, and files are made in this one.
        in_worker = FORMATS if settings.accelerator == "cpu" else ()
        self._format_codes: dict[Format | None, int] = {
            fmt: 1 + FORMATS.index(fmt) if fmt in in_worker else 0 for fmt in (None, *FORMATS)
        }
        self._watch_s = min(1.0, settings.worker_timeout_s / 4)
        self._ping_s = min(_PING_S, settings.worker_timeout_s / 4)
        self._watched = 0.0
        self._watcher: asyncio.TimerHandle | None = None
        self.series = metrics.of_model(self.name)
        """What counts its work."""
        metrics.states[self.name] = lambda: ModelState(self.queued_rows, self.workers_up)

    @property
    def was_ready(self) -> bool:
        """A worker was ready once."""
        return self.line.device is not None

    @property
    def workers_up(self) -> int:
        """Workers that can run the version served."""
        return sum(self.line in worker.loaded for worker in self.workers)

    @property
    def trouble(self) -> str | None:
        """Why this model should get no traffic now, in a sentence, or None."""
        if self.line.device is None:
            return f"model {self.name} is loading"
        ready_since = [worker.loaded[self.line] for worker in self.workers if self.line in worker.loaded]
        if not ready_since:
            return f"model {self.name} has no worker now"
        if self._deaths >= _MAX_DEATHS and time.monotonic() - min(ready_since) < _CALM_S:
            return f"workers of {self.name} died {self._deaths} times and finished nothing between"
        return None

    @property
    def ready(self) -> bool:
        """A worker is there to run rows, and workers do not die one after the other."""
        return self.trouble is None

    @property
    def queued_rows(self) -> int:
        rows = 0  # added up for each request: a generator would cost as much as all of this
        for line in self._lines:
            rows += line.queue.rows
        for batch in self._replays:
            rows += batch.weight
        return rows

    # -- requests ---------------------------------------------------------------------------------

    def check_room(self, wanted: Rows, line: Line) -> None:
        """Return if a request for `wanted` of the version of `line` can be accepted now.

        Raises TooLarge, Unavailable (no worker was ready yet) or Overloaded (no room in the queue).
        """
        rows, max_bytes = len(wanted), self._settings.max_pixel_bytes
        if rows * line.layout.pixel_bytes > max_bytes:
            raise TooLarge(
                f"max_pixel_bytes is {max_bytes} bytes of pixels a request, "
                f"got {rows * line.layout.pixel_bytes} in {rows} images"
            )
        rows *= wanted.proposals  # each counts as one
        if line.device is None:
            raise Unavailable(f"model {self.name} is loading", retry_after_s=1)
        if line not in self._lines:
            raise Unavailable(f"{line.artifact.address} was replaced by {self.line.artifact.address}")
        queued_rows, max_rows = self.queued_rows, self._settings.max_queued_rows
        if queued_rows + rows > max_rows:
            raise Overloaded(
                f"the queue of {self.name} has room for {max_rows} rows and holds "
                f"{queued_rows}; {rows} more do not fit",
                retry_after_s=self._seconds_of(queued_rows),
            )

    def submit(self, ticket: Ticket, line: Line) -> None:
        """Accept a request for the version of `line`; there is room for it (`check_room`)."""
        line.queue.add(ticket, len(ticket.rows), ticket.priority, ticket.rows.proposals)
        self._pump()

    def lingers(self, line: Line) -> bool:
        """`line` was replaced a moment ago and still takes requests for its digest.

        Only for that moment, so that it runs empty and goes however many ask for it.
        """
        return (
            line in self._lines
            and line.replaced is not None
            and time.monotonic() - line.replaced <= _LINGER_S
        )

    def forget(self, ticket: Ticket) -> None:
        """Drop the rows of a request that ended, as far as no worker has them yet."""
        for line in self._lines:
            line.queue.discard(ticket)

    def to_encode(self, rows: int) -> None:
        """Take in that so many more rows wait to be encoded, or (negative) fewer.

        While too many do, none is handed out to workers: the queue fills, and it is bounded.
        """
        held = self._encoders_are_full
        self._rows_to_encode += rows
        if held and not self._encoders_are_full:
            self._pump()

    @property
    def _encoders_are_full(self) -> bool:
        return self._rows_to_encode >= self._max_rows_to_encode

    def _seconds_of(self, rows: int) -> int:
        """How long `rows` rows take all workers, by what rows were measured to cost; at least 1."""
        row_s = self.line.size.row_s or 0.0
        return max(1, math.ceil(rows * row_s / max(1, self.workers_up)))

    # -- workers ----------------------------------------------------------------------------------

    def attach(self, channel: Channel, process: Process) -> None:
        """Take in a worker that said hello: tell it what to load.

        Raises StartError if its memory cannot be had, OSError if it is gone already.
        """
        worker = Worker(channel, process)
        for line in sorted(self._lines, key=lambda line: line is not self.line):  # the one served first
            self._load(worker, line)
        self.workers.append(worker)
        loop = asyncio.get_running_loop()
        loop.add_reader(channel.fileno(), self._read, worker)
        if self._watcher is None:
            self._watched = time.monotonic()
            self._watcher = loop.call_later(self._watch_s, self._watch)

    def _load(self, worker: Worker, line: Line) -> None:
        """Have `worker` load a version into memory of its own; it answers when it has."""
        fd = create_memory(line.layout, _SLOTS_PER_WORKER)
        order = {
            "load": line.number,
            "address": line.artifact.address,
            "digest": line.artifact.digest,
            "rows": line.layout.rows,
            "slots": _SLOTS_PER_WORKER,
        }
        try:
            worker.channel.send(order, fd)
            worker.slots[line] = map_slots(fd, line.layout, _SLOTS_PER_WORKER)
        finally:
            os.close(fd)
        if not worker.loading:
            worker.loading_since = time.monotonic()
        worker.loading.append(line)

    def close(self) -> None:
        """Let go of every worker; each ends when its connection does."""
        if self._watcher is not None:
            self._watcher.cancel()
        for worker in self.workers:
            self._detach(worker)
        self.workers.clear()

    def _read(self, worker: Worker) -> None:
        """Take in one message of `worker`'s; the event loop calls this while there is one.

        All that is there would keep the loop here if a worker answers faster than it is asked.
        """
        try:
            message = worker.channel.receive()
        except BlockingIOError:
            return
        except OSError:
            message = None
        if isinstance(message, Done):
            self._done(worker, message)
        elif message is None:
            self._lost(worker)
        else:
            assert isinstance(message, dict)
            if "failed" in message:
                self._failed(worker, message)
            elif "pong" in message:
                worker.answered = True
            else:
                self._loaded(worker, message)

    def _loaded(self, worker: Worker, message: dict[str, Any]) -> None:
        """A worker has loaded a version, or refuses it."""
        number = message["loaded"] if "loaded" in message else message["refused"]
        worker.loading_since = time.monotonic()
        line = next((line for line in worker.loading if line.number == number), None)
        if line is None:  # it was dropped meanwhile
            return
        worker.loading.remove(line)
        if "refused" in message:
            del worker.slots[line]
            logger.error("%s: worker %d refused: %s", self.name, worker.process.pid, message["error"])
        else:
            worker.loaded[line] = worker.loading_since
            line.device = DeviceFacts(
                message["provider"],
                message["runtime"],
                message["golden_difference"],
                message["realness_difference"],
                message["arithmetic"],
            )
        if line is self.line and line in worker.loaded:
            self._publish(1)
            self._on_ready()
        if self._switch is not None:
            if line is self._switch.line:
                self._switch.heard(message)
            self._switch.check([worker.loaded for worker in self.workers])
        self._pump()

    def _done(self, worker: Worker, done: Done) -> None:
        batch, slot = worker.running.pop(done.run)
        started = time.perf_counter()
        portions = batch.take(worker.slots[batch.line][slot])
        output_s = time.perf_counter() - started
        # The images are ours now, so the slot may take the next microbatch.
        worker.free_slots.append(slot)
        worker.busy_since = time.monotonic()
        self._deaths = 0
        device_s, bucket = done.device_s, done.bucket
        busy_s = device_s + sum([portion.encode_s for portion in portions])
        batch.line.size.measured(bucket, busy_s)
        self._pump()  # this device first: requests can wait for their pixels while it works

        self.series.ran(batch.weight, bucket, device_s, busy_s)
        batch.line.statistics.ran(batch.rows, batch.input_s, device_s, output_s)
        for segment in batch.segments:
            timing = segment.request.timing
            queue_s = done.started - segment.request.accepted
            timing.queue_s = min(timing.queue_s, queue_s) if timing.device_s else queue_s
            timing.device_s += device_s
            timing.input_s += batch.input_s
            timing.output_s += output_s
        batch.line.deliver(portions)

    def _failed(self, worker: Worker, message: dict[str, Any]) -> None:
        """The session refused a microbatch: its requests run alone, so that the one at fault fails alone."""
        batch, slot = worker.running.pop(message["failed"])
        worker.free_slots.append(slot)
        worker.busy_since = time.monotonic()
        logger.error("%s: a microbatch of %d rows failed: %s", self.name, batch.rows, message["error"])
        if len(batch.segments) > 1:
            self._replays.extend(Microbatch(batch.line, [segment]) for segment in batch.segments)
        else:
            batch.segments[0].request.fail(ServiceError("the generator failed on these rows"))
        self._pump()

    def _lost(self, worker: Worker) -> None:
        """A worker died: what it held is sent again, and what keeps killing workers is given up."""
        self.workers.remove(worker)
        self._detach(worker)
        self._deaths += 1
        self._metrics.worker_restarts.labels(self.name).inc()
        logger.warning(
            "%s: worker %d died with %d microbatches", self.name, worker.process.pid, len(worker.running)
        )
        for place, (batch, _) in enumerate(worker.running.values()):
            batch.deaths += place == 0  # the others only waited behind it
            self._replay(batch)
        if self._switch is not None:
            if self._switch.line in worker.loading:
                self._switch.died()
            self._switch.check([worker.loaded for worker in self.workers])
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
        worker.process.close()

    def _watch(self) -> None:
        """Kill workers that hang, and let replaced versions go; once in `_watch_s` seconds."""
        now = time.monotonic()
        slept_s = now - self._watched - self._watch_s
        self._watched = now
        self._watcher = asyncio.get_running_loop().call_later(self._watch_s, self._watch)
        for worker in list(self.workers):
            if slept_s > self._watch_s:  # this process did not run: what it did not hear is not their fault
                worker.busy_since += slept_s
                worker.loading_since += slept_s
                worker.pinged += slept_s
            elif (hung := self._hung(worker, now)) is not None:
                logger.error("%s: worker %d hangs: %s; killed", self.name, worker.process.pid, hung)
                self._metrics.worker_timeouts.labels(self.name).inc()
                worker.process.kill()
                self._lost(worker)  # not when it ends: a device may hold on to it
            elif worker.answered and now - worker.pinged >= self._ping_s:
                self._ping(worker, now)
        for line in list(self._lines):
            if line.replaced is not None and now - line.replaced > _LINGER_S and not self._has_rows(line):
                self._drop(line)

    @staticmethod
    def _ping(worker: Worker, now: float) -> None:
        """Ask `worker` for a sign of life if it is idle: nobody else would notice that it hangs."""
        if worker.loaded and not worker.running:
            worker.pinged, worker.answered = now, False
            with suppress(OSError):  # its end-of-file will say so
                worker.channel.send({"ping": 0})

    def _hung(self, worker: Worker, now: float) -> str | None:
        """What `worker` does that takes far longer than it should, or None."""
        settings = self._settings
        if worker.loading and now - worker.loading_since > settings.load_timeout_s:
            return f"{worker.loading[0].artifact.address} is not loaded after {settings.load_timeout_s:g} s"
        if not worker.answered and now - worker.pinged > settings.worker_timeout_s:
            return f"it was idle, and gave no sign of life for {settings.worker_timeout_s:g} s"
        if not worker.running:
            return None
        batch, _ = next(iter(worker.running.values()))
        row_s = batch.line.size.row_s
        if row_s is None:  # nothing is known yet of what a row costs
            limit_s = max(settings.load_timeout_s, settings.worker_timeout_s)
        else:
            limit_s = settings.worker_timeout_s + _SLOW_FACTOR * batch.line.size.seconds(batch.weight)
        if now - worker.busy_since <= limit_s:
            return None
        return f"a microbatch of {batch.rows} rows is not finished after {limit_s:.1f} s"

    # -- versions ---------------------------------------------------------------------------------

    async def switch_to(self, line: Line) -> None:
        """Serve `line` from now on, once every worker has loaded it, or after `load_timeout_s` one of them:
        who has not by then hangs, and what comes in its place begins with `line`.

        What was accepted before is finished on the version that it was accepted for. Raises
        VersionRefused, and serves on as before, if it cannot be loaded or its golden rows differ.
        One switch at a time.
        """
        assert self._switch is None
        self._lines.append(line)
        served = self.line.device
        self._switch = switch = Switch(line, served.golden_difference if served else 0)
        try:
            for worker in self.workers:
                with suppress(OSError):  # its end-of-file will say so
                    self._load(worker, line)
            await switch.settled(self._settings.load_timeout_s)
        except BaseException as error:
            self._drop(line)
            if isinstance(error, StartError):  # no memory
                raise VersionRefused(f"{line.artifact.address}: {error}") from None
            raise
        finally:
            self._switch = None
        self._publish(0)
        self.line.replaced = time.monotonic()
        self.line = line
        self._publish(1)

    def _drop(self, line: Line) -> None:
        """Let go of a version that has no rows left."""
        self._lines.remove(line)
        for worker in list(self.workers):
            if line in worker.loading:
                worker.loading.remove(line)
            worker.loaded.pop(line, None)
            if worker.slots.pop(line, None) is not None:
                with suppress(OSError):
                    worker.channel.send({"drop": line.number})
            if not worker.slots:  # it serves nothing: another comes in its place
                self.workers.remove(worker)
                self._detach(worker)

    def _has_rows(self, line: Line) -> bool:
        held = [batch for worker in self.workers for batch, _ in worker.running.values()]
        return line.queue.rows > 0 or any(batch.line is line for batch in (*self._replays, *held))

    def _publish(self, value: int) -> None:
        """Set the info metric of the version served to 1, or take it away."""
        line, info = self.line, self._metrics.model_info
        if line.device is None:
            return
        manifest = line.artifact.manifest
        labels = (self.name, str(manifest.version), manifest.digest, line.device.provider)
        if value:
            info.labels(*labels).set(1)
        else:
            info.remove(*labels)

    # -- microbatches -----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand out microbatches while a worker can take one."""
        while not self._encoders_are_full:
            choice = (self._replays and self._next_replay()) or self._next_fresh()
            if not choice:
                return
            worker, batch = choice
            live = [segment for segment in batch.segments if not segment.request.ended]
            if len(live) < len(batch.segments):
                batch.keep(live)
            if live:
                self._run(worker, batch)

    def _next_replay(self) -> tuple[Worker, Microbatch] | None:
        """The first microbatch to be sent again that a worker has room for, and that worker."""
        for batch in self._replays:
            able = [one for one in self.workers if one.free_slots and batch.line in one.loaded]
            if able:
                self._replays.remove(batch)
                return min(able, key=lambda one: (len(one.running), one.last_run)), batch
        return None

    def _next_fresh(self) -> tuple[Worker, Microbatch] | None:
        """A microbatch of rows that wait, and its worker; None where waiting fills it better."""
        for line in self._lines:
            if line.queue.rows and (choice := self._next_worker(line)) is not None:
                if len(self._lines) > 1:  # versions take turns
                    self._lines.remove(line)
                    self._lines.append(line)
                worker, max_rows = choice
                return worker, Microbatch(line, line.queue.take(max_rows))
        return None

    def _next_worker(self, line: Line) -> tuple[Worker, int] | None:
        """The worker to give rows to and how many, or None where waiting fills the microbatch better.

        Idle workers share what waits. A busy worker gets its second microbatch only when that one
        is full, and shortly before it is needed: a microbatch formed earlier is closed to rows that
        arrive meanwhile, and they would wait for one more.
        """
        waiting, cap = line.queue.rows, line.size.rows
        idle, warm = 0, None
        for worker in self.workers:
            if not worker.running and line in worker.loaded:
                idle += 1
                if warm is None or worker.last_run > warm.last_run:  # the weights are in its core's cache
                    warm = worker
        if warm is not None:
            return warm, line.size.fit(math.ceil(waiting / idle))
        if waiting < cap:
            return None
        for worker in self.workers:
            if worker.free_slots and line in worker.loaded and self._ends_soon(worker):
                return worker, cap
        return None

    def _ends_soon(self, worker: Worker) -> bool:
        """True if `worker` will need its next microbatch now; else it is asked again when it will."""
        batch, _ = next(iter(worker.running.values()))
        early_s = worker.busy_since + batch.line.size.seconds(batch.weight) - _FORM_AHEAD_S - time.monotonic()
        if early_s <= _ALARM_S:
            return True
        if worker.alarm is None:
            worker.alarm = asyncio.get_running_loop().call_later(early_s, self._ring, worker)
        return False

    def _ring(self, worker: Worker) -> None:
        worker.alarm = None
        self._pump()

    def _run(self, worker: Worker, batch: Microbatch) -> None:
        started = time.perf_counter()
        slot_index = worker.free_slots.pop()
        slot = worker.slots[batch.line][slot_index]
        batch.write(slot, self._format_codes)
        batch.input_s = time.perf_counter() - started
        self._next_run += 1
        if not worker.running:
            worker.busy_since = time.monotonic()
        worker.running[self._next_run] = batch, slot_index
        worker.last_run = self._next_run
        judged = batch.weight if batch.judged else 0
        order = Run(self._next_run, batch.line.number, slot_index, batch.rows, judged)
        try:
            worker.channel.send(order)
        except OSError:  # never for a full buffer: a few packets of some hundred bytes are out at most
            logger.debug("%s: worker %d is gone; its end-of-file will say so", self.name, worker.process.pid)
