"""The worker process: one microbatch after another on one device, and nothing else.

It connects to the API process, loads the versions that it is told to (opens a session, replays a few
golden rows) and runs the microbatches that it is sent until the connection ends. A version is
loaded in a thread beside the microbatches of the one that is served, so a reload holds up no row.
Latents are drawn and (on the CPU) images encoded here, so that the work spreads over workers and the
one API process stays light.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import ContractError, DamagedArtifact
from models.store import Store
from service import channel, log
from service.device import Accelerator, DeviceOptions
from service.encoding import FORMATS
from service.errors import EXIT_REFUSED, DeviceLost, StartError
from service.generator import GOLDEN_ROWS_AT_START, Generator
from service.memory import MIB, give_freed_memory_back
from service.provenance import Rendering
from service.slots import LATENTS_GIVEN, Slot, SlotLayout, map_slots

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know; pickled into it when it is spawned. What to serve it is told later."""

    store: str
    accelerator: Accelerator
    threads: int
    options: DeviceOptions
    strict: bool
    marks: bool
    channel: channel.Address


def work(settings: WorkerSettings, model_name: str, device: str) -> None:
    """The life of a worker of `model_name` on `device` ("cpu", "cuda:0"): until its connection ends."""
    # Either may reach the whole process group, and a worker outlives the drain.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    give_freed_memory_back(4 * MIB, 4 * MIB)  # a microbatch needs such blocks each time
    address = settings.channel
    try:
        link = channel.connect(address)
        link.send({"token": address.token, "model": model_name})
        loader = _Loader(link, settings, int(device.partition(":")[2] or 0))
        loader.start()
        while (received := link.receive_with_fd()) is not None:
            message, fd = received
            if isinstance(message, channel.Run):
                link.send(_run(message, loader.loaded[message.line]))
                continue
            assert isinstance(message, dict)
            if "ping" in message:
                link.send({"pong": message["ping"]})
            else:
                loader.orders.put((message, fd))
    except DeviceLost as error:  # what this worker holds is sent to the one that starts in its place
        log.configure("info")
        logger.error("a worker of %s ends: %s", model_name, error)
        os._exit(1)
    except OSError:  # the API process is gone: there is nobody left to work for
        logger.debug("a worker of %s ends: the API process is gone", model_name)
    os._exit(0)  # also while a session is being opened


@dataclass(frozen=True, eq=False)
class _Loaded:
    """One version, ready to run."""

    generator: Generator
    slots: list[Slot]


class _Loader(threading.Thread):
    """Loads and drops versions, in the order in which it is told to."""

    def __init__(self, link: channel.Channel, settings: WorkerSettings, device_id: int) -> None:
        super().__init__(name="loader", daemon=True)
        self.orders: queue.SimpleQueue[tuple[dict[str, Any], int | None]] = queue.SimpleQueue()
        self.loaded: dict[int, _Loaded] = {}  # by line
        self._link = link
        self._settings = settings
        self._device_id = device_id

    def run(self) -> None:
        while True:
            message, fd = self.orders.get()
            if "drop" in message:
                self.loaded.pop(message["drop"], None)
                continue
            assert fd is not None
            try:
                self._link.send(self._load(message, fd))
            except OSError:
                return  # the main thread sees the end of the connection too
            except Exception as error:
                self._refuse(message, error)

    def _load(self, message: dict[str, Any], fd: int) -> dict[str, Any]:
        """Open what `message` names; return the message that answers it."""
        settings = self._settings
        try:
            artifact = Store(settings.store).resolve(message["address"])
            if artifact.digest != message["digest"]:
                raise DamagedArtifact(
                    f"{artifact.address} was replaced in the store: its digest is {artifact.digest[:12]}, "
                    f"not {message['digest'][:12]}"
                )
            layout = SlotLayout.of(artifact.manifest, message["rows"])
            slots = map_slots(fd, layout, message["slots"])
        finally:
            os.close(fd)
        generator = Generator(
            artifact,
            settings.accelerator,
            settings.threads,
            self._device_id,
            settings.options,
            settings.marks,
        )
        session = generator.session
        difference = session.golden_difference(GOLDEN_ROWS_AT_START)
        if settings.strict and difference:
            raise StartError(
                f"{artifact.address}: golden rows differ by up to {difference} grey levels "
                f"on {session.provider}, and --strict asks for bit-exact ones"
            )
        off = 0.0
        if artifact.manifest.calibration is not None:
            off = generator.discriminator.golden_difference(GOLDEN_ROWS_AT_START)
            if settings.strict and off:
                raise StartError(
                    f"{artifact.address}: logits of golden rows differ by up to {off:.3f} "
                    f"on {session.provider}, and --strict asks for the same"
                )
        self.loaded[message["load"]] = _Loaded(generator, slots)
        return {
            "loaded": message["load"],
            "provider": session.provider,
            "runtime": session.runtime_version,
            "golden_difference": difference,
            "realness_difference": off,
            "arithmetic": session.arithmetic,
        }

    def _refuse(self, message: dict[str, Any], error: Exception) -> None:
        """Say why a version cannot be served. A worker that is left with nothing to serve ends."""
        expected = isinstance(error, ContractError | StartError)
        reason = (
            str(error)
            if expected
            else f"{message['address']} cannot be loaded: {type(error).__name__}: {error}"
        )
        with suppress(OSError):
            self._link.send({"refused": message["load"], "error": reason[:2000]})
        if not expected:
            log.configure("info")
            logger.error("worker of %s failed to start", message["address"], exc_info=error)
        if not self.loaded and self.orders.empty():
            if expected:
                print(f"ganserve: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_REFUSED if expected else 1)  # past LitServe, which would exit with 0


def _run(order: channel.Run, loaded: _Loaded) -> channel.Message:
    """Run one microbatch in place; return the message that answers it."""
    started, rows = time.monotonic(), order.rows
    generator, slot = loaded.generator, loaded.slots[order.slot].first(rows)
    given = slot.seeds, slot.class_idx, slot.truncation_psi, slot.latents
    try:
        if order.judged:
            images, slot.realness[:] = generator.judge(*given, slot.proposals)
        else:
            images = generator.make(*given)  # [N, H, W, C] uint8
        device_s = time.monotonic() - started
        write_made(images, slot, generator.rendering, order.judged > 0)
    except DeviceLost:
        raise
    except (
        Exception
    ) as error:  # ONNX Runtime raises a dozen unrelated classes; these rows fail, not the worker
        return {"failed": order.run, "error": f"{type(error).__name__}: {error}"[:500]}
    bucket = generator.session.bucket(rows)
    if order.judged:  # what it made is more than one run of the device may hold
        bucket = max(order.judged, generator.session.bucket(order.judged))
    return channel.Done(order.run, bucket, device_s, started)


def write_made(images: npt.NDArray[np.uint8], slot: Slot, rendering: Rendering, judged: bool = False) -> None:
    """Write images [N, H, W, C] into the N rows of `slot`, as files where those are asked for and fit.

    Else as pixels. `judged`: the slot's `proposals` are true, and marks name them.

    A file is made here while its pixels are in this core's cache, and by as many processes as there are
    workers; in the API process it would cost half as much again, and hold up requests.
    """
    formats = slot.formats.tolist()
    if not any(formats):
        slot.file_bytes[:] = 0
        slot.images[:] = images
        return
    seeds, classes, psis = slot.seeds.tolist(), slot.class_idx.tolist(), slot.truncation_psi.tolist()
    proposals = slot.proposals.tolist() if judged else [1] * len(formats)
    for row, code in enumerate(formats):
        size = 0
        if code:
            started = time.perf_counter()
            seed = None if seeds[row] == LATENTS_GIVEN else seeds[row]
            file = rendering.encode(
                images[row], FORMATS[code - 1], seed, classes[row], psis[row], proposals[row]
            )
            slot.encode_s[row] = time.perf_counter() - started
            if len(file) <= len(slot.files[row]):
                size = len(file)
                slot.files[row][:size] = file
        if not size:
            slot.images[row] = images[row]
        slot.file_bytes[row] = size
